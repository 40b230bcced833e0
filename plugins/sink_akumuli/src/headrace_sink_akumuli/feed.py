"""From event batches to what is sent, and what is remembered of it. Knows nothing of sockets; writes one file, the table of series.

The sink and `headrace akumuli rebuild` feed the server by the same steps, so that what one has sent the other finds again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from headrace_sink_akumuli.names import DEVICE, NAME_BYTES_MAX, metric_name, parse, plain, series_name, tag_value
from headrace_sink_akumuli.points import Column, Rows, columns_of, rows_of, tags_of
from headrace_sink_akumuli.render import rendered
from headrace_sink_akumuli.series import Series, SeriesTable
from headrace_sink_akumuli.state import Checkpoint
from headrace_sink_akumuli.timeline import Timeline


@dataclass
class Counts:
    """What became of readings. held: points that the server had already. refused: by reason; the lake has them all."""

    points: int = 0
    held: int = 0
    refused: dict[str, int] = field(default_factory=dict)

    def refuse(self, reason: str, count: int) -> None:
        if count:
            self.refused[reason] = self.refused.get(reason, 0) + count

    def add(self, other: Counts) -> None:
        self.points += other.points
        self.held += other.held
        for reason, count in other.refused.items():
            self.refuse(reason, count)


class Naming(NamedTuple):
    """How series are called: the prefix of metrics, and the fields of the context that become tags."""

    metric_prefix: str
    tags: tuple[str, ...]

    def series(self, reading: str, device: str, context: dict[str, str]) -> Series:
        """A new series, by the context as it is now."""
        tags = {tag_value(name): tag_value(context[name]) for name in self.tags}
        return Series(reading, device, series_name(self.metric_prefix + metric_name(reading), {DEVICE: tag_value(device), **tags}))

    def parsed(self, name: str) -> Series | None:
        """A series found in the server, if it is one that this naming makes."""
        try:
            metric, tags = parse(name)
        except ValueError:
            return None
        if set(tags) != {DEVICE, *map(tag_value, self.tags)} or not metric.startswith(self.metric_prefix):
            return None
        return Series(plain(metric.removeprefix(self.metric_prefix)), plain(tags[DEVICE]), name)


class Feed:
    """The state of one stream of points: `checkpoint` up to where it came, `timeline` the timestamps given out and held."""

    def __init__(self, table: SeriesTable, naming: Naming, checkpoint: Checkpoint, held: Any) -> None:
        self._table, self._naming = table, naming
        self.checkpoint = checkpoint
        checkpoint.grow(len(table))
        self.timeline = Timeline(checkpoint.last, held)
        self.timeline.grow(len(table))
        #: by device what its series are tagged with, in place of the context of their first event
        self.contexts: Mapping[str, dict[str, str]] = {}

    def take(self, batch: pa.RecordBatch) -> tuple[list[memoryview], Counts]:
        """The bytes of a batch's points, series by series. New series are durable when this returns. OSError: nothing was taken."""
        counts = Counts()
        if not batch.num_rows:
            return [], counts
        rows = rows_of(batch)
        columns = list(columns_of(batch, rows, counts.refused))
        numbers = self._numbers(batch, rows, columns, counts)
        self.timeline.grow(len(self._table))
        buffers: list[memoryview] = []
        for column, number_of in zip(columns, numbers, strict=True):
            self._column(column, number_of[column.codes], buffers, counts)
        self._saw(batch)
        return buffers, counts

    def snapshot(self) -> Checkpoint:
        """The checkpoint as of now, to be kept."""
        taken = self.checkpoint.copy()
        taken.last = self.timeline.last.copy()
        return taken

    def _column(self, column: Column, series: Any, buffers: list[memoryview], counts: Counts) -> None:
        time_us, values = column.time_us, column.values
        known = series >= 0
        if not known.all():  # refused by `_numbers`, and counted there
            series, time_us, values = series[known], time_us[known], values[known]
        stamped = self.timeline.stamp(series, time_us)
        counts.refuse("late", stamped.late)
        counts.refuse("crowded", stamped.crowded)
        counts.held += stamped.held
        send, ns = stamped.send, stamped.ns
        if not send.all():
            series, ns, values = series[send], ns[send], values[send]
        counts.points += len(series)
        buffers.extend(rendered(self._table.prefixes, series, ns, values))

    def _numbers(self, batch: pa.RecordBatch, rows: Rows, columns: Sequence[Column], counts: Counts) -> list[Any]:
        """For each column the series' number of each device code. New series go to the table all at once: that is one sync."""
        devices = self._table.devices(rows.devices)
        numbers = [self._table.find(column.reading, devices) for column in columns]
        missing: list[tuple[int, int, int]] = []  # column, code, row
        for index, (column, number_of) in enumerate(zip(columns, numbers, strict=True)):
            unknown = number_of[column.codes] < 0
            if unknown.any():
                codes, firsts = np.unique(column.codes[unknown], return_index=True)
                missing += zip([index] * len(codes), codes.tolist(), column.rows[unknown][firsts].tolist(), strict=True)
        if not missing:
            return numbers
        contexts = tags_of(batch, [row for _, _, row in missing], self._naming.tags)
        new: list[Series] = []
        places: list[tuple[int, int]] = []
        for (index, code, _), context in zip(missing, contexts, strict=True):
            device = rows.devices[code]
            series = self._naming.series(columns[index].reading, device, self.contexts.get(device, context))
            reason = self._why_not(series, len(new))
            if reason:
                counts.refuse(reason, int((columns[index].codes == code).sum()))
            else:
                new.append(series)
                places.append((index, code))
        first = len(self._table)
        if new:
            self._table.add(new)
        for offset, (index, code) in enumerate(places):
            numbers[index][code] = first + offset
        return numbers

    def _why_not(self, series: Series, taken: int) -> str:
        if len(series.name) > NAME_BYTES_MAX:
            return "name"
        return "series_max" if self._table.room <= taken else ""

    def _saw(self, batch: pa.RecordBatch) -> None:
        origin = batch.column("origin")
        if not pa.types.is_dictionary(origin.type):
            origin = origin.dictionary_encode()
        codes, positions = origin.indices.to_numpy(), batch.column("position").to_numpy()
        for code in np.unique(codes).tolist():
            self.checkpoint.saw(origin.dictionary[code].as_py(), int(positions[codes == code].max()))


def adopt(table: SeriesTable, naming: Naming, names: Iterable[str]) -> int:
    """Take series that the server has and the table has not, as after the loss of the table; how many."""
    found: dict[tuple[str, str], Series] = {}
    for name in names:
        if table.number_of(name) is None and (series := naming.parsed(name)) is not None:
            found.setdefault((series.reading, series.device), series)
    new = [
        series
        for series in found.values()
        if table.find(series.reading, table.devices([series.device]))[0] < 0  # else it has another name here
    ][: table.room]
    if new:
        table.add(new)
    return len(new)


def held_by(table: SeriesTable, timestamps: dict[str, int]) -> Any:
    """The server's last timestamps by series number (int64, 0 where it has none)."""
    held = np.zeros(len(table), np.int64)
    for name, ns in timestamps.items():
        number = table.number_of(name)
        if number is not None:
            held[number] = ns
    return held
