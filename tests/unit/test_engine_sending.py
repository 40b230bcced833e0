"""Driving the sending half of a transport: raw batches, several on their way, the cursor behind what is safe without a hole."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from headrace import NO_ORIGINS, Component, Origin, PermanentError, RangeKey, TransientError, hookimpl, origin_batch, origins_of
from headrace.config import Engine
from headrace.engine.output_sending import SendingOutput
from headrace.engine.output_streaming import StreamingOutput
from headrace.engine.pacing import Pace
from headrace.engine.pipeline_thread import check_driven
from headrace.engine.reading import RawReading
from headrace.errors import ConfigError
from headrace.position import row_positions
from headrace.testing import fake_context
from headrace_queue_pmem import QueuePmem

HISTORIES = 6 if "HEADRACE_FULL" not in os.environ else 300
LIVES = 6


class FarSide(Component):
    """The other end, in memory: takes what follows its mark, drops what it holds. State lies in the class, as durable state would."""

    rows: dict[tuple[str, int], bytes]
    marks: dict[str, int]
    keys: list[str]
    missing: dict[int, str]
    dead: list[int]
    queues: list[tuple[str, bytes]]
    origins: list[Origin]
    in_flight: int
    most_in_flight: int

    def __init_subclass__(cls) -> None:
        cls.rows, cls.marks, cls.keys, cls.missing, cls.dead = {}, {}, [], {}, []
        cls.queues, cls.origins, cls.in_flight, cls.most_in_flight = [], [], 0, 0

    async def gate(self, key: RangeKey) -> None:
        """Wait, or raise, before the batch arrives."""

    async def reply(self, key: RangeKey) -> None:
        """Wait, or raise, after it arrived."""

    @hookimpl
    async def transport_queue(self, queue: Any, secret: bytes) -> None:
        type(self).queues.append((queue.name, secret))

    @hookimpl
    async def transport_resume(self, queue_id: str) -> int | None:
        return type(self).marks.get(queue_id)

    @hookimpl
    async def transport_send(self, batch: pa.RecordBatch, origins: pa.RecordBatch, key: RangeKey) -> None:
        cls = type(self)
        cls.in_flight += 1
        cls.most_in_flight = max(cls.most_in_flight, cls.in_flight)
        try:
            await self.gate(key)
            self._take(batch, origins, key)
            await self.reply(key)
        finally:
            cls.in_flight -= 1

    def _take(self, batch: pa.RecordBatch, origins: pa.RecordBatch, key: RangeKey) -> None:
        cls = type(self)
        cls.keys.append(f"{key.first}-{key.last}")
        mark = cls.marks.get(key.queue_id)
        assert mark is None or key.first <= mark + 1, f"{key} leaves a hole behind {mark}"
        positions = [position for position in row_positions(key.first, key.last, key.missing).tolist() if position not in key.dead]
        payloads = batch.column("payload").to_pylist()
        for position, payload in zip(positions, payloads, strict=True):
            if position > (mark or 0):
                assert cls.rows.setdefault((key.queue_id, position), payload) == payload
        cls.missing.update({position: hole.reason for hole in key.missing for position in range(hole.first, hole.last + 1)})
        cls.dead += [position for position in key.dead if position > (mark or 0)]
        cls.origins += origins_of(origins)
        cls.marks[key.queue_id] = max(mark or 0, key.last)

    @classmethod
    def numbers(cls) -> list[int]:
        """The events that it holds, in the order of their positions."""
        return [int(payload[5:-1]) for _, payload in sorted(cls.rows.items(), key=lambda row: row[0][1])]


async def send(bench: Any, far: Any, sizes: list[int], **keys: Any) -> None:
    pipeline = bench.pipeline()
    async with bench.running(pipeline) as tasks:
        await bench.feed(tasks, sizes)
        await bench.drain(bench.outputs(pipeline, [(SendingOutput, bench.unit(far, **keys))]))


async def until(reached: Callable[[], bool]) -> None:
    """Let the loop turn until it is so."""
    for _ in range(100_000):
        if reached():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to that")


def test_an_instance_that_was_restarted_under_way_is_told_its_queue_before_it_speaks(bench: Any) -> None:
    class Far(FarSide):
        told = False
        untold: ClassVar[list[str]] = []

        @hookimpl
        async def transport_queue(self, queue: Any, secret: bytes) -> None:
            self.told = True
            Far.queues.append((queue.name, secret))

        async def gate(self, key: RangeKey) -> None:
            if not self.told:
                Far.untold.append(str(key))

    async def scenario() -> None:
        pipeline = bench.pipeline()
        async with bench.running(pipeline) as tasks:
            unit = bench.unit(Far)
            (output,) = bench.outputs(pipeline, [(SendingOutput, unit)])
            running = asyncio.ensure_future(output.run())
            await bench.feed(tasks, [1])
            await until(lambda: len(Far.rows) == 1)
            await unit.restart("its own loop failed")
            await bench.feed(tasks, [1, 1])
            await until(lambda: len(Far.rows) == 3)
            output.drain()
            await running

    asyncio.run(scenario())
    assert Far.numbers() == [1, 2, 3]
    assert len(Far.queues) == 2
    assert Far.untold == []


def test_raw_batches_go_out_in_order_and_undecoded(bench: Any) -> None:
    class Far(FarSide):
        pass

    asyncio.run(send(bench, Far, [3, 1, 50]))
    assert Far.numbers() == list(range(1, 55))
    assert bench.buffer.queue_info().size_events == 0
    assert bench.counted("sink_written_events_total", tier="t", component="far", plugin="Far") == 54
    assert bench.counted("decode_events_total") == 0
    assert Far.queues == [("t", b"")]


def test_a_window_of_calls_is_under_way_and_the_cursor_waits_for_the_first(bench: Any) -> None:
    released: list[int] = []
    let_go = asyncio.Event()

    class Far(FarSide):
        async def reply(self, key: RangeKey) -> None:
            if key.first == 2:
                await let_go.wait()

    async def main() -> None:
        release = bench.buffer.queue_release

        async def noted(reader: str, upto: int) -> None:
            released.append(upto)
            await release(reader=reader, upto=upto)

        bench.buffer.queue_release = noted
        pipeline = bench.pipeline()
        async with bench.running(pipeline) as tasks:
            (output,) = bench.outputs(pipeline, [(SendingOutput, bench.unit(Far, send_window=4))])
            running = asyncio.ensure_future(output.run())
            for _ in range(8):
                await bench.feed(tasks, [1])
                for _ in range(20):
                    await asyncio.sleep(0)
            await until(lambda: len(Far.keys) >= 5)
            assert Far.in_flight == 1, "those behind the first are answered"
            assert released == [1]
            let_go.set()
            output.drain()
            await running

    asyncio.run(main())
    assert Far.keys[0] == "1-1"
    assert Far.keys == sorted(Far.keys, key=lambda key: int(key.partition("-")[0])), "started in order"
    assert released[-1] == 8
    assert Far.numbers() == list(range(1, 9))


def test_a_backlog_gives_way_between_its_batches_until_the_process_drains(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int, int]] = []

    def pause_s(pace: Pace, rows: int, info: Any, attempted: int) -> float:
        asked.append((rows, info.head, attempted))
        return 0.001

    monkeypatch.setattr(Pace, "pause_s", pause_s)

    class Far(FarSide):
        pass

    async def main() -> None:
        pipeline = bench.pipeline()
        async with bench.running(pipeline) as tasks:
            (output,) = bench.outputs(pipeline, [(SendingOutput, bench.unit(Far))])
            running = asyncio.ensure_future(output.run())
            await bench.feed(tasks, [3])
            await until(lambda: Far.numbers() == [1, 2, 3])
            await bench.feed(tasks, [4])
            await until(lambda: Far.numbers() == list(range(1, 8)))
            output.drain()
            await bench.feed(tasks, [1])
            await running

    asyncio.run(main())
    assert asked == [(3, 3, 3), (4, 7, 7)]
    assert bench.counted("output_paused_seconds_total", tier="t", component="far", plugin="Far") == pytest.approx(0.002)
    assert Far.numbers() == list(range(1, 9))


def test_a_large_read_goes_out_in_parts(bench: Any) -> None:
    class Far(FarSide):
        async def gate(self, key: RangeKey) -> None:
            await asyncio.sleep(0)

    pad = b" " * 100_000

    async def main() -> None:
        pipeline = bench.pipeline()
        async with bench.running(pipeline) as tasks:
            await bench.feed(tasks, [45], lambda number: b'{"n":%d}' % number + pad)
            await bench.drain(bench.outputs(pipeline, [(SendingOutput, bench.unit(Far, send_window=3))]))

    asyncio.run(main())
    assert len(Far.keys) == 5
    assert Far.most_in_flight == 3
    assert [position for _, position in sorted(Far.rows)] == list(range(1, 46))


def test_after_a_transient_error_it_goes_on_where_the_far_side_is(bench: Any) -> None:
    class Far(FarSide):
        failures = 0

        async def reply(self, key: RangeKey) -> None:
            if key.first > 1 and Far.failures < 2:
                Far.failures += 1
                raise TransientError("took it, and the answer was lost")

    asyncio.run(send(bench, Far, [1, 10, 10]))
    assert Far.failures == 2
    assert Far.numbers() == list(range(1, 22))
    assert len(Far.keys) == len(set(Far.keys)), "nothing that is held goes out again"


def test_it_starts_at_the_far_sides_resume_point_even_below_the_cursor(bench: Any, tmp_path: Path) -> None:
    class Far(FarSide):
        pass

    async def main() -> None:
        queue = queue_of(bench, tmp_path)
        await queue.open()
        await queue.queue_append(bench.batch(9), NO_ORIGINS)
        info = queue.queue_info()
        await queue.queue_reader_open("far", "oldest")
        await queue.queue_release("far", 7)
        Far.marks[str(info.queue_id)] = 4
        pipeline = bench.pipeline()
        async with bench.running(pipeline):
            await bench.drain(bench.outputs(pipeline, [(SendingOutput, bench.unit(Far))]))
        assert Far.queues == [("site", queue.queue_secret())]
        assert len(queue.queue_secret()) == 16
        await queue.close()

    asyncio.run(main())
    assert Far.numbers() == [5, 6, 7, 8, 9]


def test_what_another_far_side_took_is_not_sent_to_one_that_knows_nothing(bench: Any, tmp_path: Path) -> None:
    class Far(FarSide):
        pass

    async def main() -> None:
        queue = queue_of(bench, tmp_path)
        await queue.open()
        await queue.queue_append(bench.batch(9), NO_ORIGINS)
        await queue.queue_reader_open("far", "oldest")
        await queue.queue_release("far", 7)
        pipeline = bench.pipeline()
        async with bench.running(pipeline):
            await bench.drain(bench.outputs(pipeline, [(SendingOutput, bench.unit(Far))]))
        await queue.close()

    asyncio.run(main())
    assert Far.numbers() == [8, 9]


def test_named_rows_and_rows_found_by_halving_are_set_aside(bench: Any) -> None:
    class Far(FarSide):
        def _take(self, batch: pa.RecordBatch, origins: pa.RecordBatch, key: RangeKey) -> None:
            numbers = [int(payload[5:-1]) for payload in batch.column("payload").to_pylist()]
            if 4 in numbers:
                raise PermanentError("no fours", {str(key): [numbers.index(4)]})
            if 13 in numbers:
                raise PermanentError("something is odd")
            super()._take(batch, origins, key)

    asyncio.run(send(bench, Far, [20, 20]))
    assert Far.numbers() == [number for number in range(1, 41) if number not in (4, 13)]
    assert Far.dead == [4, 13]
    assert bench.letters.count == 2


def test_a_bug_restarts_the_component_and_its_event_is_set_aside_in_the_end(bench: Any) -> None:
    class Far(FarSide):
        async def gate(self, key: RangeKey) -> None:
            if key.first <= 5 <= key.last and 5 not in key.dead:
                raise ZeroDivisionError("bug")

    asyncio.run(send(bench, Far, [8]))
    assert Far.numbers() == [1, 2, 3, 4, 6, 7, 8]
    assert len(Far.queues) > 3, "each new instance is told its queue"


def test_what_fell_out_of_the_window_is_declared_missing(bench: Any) -> None:
    class Far(FarSide):
        pass

    async def main() -> None:
        pipeline = bench.pipeline()
        async with bench.running(pipeline) as tasks:
            await bench.feed(tasks, [10])
            (output,) = bench.outputs(pipeline, [(SendingOutput, bench.unit(Far, hold="window", hold_window_s=1.0))])
            output.skip_to = 6
            await bench.drain([output])

    asyncio.run(main())
    assert Far.numbers() == [7, 8, 9, 10]
    assert Far.missing == dict.fromkeys(range(1, 7), "window")


def test_ranges_of_two_queue_ids_are_never_under_way_together(bench: Any, tmp_path: Path) -> None:
    under_way: list[str] = []
    together: list[set[str]] = []

    class Far(FarSide):
        async def gate(self, key: RangeKey) -> None:
            under_way.append(key.queue_id)
            await asyncio.sleep(0.001)
            together.append(set(under_way))

        async def reply(self, key: RangeKey) -> None:
            under_way.remove(key.queue_id)

    async def main() -> None:
        for _ in range(3):
            queue = queue_of(bench, tmp_path)
            await queue.open()
            for _ in range(3):
                await queue.queue_append(bench.batch(2), NO_ORIGINS)
            await queue.close()
        await queue.open()
        pipeline = bench.pipeline()
        async with bench.running(pipeline):
            await bench.drain(bench.outputs(pipeline, [(SendingOutput, bench.unit(Far))]))
        await queue.close()

    asyncio.run(main())
    assert len(Far.marks) == 3
    assert [len(ids) for ids in together] == [1] * len(together)
    assert Far.numbers() == list(range(1, 19))


def test_origins_come_with_the_rows_whatever_was_left_out(bench: Any, tmp_path: Path) -> None:
    class Far(FarSide):
        def _take(self, batch: pa.RecordBatch, origins: pa.RecordBatch, key: RangeKey) -> None:
            if 3 not in key.dead:
                raise PermanentError("no", {str(key): [2]})
            super()._take(batch, origins, key)

    async def main() -> None:
        queue = queue_of(bench, tmp_path)
        await queue.open()
        await queue.queue_append(bench.batch(6), origin_batch([Origin("up/1", 101, 104), Origin("up/2", 7, 8, 4)]))
        pipeline = bench.pipeline()
        async with bench.running(pipeline):
            await bench.drain(bench.outputs(pipeline, [(SendingOutput, bench.unit(Far))]))
        await queue.close()

    asyncio.run(main())
    assert [(origin.id, origin.first, origin.last, origin.row_offset) for origin in Far.origins] == [
        ("up/1", 101, 102, 0), ("up/1", 104, 104, 2), ("up/2", 7, 8, 3),
    ]  # fmt: skip


def test_a_stopped_output_leaves_no_call_under_way(bench: Any) -> None:
    class Far(FarSide):
        async def gate(self, key: RangeKey) -> None:
            await asyncio.Event().wait()

    async def main() -> None:
        pipeline = bench.pipeline()
        async with bench.running(pipeline):
            feeding = asyncio.ensure_future(bench.buffer.queue_append(bench.batch(3), NO_ORIGINS))
            (output,) = bench.outputs(pipeline, [(SendingOutput, bench.unit(Far))])
            running = asyncio.ensure_future(output.run())
            await until(lambda: Far.in_flight > 0)
            running.cancel()
            await asyncio.wait([running])
            await until(lambda: Far.in_flight == 0)
            feeding.cancel()

    asyncio.run(asyncio.wait_for(main(), 20))
    assert Far.rows == {}


def test_what_does_not_decode_is_no_dead_letter_of_a_link(bench: Any, stores: Any, tmp_path: Path) -> None:
    class Store(stores[1]):
        pass

    class Far(FarSide):
        failures = 0

        async def gate(self, key: RangeKey) -> None:
            if not Far.failures:
                Far.failures += 1
                raise TransientError("first")

    async def main() -> None:
        queue = queue_of(bench, tmp_path)
        await queue.open()
        pipeline = bench.pipeline()
        async with bench.running(pipeline):
            payload = bench.batch(4, lambda number: b"broken%d." % number if number == 2 else b'{"n":%d}' % number)
            await queue.queue_append(payload, NO_ORIGINS)
            store, far = bench.outputs(pipeline, [(StreamingOutput, bench.unit(Store)), (SendingOutput, bench.unit(Far))])
            await queue.queue_reader_open("far", "oldest")
            await bench.drain([store])
            await bench.drain([far])
        await queue.close()

    asyncio.run(main())
    assert Store.rows == [1, 3, 4]
    assert bench.letters.count == 1
    assert [payload for (_, position), payload in Far.rows.items() if position == 2] == [b"broken2."]


def test_a_link_that_holds_nothing_is_refused(bench: Any) -> None:
    class Far(FarSide):
        pass

    check_driven(bench.unit(Far))
    with pytest.raises(ConfigError, match=r"t\.outputs\.far\.hold"):
        check_driven(bench.unit(Far, hold="none"))


# --- random histories ---


class Killed(BaseException):
    """Stands for kill -9: nothing of the engine may catch it."""


class RandomFaults:
    """Kills at some of the engine's fault points."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.kills = rng, 0.0

    def hit(self, name: str) -> None:
        if self.rng.random() < self.kills:
            raise Killed(name)


