"""The shared gatherer: what a commit carries, in which order it is told, and what never is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from headrace import QueueFull, TransientError
from headrace.component import SystemClock
from headrace.log import Log
from headrace.metrics import Metrics
from headrace_ingest_ws.counters import Counters
from headrace_ingest_ws.intake import Intake


class Listener:
    """A peer that writes down what it is told."""

    def __init__(self, name: str, told: list[tuple[str, int]]) -> None:
        self.name, self.told, self.count = name, told, 0

    def settled(self, last: int) -> None:
        self.told.append((self.name, last))


class Bench:
    """An intake that runs, and peers a and b."""

    def __init__(self, deliver: Any, **options: Any) -> None:
        bounds = {"rows_max": 100, "bytes_max": 10_000, "wait_us_max": 0, "commits_in_flight": 2, **options}
        fault = bounds.pop("fault", lambda name: None)
        self.deliver = deliver
        self.told: list[tuple[str, int]] = []
        self.a, self.b = Listener("a", self.told), Listener("b", self.told)
        self.intake = Intake(**bounds, clock=SystemClock(), counters=Counters(Metrics()), log=Log("test"), fault=fault)
        self.task: asyncio.Task[None]

    def send(self, peer: Listener, *payloads: bytes) -> None:
        peer.count += 1
        self.intake.add(peer, peer.count, peer.name, 1, payloads)


@contextlib.asynccontextmanager
async def bench(deliver: Any, **options: Any) -> AsyncIterator[Bench]:
    made = Bench(deliver, **options)
    made.task = asyncio.create_task(made.intake.run(deliver))
    try:
        yield made
    finally:
        made.task.cancel()
        await asyncio.wait([made.task])


def test_while_a_commit_is_under_way_everything_else_gathers_in_the_next(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.gate.clear()
        async with bench(deliver, commits_in_flight=1) as b:
            b.send(b.a, b"1")
            await kit.until(lambda: deliver.under_way == 1)
            for _ in range(3):
                b.send(b.a, b"2")
                b.send(b.b, b"3")
            deliver.gate.set()
            await b.intake.quiet()
            assert [batch.num_rows for batch in deliver.durable] == [1, 6]
            assert b.told == [("a", 1), ("a", 4), ("b", 3)], "one call per peer and commit"

    asyncio.run(scenario())


def test_commits_in_flight_is_a_bound(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.gate.clear()
        async with bench(deliver, commits_in_flight=2) as b:
            for _ in range(10):
                b.send(b.a, b"1")
                for _ in range(5):
                    await asyncio.sleep(0)
            deliver.gate.set()
            await b.intake.quiet()
            assert deliver.under_way_most == 2
            assert sum(batch.num_rows for batch in deliver.durable) == 10

    asyncio.run(scenario())


def test_commits_that_end_out_of_order_are_told_in_order(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        ends = [asyncio.Event(), asyncio.Event()]
        calls = iter(ends)

        async def deliver(batch: Any, origins: Any) -> tuple[int, int]:
            await next(calls).wait()
            return 0, 0

        async with bench(deliver) as b:
            b.send(b.a, b"1")
            for _ in range(5):
                await asyncio.sleep(0)
            b.send(b.a, b"2")
            for _ in range(5):
                await asyncio.sleep(0)
            ends[1].set()
            for _ in range(20):
                await asyncio.sleep(0)
            assert b.told == [], "the first commit is not durable yet"
            ends[0].set()
            await b.intake.quiet()
            assert b.told == [("a", 1), ("a", 2)]

    asyncio.run(scenario())


def test_a_full_queue_holds_the_batch_keeps_the_order_and_stops_reading(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver("full", "full")
        async with bench(deliver) as b:
            b.send(b.a, b"1")
            await kit.until(lambda: b.intake.paused)
            b.send(b.a, b"2")
            assert b.intake.full
            room = asyncio.create_task(b.intake.room())
            await asyncio.sleep(0.01)
            assert not room.done()
            assert deliver.calls == 1, "no later batch may overtake, and nobody asks before there is room"
            deliver.has_room.set()
            await room
            await b.intake.quiet()
            assert deliver.payloads == [b"1", b"2"]
            assert b.told[-1] == ("a", 2)
            assert not b.intake.paused

    asyncio.run(scenario())


def test_commits_that_were_under_way_when_the_queue_filled_up_are_still_told(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver("ok", "full")
        deliver.gate.clear()
        async with bench(deliver) as b:
            b.send(b.a, b"1")
            await kit.until(lambda: deliver.under_way == 1)
            b.send(b.b, b"2")
            await kit.until(lambda: b.intake.paused)
            deliver.gate.set()
            await kit.until(lambda: b.told == [("a", 1)])
            deliver.has_room.set()
            await b.intake.quiet()
            assert b.told == [("a", 1), ("b", 1)]

    asyncio.run(scenario())


def test_a_refused_message_waits_for_the_commits_before_it(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.gate.clear()
        async with bench(deliver) as b:
            b.send(b.a, b"1")
            await kit.until(lambda: deliver.under_way == 1)
            b.send(b.a)
            await asyncio.sleep(0.01)
            assert b.told == []
            deliver.gate.set()
            await b.intake.quiet()
            assert b.told == [("a", 1), ("a", 2)]
            assert deliver.calls == 1, "a commit without events needs no deliver"

    asyncio.run(scenario())


def test_room_ends_at_the_row_bound_and_comes_back_with_the_next_commit(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.gate.clear()
        async with bench(deliver, commits_in_flight=1, rows_max=3) as b:
            b.send(b.a, b"0")
            await kit.until(lambda: deliver.under_way == 1)
            b.send(b.a, b"1", b"2")
            assert not b.intake.full
            b.send(b.a, b"3", b"4")
            assert b.intake.full
            deliver.gate.set()
            await b.intake.room()
            await b.intake.quiet()
            assert [batch.num_rows for batch in deliver.durable] == [1, 4], "the rows of one message share a commit"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("failure", "raised"),
    [(TransientError("disk"), TransientError), (RuntimeError("bug"), RuntimeError), (asyncio.CancelledError(), TransientError)],
    ids=["transient", "bug", "cancelled"],
)
def test_after_a_failed_commit_nothing_of_it_or_behind_it_is_told(
    kit: SimpleNamespace, failure: BaseException, raised: type[Exception]
) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver("ok", failure)
        deliver.gate.clear()
        async with bench(deliver) as b:
            b.send(b.a, b"1")
            await kit.until(lambda: deliver.under_way == 1)
            b.send(b.a, b"2")
            b.send(b.b, b"3")
            await kit.until(lambda: deliver.under_way == 2)
            b.send(b.a, b"4")
            deliver.gate.set()
            with pytest.raises(raised):
                await asyncio.wait_for(b.task, 5)
            assert b.told == [("a", 1)]
            await asyncio.wait_for(b.intake.room(), 1)
            assert b.intake.stopped

    asyncio.run(scenario())


def test_a_queue_that_breaks_while_it_is_full_ends_the_intake_with_its_own_error(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver("full", TransientError("gone"))
        deliver.has_room.set()
        async with bench(deliver) as b:
            b.send(b.a, b"1")
            with pytest.raises(TransientError, match="gone"):
                await asyncio.wait_for(b.task, 5)
            assert b.told == []

    asyncio.run(scenario())


def test_a_disk_that_fills_up_under_way_pauses_and_nothing_is_lost_or_told_early(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        late = QueueFull("queue", 1, 1, "disk full")
        deliver = kit.FakeDeliver(late, late)
        deliver.gate.clear()
        async with bench(deliver) as b:
            b.send(b.a, b"1")
            await kit.until(lambda: deliver.under_way == 1)
            b.send(b.a, b"2")
            await kit.until(lambda: deliver.under_way == 2)
            b.send(b.b, b"3")
            deliver.gate.set()
            await kit.until(lambda: b.intake.paused)
            assert b.told == []
            deliver.has_room.set()
            await b.intake.quiet()
            assert deliver.payloads == [b"1", b"2", b"3"]
            assert b.told == [("a", 1), ("a", 2), ("b", 1)]
            assert not b.intake.paused
            assert not b.intake.full

    asyncio.run(scenario())


def test_a_commit_behind_a_refused_one_is_told_only_after_it(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver(QueueFull("queue", 1, 1, "disk full"), "ok")
        deliver.gate.clear()
        async with bench(deliver) as b:
            b.send(b.a, b"1")
            await kit.until(lambda: deliver.under_way == 1)
            b.send(b.b, b"2")
            await kit.until(lambda: deliver.under_way == 2)
            deliver.gate.set()
            await kit.until(lambda: deliver.payloads == [b"2"])
            await asyncio.sleep(0.01)
            assert b.told == []
            deliver.has_room.set()
            await b.intake.quiet()
            assert b.told == [("a", 1), ("b", 1)]

    asyncio.run(scenario())


def test_a_queue_that_has_room_and_then_has_none_is_not_asked_in_a_busy_loop(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver(*["full"] * 1000)
        deliver.has_room.set()
        async with bench(deliver) as b:
            b.send(b.a, b"1")
            await asyncio.sleep(0.2)
            assert 2 <= deliver.calls <= 8

    asyncio.run(scenario())


def test_the_order_is_fault_deliver_fault_acks_fault(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        seen: list[str] = []
        told: list[tuple[str, int]] = []
        deliver = kit.FakeDeliver()
        async with bench(deliver, fault=lambda name: seen.append(f"{name} {len(deliver.durable)} {len(told)}")) as b:
            told = b.told
            b.send(b.a, b"1")
            await b.intake.quiet()
        assert seen == ["ingest_ws.before_deliver 0 0", "ingest_ws.after_deliver 1 0", "ingest_ws.after_ack 1 1"]

    asyncio.run(scenario())


@pytest.mark.parametrize(("point", "durable"), [("ingest_ws.before_deliver", 0), ("ingest_ws.after_deliver", 1)])
def test_a_fault_before_the_acks_leaves_everything_unacked(kit: SimpleNamespace, point: str, durable: int) -> None:
    async def scenario() -> None:
        def fault(name: str) -> None:
            if name == point:
                raise TransientError(name)

        deliver = kit.FakeDeliver()
        async with bench(deliver, fault=fault) as b:
            b.send(b.a, b"1")
            with pytest.raises(TransientError, match=point):
                await asyncio.wait_for(b.task, 5)
            assert (b.told, len(deliver.durable)) == ([], durable)

    asyncio.run(scenario())
