"""What each hook of the queue promises, on both media and at both levels."""

from __future__ import annotations

import asyncio
import gc
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headrace import (
    NO_ORIGINS,
    Missing,
    Origin,
    OriginMark,
    PermanentError,
    Plan,
    QueueError,
    QueueFull,
    QueueLocked,
    TransientError,
    origin_batch,
    origins_of,
)
from headrace.position import ORIGIN_MISSING, ORIGIN_SESSION
from headrace.schema import event_schema

sys.path.insert(0, str(Path(__file__).parent))
from conftest import MIB, numbers, rows, run


async def drained(queue: Any, reader: str, after: int = 0, rows_max: int = 1000) -> list[int]:
    """All numbers behind `after`."""
    found: list[int] = []
    while after < queue.queue_info().head:
        part = await queue.queue_read(reader, after, rows_max, 1 << 20)
        assert part.first == after + 1
        found += numbers(part.batch)
        after = part.last
    return found


async def fill(queue: Any) -> int:
    """Append hundreds of rows until the queue is full; returns how many it took."""
    number = 0
    try:
        while True:
            await queue.queue_append(rows(number, 100, 2000), NO_ORIGINS)
            number += 100
    except QueueFull:
        return number


async def until(condition: Any) -> None:
    """Poll for what another thread does; the test's own timeout bounds it."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def test_append_gives_positions_in_order_and_read_gives_the_rows_back(make, flavour):
    async def body():
        queue = make(**flavour)
        await queue.open()
        assert await queue.queue_append(rows(1, 3), NO_ORIGINS) == (1, 3)
        assert await queue.queue_append(rows(4, 1), NO_ORIGINS) == (4, 4)
        await queue.queue_reader_open("lake", "oldest")
        part = await queue.queue_read("lake", 0, 100, 1 << 20)
        assert (part.first, part.last, part.missing) == (1, 4, ())
        assert numbers(part.batch) == [1, 2, 3, 4]
        assert part.queue_id == queue.queue_info().queue_id
        await queue.close()

    run(body())


def test_overlapping_appends_are_numbered_in_the_order_of_the_calls(make, flavour):
    async def body():
        queue = make(**flavour)
        await queue.open()
        results = await asyncio.gather(*(queue.queue_append(rows(10 * n, 2), NO_ORIGINS) for n in range(50)))
        assert results == [(2 * n + 1, 2 * n + 2) for n in range(50)]
        await queue.queue_reader_open("lake", "oldest")
        assert await drained(queue, "lake") == [number for n in range(50) for number in (10 * n, 10 * n + 1)]
        await queue.close()

    run(body())


def test_restart_keeps_everything_under_a_new_queue_id(make, flavour):
    async def body():
        queue = make(**flavour)
        await queue.open()
        await queue.queue_reader_open("lake", "oldest")
        await queue.queue_append(rows(1, 5), NO_ORIGINS)
        await queue.queue_plan("lake", Plan(3, 5, 2, (4,)))
        await queue.queue_release("lake", 2)
        first_id = queue.queue_info().queue_id
        await queue.close()

        queue = make(**flavour)
        await queue.open()
        info = queue.queue_info()
        assert info.queue_id is None
        assert (info.head, info.size_events) == (5, 3)
        reader = await queue.queue_reader_open("lake", "head")
        assert (reader.cursor, reader.plan, reader.lag_events) == (2, Plan(3, 5, 2, (4,)), 3)
        assert await queue.queue_append(rows(6, 2), NO_ORIGINS) == (6, 7)
        info = queue.queue_info()
        assert info.queue_id != first_id
        assert [(span.first, span.last) for span in info.spans] == [(1, 5), (6, None)]
        part = await queue.queue_read("lake", 2, 100, 1 << 20)
        assert (part.queue_id, part.first, part.last) == (first_id, 3, 5)
        part = await queue.queue_read("lake", 5, 100, 1 << 20)
        assert (part.queue_id, part.first, part.last) == (info.queue_id, 6, 7)
        await queue.close()

    run(body())


def test_read_waits_for_an_append_and_wakes_from_another_loop(make, flavour):
    async def body():
        queue = make(**flavour)
        await queue.open()
        await queue.queue_reader_open("lake", "oldest")
        reading = asyncio.get_running_loop().run_in_executor(None, lambda: asyncio.run(queue.queue_read("lake", 0, 10, 1 << 20)))
        await until(lambda: queue._waiters)
        await queue.queue_append(rows(1, 1), NO_ORIGINS)
        part = await reading
        assert numbers(part.batch) == [1]
        await queue.close()

    run(body())


def test_a_commit_right_before_a_reader_waits_is_not_missed(make):
    class Late(list[Any]):
        """The waiters; the first to wait comes a commit too late."""

        def append(self, waiter: Any) -> None:
            if not late:
                entry = queue._entry(rows(1, 1), NO_ORIGINS)
                queue._ring.reserve(entry)
                queue._ring.commit([entry])
                queue._committed([entry], 0.0)
                late.append(entry)
            super().append(waiter)

    queue, late = make(), list[Any]()

    async def body():
        await queue.open()
        await queue.queue_reader_open("lake", "oldest")
        queue._waiters = Late()
        part = await asyncio.wait_for(queue.queue_read("lake", 0, 10, 1 << 20), 10)
        assert numbers(part.batch) == [1]
        assert late
        assert queue._waiters == []
        await queue.close()

    run(body())


def test_cancelled_read_loses_nothing(make):
    async def body():
        queue = make()
        await queue.open()
        await queue.queue_reader_open("lake", "oldest")
        waiting = asyncio.ensure_future(queue.queue_read("lake", 0, 10, 1 << 20))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert queue._waiters == []
        await queue.queue_append(rows(1, 1), NO_ORIGINS)
        assert numbers((await queue.queue_read("lake", 0, 10, 1 << 20)).batch) == [1]
        await queue.close()

    run(body())


def test_close_wakes_waiting_readers_with_an_error(make):
    async def body():
        queue = make()
        await queue.open()
        waiting = asyncio.ensure_future(queue.queue_read("lake", 0, 10, 1 << 20))
        await asyncio.sleep(0)
        await queue.close()
        await queue.close()
        with pytest.raises(QueueError):
            await waiting

    run(body())


def test_read_starts_inside_an_entry_and_keeps_to_its_bounds(make, flavour):
    async def body():
        queue = make(**flavour)
        await queue.open()
        for first in (1, 11, 21):
            await queue.queue_append(rows(first, 10), NO_ORIGINS)
        part = await queue.queue_read("lake", 4, 20, 1 << 20)
        assert (part.first, part.last, numbers(part.batch)) == (5, 20, list(range(5, 21)))
        part = await queue.queue_read("lake", 0, 1, 1)
        assert numbers(part.batch) == list(range(1, 11)), "at least one entry, however small the bounds"
        await queue.close()

    run(body())


def test_origins_come_back_with_offsets_into_the_joined_batch(make, flavour):
    async def body():
        queue = make(**flavour)
        await queue.open()
        await queue.queue_append(rows(1, 4), origin_batch([Origin("a/0", 11, 12), Origin("b/0", 5, 6, 2)]))
        await queue.queue_append(rows(5, 2), NO_ORIGINS)
        await queue.queue_append(rows(7, 2), origin_batch([Origin("a/0", 13, 14)]))
        part = await queue.queue_read("lake", 1, 100, 1 << 20)
        assert origins_of(part.origins) == [Origin("a/0", 12, 12, 0), Origin("b/0", 5, 6, 1), Origin("a/0", 13, 14, 5)]
        await queue.close()

    run(body())


def test_rows_that_are_held_are_dropped_across_reframing_and_restart(make, flavour):
    async def body():
        queue = make(**flavour)
        await queue.open()
        assert await queue.queue_append(rows(1, 4), origin_batch([Origin("a/0", 1, 4)])) == (1, 4)
        assert await queue.queue_append(rows(3, 4), origin_batch([Origin("a/0", 3, 6)])) == (5, 6)
        assert await queue.queue_append(rows(2, 3), origin_batch([Origin("a/0", 2, 4)])) == (7, 6)
        assert await queue.queue_origin_position("a/0") == 6
        assert await queue.queue_origin_position("b/0") is None
        await queue.close()
        queue = make(**flavour)
        await queue.open()
        assert await queue.queue_origin_position("a/0") == 6
        assert await queue.queue_append(rows(5, 4), origin_batch([Origin("a/0", 5, 8)])) == (7, 8)
        await queue.queue_reader_open("lake", "oldest")
        assert await drained(queue, "lake") == [1, 2, 3, 4, 5, 6, 7, 8]
        await queue.close()

    run(body())


def test_rows_in_flight_count_as_held(make, flavour):
    async def body():
        queue = make(**flavour)
        await queue.open()
        results = await asyncio.gather(*(queue.queue_append(rows(1, 3), origin_batch([Origin("a/0", 1, 3)])) for _ in range(4)))
        assert results == [(1, 3), (4, 3), (4, 3), (4, 3)]
        assert await queue.queue_origin_position("a/0") == 3
        await queue.close()

    run(body())


def test_declared_gap_of_an_origin_moves_its_mark_without_rows(make, flavour):
    async def body():
        queue = make(**flavour)
        await queue.open()
        gap = Origin("a/0", 1, 9, 0, ORIGIN_MISSING, b"released")
        assert await queue.queue_append(rows(1, 0), origin_batch([gap])) == (1, 0)
        assert await queue.queue_origin_position("a/0") == 9
        await queue.queue_append(rows(1, 1), origin_batch([Origin("a/0", 10, 10)]))
        part = await queue.queue_read("lake", 0, 10, 1 << 20)
        assert origins_of(part.origins) == [gap, Origin("a/0", 10, 10)]
        await queue.close()
        queue = make(**flavour)
        await queue.open()
        assert await queue.queue_origin_position("a/0") == 10
        await queue.close()

    run(body())


def test_a_read_gives_a_position_however_many_frames_without_rows_come_first(make, flavour):
    async def body():
        queue = make(**flavour)
        await queue.open()
        for last in (3, 6):
            await queue.queue_append(rows(1, 0), origin_batch([Origin("a/0", last - 2, last, 0, ORIGIN_MISSING, b"released")]))
        await queue.queue_append(rows(1, 2), NO_ORIGINS)
        part = await queue.queue_read("lake", 0, 1, 1)
        assert (part.first, part.last, numbers(part.batch)) == (1, 2, [1, 2])
        assert [origin.last for origin in origins_of(part.origins)] == [3, 6]
        await queue.close()

    run(body())


def test_raw_frames_never_join_events_whatever_lies_between(make):
    async def body():
        queue = make()
        await queue.open()
        schema = event_schema(pa.struct([("t", pa.float64())]), pa.struct([("site", pa.string())]))
        fields = {"device": "d", "time": 1, "received": 2, "readings": {"t": 1.5}, "context": {"site": "x"}, "origin": "q", "position": 7}
        event = pa.RecordBatch.from_pylist([fields], schema=schema)
        for batch in (event, event, rows(1, 0)):
            await queue.queue_append(batch, origin_batch([Origin("a/0", 1, 1, 0, ORIGIN_SESSION)]) if not batch.num_rows else NO_ORIGINS)
        for number in range(40):
            await queue.queue_append(rows(number, 1), NO_ORIGINS)
        part = await queue.queue_read("lake", 0, 1000, 1 << 20)
        assert (part.last, part.batch.num_rows) == (2, 2)
        part = await queue.queue_read("lake", 2, 1000, 1 << 20)
        assert numbers(part.batch) == list(range(40))
        await queue.close()

    run(body())


def test_sessions_are_remembered_and_the_oldest_idle_is_evicted(make):
    async def body():
        queue = make(sessions_max=2)
        await queue.open()
        for number, session in enumerate(["d1/s", "d2/s", "d1/s", "d3/s"]):
            await queue.queue_append(rows(number, 1), origin_batch([Origin(session, number + 1, number + 1, 0, ORIGIN_SESSION)]))
        assert await queue.queue_origin_position("d2/s") is None
        assert await queue.queue_origin_position("d1/s") == 3
        assert await queue.queue_origin_position("d3/s") == 4
        assert queue.context.metrics.registry.get_sample_value("headrace_queue_evicted_sessions_total", {"queue": "site"}) == 1
        await queue.close()

    run(body())


def test_origins_that_are_over_make_room_and_stay_forgotten(make):
    async def body():
        queue = make(queue_origins_max=1)
        await queue.open()
        await queue.queue_append(rows(1, 2), origin_batch([Origin("old/0", 1, 2), Origin("d/s", 1, 1, 2, ORIGIN_SESSION, b"note")]))
        with pytest.raises(TransientError, match="queue_origins_max"):
            await queue.queue_append(rows(3, 1), origin_batch([Origin("new/0", 1, 1)]))
        await queue.queue_origin_forget(["old/0"])
        await queue.queue_append(rows(3, 1), origin_batch([Origin("new/0", 1, 1)]))
        await queue.queue_origin_forget(["d/s", "nobody"])
        await queue.close()
        queue = make(queue_origins_max=1)
        await queue.open()
        assert [await queue.queue_origin_mark(name) for name in ("old/0", "new/0", "d/s")] == [None, OriginMark(1), None]
        await queue.queue_origin_forget(["new/0"])
        await queue.close()  # without a further frame
        queue = make(queue_origins_max=1)
        await queue.open()
        assert await queue.queue_origin_mark("new/0") is None
        await queue.close()

    run(body())


def test_origin_with_other_row_count_is_refused(make):
    async def body():
        queue = make()
        await queue.open()
        with pytest.raises(PermanentError, match="a/0"):
            await queue.queue_append(rows(1, 2), origin_batch([Origin("a/0", 1, 3)]))
        assert queue.queue_info().head == 0
        await queue.close()

    run(body())


def test_event_batches_with_their_own_schemas_come_back_unjoined(make, flavour):
    async def body():
        queue = make(**flavour)
        await queue.open()
        batches = []
        for name in ("temperature", "humidity"):
            schema = event_schema(pa.struct([(name, pa.float64())]), pa.struct([("site", pa.string())]))
            values = [
                {"device": "d", "time": 1, "received": 2, "readings": {name: 1.5}, "context": {"site": "x"}, "origin": "q", "position": 7}
            ]
            batches.append(pa.RecordBatch.from_pylist(values, schema=schema))
        for batch in (batches[0], batches[0], batches[1]):
            await queue.queue_append(batch, NO_ORIGINS)
        part = await queue.queue_read("lake", 0, 100, 1 << 20)
        assert part.last == 2
        assert part.batch.schema.equals(batches[0].schema, check_metadata=True)
        part = await queue.queue_read("lake", 2, 100, 1 << 20)
        assert part.batch.equals(batches[1])
        await queue.close()

    run(body())


def test_readers_start_where_they_are_told(make, flavour):
    async def body():
        queue = make(**flavour)
        await queue.open()
        await queue.queue_append(rows(1, 10), NO_ORIGINS)
        assert (await queue.queue_reader_open("lake", "oldest")).cursor == 0
        await queue.queue_release("lake", 4)
        assert (await queue.queue_reader_open("live", "head")).cursor == 10
        assert (await queue.queue_reader_open("copy", "after:lake")).cursor == 4
        with pytest.raises(QueueError, match="nobody"):
            await queue.queue_reader_open("bad", "after:nobody")
        with pytest.raises(QueueError, match="oldest, head or after"):
            await queue.queue_reader_open("bad", "yesterday")
        info = queue.queue_info()
        assert {reader.name: reader.lag_events for reader in info.readers} == {"lake": 6, "live": 0, "copy": 6}
        await queue.queue_reader_drop("lake")
        await queue.queue_reader_drop("lake")
        await queue.queue_reader_drop("copy")
        assert queue.queue_info().size_events == 0
        await queue.close()

    run(body())


def test_release_is_repeatable_and_never_moves_back(make):
    async def body():
        queue = make()
        await queue.open()
        await queue.queue_append(rows(1, 10), NO_ORIGINS)
        await queue.queue_reader_open("lake", "oldest")
        for upto in (5, 5, 3):
            await queue.queue_release("lake", upto)
        assert queue.queue_info().readers[0].cursor == 5
        with pytest.raises(QueueError, match="11"):
            await queue.queue_release("lake", 11)
        with pytest.raises(QueueError, match="nobody"):
            await queue.queue_release("nobody", 1)
        await queue.close()

    run(body())


def test_plan_that_leaves_out_too_many_positions_is_refused_and_the_old_one_stands(make):
    async def body():
        queue = make()
        await queue.open()
        await queue.queue_reader_open("lake", "oldest")
        plan = Plan(1, 5000, 1, tuple(range(1, 900)))
        await queue.queue_plan("lake", plan)
        with pytest.raises(PermanentError, match="999"):
            await queue.queue_plan("lake", Plan(1, 5000, 1, tuple(range(1, 1002))))
        assert queue.queue_info().readers[0].plan == plan
        await queue.queue_plan("lake", None)
        assert queue.queue_info().readers[0].plan is None
        await queue.close()

    run(body())


def test_queue_full_takes_nothing_and_ends_when_a_segment_is_given_back(make, flavour):
    async def body():
        queue = make(**flavour, size_bytes_max=16 * MIB)
        await queue.open()
        await queue.queue_reader_open("lake", "oldest")
        number = await fill(queue)
        with pytest.raises(QueueFull) as caught:
            await queue.queue_append(rows(number, 100, 2000), NO_ORIGINS)
        info = queue.queue_info()
        assert caught.value.size_bytes_max == info.size_bytes_max < 16 * MIB
        assert info.size_bytes > 0.9 * info.size_bytes_max, "sources wait until it is less"
        assert info.head == number
        with pytest.raises(QueueFull):
            await queue.queue_append(rows(number, 100, 2000), NO_ORIGINS)
        await queue.queue_release("lake", number // 2 + 200)
        # at once: who waits for room looks again when the release returns, and else only half a second later
        info = queue.queue_info()
        assert info.tail > 1
        assert info.size_bytes <= 0.9 * info.size_bytes_max
        assert await queue.queue_append(rows(number, 100, 2000), NO_ORIGINS) == (number + 1, number + 100)
        tail = queue.queue_info().tail
        part = await queue.queue_read("lake", 0, 100, 1 << 20)
        assert part.missing == (Missing(1, tail - 1, "released"),)
        assert await drained(queue, "lake", tail - 1) == list(range(tail - 1, number + 100))
        await queue.close()

    run(body())


def test_batch_larger_than_a_segment_is_refused_for_good(make):
    async def body():
        queue = make()
        await queue.open()
        with pytest.raises(PermanentError, match="segment_bytes"):
            await queue.queue_append(rows(1, 1, 9 * MIB), NO_ORIGINS)
        assert await queue.queue_append(rows(1, 1), NO_ORIGINS) == (1, 1)
        await queue.close()

    run(body())


def test_held_batch_stays_valid_when_its_segment_is_given_back_and_reused(make, flavour):
    async def body():
        queue = make(**flavour, size_bytes_max=24 * MIB)
        await queue.open()
        await queue.queue_reader_open("lake", "oldest")
        await queue.queue_append(rows(0, 100, 2000), NO_ORIGINS)
        held = (await queue.queue_read("lake", 0, 100, 1 << 20)).batch
        number = 100
        while queue.queue_info().tail <= 40_000:  # several times the whole queue
            try:
                await queue.queue_append(rows(number, 100, 2000), NO_ORIGINS)
                number += 100
            except QueueFull:
                await asyncio.sleep(0.001)
            await queue.queue_release("lake", number)
        assert numbers(held) == list(range(100))
        del held
        gc.collect()
        await queue.queue_append(rows(number, 1), NO_ORIGINS)
        await queue.close()

    run(body())


def test_second_open_names_the_holder(make):
    async def body():
        queue, second = make(), make()
        await queue.open()
        with pytest.raises(QueueLocked, match=f"process {__import__('os').getpid()} "):
            await second.open()
        await queue.close()
        await second.open()
        await second.close()

    run(body())


def test_readers_hold_what_they_have_not_released(make, flavour):
    async def body():
        queue = make(**flavour)
        await queue.open()
        await queue.queue_reader_open("slow", "oldest")
        await queue.queue_reader_open("fast", "oldest")
        for first in range(0, 5000, 100):
            await queue.queue_append(rows(first, 100, 2000), NO_ORIGINS)
            await queue.queue_release("fast", first + 100)
        await asyncio.sleep(0.3)
        assert queue.queue_info().tail == 1
        assert await drained(queue, "slow") == list(range(5000))
        await queue.close()

    run(body())


def test_each_reader_has_a_lag_and_an_oldest_event_of_its_own(make, flavour):
    async def body():
        queue = make(**flavour)
        await queue.open()
        for reader in ("quick", "slow"):
            await queue.queue_reader_open(reader, "oldest")
        assert [reader.oldest_event_s for reader in queue.queue_info().readers] == [None, None]
        await queue.queue_append(rows(1, 10, 2000), NO_ORIGINS)
        await asyncio.sleep(0.02)  # the clock of the frames has to move
        await queue.queue_append(rows(11, 10, 2000), NO_ORIGINS)
        first = await queue.queue_read("quick", 0, 10, 1 << 20)
        await queue.queue_release("quick", first.last)
        quick, slow = queue.queue_info().readers
        assert (quick.lag_events, slow.lag_events) == (10, 20)
        assert quick.lag_bytes < slow.lag_bytes
        assert 0.015 < quick.oldest_event_s - slow.oldest_event_s < 30
        assert queue.queue_info().oldest_event_s == slow.oldest_event_s
        await queue.queue_release("quick", 20)
        assert queue.queue_info().readers[0].oldest_event_s is None
        await queue.close()

    run(body())
