"""Reading: exactly the positions that were asked for, whatever the queue's entries look like."""

from __future__ import annotations

import asyncio
from typing import Any

import pyarrow as pa
import pytest

from headrace import NO_ORIGINS, Origin, PermanentError, QueueRead, RangeKey, origin_batch
from headrace.config import Engine
from headrace.engine.buffer import Buffer
from headrace.engine.output_planned import PlannedOutput
from headrace.engine.output_streaming import StreamingOutput
from headrace.engine.reads import cut_read
from headrace.position import Missing, origins_of
from headrace.schema import event_schema
from headrace.testing.batches import event_batch


class WholeEntries(Buffer):
    """A queue that gives at least one whole entry, as the contract allows and queue_pmem does."""

    async def queue_read(self, reader: str, after: int, rows_max: int, bytes_max: int) -> QueueRead:
        return await super().queue_read(reader, after, 1 << 30, bytes_max)


@pytest.mark.parametrize("kind", [StreamingOutput, PlannedOutput])
def test_halving_goes_below_the_size_of_an_entry(bench: Any, stores: Any, kind: Any) -> None:
    class Store(stores[1]):
        idempotence = "key"

        def refuse(self, at: str, numbers: list[float], key: RangeKey) -> None:
            if 13.0 in numbers:
                raise PermanentError("something is odd")

    bench.buffer = WholeEntries("t", bench.clock, holding=True)

    async def main() -> None:
        pipeline = bench.pipeline()
        async with bench.running(pipeline) as tasks:
            await bench.feed(tasks, [40])
            await bench.drain(bench.outputs(pipeline, [(kind, bench.unit(Store))]))

    asyncio.run(main())
    assert Store.rows == [number for number in range(1, 41) if number != 13]


def test_raw_gives_the_event_at_the_position_or_none(bench: Any) -> None:
    batch = bench.batch(3)
    read = QueueRead("q", 1, 5, batch, NO_ORIGINS, (Missing(2, 3, "corrupt"),))
    assert cut_read(read, 2, 2) == QueueRead("q", 2, 2, None, NO_ORIGINS, (Missing(2, 2, "corrupt"),))
    assert cut_read(read, 4, 4).batch.column("payload").to_pylist() == [b'{"n":2}']
    assert cut_read(read, 3, 5).batch.column("payload").to_pylist() == [b'{"n":2}', b'{"n":3}']


def test_a_cut_read_keeps_each_rows_origin(bench: Any) -> None:
    origins = origin_batch([Origin("a", 11, 13), Origin("device/s", 5, 5, 3, 1), Origin("b", 21, 22, 3)])
    read = QueueRead("q", 1, 5, bench.batch(5), origins, ())
    assert origins_of(cut_read(read, 2, 4).origins) == [Origin("a", 12, 13), Origin("device/s", 5, 5, 2, 1), Origin("b", 21, 21, 2)]
    assert origins_of(cut_read(read, 5, 5).origins) == [Origin("b", 22, 22)]


def test_events_keep_their_global_id_however_few_are_read_at_a_time(bench: Any) -> None:
    async def main() -> list[int]:
        pipeline = bench.pipeline()
        async with bench.running(pipeline) as tasks:
            tasks.create_task(bench.buffer.queue_append(bench.batch(4), origin_batch([Origin("edge", 101, 104)])))
            await asyncio.sleep(0)
            pieces = [await pipeline.after("reader", position, 1) for position in range(4)]
            await bench.buffer.queue_reader_open(reader="reader", start="oldest")
            await bench.buffer.queue_release(reader="reader", upto=4)
        return [row for piece in pieces for row in piece.batch.column("position").to_pylist()]

    assert asyncio.run(main()) == [101, 102, 103, 104]


