"""Decode and enrich, once per batch for all outputs that keep up."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace import decoding
from headrace.component import Health
from headrace.config import Engine
from headrace.encodings import STORED
from headrace.engine.dead_letters import ALL_OUTPUTS
from headrace.engine.decoder import Decoded, Decoder
from headrace.engine.enrichment import Enricher
from headrace.engine.quarantine import Holding, Refused, SettingAside
from headrace.engine.reading import Events, Reading
from headrace.engine.types_file import TypesFile
from headrace.hookspecs import QueueRead
from headrace.log import Log, describe
from headrace.metrics import Metrics
from headrace.position import RangeKey, global_ids, origins_of_rows, row_positions
from headrace.retry import Backoff
from headrace.schema import ENCODING_JSON, event_schema, kind_of

NO_FIELDS: Final = pa.struct([])
#: Another worker that writes the types of readings is done after a sync or two.
TYPES_LOCKED_S: Final = 0.005


class Pipeline(Reading):
    """For outputs that take events: what lies between one tier's queue and them."""

    def __init__(
        self,
        queue_hook: Any,
        decoders: Sequence[Decoder],
        enrichers: Sequence[Enricher],
        engine: Engine,
        types_file: TypesFile,
        quarantine: SettingAside,
        metrics: Metrics,
        log: Log,
        metadata: Mapping[str, Mapping[bytes, bytes]] | None = None,
    ) -> None:
        super().__init__(queue_hook, engine)
        self._log, self._enrichers, self._quarantine = log, enrichers, quarantine
        self._decoders = {encoding: decoder for decoder in decoders for encoding in decoder.encodings().values()}
        self._types_file = types_file
        self._types = decoding.ReadingTypes(engine.readings_max, types_file.load(log), types_file.declared, metadata)
        self._typed = decoding.TypedJson(self._types)
        if not decoding.COMPILED:
            log.warning("JSON is decoded without C, which takes three times as long")
        #: whether the types of new readings can be saved: without that nothing is decoded
        self.health = Health("ok")
        #: set once every decoder and enricher is open
        self.ready = asyncio.Event()
        self._waiting = metrics.gauge("decode_waiting", "1 while the types of new readings cannot be saved, and nothing is decoded.", "max")
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

    async def events(self, read: QueueRead) -> Events:
        """Decode and enrich one read, however long that takes."""
        await self.ready.wait()
        key = RangeKey(read.queue_id, read.first, read.last, read.missing)
        positions = row_positions(read.first, read.last, read.missing)
        if read.batch is None:
            return Events(key, self.empty(), positions[:0])
        if kind_of(read.batch.schema) == "raw":
            with self._seconds["decode"].time():
                batch, bad = await self._decode(read.batch, read, positions)
            if bad:
                await self._refuse(read, read.batch, positions, bad, "decode", "decode", lambda _: None)
        else:
            batch, bad = _own_batch(read.batch), {}
        with self._seconds["enrich"].time():
            for enricher in self._enrichers:
                batch, refused = await enricher.add_context(batch)
                if refused:
                    await self._refuse(read, read.batch, positions, refused, "enrich", enricher.id, enricher.holding)
                    bad.update(dict.fromkeys(refused, ""))
        events = Events(key, batch, positions)
        return events.without({int(positions[row]) for row in bad})

    def empty(self) -> pa.RecordBatch:
        return pa.RecordBatch.from_pylist([], schema=event_schema(NO_FIELDS, NO_FIELDS))

    async def _decode(self, raw: pa.RecordBatch, read: QueueRead, positions: np.ndarray[Any, Any]) -> tuple[pa.RecordBatch, dict[int, str]]:
        """The event batch of a raw batch (all rows), and why rows that do not decode do not."""
        (gathered, times, undecoded), bad = await self._values(raw)
        received = raw.column("received")
        bad.update(dict.fromkeys(undecoded, "does not decode"))
        readings, misfits = decoding.columns_of(gathered, self._types)
        while self._types.changed:
            if await self._share_types():
                break
            readings, misfits = decoding.columns_of(gathered, self._types)
        self._typed.expect([field.name for field in readings.type], gathered.objects)
        origin, position = global_ids(read.queue_id, positions, read.origins)
        context = pa.Array.from_buffers(NO_FIELDS, raw.num_rows, [None])
        columns = [_own(raw.column("device")), times.time, _own(received), readings, context, origin, position]
        self._count_decoded.inc(raw.num_rows - len(bad))
        self._count_misfits.inc(misfits)
        self._count_outside.inc(times.outside)
        self._count_unreadable.inc(times.unreadable)
        return pa.RecordBatch.from_arrays(columns, schema=event_schema(readings.type, NO_FIELDS)), bad

    async def _values(self, raw: pa.RecordBatch) -> tuple[decoding.Decoded, dict[int, str]]:
        """The values of all rows, and why some do not decode."""
        received, window = raw.column("received"), (self._engine.time_past_max_s, self._engine.time_future_max_s)
        if (raw.column("encoding").to_numpy() == ENCODING_JSON).all():
            decoded = decoding.decode_typed(raw.column("payload"), received, self._typed, *window)
            if decoded is not None:
                return decoded, {}
        rows, bad = await self._rows(raw)
        return decoding.decode_rows(rows, received, *window), bad

    async def _share_types(self) -> bool:
        """Make new names durable before any output sees them: the first type seen has to stay the first, after a crash and for
        every worker. False when another worker had been first with one of them, and what was decoded does not hold."""
        backoff = Backoff(self._engine.retry_base_ms, self._engine.retry_max_ms, random.Random())
        while True:
            try:
                known = self._types_file.extend(self._types.types)
            except BlockingIOError:
                await asyncio.sleep(TYPES_LOCKED_S)
            except OSError as error:
                path = str(self._types_file.path)
                self._log.error("types of readings cannot be saved; decoding waits", path=path, error=describe(error))
                self.health = Health(
                    "degraded", f"types of readings cannot be saved in {path}: {describe(error)}; nothing is decoded until then"
                )
                self._waiting.set(1)
                await asyncio.sleep(backoff.next_s())
            else:
                if self.health.status != "ok":
                    self.health = Health("ok")
                    self._waiting.set(0)
                return self._types.take(known)

    async def _rows(self, raw: pa.RecordBatch) -> tuple[list[decoding.Readings], dict[int, str]]:
        encodings = pc.unique(raw.column("encoding")).to_pylist()
        if len(encodings) == 1:
            return await self._decode_encoding(raw.column("payload"), encodings[0])
        rows: list[decoding.Readings] = [{} for _ in range(raw.num_rows)]
        bad: dict[int, str] = {}
        for encoding in encodings:
            indexes = np.flatnonzero(raw.column("encoding").to_numpy() == encoding).tolist()
            payloads = raw.column("payload").take(pa.array(indexes))
            decoded, undecoded = await self._decode_encoding(payloads, encoding)
            for index, row in zip(indexes, decoded, strict=True):
                rows[index] = row
            bad.update({indexes[row]: reason for row, reason in undecoded.items()})
        return rows, bad

    async def _decode_encoding(self, payloads: pa.Array, encoding: int) -> Decoded:
        if encoding in STORED:
            rows, undecoded = decoding.decode(payloads.to_pylist(), encoding)
            return rows, dict.fromkeys(undecoded, "does not decode")
        if encoding in self._decoders:
            return await self._decoders[encoding].decode(payloads, encoding)
        return [{} for _ in range(len(payloads))], dict.fromkeys(range(len(payloads)), f"no decoder for encoding {encoding}")

    async def _refuse(
        self,
        read: QueueRead,
        rows: pa.RecordBatch,
        positions: np.ndarray[Any, Any],
        bad: Mapping[int, str],
        stage: str,
        component: str,
        holding: Holding,
    ) -> None:
        names, numbers = global_ids(read.queue_id, positions, read.origins)
        by_reason = sorted(bad, key=lambda row: bad[row])
        for reason, group in itertools.groupby(by_reason, key=lambda row: bad[row]):
            indexes = list(group)
            at = [int(positions[row]) for row in indexes]
            origins = origins_of_rows((names[row].as_py(), numbers[row].as_py()) for row in indexes)
            refused = Refused(rows.take(pa.array(indexes)), at, read.queue_id, ALL_OUTPUTS, stage, component, reason, origins)
            await self._quarantine.add(refused, holding)


def _own(column: pa.Array) -> pa.Array:
    """A copy: events outlive the read, and a view into the queue would keep its space from being reused (DELIVERY 11)."""
    return pa.concat_arrays([column, column.slice(0, 0)])


def _own_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same of a whole batch, words of dictionaries at any depth included (19 ns a row)."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return pa.ipc.open_stream(sink.getvalue()).read_next_batch()
