"""No later message of a session becomes durable while an earlier one was given up: its mark would say more than is held.

`HEADRACE_SEED` repeats the random sender.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from headrace import NO_ORIGINS, Origin, QueueError, TransientError, origin_batch
from headrace.position import ORIGIN_SESSION
from headrace_queue_pmem.ring import Ring

sys.path.insert(0, str(Path(__file__).parent))
from conftest import MIB, FailingDevice, failing_syncs, failure_seen, numbers, rows, run

SESSION = "device-1/session"
#: A commit, and once more in a new segment: then the batch is given up.
FAILS_FOR_GOOD = 2


def message(first: int, count: int = 1) -> tuple[Any, Any]:
    """Messages first.. of the session, one row each."""
    return rows(first, count), origin_batch([Origin(SESSION, first, first + count - 1, 0, ORIGIN_SESSION)])


@pytest.fixture
def gave_up(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a commit was given up, before any caller can know of it."""
    event = threading.Event()
    real = Ring.give_up

    def give_up(ring: Ring, entries: Any) -> None:
        real(ring, entries)
        event.set()

    monkeypatch.setattr(Ring, "give_up", give_up)
    return event


@pytest.mark.parametrize("medium", ["pmem", "file"])
def test_append_made_before_an_earlier_failure_was_seen_fails_with_it(make, monkeypatch, gave_up, medium):
    async def body() -> None:
        device = FailingDevice(monkeypatch)
        queue = make(medium=medium, level="power")
        await queue.open()
        await queue.queue_reader_open("lake", "oldest")
        await queue.queue_append(*message(1))
        device.failures = FAILS_FOR_GOOD
        second = asyncio.ensure_future(queue.queue_append(*message(2)))
        await asyncio.sleep(0)
        assert gave_up.wait(30)  # the loop stands still: the sender cannot know yet
        third = asyncio.ensure_future(queue.queue_append(*message(3)))
        unrelated = asyncio.ensure_future(queue.queue_append(rows(100, 1), NO_ORIGINS))
        errors = await asyncio.gather(second, third, unrelated, return_exceptions=True)
        assert isinstance(errors[0], TransientError)
        assert errors == [errors[0]] * 3
        assert await queue.queue_origin_position(SESSION) == 1
        await failure_seen()
        assert await queue.queue_append(*message(2)) == (2, 2)
        assert numbers((await queue.queue_read("lake", 0, 100, MIB)).batch) == [1, 2]
        await queue.close()

    run(body())


def test_append_behind_one_that_failed_inline_fails_until_that_was_seen(make, flavour, monkeypatch):
    async def body() -> None:
        device = FailingDevice(monkeypatch)
        queue = make(**flavour)
        await queue.open()
        await queue.queue_append(*message(1))
        device.failures = FAILS_FOR_GOOD
        errors = await asyncio.gather(*(queue.queue_append(*message(number)) for number in range(2, 6)), return_exceptions=True)
        assert isinstance(errors[0], TransientError)
        assert errors == [errors[0]] * 4
        assert await queue.queue_origin_position(SESSION) == 1
        await failure_seen()
        assert await queue.queue_append(*message(2, 4)) == (2, 5)
        await queue.close()

    run(body())


def test_failure_that_nobody_can_see_any_more_does_not_stand(make, monkeypatch):
    device = FailingDevice(monkeypatch)
    queue = make(level="power")

    async def leave() -> None:
        await queue.open()
        await queue.queue_append(*message(1))
        committer = queue._committer
        with committer.lock:
            committer.unseen.add(TransientError("told to nobody"), [asyncio.get_running_loop()])
        with pytest.raises(TransientError, match="told to nobody"):
            await queue.queue_append(*message(2))

    async def come_back() -> None:
        assert await queue.queue_append(*message(2)) == (2, 2)
        await queue.close()

    run(leave())
    run(come_back())
    assert device.failures == 0


def test_append_that_meets_a_queue_about_to_close_fails_and_does_not_wait_for_ever(make):
    async def body() -> None:
        queue = make(level="power")
        await queue.open()
        before = asyncio.ensure_future(queue.queue_append(*message(1)))
        await asyncio.sleep(0)
        await asyncio.to_thread(queue._committer.stop)
        with pytest.raises(QueueError, match="closed"):
            await queue.queue_append(*message(2))
        assert await before == (1, 1)
        await queue.close()

    run(body())


class Session:
    """A sender that keeps several messages in flight, stops at a failure, and goes on behind what the queue holds."""

    def __init__(self, queue: Any, chance: random.Random) -> None:
        self.queue, self.chance, self.acked = queue, chance, 0

    async def send(self, upto: int) -> None:
        while self.acked < upto:
            mark = await self.queue.queue_origin_position(SESSION) or 0
            assert mark >= self.acked, f"messages up to {self.acked} were acknowledged, {mark} are held"
            self.acked, sent, failed = mark, mark, False
            flying: set[asyncio.Task[int]] = set()
            while flying or (sent < upto and not failed):
                while sent < upto and not failed and len(flying) < 6:
                    count = self.chance.randint(1, 3)
                    flying.add(asyncio.ensure_future(self.one(sent + 1, count)))
                    sent += count
                    if self.chance.random() < 0.5:
                        break
                done, flying = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
                failed = failed or any(task.exception() for task in done)

    async def one(self, first: int, count: int) -> int:
        try:
            await self.queue.queue_append(*message(first, count))
        except QueueError as error:
            raise TransientError("not taken") from error
        return first + count - 1


def test_what_a_session_s_mark_says_is_held_whatever_the_device_does(make, flavour, monkeypatch):
    seed = int(os.environ.get("HEADRACE_SEED") or random.SystemRandom().randrange(1 << 30))
    print(f"HEADRACE_SEED={seed}")
    chance = random.Random(seed)
    failures = 0

    def fails() -> bool:
        nonlocal failures
        if not failures or chance.random() < 0.5:
            return False
        failures -= 1
        return True

    async def body() -> None:
        nonlocal failures
        failing_syncs(monkeypatch, fails)
        queue = make(**flavour, size_bytes_max=1 << 30)
        await queue.open()
        await queue.queue_reader_open("lake", "oldest")
        session = Session(queue, chance)
        for upto in range(20, 101, 20):
            failures = 10
            await session.send(upto)
        failures = 0
        last = await queue.queue_origin_position(SESSION)
        found: list[int] = []
        while len(found) < last:
            found += numbers((await queue.queue_read("lake", len(found), 1000, MIB)).batch)
        assert found == list(range(1, last + 1))
        await queue.close()

    run(body())
