"""What is evidence against an event, and what is not: crashes, stops, hangs, restarts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from headrace import ConfigError, PermanentError, Plan, RangeKey, TransientError, decoding, hookimpl
from headrace.config import Engine
from headrace.engine import outputs as outputs_module
from headrace.engine.output_planned import PlannedOutput
from headrace.engine.output_streaming import StreamingOutput
from headrace.position import Missing


class Killed(BaseException):
    """Stands for the death of the process: nothing that its tasks still do counts."""

    dead: ClassVar[bool] = False

    def __init__(self) -> None:
        Killed.dead = True
        super().__init__()


@contextmanager
def mortal(buffer: Any) -> Iterator[None]:
    """Plans that reach the buffer after the death are dropped: tasks that are cancelled then would say that they were stopped."""
    Killed.dead, noting = False, buffer.queue_plan

    async def queue_plan(**arguments: Any) -> None:
        if not Killed.dead:
            await noting(**arguments)

    buffer.queue_plan = queue_plan
    try:
        yield
    finally:
        buffer.queue_plan = noting


async def life(bench: Any, kind: Any, store: Any) -> bool:
    """One life of a process over the bench's queue. True when it drained, False when it was killed."""
    pipeline = bench.pipeline()
    (output,) = bench.outputs(pipeline, [(kind, bench.unit(store))])
    try:
        with mortal(bench.buffer):
            async with bench.running(pipeline):
                await bench.drain([output])
    except (Killed, BaseExceptionGroup):
        return False
    return True


def lives(bench: Any, kind: Any, store: Any, sizes: list[int], most: int) -> int:
    """How many lives it took to drain."""

    async def main() -> int:
        async with asyncio.TaskGroup() as tasks:
            await bench.feed(tasks, sizes)
            for count in range(1, most + 1):
                if await life(bench, kind, store):
                    return count
            raise AssertionError(f"not drained after {most} lives")

    return asyncio.run(main())


@pytest.mark.parametrize("kind", [StreamingOutput, PlannedOutput])
def test_an_event_that_kills_in_the_store_is_found_and_set_aside(engine_bench: Any, tmp_path: Any, stores: Any, kind: Any) -> None:
    class Store(stores[1]):
        idempotence = "event"

        def refuse(self, at: str, numbers: list[float], key: RangeKey) -> None:
            if 13.0 in numbers:
                raise Killed

    bench = engine_bench(tmp_path, Engine(read_wait_ms_max=0, retry_base_ms=1, retry_max_ms=2, read_rows_max=64))
    lives(bench, kind, Store, [30, 10], 40)
    assert Store.rows == [number for number in range(1, 41) if number != 13]
    assert bench.letters.count == 1


@pytest.mark.parametrize("kind", [StreamingOutput, PlannedOutput])
def test_an_event_that_kills_when_it_is_decoded_is_found_and_never_decoded_again(
    engine_bench: Any, tmp_path: Any, stores: Any, kind: Any, monkeypatch: Any
) -> None:
    class Store(stores[1]):
        idempotence = "event"

    def killing(decode: Any) -> Any:
        def killed(payloads: Any, *rest: Any) -> Any:
            if b'{"n":13}' in (payloads.to_pylist() if isinstance(payloads, pa.Array) else payloads):
                raise Killed
            return decode(payloads, *rest)

        return killed

    for name in ("decode", "decode_typed"):
        monkeypatch.setattr(decoding, name, killing(getattr(decoding, name)))
    bench = engine_bench(tmp_path, Engine(read_wait_ms_max=0, retry_base_ms=1, retry_max_ms=2, read_rows_max=64))
    lives(bench, kind, Store, [30, 10], 40)
    assert Store.rows == [number for number in range(1, 41) if number != 13]
    assert bench.letters.count == 1


