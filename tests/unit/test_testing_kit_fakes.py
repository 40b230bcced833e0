"""The kit's fakes: the clock that a test moves, the context that remembers, the scripted deliver, and the batches."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pyarrow as pa
import pytest

from headrace import EVENT_COLUMNS, RAW_SCHEMA, Component, Origin, OriginMark, QueueFull, TransientError, event_schema, origin_batch
from headrace.position import ORIGIN_SESSION
from headrace.testing import FakeClock, ScriptedDeliver, event_batch, fake_context, living, raw_batch, run
from headrace.testing.journal import Journal, Note

# --- clock -----------------------------------------------------------------------------------------------------------


def test_sleepers_wake_in_the_order_of_their_times() -> None:
    async def check() -> None:
        clock = FakeClock()
        woken: list[tuple[str, float]] = []

        async def sleeper(name: str, seconds: float) -> None:
            await clock.sleep(seconds)
            woken.append((name, clock.monotonic() - 1000.0))

        async with asyncio.TaskGroup() as tasks:
            for name, seconds in (("late", 5.0), ("early", 1.0), ("zero", 0.0), ("never", 9.0)):
                tasks.create_task(sleeper(name, seconds))
            await clock.advance(0.5)
            assert woken == [("zero", 0.0)]
            assert clock.sleepers == 3
            await clock.advance(7.5)
            assert woken[1:] == [("early", 1.0), ("late", 5.0)]
            await clock.advance(1.0)
        assert woken[-1] == ("never", 9.0)

    run(check())


def test_a_loop_that_sleeps_again_is_woken_again_within_one_move() -> None:
    async def check() -> None:
        clock = FakeClock()
        turns: list[float] = []

        async def every_second() -> None:
            while True:
                await clock.sleep(1.0)
                turns.append(clock.wall())

        task = asyncio.create_task(every_second())
        start = clock.wall()
        await clock.advance(3.5)
        assert turns == [start + 1, start + 2, start + 3]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await clock.advance(10)
        assert len(turns) == 3

    run(check())


def test_a_jump_of_the_wall_clock_wakes_nobody() -> None:
    async def check() -> None:
        clock = FakeClock(wall=100.0)
        task = asyncio.create_task(clock.sleep(5))
        await clock.advance(0)
        clock.jump_wall(-3600)
        assert (clock.wall(), clock.monotonic(), task.done()) == (-3500.0, 1000.0, False)
        await clock.advance(5)
        await task

    run(check())


# --- context ---------------------------------------------------------------------------------------------------------


def test_the_context_remembers_statuses_and_metrics(tmp_path: Path) -> None:
    context = fake_context(tmp_path / "a" / "b")
    assert context.data_dir.is_dir()
    context.status("degraded", "the store is away")
    context.status("ok", "")
    assert context.statuses == [("degraded", "the store is away"), ("ok", "")]
    assert context.metric("sink_written_events_total") is None
    context.metrics.counter("sink_written_events_total", "Events.").inc(3)
    context.metrics.counter("sink_refused_events_total", "Events.", reason="size").inc(2)
    assert context.metric("sink_written_events_total") == 3
    assert context.metric("sink_refused_events_total", reason="size") == 2
    assert fake_context(tmp_path).metric("sink_written_events_total") is None, "every context has metrics of its own"


def test_the_context_passes_fault_points(tmp_path: Path) -> None:
    context = fake_context(tmp_path, faults="sink.here=error@2")
    context.fault("sink.here")
    context.fault("sink.there")
    with pytest.raises(TransientError, match=r"sink\.here"):
        context.fault("sink.here")


def test_what_run_raises_fails_the_test_and_the_component_is_closed(tmp_path: Path) -> None:
    from headrace import hookimpl

    class Fails(Component):
        closed = False

        @hookimpl
        def host_started(self) -> None:
            pass

        async def run(self) -> None:
            raise RuntimeError("the long loop broke")

        async def close(self) -> None:
            self.closed = True

    component = Fails(Fails.Config(), fake_context(tmp_path))

    async def check() -> None:
        async with living(component, "listener"):
            await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="the long loop broke"):
        run(check())
    assert component.closed


def test_a_test_that_hangs_ends() -> None:
    with pytest.raises(TimeoutError):
        run(asyncio.sleep(60), timeout_s=0.01)


# --- deliver ---------------------------------------------------------------------------------------------------------


def test_deliver_commits_in_the_order_of_the_calls() -> None:
    async def check() -> None:
        deliver = ScriptedDeliver()
        assert await deliver(raw_batch(3)) == (1, 3)
        assert await deliver(raw_batch(2), origin_batch([Origin("edge/0", 7, 8)])) == (4, 5)
        assert (deliver.rows, deliver.calls) == (5, 2)
        assert (await deliver.position("edge/0"), await deliver.position("other")) == (8, None)
        await deliver(raw_batch(1), origin_batch([Origin("device/session", 4, 4, 0, ORIGIN_SESSION, b"4 refused")]))
        assert await deliver.mark("device/session") == OriginMark(4, b"4 refused")
        await deliver.forget(["edge/0", "other"])
        assert (await deliver.mark("edge/0"), await deliver.position("device/session")) == (None, 4)
        assert deliver.queue_info() is None

    run(check())


def test_a_held_commit_returns_when_it_is_let_go() -> None:
    async def check() -> None:
        deliver = ScriptedDeliver(then="hold")
        calls = [asyncio.create_task(deliver(raw_batch(2))) for _ in range(2)]
        await deliver.until_held(2)
        assert deliver.rows == 0
        deliver.let_go(1)
        assert await calls[0] == (1, 2)
        assert not calls[1].done()
        assert deliver.held == 1
        deliver.let_go()
        assert await calls[1] == (3, 4)

    run(check())


def test_full_takes_nothing_until_there_is_room() -> None:
    async def check() -> None:
        deliver = ScriptedDeliver("ok", "full")
        await deliver(raw_batch(1))
        for _ in range(2):
            with pytest.raises(QueueFull):
                await deliver(raw_batch(1))
        waiting = asyncio.create_task(deliver.room())
        await deliver.until_room_awaited()
        assert not waiting.done()
        deliver.make_room()
        await waiting
        assert await deliver(raw_batch(1)) == (2, 2)
        assert (deliver.rows, deliver.calls) == (2, 4)

    run(check())


def test_transient_takes_nothing_and_cancel_leaves_the_outcome_open() -> None:
    async def check() -> None:
        deliver = ScriptedDeliver("transient", "cancel")
        with pytest.raises(TransientError):
            await deliver(raw_batch(1))
        call = asyncio.create_task(deliver(raw_batch(1)))
        await deliver.until_held()
        deliver.cancel_held()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert deliver.rows == 0
        await deliver(raw_batch(1))

    run(check())


# --- batches ---------------------------------------------------------------------------------------------------------


def test_raw_batches_are_numbered() -> None:
    batch = raw_batch(3, first=10, payload_bytes=100)
    assert batch.schema.equals(RAW_SCHEMA, check_metadata=True)
    batch.validate(full=True)
    payloads = batch.column("payload").to_pylist()
    assert [payload[:7] for payload in payloads] == [b'{"n":10', b'{"n":11', b'{"n":12']
    assert all(len(payload) >= 80 for payload in payloads)


def test_event_batches_have_the_events_schema() -> None:
    batch = event_batch(2, 5, readings={"count": [1, 2], "state": ["a", None]}, context={"site": [None, "x"]})
    batch.validate(full=True)
    assert batch.schema.names == list(EVENT_COLUMNS)
    readings, context = batch.schema.field("readings").type, batch.schema.field("context").type
    assert readings.field("count").type == pa.float64()
    assert batch.schema.equals(event_schema(readings, context), check_metadata=True)
    assert batch.column("position").to_pylist() == [5, 6]
    assert event_batch(0).num_rows == 0
    with pytest.raises(ValueError, match="expected 2 values of 'count', got 3"):
        event_batch(2, readings={"count": [1, 2, 3]})


def test_a_journal_is_read_back_as_it_was_noted(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    assert (journal.lines, journal.notes()) == (0, [])
    journal.note("write", 1, 12)
    journal.note("done", 10**15, 2)
    assert (journal.lines, journal.notes()) == (2, [Note("write", 1, 12), Note("done", 10**15, 2)])
