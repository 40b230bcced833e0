"""Events read back from the lake that this tier's sink_lake writes, in order of time and in pieces that fit into memory. Blocking I/O."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace import event_schema
from headrace_sink_akumuli.names import UNKNOWN
from headrace_sink_akumuli.points import text_of
from headrace_sink_lake import Ledger, Store, live_files, open_store
from headrace_sink_lake.ledger import COMMITS
from headrace_sink_lake.manifest import ROLL_FILE
from headrace_sink_lake.snapshot import read_manifest

#: Events fed at once.
CHUNK_ROWS: Final = 65_536
#: What the core decodes numbers and booleans to.
_NUMBERS: Final = (pa.float64(), pa.bool_())
_READING, _TAG = "r:", "t:"


class Span(NamedTuple):
    """A row group: its file, its number there, rows, and the times (us) of its first and last event."""

    path: str
    group: int
    rows: int
    first_us: int
    last_us: int


class Wanted(NamedTuple):
    """Which events: behind `seen` (by origin the highest position taken), and of the origins in `ends` (queue ids) up to there.

    Of origins that were never seen only events received at or after `since_us`.
    """

    seen: Mapping[str, int]
    ends: Mapping[str, int]
    since_us: int


class Lake:
    """One lake, and the fields of the context that are tags."""

    def __init__(self, path: str, tags: Sequence[str]) -> None:
        self._store: Store = open_store(path)
        self._tags = tags
        self._ledger = Ledger(self._store, lambda count: None)
        self.root = self._store.root

    def end(self, queue_id: str) -> int | None:
        """The last position of that queue that the lake holds; None: nothing."""
        return self._ledger.end(queue_id)

    def queue_ids(self) -> list[str]:
        """The queues that have written to the lake."""
        return [unquote(name) for name in self._store.names(COMMITS)]

    def spans(self, ends: Mapping[str, int], marks: Mapping[str, int], seen: Mapping[str, int]) -> tuple[list[Span], dict[str, int]]:
        """The row groups that may hold events of these queues behind `marks` (by queue id), up to `ends`; `ends` as they are now."""
        while True:
            files = live_files(self._store)
            covered = [entry for partition in read_manifest(self._store).partitions for entry in partition.covered]
            limits = {quote(queue, safe=""): end for queue, end in ends.items()}
            # of compacted files nobody sees what they reach to: they must not reach beyond what was asked for
            if all(entry.upto <= limits.get(entry.queue, entry.upto) for entry in covered):
                break
            ends = {queue: self.end(queue) or 0 for queue in ends}
        behind = {quote(queue, safe=""): mark for queue, mark in marks.items()}
        rolls = {path: (roll["queue"], int(roll["first"])) for path in files if (roll := ROLL_FILE.fullmatch(path.rpartition("/")[2]))}
        firsts = sorted(set(rolls.values()))
        nexts = {one: other[1] for one, other in itertools.pairwise(firsts) if one[0] == other[0]}
        found: list[Span] = []
        for path in files:
            if path in rolls:
                queue, first = rolls[path]
                if first > limits.get(queue, -1) or nexts.get((queue, first), 2**63) - 1 <= behind.get(queue, 0):
                    continue
            found += self._groups(path, seen)
        return found, dict(ends)

    def _groups(self, path: str, seen: Mapping[str, int]) -> Iterator[Span]:
        with pq.ParquetFile(self._store.open_input(path)) as file:
            meta = file.metadata
            places = {meta.schema.column(index).path: index for index in range(meta.num_columns)}
            for number in range(meta.num_row_groups):
                group = meta.row_group(number)
                time, origin, position = (group.column(places[name]).statistics for name in ("time", "origin", "position"))
                one = origin is not None and origin.has_min_max and origin.min == origin.max
                if one and position.has_min_max and position.max <= seen.get(origin.min, 0):
                    continue
                low, high = (int(value.timestamp() * 1e6) for value in (time.min, time.max))
                # a float's rounding must not cut off an event
                yield Span(path, number, group.num_rows, low - 1000, high + 1000)

    def batches(self, spans: Sequence[Span], first_us: int, last_us: int, wanted: Wanted | None) -> Iterator[pa.RecordBatch]:
        """The events of a window of time (both ends included) as event batches, in order of time."""
        tables = []
        for path in dict.fromkeys(span.path for span in spans if span.last_us >= first_us and span.first_us <= last_us):
            groups = [span.group for span in spans if span.path == path and span.last_us >= first_us and span.first_us <= last_us]
            with pq.ParquetFile(self._store.open_input(path)) as file:
                table = self._flat(file.read_row_groups(groups, columns=self._columns(file.schema_arrow)))
            times = table.column("time").cast(pa.int64()).to_numpy()
            keep = (times >= first_us) & (times <= last_us)
            if wanted is not None:
                keep &= _behind(table, wanted)
            tables.append(table if keep.all() else table.filter(pa.array(keep)))
        if not tables or not sum(table.num_rows for table in tables):
            return
        table = pa.concat_tables(tables, promote_options="default")
        order = np.lexsort((table.column("position").to_numpy(), table.column("time").cast(pa.int64()).to_numpy()))
        for first in range(0, len(order), CHUNK_ROWS):
            yield _events(table.take(pa.array(order[first : first + CHUNK_ROWS])), self._tags)

    def newest_tags(self, spans: Sequence[Span], tell: Callable[[int], None]) -> dict[str, dict[str, str]]:
        """By device the tags of its newest event."""
        found: dict[str, dict[str, str]] = {}
        newest: dict[str, int] = {}
        for span in spans:
            with pq.ParquetFile(self._store.open_input(span.path)) as file:
                columns = [name for name in self._columns(file.schema_arrow) if not name.startswith("readings")]
                table = self._flat(file.read_row_group(span.group, columns=columns)).combine_chunks()
            times = table.column("time").cast(pa.int64()).to_numpy()
            devices = table.column("device").combine_chunks().dictionary_encode()
            codes = devices.indices.to_numpy()
            order = np.lexsort((times, codes))
            lasts = order[np.flatnonzero(np.append(codes[order][1:] != codes[order][:-1], True))]
            there = [name for name in self._tags if f"{_TAG}{name}" in table.column_names]
            tags = {name: table.column(f"{_TAG}{name}").take(pa.array(lasts)).to_pylist() for name in there}
            for index, row in enumerate(lasts.tolist()):
                device = devices.dictionary[int(codes[row])].as_py()
                if times[row] >= newest.get(device, -(2**63)):
                    newest[device] = int(times[row])
                    found[device] = {name: (tags[name][index] if name in tags else None) or UNKNOWN for name in self._tags}
            tell(span.rows)
        return found

    def _columns(self, schema: pa.Schema) -> list[str]:
        fields = {field.name for field in schema.field("context").type}
        return ["device", "time", "received", "origin", "position", "readings", *(f"context.{tag}" for tag in self._tags if tag in fields)]

    def _flat(self, table: pa.Table) -> pa.Table:
        """One column for each number and each tag: files with different readings can be joined then."""
        columns: dict[str, Any] = {name: table.column(name) for name in ("device", "time", "received", "position")}
        columns["origin"] = table.column("origin").cast(pa.string())
        for name, mark in (("readings", _READING), ("context", _TAG)):
            if name not in table.column_names:
                continue
            whole = table.column(name).combine_chunks()
            for field, values in zip(whole.type, whole.flatten(), strict=True):
                if mark == _TAG and field.name in self._tags:
                    columns[f"{mark}{field.name}"] = _text(values)
                elif mark == _READING and (field.type in _NUMBERS):
                    columns[f"{mark}{field.name}"] = values.cast(pa.float64())
        return pa.table(columns)


def _text(values: pa.Array) -> pa.Array:
    if pa.types.is_string(values.type):
        return values
    return pa.array([text_of(value) for value in values.to_pylist()], pa.string())


def _behind(table: pa.Table, wanted: Wanted) -> Any:
    """Which events were not taken yet."""
    origins = table.column("origin").combine_chunks().dictionary_encode()
    names = origins.dictionary.to_pylist()
    codes, positions = origins.indices.to_numpy(), table.column("position").to_numpy()
    floor = np.array([wanted.seen.get(name, 0) for name in names], np.uint64)[codes]
    ceiling = np.array([wanted.ends.get(name, 2**63) for name in names], np.uint64)[codes]
    known = np.array([name in wanted.seen for name in names], bool)[codes]
    received = table.column("received").cast(pa.int64()).to_numpy()
    return (positions > floor) & (positions <= ceiling) & (known | (received >= wanted.since_us))


def _events(table: pa.Table, tags: Sequence[str]) -> pa.RecordBatch:
    def struct(mark: str) -> pa.StructArray:
        names = [name for name in table.column_names if name.startswith(mark)]
        arrays = [table.column(name).combine_chunks() for name in names]
        if not arrays:
            return pa.array([{}] * table.num_rows, pa.struct([]))
        return pa.StructArray.from_arrays(arrays, names=[name[len(mark) :] for name in names])

    readings, context = struct(_READING), struct(_TAG)
    columns = [
        table.column("device").combine_chunks(),
        table.column("time").combine_chunks(),
        table.column("received").combine_chunks(),
        readings,
        context,
        table.column("origin").combine_chunks().dictionary_encode(),
        table.column("position").combine_chunks(),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=event_schema(readings.type, context.type))


def windows(spans: Iterable[Span], rows_max: int) -> list[tuple[int, int, int]]:
    """Windows of time that follow each other, cover all spans, and hold about `rows_max` events each: first, last (us), rows.

    The events of a span are taken to be spread evenly over its time.
    """
    listed = list(spans)
    if not listed:
        return []
    firsts = np.array([span.first_us for span in listed], np.float64)
    lengths = np.array([span.last_us - span.first_us + 1 for span in listed], np.float64)
    rows = np.array([span.rows for span in listed], np.float64)

    def before(us: int) -> float:
        return float((rows * np.clip((us - firsts) / lengths, 0, 1)).sum())

    begin, end = min(span.first_us for span in listed), max(span.last_us for span in listed)
    found = []
    while begin <= end:
        done = before(begin)
        low, high = begin, end
        while low < high:
            middle = (low + high + 1) // 2
            if before(middle + 1) - done <= rows_max:
                low = middle
            else:
                high = middle - 1
        found.append((begin, low, round(before(low + 1) - done)))
        begin = low + 1
    return found
