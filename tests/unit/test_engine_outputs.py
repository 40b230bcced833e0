"""Driving outputs: whatever fails, each event is stored once or set aside, and the others do not notice."""

from __future__ import annotations

import asyncio
import json
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from headrace import RAW_SCHEMA, HookError, PermanentError, Plan, RangeKey, TransientError, hookimpl
from headrace.component import Component
from headrace.engine.output_loose import LooseOutput
from headrace.engine.output_planned import PlannedOutput
from headrace.engine.output_streaming import StreamingOutput


def run(coroutine: Any) -> None:
    asyncio.run(coroutine)


async def drain(bench: Any, kind: Any, store: Any, sizes: list[int], **keys: Any) -> None:
    pipeline = bench.pipeline()
    async with bench.running(pipeline) as tasks:
        await bench.feed(tasks, sizes)
        await bench.drain(bench.outputs(pipeline, [(kind, bench.unit(store, **keys))]))


def test_events_arrive_once_in_order_and_the_queue_is_empty(bench: Any, stores: Any) -> None:
    class Store(stores[1]):
        pass

    run(drain(bench, StreamingOutput, Store, [3, 1, 50]))
    assert Store.rows == list(range(1, 55))
    assert bench.buffer.queue_info().size_events == 0
    assert bench.counted("sink_written_events_total", tier="t", component="store", plugin="Store") == 54


@pytest.mark.parametrize("kind", [StreamingOutput, PlannedOutput])
def test_an_output_that_takes_raw_batches_gets_what_does_not_decode_too(bench: Any, stores: Any, kind: Any) -> None:
    taken: list[bytes] = []

    class Archive(stores[1]):
        takes = "raw"
        idempotence = "key"

        @hookimpl
        async def sink_write(self, batch: pa.RecordBatch, key: RangeKey) -> None:
            assert batch.schema.equals(RAW_SCHEMA)
            taken.extend(batch.column("payload").to_pylist())

        @hookimpl
        async def sink_flush(self, key: RangeKey) -> None:
            self.held[key.queue_id] = key.last

    async def scenario() -> None:
        pipeline = bench.pipeline()
        pipeline.ready.clear()  # nothing of it waits for decoders and enrichers
        async with bench.running(pipeline) as tasks:
            await bench.feed(tasks, [2, 1], lambda number: b"no json %d" % number)
            await bench.drain(bench.outputs(pipeline, [(kind, bench.unit(Archive))]))

    run(scenario())
    assert taken == [b"no json 1", b"no json 2", b"no json 3"]
    assert bench.quarantined == []
    assert bench.counted("decode_events_total") == 0


def test_the_circuit_is_open_while_tries_come_at_the_longest_wait_and_closes_with_success(bench: Any, stores: Any) -> None:
    seen: list[tuple[float, str]] = []

    class Store(stores[1]):
        def refuse(self, at: str, numbers: list[float], key: RangeKey) -> None:
            (row,) = bench.services.statuses.rows()
            seen.append((bench.counted("sink_circuit_open", tier="t", component="store", plugin="Store"), row.reason))
            if len(seen) < 5:
                raise TransientError("down")

    run(drain(bench, StreamingOutput, Store, [8]))
    # waits of 1 ms, then of 2 ms, which is the longest
    assert [is_open for is_open, _ in seen[:5]] == [0, 0, 1, 1, 1]
    assert seen[1][1] == "TransientError: down"
    assert seen[3][1].startswith("TransientError: down; circuit open: 3 tries failed, the next one comes in ")
    assert bench.counted("sink_circuit_open", tier="t", component="store", plugin="Store") == 0
    assert bench.services.statuses.rows()[0].status == "ok"


@pytest.mark.parametrize("kind", [StreamingOutput, PlannedOutput])
@pytest.mark.parametrize("stage", ["write", "flush"])
def test_a_store_that_fails_for_a_while_gets_every_event_once(bench: Any, stores: Any, stage: str, kind: Any) -> None:
    class Store(stores[1]):
        idempotence = "key"
        failures = 0

        def refuse(self, at: str, numbers: list[float], key: RangeKey) -> None:
            if at == stage and Store.failures < 3:
                Store.failures += 1
                raise TransientError("down")

    run(drain(bench, kind, Store, [10, 10]))
    assert Store.failures == 3
    assert Store.rows == list(range(1, 21))
    assert Store.built == 1