@pytest.mark.parametrize("kind", [StreamingOutput, PlannedOutput])
def test_neither_failures_nor_stops_condemn_an_event(bench: Any, stores: Any, kind: Any) -> None:
    class Store(stores[1]):
        idempotence = "event"
        down = True

        def refuse(self, at: str, numbers: list[float], key: RangeKey) -> None:
            if Store.down:
                raise TransientError("down")

    async def stopped() -> None:
        pipeline = bench.pipeline()
        (output,) = bench.outputs(pipeline, [(kind, bench.unit(Store, flush_interval_s=0.001))])
        async with bench.running(pipeline):
            running = asyncio.ensure_future(output.run())
            await asyncio.sleep(0.05)
            running.cancel()
            await asyncio.wait([running])

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            await bench.feed(tasks, [1])
            for _ in range(5):
                await stopped()
            (reader,) = bench.buffer.queue_info().readers
            assert reader.plan is None or reader.plan.attempts == 0
            Store.down = False
            await life(bench, kind, Store)

    asyncio.run(main())
    assert Store.rows == [1]
    assert bench.letters.count == 0


@pytest.mark.parametrize("kind", [StreamingOutput, PlannedOutput])
def test_a_range_in_a_store_that_hangs_is_acquitted(bench: Any, stores: Any, kind: Any, monkeypatch: Any) -> None:
    class Store(stores[1]):
        idempotence = "event"

        @hookimpl
        async def sink_write(self, batch: Any, key: RangeKey) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr(outputs_module, "ACQUITTED_S", 0.0)

    async def main() -> None:
        pipeline = bench.pipeline()
        (output,) = bench.outputs(pipeline, [(kind, bench.unit(Store, flush_interval_s=0.001))])
        async with bench.running(pipeline) as tasks:
            appending = tasks.create_task(bench.buffer.queue_append(bench.batch(1), bench.no_origins))
            running = asyncio.ensure_future(output.run())
            await asyncio.sleep(0.05)
            assert bench.buffer.queue_info().readers[0].plan.attempts == 1
            await output.acquit()
            plan = bench.buffer.queue_info().readers[0].plan
            assert plan is None or plan.attempts == 0
            running.cancel()
            appending.cancel()
            await asyncio.wait([running])

    asyncio.run(main())


def test_a_plan_is_ahead_of_a_cursor_that_became_durable_late(bench: Any, stores: Any) -> None:
    class Store(stores[0]):
        idempotence = "key"

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            await bench.feed(tasks, [10])
            await bench.buffer.queue_reader_open(reader="store", start="oldest")
            await bench.buffer.queue_plan(reader="store", plan=Plan(5, 8, 1))
            await life(bench, PlannedOutput, Store)

    asyncio.run(main())
    assert Store.keys == ["5-8", "9-10"]


def test_a_plan_beyond_the_end_of_the_queue_wedges_nothing(bench: Any, stores: Any) -> None:
    class Store(stores[0]):
        idempotence = "key"

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            await bench.feed(tasks, [5])
            await bench.buffer.queue_reader_open(reader="store", start="oldest")
            await bench.buffer.queue_plan(reader="store", plan=Plan(1, 8, 1))
            await life(bench, PlannedOutput, Store)

    asyncio.run(main())
    assert Store.rows == [1, 2, 3, 4, 5]


def test_what_an_instance_took_before_its_own_restart_is_written_again(bench: Any, stores: Any) -> None:
    class Store(stores[1]):
        unit: ClassVar[Any] = None
        restarts = 0

        @hookimpl
        async def sink_write(self, batch: Any, key: RangeKey) -> None:
            await super().sink_write(batch, key)
            if Store.restarts == 0:
                Store.restarts += 1
                await Store.unit.restart("its loop failed")

    async def main() -> None:
        pipeline = bench.pipeline()
        Store.unit = bench.unit(Store)
        async with bench.running(pipeline) as tasks:
            await bench.feed(tasks, [10])
            await bench.drain(bench.outputs(pipeline, [(StreamingOutput, Store.unit)]))

    asyncio.run(main())
    assert Store.rows == list(range(1, 11))


def test_what_fell_out_of_the_window_reaches_the_store_as_missing(bench: Any, stores: Any) -> None:
    class Store(stores[1]):
        seen: ClassVar[list[Any]] = []

        def refuse(self, at: str, numbers: list[float], key: RangeKey) -> None:
            if at == "flush":
                Store.seen.append((key.first, key.last, key.missing))

    async def main() -> None:
        pipeline = bench.pipeline()
        async with bench.running(pipeline) as tasks:
            await bench.feed(tasks, [10])
            (output,) = bench.outputs(pipeline, [(StreamingOutput, bench.unit(Store, hold="window", hold_window_s=1.0))])
            output.skip_to = 6
            await bench.drain([output])

    asyncio.run(main())
    assert Store.seen[0][0] == 1
    assert [hole for _, _, missing in Store.seen for hole in missing] == [Missing(1, 6, "window")]
    assert all(before[1] + 1 == after[0] for before, after in zip(Store.seen, Store.seen[1:], strict=False))


