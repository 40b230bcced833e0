"""Decode and enrich, once per batch for all outputs that keep up.

Outputs ask for "what comes behind position N". Outputs in step ask for the same and share one read, one decoding and one
enrichment; an output that lags behind the few batches kept here reads for itself.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace import decoding
from headrace.config import Engine
from headrace.engine.dead_letters import ALL_OUTPUTS
from headrace.engine.enrichment import Enricher
from headrace.engine.quarantine import Quarantine
from headrace.engine.reads import alike, cut_read, joined
from headrace.engine.supervisor import Supervised
from headrace.errors import HookError
from headrace.hookspecs import QueueRead
from headrace.metrics import Metrics
from headrace.position import RangeKey, global_ids, row_positions
from headrace.register import replace_durably
from headrace.schema import ENCODING_JSON, ENCODING_SITE_FIRST, event_schema, kind_of

#: Batches kept for outputs that are a little behind.
KEPT_BATCHES_MAX: Final = 32
NO_FIELDS: Final = pa.struct([])


class Events(NamedTuple):
    """One processed range: `positions` (uint64) are those of the rows of `batch`, the others are in `key`."""

    key: RangeKey
    batch: pa.RecordBatch
    positions: np.ndarray[Any, Any]

    def part(self, first: int, last: int) -> Events:
        """The part between two positions, inclusive."""
        if first <= self.key.first and last >= self.key.last:
            return self
        low, high = np.searchsorted(self.positions, np.array([first, last + 1], np.uint64))
        missing = tuple(
            hole._replace(first=max(hole.first, first), last=min(hole.last, last))
            for hole in self.key.missing
            if hole.first <= last and hole.last >= first
        )
        dead = tuple(position for position in self.key.dead if first <= position <= last)
        key = RangeKey(self.key.queue_id, max(first, self.key.first), min(last, self.key.last), missing, dead)
        return Events(key, self.batch.slice(low, high - low), self.positions[low:high])

    def without(self, dead: set[int]) -> Events:
        """The same range with these positions left out."""
        drop = np.flatnonzero(np.isin(self.positions, np.array(sorted(dead), np.uint64))).tolist() if dead else []
        if not drop:
            return self
        left_out = tuple(int(position) for position in self.positions[drop])
        key = self.key._replace(dead=tuple(sorted({*self.key.dead, *left_out})))
        return Events(key, decoding.keep_rows(self.batch, drop), np.delete(self.positions, drop))


class Pipeline:
    """What lies between one tier's queue and its outputs; lives on the pipeline's loop."""

    def __init__(
        self,
        queue_hook: Any,
        decoders: Sequence[Supervised],
        enrichers: Sequence[Enricher],
        engine: Engine,
        types_file: Path,
        quarantine: Quarantine,
        metrics: Metrics,
    ) -> None:
        self._queue, self._enrichers, self._engine, self._quarantine = queue_hook, enrichers, engine, quarantine
        self._decoders = _decoders_by_encoding(decoders)
        self._types_file = types_file
        self._types = decoding.ReadingTypes(engine.readings_max, _load_types(types_file))
        self._kept: deque[Events] = deque(maxlen=KEPT_BATCHES_MAX)
        self._under_way: dict[tuple[int, int], asyncio.Task[Events]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        #: set once every decoder and enricher is open
        self.ready = asyncio.Event()
        self._count_decoded = metrics.counter("decode_events_total", "Events decoded.")
        self._count_misfits = metrics.counter(
            "decode_misfit_values_total", "Values kept in `_other`: another type came first, or too many names."
        )
        self._count_outside = metrics.counter(
            "decode_time_outside_total", "Events whose own time lies outside the window; filed under received."
        )
        self._count_unreadable = metrics.counter(
            "decode_time_unreadable_total", "Events whose own time cannot be read; filed under received."
        )
        self._seconds = {
            stage: metrics.histogram("pipeline_stage_duration_seconds", "Seconds per batch.", stage=stage) for stage in ("decode", "enrich")
        }

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Reads run in this group from now on: an error of queue or engine ends the group, and with it the process."""
        self._tasks = tasks

    async def after(self, reader: str, after: int, rows_max: int | None = None) -> Events:
        """The events that follow position `after`, at least one position; waits while there are none."""
        rows = rows_max or self._engine.read_rows_max
        for events in self._kept:
            if events.key.first <= after + 1 <= events.key.last:
                return events.part(after + 1, after + rows)
        task = self._under_way.get((after, rows))
        if task is None:
            assert self._tasks is not None
            task = self._tasks.create_task(self._process(reader, after, rows))
            self._under_way[after, rows] = task
            task.add_done_callback(lambda _: self._under_way.pop((after, rows), None))
        # one waiter's cancellation must not take the read from the others
        return await asyncio.shield(task)

    async def exactly(self, reader: str, first: int, last: int, bytes_max: int) -> QueueRead:
        """The positions first..last as one read, or fewer of them when they pass `bytes_max`; never spans two queue ids."""
        reads: list[QueueRead] = []
        size = 0
        while (after := reads[-1].last if reads else first - 1) < last and (not reads or size < bytes_max):
            read = await self._queue.queue_read(reader=reader, after=after, rows_max=last - after, bytes_max=max(1, bytes_max - size))
            if not alike(reads, read):
                break
            reads.append(cut_read(read, read.first, last))
            size += read.batch.nbytes if read.batch is not None else 0
        return joined(reads)

    async def raw(self, reader: str, first: int, last: int) -> QueueRead:
        """One read as the queue holds it, undecoded, starting at `first`."""
        read: QueueRead = await self._queue.queue_read(
            reader=reader, after=first - 1, rows_max=last - first + 1, bytes_max=self._engine.read_bytes_max
        )
        return cut_read(read, first, last)

    def stop(self) -> None:
        """Give up the reads that wait for events: nobody is left to take them."""
        for task in self._under_way.values():
            task.cancel()

    async def _process(self, reader: str, after: int, rows_max: int) -> Events:
        read = await self._queue.queue_read(reader=reader, after=after, rows_max=rows_max, bytes_max=self._engine.read_bytes_max)
        # before anything is decoded: a range under suspicion must not bring its neighbours along
        events = await self.events(read if rows_max == self._engine.read_rows_max else cut_read(read, after + 1, after + rows_max))
        if rows_max == self._engine.read_rows_max:
            self._keep(events)
        return events

    def _keep(self, events: Events) -> None:
        self._kept.append(events)
        while len(self._kept) > 1 and sum(kept.batch.nbytes for kept in self._kept) > 4 * self._engine.read_bytes_max:
            self._kept.popleft()

    async def events(self, read: QueueRead) -> Events:
        """Decode and enrich one read, however long that takes."""
        await self.ready.wait()
        key = RangeKey(read.queue_id, read.first, read.last, read.missing)
        positions = row_positions(read.first, read.last, read.missing)
        if read.batch is None:
            return Events(key, no_events(), positions[:0])
        if kind_of(read.batch.schema) == "raw":
            with self._seconds["decode"].time():
                batch, bad = self._decode(read.batch, read, positions)
            if bad:
                await self._refuse(read, read.batch, positions, bad)
        else:
            batch, bad = pa.RecordBatch.from_arrays([_own(column) for column in read.batch.columns], schema=read.batch.schema), {}
        with self._seconds["enrich"].time():
            for enricher in self._enrichers:
                batch, refused = await enricher.add_context(batch)
                if refused:
                    await self._refuse_enriched(enricher, read.batch, key, positions, refused)
                    bad.update(dict.fromkeys(refused, ""))
        events = Events(key, batch, positions)
        return events.without({int(positions[row]) for row in bad})

    def _decode(self, raw: pa.RecordBatch, read: QueueRead, positions: np.ndarray[Any, Any]) -> tuple[pa.RecordBatch, dict[int, str]]:
        """The event batch of a raw batch (all rows), and why rows that do not decode do not."""
        rows, bad = self._rows(raw)
        received = raw.column("received")
        times = decoding.take_times(rows, received, self._engine.time_past_max_s, self._engine.time_future_max_s)
        readings, misfits = decoding.readings_array(rows, self._types)
        if self._types.changed:
            # durable before any output sees a name: the first type seen has to stay the first after a crash
            replace_durably(self._types_file, json.dumps(self._types.types).encode())
            self._types.saved()
        origin, position = global_ids(read.queue_id, positions, read.origins)
        context = pa.array([{}] * raw.num_rows, NO_FIELDS)
        columns = [_own(raw.column("device")), times.time, _own(received), readings, context, origin, position]
        self._count_decoded.inc(raw.num_rows - len(bad))
        self._count_misfits.inc(misfits)
        self._count_outside.inc(times.outside)
        self._count_unreadable.inc(times.unreadable)
        return pa.RecordBatch.from_arrays(columns, schema=event_schema(readings.type, NO_FIELDS)), bad

    def _rows(self, raw: pa.RecordBatch) -> tuple[list[decoding.Readings], dict[int, str]]:
        encodings = pc.unique(raw.column("encoding")).to_pylist()
        if encodings == [ENCODING_JSON]:
            decoded, undecoded = decoding.decode_json(raw.column("payload").to_pylist())
            return decoded, dict.fromkeys(undecoded, "does not decode")
        rows: list[decoding.Readings] = [{} for _ in range(raw.num_rows)]
        bad: dict[int, str] = {}
        for encoding in encodings:
            indexes = np.flatnonzero(raw.column("encoding").to_numpy() == encoding).tolist()
            payloads = raw.column("payload").take(pa.array(indexes))
            for index, row in zip(indexes, self._decode_encoding(payloads, encoding, indexes, bad), strict=True):
                rows[index] = row
        return rows, bad

    def _decode_encoding(self, payloads: pa.Array, encoding: int, indexes: list[int], bad: dict[int, str]) -> list[decoding.Readings]:
        if encoding == ENCODING_JSON:
            rows, undecoded = decoding.decode_json(payloads.to_pylist())
        elif encoding in self._decoders:
            readings, undecoded = self._decoders[encoding].hook.decode(payloads=payloads, encoding=encoding)
            rows = decoding.rows_of(readings, undecoded)
        else:
            rows, undecoded = [{} for _ in indexes], list(range(len(indexes)))
        reason = "does not decode" if encoding in self._decoders or encoding == ENCODING_JSON else f"no decoder for encoding {encoding}"
        bad.update({indexes[row]: reason for row in undecoded})
        return rows

    async def _refuse(self, read: QueueRead, raw: pa.RecordBatch, positions: np.ndarray[Any, Any], bad: Mapping[int, str]) -> None:
        by_reason = sorted(bad, key=lambda row: bad[row])
        for reason, group in itertools.groupby(by_reason, key=lambda row: bad[row]):
            rows = list(group)
            refused = [int(positions[row]) for row in rows]
            await self._quarantine.add(
                raw.take(pa.array(rows)), refused, read.queue_id, ALL_OUTPUTS, "decode", "decode", reason, lambda _: None
            )

    async def _refuse_enriched(
        self, enricher: Enricher, rows: pa.RecordBatch, key: RangeKey, positions: np.ndarray[Any, Any], refused: Mapping[int, str]
    ) -> None:
        for row, reason in refused.items():
            position = int(positions[row])
            await self._quarantine.add(
                rows.slice(row, 1), [position], key.queue_id, ALL_OUTPUTS, "enrich", enricher.id, reason, enricher.holding
            )


def _own(column: pa.Array) -> pa.Array:
    """A copy: events outlive the read, and a view into the queue would keep its space from being reused (DELIVERY 11)."""
    return pa.concat_arrays([column, column.slice(0, 0)])


def no_events() -> pa.RecordBatch:
    """An event batch without rows."""
    return pa.RecordBatch.from_pylist([], schema=event_schema(NO_FIELDS, NO_FIELDS))


def _decoders_by_encoding(decoders: Sequence[Supervised]) -> dict[int, Supervised]:
    known: dict[int, Supervised] = {}
    for decoder in decoders:
        for name, encoding in decoder.hook.decode_encodings().items():
            if encoding in known or not ENCODING_JSON < encoding <= 255:
                taken = f"taken by {known[encoding].entry.use}" if encoding in known else f"a site's own are {ENCODING_SITE_FIRST}-255"
                raise HookError(decoder.entry.use, f"encoding {name!r} has the number {encoding}: {taken}")
            known[encoding] = decoder
    return known


def _load_types(file: Path) -> dict[str, str]:
    return json.loads(file.read_text()) if file.exists() else {}