@pytest.mark.parametrize("kind", [StreamingOutput, PlannedOutput])
def test_named_rows_go_to_the_dead_letters_and_the_others_are_stored(bench: Any, stores: Any, kind: Any) -> None:
    class Store(stores[1]):
        idempotence = "key"

        def refuse(self, at: str, numbers: list[float], key: RangeKey) -> None:
            bad = [row for row, number in enumerate(numbers) if number in (4, 7)]
            if at == "write" and bad:
                raise PermanentError("odd", {str(key): bad})

    run(drain(bench, kind, Store, [10]))
    assert Store.rows == [1, 2, 3, 5, 6, 8, 9, 10]
    assert bench.letters.count == 2
    queue_id = bench.buffer.queue_info().queue_id
    assert bench.letters.positions(queue_id, 1, 100, "store") == {4, 7}
    assert [told[3] for told in bench.quarantined] == [1, 1]


def test_small_reads_are_one_write_and_its_named_rows_are_found(bench: Any, stores: Any) -> None:
    writes: list[tuple[int, int]] = []

    class Store(stores[1]):
        def refuse(self, at: str, numbers: list[float], key: RangeKey) -> None:
            if at == "write":
                writes.append((key.first, key.last))
                if 8 in numbers:
                    raise PermanentError("odd", {str(key): [numbers.index(8)]})

    async def scenario() -> None:
        pipeline = bench.pipeline()
        async with bench.running(pipeline) as tasks:
            await bench.feed(tasks, [3, 3, 3, 3])
            (output,) = bench.outputs(pipeline, [(StreamingOutput, bench.unit(Store, flush_interval_s=60.0, flush_rows=8))])
            running = asyncio.ensure_future(output.run())
            async with asyncio.timeout(20):
                while output.flushed < 12:  # noqa: ASYNC110  a drain would cut what gathers
                    await asyncio.sleep(0.01)
            output.drain()
            await running

    run(scenario())
    # the first range after a start is alone, for it may be what killed the process
    assert writes == [(1, 3), (4, 12), (4, 12)]
    assert Store.rows == [1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12]
    assert bench.letters.positions(bench.buffer.queue_info().queue_id, 1, 100, "store") == {8}


def test_raw_reads_are_written_one_by_one_for_they_hold_the_queues_space(bench: Any, stores: Any) -> None:
    sizes: list[int] = []

    class Archive(stores[1]):
        takes = "raw"

        @hookimpl
        async def sink_write(self, batch: pa.RecordBatch, key: RangeKey) -> None:
            sizes.append(batch.num_rows)

        @hookimpl
        async def sink_flush(self, key: RangeKey) -> None:
            self.held[key.queue_id] = key.last

    run(drain(bench, StreamingOutput, Archive, [3, 2, 1], flush_interval_s=5.0))
    assert sizes == [3, 2, 1]


@pytest.mark.parametrize("kind", [StreamingOutput, PlannedOutput])
def test_a_refusal_without_rows_is_narrowed_down_by_halving(bench: Any, stores: Any, kind: Any) -> None:
    class Store(stores[1]):
        idempotence = "key"

        def refuse(self, at: str, numbers: list[float], key: RangeKey) -> None:
            if at == "flush" and {13.0, 14.0} & set(numbers):
                raise PermanentError("something is odd")

    run(drain(bench, kind, Store, [40]))
    assert Store.rows == [number for number in range(1, 41) if number not in (13, 14)]
    assert bench.letters.count == 2


def test_a_bug_restarts_the_component_and_its_event_is_set_aside_after_three_attempts(bench: Any, stores: Any) -> None:
    class Store(stores[1]):
        def refuse(self, at: str, numbers: list[float], key: RangeKey) -> None:
            if 5.0 in numbers:
                raise ZeroDivisionError("bug")

    run(drain(bench, StreamingOutput, Store, [8]))
    assert Store.rows == [1, 2, 3, 4, 6, 7, 8]
    assert bench.letters.count == 1
    assert Store.built > 3