def test_a_window_never_cuts_a_planned_range(bench: Any, stores: Any) -> None:
    class Store(stores[0]):
        idempotence = "key"

    async def main() -> None:
        pipeline = bench.pipeline()
        async with bench.running(pipeline) as tasks:
            await bench.feed(tasks, [10])
            await bench.buffer.queue_reader_open(reader="store", start="oldest")
            await bench.buffer.queue_plan(reader="store", plan=Plan(1, 7, 1))
            (output,) = bench.outputs(pipeline, [(PlannedOutput, bench.unit(Store, hold="window", hold_window_s=1.0))])
            output.skip_to = 3
            await bench.drain([output])

    asyncio.run(main())
    assert Store.rows == [8, 9, 10]


# --- errors of plugins end no process ---


class Raises:
    """One way in which a plugin's error could reach the engine."""

    @staticmethod
    def row_out_of_range(key: RangeKey) -> None:
        raise PermanentError("odd", {str(key): [99]})

    @staticmethod
    def row_is_no_number(key: RangeKey) -> None:
        raise PermanentError("odd", {str(key): ["first"]})  # type: ignore[list-item]

    @staticmethod
    def cancelled_by_itself(key: RangeKey) -> None:
        raise asyncio.CancelledError


@pytest.mark.parametrize("kind", [StreamingOutput, PlannedOutput])
@pytest.mark.parametrize("error", [Raises.row_out_of_range, Raises.row_is_no_number, Raises.cancelled_by_itself])
def test_an_odd_error_is_a_bug_of_the_output_and_no_more(bench: Any, stores: Any, kind: Any, error: Any) -> None:
    class Store(stores[1]):
        idempotence = "key"
        failures = 0

        def refuse(self, at: str, numbers: list[float], key: RangeKey) -> None:
            if at == "write" and Store.failures < 2:
                Store.failures += 1
                error(key)

    assert lives(bench, kind, Store, [5], 1) == 1
    assert Store.rows == [1, 2, 3, 4, 5]
    assert Store.built >= 3


def test_a_resume_point_that_is_no_position_is_a_bug_of_the_output(bench: Any, stores: Any) -> None:
    class Store(stores[0]):
        asked = 0

        @hookimpl
        async def sink_resume(self, queue_id: str) -> Any:
            Store.asked += 1
            return "none" if Store.asked == 1 else None

    assert lives(bench, StreamingOutput, Store, [5], 1) == 1
    assert Store.rows == [1, 2, 3, 4, 5]


def test_an_output_that_cannot_open_again_is_waited_for(bench: Any, stores: Any, monkeypatch: Any) -> None:
    class Store(stores[1]):
        opens = 0

        async def open(self) -> None:
            Store.opens += 1
            if Store.opens in (2, 3):
                raise ConfigError("site.toml", "path", "a folder", "nothing: the volume is not mounted")

        def refuse(self, at: str, numbers: list[float], key: RangeKey) -> None:
            if Store.opens == 1:
                raise ZeroDivisionError("bug")

    monkeypatch.setattr("headrace.engine.supervisor.OPEN_RETRY_BASE_MS", 1)
    assert lives(bench, StreamingOutput, Store, [5], 1) == 1
    assert Store.opens == 4
    assert Store.rows == [1, 2, 3, 4, 5]


def test_an_output_that_refuses_a_range_without_rows_does_not_spin(bench: Any, stores: Any) -> None:
    class Store(stores[1]):
        calls = 0

        def refuse(self, at: str, numbers: list[float], key: RangeKey) -> None:
            Store.calls += 1
            if at == "write" and key.first <= 3 and Store.calls < 30:
                raise PermanentError("I refuse everything")

    assert lives(bench, StreamingOutput, Store, [3], 1) == 1
    assert bench.letters.count == 3 - len(Store.rows)