def test_a_live_feed_far_behind_is_told_what_made_room(bench: Any) -> None:
    async def main() -> QueueRead:
        buffer = Buffer("t", bench.clock, holding=False)
        big = bench.batch(1, lambda number: b'"%s"' % (b"x" * (40 << 20)))
        small = bench.batch(20)
        await buffer.queue_append(small, NO_ORIGINS)
        await buffer.queue_append(big, NO_ORIGINS)
        await buffer.queue_append(big, NO_ORIGINS)
        return await buffer.queue_read("live", 0, 5, 1 << 20)

    read = asyncio.run(main())
    assert (read.first, read.batch) == (1, None)
    assert read.missing == (Missing(1, 21, "released"),)


def test_what_gathered_in_memory_is_read_together(engine_bench: Any, tmp_path: Any) -> None:
    """A live feed that fell behind catches up by larger batches. Of one schema, and within the bounds."""
    bench = engine_bench(tmp_path)

    async def main() -> list[tuple[int, int]]:
        buffer = Buffer("t", bench.clock, holding=False)
        for batch in (bench.batch(2), bench.batch(3), event_batch(4, 1), event_batch(5, 5), bench.batch(1)):
            await buffer.queue_append(batch, NO_ORIGINS)
        found, after = [], 0
        while after < 15:
            read = await buffer.queue_read("live", after, 8, 1 << 20)
            assert read.batch is not None
            assert read.batch.num_rows == read.last - read.first + 1
            found.append((read.first, read.last))
            after = read.last
        return found

    assert asyncio.run(main()) == [(1, 5), (6, 13), (14, 14), (15, 15)]


def test_no_origins_stay_none() -> None:
    assert cut_read(QueueRead("q", 1, 2, pa.RecordBatch.from_pydict({"a": [1, 2]}), NO_ORIGINS, ()), 2, 2).origins.num_rows == 0


@pytest.mark.parametrize("patient", [True, False])
def test_a_small_read_waits_for_company_only_soon_after_another_one(engine_bench: Any, tmp_path: Any, patient: bool) -> None:
    """What comes after a pause goes on at once; before a live feed without a queue nothing waits."""
    bench = engine_bench(tmp_path, Engine(read_wait_ms_max=10_000))
    bench.buffer.patient = patient

    async def main() -> None:
        pipeline = bench.pipeline()
        async with bench.running(pipeline) as tasks:
            await bench.feed(tasks, [1])
            first = await asyncio.wait_for(pipeline.after("reader", 0), 8)
            assert first.key.last == 1
            await bench.feed(tasks, [1])
            second = asyncio.ensure_future(pipeline.after("reader", 1))
            await asyncio.wait([second], timeout=0.2 if patient else 8)
            assert second.done() != patient
            await bench.buffer.queue_reader_open(reader="reader", start="oldest")
            await bench.buffer.queue_release(reader="reader", upto=2)

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["raw", "event"])
def test_events_are_no_view_of_the_read_that_they_are_of(bench: Any, kind: str) -> None:
    batch = bench.batch(3)
    pipeline = bench.pipeline()
    if kind == "event":
        whole = asyncio.run(pipeline.events(QueueRead("q", 1, 3, batch, NO_ORIGINS, ()))).batch
        context = pa.StructArray.from_arrays([pa.array(["a", "b", "a"]).dictionary_encode()], ["class"])
        schema = event_schema(whole.schema.field("readings").type, context.type)
        batch = pa.RecordBatch.from_arrays([context if name == "context" else whole.column(name) for name in schema.names], schema=schema)
    events = asyncio.run(pipeline.events(QueueRead("q", 1, 3, batch, NO_ORIGINS, ()))).batch
    assert events.num_rows == 3
    assert not memory(events) & memory(batch)
    if kind == "event":
        assert events.equals(batch)


def memory(batch: pa.RecordBatch) -> set[int]:
    """Where its buffers lie, those of dictionaries included."""
    found: set[int] = set()
    arrays = list(batch.columns)
    while arrays:
        array = arrays.pop()
        found |= {buffer.address for buffer in array.buffers() if buffer is not None and buffer.size}
        if pa.types.is_struct(array.type):
            arrays += [array.field(number) for number in range(array.type.num_fields)]
        if isinstance(array, pa.DictionaryArray):
            arrays += [array.indices, array.dictionary]
    return found