def test_a_key_idempotent_store_is_never_halved_after_a_bug(bench: Any, stores: Any) -> None:
    class Store(stores[0]):
        idempotence = "key"
        seen: ClassVar[list[str]] = []

        def refuse(self, at: str, numbers: list[float], key: RangeKey) -> None:
            Store.seen.append(str(key))
            if len(Store.seen) < 12:
                raise ZeroDivisionError("bug")

    run(drain(bench, PlannedOutput, Store, [8]))
    assert len(set(Store.seen)) == 1
    assert Store.rows == list(range(1, 9))


def test_a_planned_range_comes_again_under_the_same_key_although_more_events_came(bench: Any, stores: Any) -> None:
    class Store(stores[0]):
        idempotence = "key"

    async def main() -> None:
        pipeline = bench.pipeline()
        async with bench.running(pipeline) as tasks:
            await bench.feed(tasks, [5, 5])
            await bench.buffer.queue_reader_open(reader="store", start="oldest")
            await bench.buffer.queue_plan(reader="store", plan=Plan(1, 7, 1, (3,)))
            await bench.drain(bench.outputs(pipeline, [(PlannedOutput, bench.unit(Store))]))

    run(main())
    assert Store.keys == ["1-7", "8-10"]
    assert Store.rows == [1, 2, 4, 5, 6, 7, 8, 9, 10]


def test_what_the_store_holds_already_is_not_written_again(bench: Any, stores: Any) -> None:
    class Store(stores[1]):
        pass

    Store.held[bench.buffer.queue_info().queue_id] = 4
    run(drain(bench, StreamingOutput, Store, [6]))
    assert Store.rows == [5, 6]


def test_a_range_that_killed_the_process_three_times_is_halved(bench: Any, stores: Any) -> None:
    class Store(stores[1]):
        pass

    async def main() -> None:
        pipeline = bench.pipeline()
        async with bench.running(pipeline) as tasks:
            await bench.feed(tasks, [8])
            await bench.buffer.queue_reader_open(reader="store", start="oldest")
            await bench.buffer.queue_plan(reader="store", plan=Plan(1, 8, 3))
            await bench.drain(bench.outputs(pipeline, [(StreamingOutput, bench.unit(Store))]))

    run(main())
    assert Store.keys[0] == "1-4"
    assert Store.rows == list(range(1, 9))
    assert bench.letters.count == 0


def test_a_single_event_that_killed_the_process_three_times_is_set_aside_undecoded(bench: Any, stores: Any) -> None:
    class Store(stores[1]):
        pass

    async def main() -> None:
        pipeline = bench.pipeline()
        async with bench.running(pipeline) as tasks:
            await bench.feed(tasks, [3])
            await bench.buffer.queue_reader_open(reader="store", start="oldest")
            await bench.buffer.queue_plan(reader="store", plan=Plan(1, 1, 3))
            await bench.drain(bench.outputs(pipeline, [(StreamingOutput, bench.unit(Store))]))

    run(main())
    assert Store.rows == [2, 3]
    assert bench.letters.count == 1


def test_outputs_in_step_share_one_decoding(bench: Any, stores: Any) -> None:
    class First(stores[1]):
        pass

    class Second(stores[1]):
        pass

    async def main() -> None:
        pipeline = bench.pipeline()
        async with bench.running(pipeline) as tasks:
            await bench.feed(tasks, [100])
            await bench.drain(bench.outputs(pipeline, [(StreamingOutput, bench.unit(First)), (StreamingOutput, bench.unit(Second))]))

    run(main())
    assert First.rows == Second.rows == list(range(1, 101))
    assert bench.counted("decode_events_total") == 100


def test_a_dead_store_does_not_keep_another_from_its_events(bench: Any, stores: Any) -> None:
    class Dead(stores[1]):
        def refuse(self, at: str, numbers: list[float], key: RangeKey) -> None:
            raise TransientError("down")

    class Store(stores[1]):
        pass

    async def main() -> None:
        pipeline = bench.pipeline()
        async with bench.running(pipeline) as tasks:
            await bench.feed(tasks, [10])
            dead, store = bench.outputs(pipeline, [(StreamingOutput, bench.unit(Dead)), (StreamingOutput, bench.unit(Store))])
            stuck = asyncio.ensure_future(dead.run())
            await bench.drain([store])
            stuck.cancel()

    run(main())
    assert Store.rows == list(range(1, 11))
    assert Dead.rows == []


