"""Several far tiers for one output: a batch stays bound to the one that it was sent to, whatever dies, and new ones go elsewhere."""

from __future__ import annotations

import asyncio
import os
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headrace import NO_ORIGINS, Missing, Origin, QueueInfo, QueueSpan, RangeKey, ReaderInfo, TransientError, origin_batch, origins_of
from headrace.component import SystemClock
from headrace.testing import FakeContext, fake_context, raw_batch, run
from headrace_transport_zmq import assignments, choosing, lanes
from headrace_transport_zmq.assignments import Assignments, Part, Segment
from headrace_transport_zmq.choosing import Choice
from headrace_transport_zmq.config import Peer, TransportConfig, problem
from headrace_transport_zmq.counters import FleetCounters
from headrace_transport_zmq.cutting import cut
from headrace_transport_zmq.fleet import Fleet

HISTORIES = 25 if "HEADRACE_FULL" not in os.environ else 3_000


def test_each_position_belongs_to_one_lane() -> None:
    assigned = Assignments()
    one = assigned.open("a", "tcp://a", 11, 1000)
    assigned.cut(100)
    two = assigned.open("b", "tcp://b", 101, 2000)
    one = one._replace(upto=100)
    assert assigned.parts(50, 120) == [Part(one, 50, 100), Part(two, 101, 120)]
    assigned.extend(3000)
    assert (two.lane, assigned.upto) == (2, 3000)
    assigned.rebind(one, "b", "tcp://b")
    assert assigned.segments[0] == Segment(3, "b", "tcp://b", 11, 100)
    assert assigned.release(99) == []
    assert [segment.lane for segment in assigned.release(100)] == [3]
    assert assigned.release(10_000) == [], "the last one stays"
    assigned.cut(100)
    assert assigned.segments == [], "nothing of it was sent"


def test_assignments_survive(tmp_path: Path) -> None:
    assert assignments.load(tmp_path) is None
    assigned = Assignments()
    assigned.open("a", "tcp://a", 1, 9)
    assignments.keep(tmp_path, assignments.pack(assigned))
    again = assignments.load(tmp_path)
    assert again is not None
    assert (again.segments, again.next_lane) == (assigned.segments, 2)
    (tmp_path / assignments.FILE).write_text("{}")
    with pytest.raises(ValueError, match="at the risk of doubles"):
        assignments.load(tmp_path)


def test_the_first_that_is_there_is_chosen_and_a_better_one_when_it_has_been_back_for_a_while() -> None:
    choice = Choice(["a", "b"], return_s=5)
    assert choice.current(0) is None, "nothing is known"
    choice.told("b", True, 0)
    assert choice.current(0) is None, "the better one may be there too"
    choice.told("a", False, 1)
    assert choice.current(1) == "b"
    choice.told("a", True, 2)
    assert choice.current(6) == "b"
    assert choice.current(7) == "a"
    choice.told("a", False, 8)
    assert choice.current(8) == "b"
    choice.told("a", True, 9)
    assert choice.current(9 + 5 * 4 - 1) == "b", "it takes longer each time"
    assert choice.current(9 + 5 * 4) == "a"
    choice.told("b", False, 40)
    choice.told("a", False, 40)
    assert choice.current(40) is None


def test_a_batch_is_cut_with_its_key_and_origins() -> None:
    key = RangeKey("q", 10, 19, (Missing(12, 14, "corrupt"),), (17,))
    origins = origin_batch([Origin("up/1", 101, 106)])
    batch, parts, part = cut(raw_batch(6), origins, key, 13, 18)
    assert (part, batch.num_rows) == (RangeKey("q", 13, 18, (Missing(13, 14, "corrupt"),), (17,)), 3)
    assert batch.equals(raw_batch(6).slice(2, 3))
    assert origins_of(parts) == [Origin("up/1", 103, 105)]


def test_peers_are_told_apart_by_name_and_address() -> None:
    a, b = Peer(name="a", connect="tcp://127.0.0.1:1"), Peer(name="b", connect="tcp://127.0.0.1:2")
    assert problem(TransportConfig(peers=(a, b))) == ""
    assert "all different" in problem(TransportConfig(peers=(a, Peer(name="a", connect="tcp://127.0.0.1:3"))))
    assert "connect and peers" in problem(TransportConfig(peers=(a, b), connect="tcp://127.0.0.1:1"))
    assert "peers: b: tcp://10.0.0.1:2 is not a loopback address" in problem(
        TransportConfig(peers=(a, Peer(name="b", connect="tcp://10.0.0.1:2")))
    )