def queue_of(bench: Any, folder: Path) -> QueuePmem:
    """A real queue in the bench's place of one."""
    config = QueuePmem.Config(path=str(folder / "q"), medium="file", segment_bytes=8 << 20, size_bytes_max=32 << 20)
    bench.buffer = QueuePmem(config, fake_context(folder / "c"))
    bench.raw = RawReading(bench.buffer, bench.engine)
    return bench.buffer


async def live(bench: Any, rng: random.Random, far: Any, folder: Path, last: bool) -> None:
    """One life of the process: until it is killed, or drained."""
    bench.services.faults.kills = 0.0 if last else rng.choice((0.0, 0.02, 0.1))
    queue = queue_of(bench, folder)
    await queue.open()
    pipeline = bench.pipeline()
    (output,) = bench.outputs(pipeline, [(SendingOutput, bench.unit(far, send_window=rng.randint(1, 8)))])
    try:
        async with bench.running(pipeline):
            task = asyncio.ensure_future(output.run())
            for _ in range(rng.randint(0, 12)):
                await queue.queue_append(bench.batch(rng.randint(1, 60)), NO_ORIGINS)
                await asyncio.sleep(0)
            await asyncio.wait([task], timeout=0.02 * rng.random())
            output.drain()
            await asyncio.wait_for(asyncio.wait([task]), 10)
            error = task.exception()
            assert error is None or (isinstance(error, Killed) and not last), error
    finally:
        await queue.close()