def test_a_live_feed_loses_what_it_fails_on_and_goes_on(bench: Any, stores: Any) -> None:
    class Live(stores[0]):
        holds = False

        def refuse(self, at: str, numbers: list[float], key: RangeKey) -> None:
            if 1.0 in numbers:
                raise ZeroDivisionError("bug")

    async def main() -> None:
        pipeline = bench.pipeline()
        async with bench.running(pipeline) as tasks:
            (live,) = bench.outputs(pipeline, [(LooseOutput, bench.unit(Live, hold="none", flush_interval_s=0.001))])
            running = asyncio.ensure_future(live.run())
            await asyncio.sleep(0.01)
            for _ in range(3):
                await bench.feed(tasks, [1])
                await asyncio.sleep(0.03)
            live.drain()
            await running
            await bench.buffer.queue_reader_open(reader="x", start="oldest")
            await bench.buffer.queue_release(reader="x", upto=3)

    run(main())
    assert 1.0 not in Live.rows
    assert 3.0 in Live.rows


def test_an_output_that_fell_out_of_its_window_goes_on_behind_it(bench: Any, stores: Any) -> None:
    class Store(stores[1]):
        pass

    async def main() -> None:
        pipeline = bench.pipeline()
        async with bench.running(pipeline) as tasks:
            await bench.feed(tasks, [10])
            (output,) = bench.outputs(pipeline, [(StreamingOutput, bench.unit(Store, hold="window", hold_window_s=1.0))])
            output.skip_to = 6
            await bench.drain([output])

    run(main())
    assert Store.rows == [7, 8, 9, 10]
    assert bench.counted("output_missing_events_total", tier="t", component="store", plugin="Store", reason="window") == 6


def test_a_payload_that_does_not_decode_is_a_dead_letter_for_all_outputs(bench: Any, stores: Any) -> None:
    class Store(stores[1]):
        pass

    async def main() -> None:
        pipeline = bench.pipeline()
        async with bench.running(pipeline) as tasks:
            await bench.feed(tasks, [4], lambda number: b"broken" if number == 2 else b'{"n":%d}' % number)
            await bench.drain(bench.outputs(pipeline, [(StreamingOutput, bench.unit(Store))]))

    run(main())
    assert Store.rows == [1, 3, 4]
    assert bench.letters.positions(bench.buffer.queue_info().queue_id, 1, 9, "whoever") == {2}


# --- enrichers ---


class Enriching(Component):
    """Adds `site`; tests override `refuse`."""

    def refuse(self, batch: pa.RecordBatch) -> None:
        """Raise to fail."""

    @hookimpl
    def enrich_fields(self) -> pa.Schema:
        return pa.schema([("site", pa.string())])

    @hookimpl
    def enrich(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        self.refuse(batch)
        sites = [f"site of {device}" for device in batch.column("device").to_pylist()]
        return pa.RecordBatch.from_arrays([pa.array(sites, pa.string())], schema=self.enrich_fields())


def numbers(batch: pa.RecordBatch) -> list[float]:
    return [row["n"] for row in batch.column("readings").to_pylist()]


async def enrich(bench: Any, enricher: type[Component], count: int) -> Any:
    unit = bench.unit(enricher, "enricher")
    await unit.open()
    pipeline = bench.pipeline([unit])
    async with bench.running(pipeline) as tasks:
        await bench.feed(tasks, [count])
        events = await pipeline.after("reader", 0)
        await bench.buffer.queue_reader_open(reader="reader", start="oldest")
        await bench.buffer.queue_release(reader="reader", upto=count)
    return events


def test_added_fields_are_merged_into_the_context(bench: Any) -> None:
    events = asyncio.run(enrich(bench, Enriching, 3))
    assert events.batch.column("context").to_pylist() == [{"site": f"site of d{number % 3}"} for number in (1, 2, 3)]
    assert events.batch.column("position").to_pylist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("error", "dead"),
    [
        (lambda rows: PermanentError("odd", {"": rows}), {3, 5}),
        (lambda rows: PermanentError("odd"), {3, 5}),
        (lambda rows: ZeroDivisionError("bug"), {3, 5}),
    ],
    ids=["rows named", "no rows named", "bug"],
)
def test_what_an_enricher_refuses_is_a_dead_letter_and_the_others_keep_their_context(bench: Any, error: Any, dead: set[int]) -> None:
    class Picky(Enriching):
        def refuse(self, batch: pa.RecordBatch) -> None:
            bad = [row for row, number in enumerate(numbers(batch)) if number in (3, 5)]
            if bad:
                raise error(bad)

    events = asyncio.run(enrich(bench, Picky, 8))
    kept = [1, 2, 4, 6, 7, 8]
    assert numbers(events.batch) == kept
    assert [row["site"] for row in events.batch.column("context").to_pylist()] == [f"site of d{number % 3}" for number in kept]
    assert events.key.dead == (3, 5)
    assert bench.letters.positions(events.key.queue_id, 1, 99, "any") == dead