# --- a random model: two far tiers that come and go, a source that crashes -----------------------------------------------


class Middle:
    """A far tier. What it has is durable; it may be away, and answer nothing."""

    def __init__(self, name: str) -> None:
        self.name, self.away = name, False
        self.marks: dict[tuple[str, int], int] = {}
        self.rows: list[tuple[str, int]] = []
        self.links: list[Lane] = []

    def turn(self, away: bool) -> None:
        self.away = away
        for link in list(self.links):
            link.told(not away, f"no far side at {self.name}")
            link.work()

    def take(self, lane: int, batch: pa.RecordBatch, key: RangeKey) -> None:
        mark = self.marks.get((key.queue_id, lane))
        assert mark is None or key.first <= mark + 1, f"an undeclared gap on lane {lane}: {mark}, then {key}"
        positions = [int(payload[5:-1]) for payload in batch.column("payload").to_pylist()]
        self.rows += [(key.queue_id, position) for position in positions if mark is None or position > mark]
        self.marks[key.queue_id, lane] = max(mark or 0, key.last)


class Lane:
    """A link of the model: in order, answered when its middle is there, and the world lets it."""

    def __init__(self, middle: Middle, lane: int, told: Callable[[bool, str], None], rng: random.Random) -> None:
        self.middle, self.lane, self.told, self.rng = middle, lane, told, rng
        self.posted: deque[tuple[pa.RecordBatch, RangeKey, asyncio.Future[None]]] = deque()
        self.asked: list[tuple[str, asyncio.Future[int | None]]] = []
        middle.links.append(self)

    def queue(self, queue: QueueInfo, secret: bytes, fresh: bool = True) -> None:
        pass

    async def resume(self, queue_id: str) -> int | None:
        future: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self.asked.append((queue_id, future))
        self.work()
        return await future

    def post(self, batch: pa.RecordBatch, origins: pa.RecordBatch, key: RangeKey) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.posted.append((batch, key, future))
        return future

    def work(self, lose: bool = False) -> None:
        """Take what has come; `lose`: and the answer to the last one does not get back."""
        if self.middle.away:
            return
        for queue_id, future in self.asked:
            if not future.done():
                future.set_result(self.middle.marks.get((queue_id, self.lane)))
        self.asked.clear()
        for _ in range(self.rng.randint(0, len(self.posted))):
            batch, key, future = self.posted[0]
            self.middle.take(self.lane, batch, key)
            if lose:
                return
            self.posted.popleft()
            if not future.done():
                future.set_result(None)

    def abandon(self) -> None:
        self.posted.clear()

    def hurry(self) -> None:
        pass

    async def run(self) -> None:
        self.told(not self.middle.away, f"no far side at {self.middle.name}")
        await asyncio.Event().wait()

    def close(self) -> None:
        if self in self.middle.links:
            self.middle.links.remove(self)


class Source:
    """A queue and the engine's way with it, over crashes: asks from the oldest id on, sends in any bounds, releases what is safe."""

    def __init__(self, rng: random.Random, folder: Path, middles: list[Middle]) -> None:
        self.rng, self.folder, self.middles = rng, folder, {middle.name: middle for middle in middles}
        self.spans: list[QueueSpan] = []
        self.head = self.cursor = 0

    def info(self) -> QueueInfo:
        reader = ReaderInfo("uplink", 0, self.cursor, None, self.head - self.cursor, 0)
        return QueueInfo("near", None, "process", "", "", self.head, 1, 0, 0, 1, None, (reader,), tuple(self.spans))

    def grow(self) -> None:
        if not self.spans or self.spans[-1].last is not None:
            self.spans.append(QueueSpan(f"{len(self.spans):08d}-0000-4000-8000-000000000000", self.head + 1, None))
        self.head += self.rng.randint(1, 12)

    def close(self) -> None:
        if self.spans and self.spans[-1].last is None:
            self.spans[-1] = self.spans[-1]._replace(last=self.head)

    def queue_id(self, position: int) -> tuple[str, int]:
        span = next(span for span in self.spans if span.first <= position <= (span.last or self.head))
        return span.queue_id, span.last or self.head

    def fleet(self, context: FakeContext, resend: bool = False) -> Fleet:
        def make(name: str, address: str, lane: int, told: Callable[[bool, str], None]) -> Lane:
            return Lane(self.middles[name], lane, told, self.rng)

        return Fleet({name: f"tcp://{name}" for name in self.middles}, resend, context, make, FleetCounters(context.metrics))