@pytest.mark.parametrize("number", range(HISTORIES))
def test_every_event_arrives_once_whatever_fails_on_either_side(tmp_path: Path, engine_bench: Any, number: int) -> None:
    seed = int(os.environ.get("HEADRACE_SEED", random.randrange(2**32)))
    print(f"HEADRACE_SEED={seed}")
    rng = random.Random(seed)
    calm = False

    class Far(FarSide):
        async def gate(self, key: RangeKey) -> None:
            await self._trip()

        async def reply(self, key: RangeKey) -> None:
            await self._trip()

        async def _trip(self) -> None:
            for _ in range(rng.randint(0, 3)):
                await asyncio.sleep(0)
            draw = rng.random()
            if calm or draw > 0.1:
                return
            raise (TransientError("down"), ZeroDivisionError("bug"), TransientError("down"))[int(draw * 30)]

        def _take(self, batch: pa.RecordBatch, origins: pa.RecordBatch, key: RangeKey) -> None:
            mark = type(self).marks.get(key.queue_id)
            if mark is not None and key.first > mark + 1:
                raise TransientError("a frame before it was lost")  # as a receiver answers
            if mark is None and not key.first == min(span.first for span in spans_of(key.queue_id)):
                raise TransientError("a frame before it was lost")
            super()._take(batch, origins, key)

    bench = engine_bench(tmp_path, Engine(read_wait_ms_max=0, retry_base_ms=1, retry_max_ms=2, attempts_max=100, read_rows_max=64))
    bench.services.faults = RandomFaults(rng)

    def spans_of(queue_id: str) -> list[Any]:
        return [span for span in bench.buffer.queue_info().spans if span.queue_id == queue_id]

    for life in range(LIVES):
        calm = life == LIVES - 1
        asyncio.run(live(bench, rng, Far, tmp_path, last=calm))
    assert Far.numbers() == list(range(1, bench._count + 1))
    assert not Far.missing
    assert bench.letters.count == 0