def test_an_enricher_that_is_down_is_asked_again(bench: Any) -> None:
    class Down(Enriching):
        tries = 0

        def refuse(self, batch: pa.RecordBatch) -> None:
            Down.tries += 1
            if Down.tries < 4:
                raise TransientError("database is down")

    events = asyncio.run(enrich(bench, Down, 2))
    assert (Down.tries, numbers(events.batch)) == (4, [1, 2])


def test_an_enricher_cannot_drop_rows(bench: Any) -> None:
    class Dropping(Enriching):
        @hookimpl
        def enrich(self, batch: pa.RecordBatch) -> pa.RecordBatch:
            return super().enrich(batch).slice(1)

    events = asyncio.run(enrich(bench, Dropping, 2))
    assert events.batch.num_rows == 0
    assert bench.letters.count == 2
    assert HookError.__name__ in bench.quarantined[0][1]


def test_an_output_at_the_head_may_fix_a_type_before_the_backlog_is_read(bench: Any, stores: Any) -> None:
    """docs/decisions/0003: and whoever reads the backlog later, after a restart too, goes by it."""
    seen: dict[str, list[dict[str, Any]]] = {"live": [], "store": []}

    def seeing(name: str, base: Any) -> Any:
        class Seeing(base):
            holds = name != "live"

            @hookimpl
            async def sink_write(self, batch: pa.RecordBatch, key: RangeKey) -> None:
                seen[name] += batch.column("readings").to_pylist()

        Seeing.__name__ = name
        return Seeing

    class Apart:
        """An append returns when all readers have released it: behind the end of the pipeline that began with it."""

        def create_task(self, work: Any) -> None:
            appends.append(asyncio.ensure_future(work))

    appends: list[asyncio.Future[Any]] = []

    async def main() -> None:
        await bench.buffer.queue_reader_open(reader="store", start="oldest")
        pipeline = bench.pipeline()
        async with bench.running(pipeline), asyncio.timeout(20):
            await bench.feed(Apart(), [1], lambda _: b'{"n":1}')
            unit = bench.unit(seeing("live", stores[0]), hold="none", flush_interval_s=0.001)
            (live,) = bench.outputs(pipeline, [(LooseOutput, unit)])
            running = asyncio.ensure_future(live.run())
            while live.activity[0] != "idle":  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            await bench.feed(Apart(), [1], lambda _: b'{"n":"text"}')
            while not seen["live"]:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            live.drain()
            await running
        pipeline = bench.pipeline()
        async with bench.running(pipeline):
            await bench.drain(bench.outputs(pipeline, [(StreamingOutput, bench.unit(seeing("store", stores[1])))]))
        async with asyncio.timeout(20):
            await asyncio.gather(*appends)

    asyncio.run(main())
    assert [row["n"] for row in seen["live"]] == ["text"]
    assert [row.get("n") for row in seen["store"]] == [None, "text"]
    assert json.loads(seen["store"][0]["_other"]) == {"n": 1}