async def resume_point(source: Source, fleet: Fleet) -> int:
    """As `SendingOutput._resume_point`."""
    fleet.queue(source.info(), b"s")
    position = 0
    for span in source.spans:
        last = span.last or source.head
        if last <= position:
            continue
        held = await fleet.resume(span.queue_id)
        if held is None and last > source.cursor:
            return max(position, source.cursor)
        position = last if held is None else max(position, min(held, last))
        if held is not None and held < last:
            break
    return position


async def life(source: Source, rng: random.Random, steps: int, settle: bool) -> None:
    """From a start of the source's process to its crash (or, at the end, until everything is acknowledged)."""
    context = fake_context(source.folder, clock=SystemClock(), id="uplink", plugin="transport_zmq")

    async def call_blocking(fn: Callable[..., Any], *args: Any) -> Any:
        for _ in range(rng.randint(0, 3)):
            await asyncio.sleep(0)
        done = fn(*args)
        await asyncio.sleep(0)  # a crash here: it is durable, and nobody knows
        return done

    context.call_blocking = call_blocking  # type: ignore[method-assign]
    fleet = source.fleet(context)
    running = asyncio.ensure_future(fleet.run())
    beginning = asyncio.ensure_future(resume_point(source, fleet))
    calls: deque[tuple[int, asyncio.Task[None]]] = deque()
    position = None
    for step in range(steps):
        if not settle and rng.random() < 0.05:
            rng.choice(list(source.middles.values())).turn(rng.random() < 0.5)
        if settle and step == 0:
            for middle in source.middles.values():
                middle.turn(False)
        if not settle and rng.random() < 0.3:
            source.grow()
        if position is None and beginning.done():
            position = beginning.result()
        under_way = sum(not task.done() for _, task in calls)
        if position is not None and position < source.head and under_way - fleet.bound() < 4:
            queue_id, end = source.queue_id(position + 1)
            last = min(end, position + rng.randint(1, 9))
            key = RangeKey(queue_id, position + 1, last)
            calls.append((last, asyncio.ensure_future(fleet.send(raw_batch(key.size, key.first), NO_ORIGINS, key))))
            position = last
        for middle in source.middles.values():
            for link in list(middle.links):
                if rng.random() < 0.3:
                    link.work(lose=not settle and rng.random() < 0.05)
        for _ in range(rng.randint(0, 4)):
            await asyncio.sleep(0)
        while calls and calls[0][1].done():
            source.cursor, task = calls[0][0], calls.popleft()[1]
            task.result()
        if settle and position == source.head and not calls:
            break
    else:
        assert not settle, f"not settled: cursor {source.cursor} of {source.head}, {fleet._assigned.segments}"
    source.cursor = max(0, source.cursor - rng.choice((0, 0, 3))) if not settle else source.cursor
    for task in [running, beginning, *(task for _, task in calls)]:
        task.cancel()
    await asyncio.wait([running, beginning, *(task for _, task in calls)])
    fleet.close()
    for middle in source.middles.values():
        middle.links.clear()


def test_nothing_is_lost_or_doubled_over_two_far_tiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace_transport_zmq.fleet.AHEAD", 20)
    monkeypatch.setattr(choosing, "RETURN_S", 0.0)
    monkeypatch.setattr(assignments, "replace_durably", lambda file, content: file.write_bytes(content))
    base = int(os.environ.get("HEADRACE_SEED", random.randrange(2**32)))
    both = lanes_opened = 0
    for seed in [base] if "HEADRACE_SEED" in os.environ else range(base, base + HISTORIES):
        rng = random.Random(seed)
        folder = tmp_path / str(seed)
        middles = [Middle("a"), Middle("b")]
        source = Source(rng, folder, middles)
        try:
            for _ in range(rng.randint(1, 5)):
                run(life(source, rng, rng.randint(5, 120), settle=False))
                source.close()
            run(life(source, rng, 5000, settle=True))
            rows = sorted(position for middle in middles for _, position in middle.rows)
            assert rows == list(range(1, source.head + 1))
        except BaseException as error:
            error.add_note(f"HEADRACE_SEED={seed}")
            raise
        both += all(middle.rows for middle in middles)
        lanes_opened += len({lane for middle in middles for _, lane in middle.marks})
    if "HEADRACE_SEED" not in os.environ:
        assert both > HISTORIES / 10, "a history with one far tier proves little"
        assert lanes_opened > HISTORIES


def test_what_is_bound_to_a_tier_that_is_gone_is_resent_only_where_that_is_allowed(tmp_path: Path) -> None:
    async def check(resend: bool) -> list[tuple[str, int]]:
        rng = random.Random(1)
        folder = tmp_path / str(resend)
        source = Source(rng, folder, [a := Middle("a"), b := Middle("b")])
        source.grow()
        context = fake_context(folder, clock=SystemClock(), id="uplink", plugin="transport_zmq")
        fleet = source.fleet(context, resend)
        running = asyncio.ensure_future(fleet.run())
        assert await resume_point(source, fleet) == 0
        key = RangeKey(source.spans[0].queue_id, 1, source.head)
        first = asyncio.ensure_future(fleet.send(raw_batch(key.size), NO_ORIGINS, key))
        while not fleet._posted:  # noqa: ASYNC110  several turns of the loop, of which nobody tells
            await asyncio.sleep(0)
        a.turn(True)
        if not resend:
            assert fleet.bound() == 1
            status, reason = context.statuses[-1]
            assert status == "degraded"
            assert reason.startswith("what was sent to a waits for it: no far side at a")
            source.grow()
            key = RangeKey(source.spans[0].queue_id, key.last + 1, source.head)
            second = asyncio.ensure_future(fleet.send(raw_batch(key.size, key.first), NO_ORIGINS, key))
            while not second.done():
                b.turn(False)
                await asyncio.sleep(0)
            assert not first.done(), "it waits for its own far tier"
            a.turn(False)
            while not first.done():
                a.turn(False)
                await asyncio.sleep(0)
        else:
            with pytest.raises(TransientError, match="is sent to another one"):
                await first
            assert await resume_point(source, fleet) == 0
            again = asyncio.ensure_future(fleet.send(raw_batch(key.size), NO_ORIGINS, key))
            while not again.done():
                b.turn(False)
                await asyncio.sleep(0)
            assert context.metric("link_bound_resent_total") == 1
        running.cancel()
        await asyncio.wait([running])
        fleet.close()
        return a.rows + b.rows

    for resend in (False, True):
        rows = run(check(resend))
        assert sorted(position for _, position in rows) == list(range(1, len(rows) + 1))


def test_what_went_to_the_one_far_tier_that_there_was_stays_bound_to_it(tmp_path: Path) -> None:
    async def check() -> None:
        context = fake_context(tmp_path, clock=SystemClock(), id="uplink", plugin="transport_zmq")
        lanes.keep(context.data_dir, lanes.Lane(4, "b"))
        source = Source(random.Random(1), tmp_path, [a := Middle("a"), b := Middle("b")])
        source.grow()
        half = source.head
        b.marks[source.spans[0].queue_id, 4] = half - 1  # the last one is not acknowledged yet
        fleet = source.fleet(context)
        running = asyncio.ensure_future(fleet.run())
        assert await resume_point(source, fleet) == half - 1
        source.grow()
        key = RangeKey(source.spans[0].queue_id, half, source.head)
        sending = asyncio.ensure_future(fleet.send(raw_batch(key.size, half), NO_ORIGINS, key))
        while not sending.done():
            a.turn(False)
            b.turn(False)
            await asyncio.sleep(0)
        assert [position for _, position in b.rows] == [half]
        assert [position for _, position in a.rows] == list(range(half + 1, source.head + 1))
        running.cancel()
        await asyncio.wait([running])
        fleet.close()

    run(check())
