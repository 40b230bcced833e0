"""Group commit: while one commit is under way in a thread, the next collects."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from headrace import QueueError
from headrace_queue_pmem.bell import LoopBell, ThreadBell
from headrace_queue_pmem.frame import Entry
from headrace_queue_pmem.ring import Ring
from headrace_queue_pmem.unseen import Unseen

Waiter = asyncio.Future[None]


class Committer:
    """Commits reserved entries in their order, in a thread of its own.

    `lock` also guards the step from "what is held already" to "reserved": when a commit fails, everything behind it fails
    with it, and nobody may have relied on a mark that goes back. What is appended until the callers know of it fails too
    (`unseen`).
    """

    def __init__(
        self,
        ring: Ring,
        wait_s: float,
        bytes_max: int,
        committed: Callable[[Sequence[Entry], float], None],
        failed: Callable[[Exception, int], None],
        bell: LoopBell,
    ) -> None:
        self._ring, self._wait_s, self._bytes_max, self._bell = ring, wait_s, bytes_max, bell
        self._committed, self._failed = committed, failed
        self.lock = threading.Lock()
        self.unseen = Unseen(self.lock)
        self._work = ThreadBell()
        self._pending: deque[tuple[Entry | None, Waiter]] = deque()
        self._under_way = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"queue-commit-{ring.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Commit what is pending, then end the thread; safe twice."""
        with self.lock:
            if self._stopping:
                return
            self._stopping = True
            self._work.ring()
        if self._thread.ident is not None:
            self._thread.join()

    def check(self) -> None:
        """Raise what stands in the way of an append: a failure that its callers have not seen, or the end. Under the lock."""
        if self._stopping:
            raise QueueError(f"queue {self._ring.name!r} is closed")
        self.unseen.check()

    @property
    def idle(self) -> bool:
        """Nothing is pending or under way. Under the lock."""
        return not self._pending and not self._under_way

    def submit(self, entry: Entry | None, loop: asyncio.AbstractEventLoop) -> Waiter:
        """Have a reserved entry committed (None: only wait for all before it). Under the lock; `wake` comes behind it."""
        if self._stopping:
            raise QueueError(f"queue {self._ring.name!r} is closed")
        waiter: Waiter = loop.create_future()
        self._pending.append((entry, waiter))
        return waiter

    def wake(self) -> None:
        """Have the thread look for work. Not under the lock: it would wake up only to wait for that."""
        if not self._under_way and not self._stopping:
            self._work.ring()

    def _run(self) -> None:
        while (group := self._next_group()) is not None:
            entries = [entry for entry, _ in group if entry is not None]
            error: Exception | None = None
            started = time.perf_counter()
            try:
                if entries:
                    self._ring.commit(entries)
            except Exception as caught:
                error = caught
                with self.lock:
                    group += self._pending
                    self._pending.clear()
                    lost = [entry for entry, _ in group if entry is not None]
                    self._ring.give_up(lost)
                    self.unseen.add(caught, {waiter.get_loop() for _, waiter in group})
                self._failed(caught, len(lost))
            ended = time.perf_counter()
            with self.lock:
                self._under_way = False
            settle([waiter for _, waiter in group], error, self.unseen.told if error else None, self._bell)
            if entries and error is None:
                self._committed(entries, ended - started)  # behind the callers, who need not wait for it

    def _next_group(self) -> list[tuple[Entry | None, Waiter]] | None:
        while True:
            with self.lock:
                if self._pending:
                    if not self._wait_s or self._stopping:
                        return self._take()
                elif self._stopping:
                    return None
            if self._pending:
                self._collect()
                with self.lock:
                    return self._take()
            self._work.wait()

    def _take(self) -> list[tuple[Entry | None, Waiter]]:
        group: list[tuple[Entry | None, Waiter]] = []
        size = 0
        while self._pending and (not group or size < self._bytes_max):
            group.append(self._pending.popleft())
            entry = group[-1][0]
            size += entry.size if entry else 0
        self._under_way = True
        return group

    def _collect(self) -> None:
        """Wait for company, within both bounds."""
        until = time.monotonic() + self._wait_s
        while (left := until - time.monotonic()) > 0 and not self._stopping:
            with self.lock:
                size = sum(entry.size for entry, _ in self._pending if entry)
            if size >= self._bytes_max:
                return
            self._work.wait_for(left)


def settle(
    waiters: Sequence[Waiter],
    error: Exception | None,
    told: Callable[[asyncio.AbstractEventLoop], None] | None = None,
    bell: LoopBell | None = None,
) -> None:
    """Tell the loops of these waiters: one call per loop, by `bell` for its own. `told` is called on each, behind its waiters."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Waiter]] = {}
    for waiter in waiters:
        by_loop.setdefault(waiter.get_loop(), []).append(waiter)
    for loop, theirs in by_loop.items():
        if bell is not None and loop is bell.loop:
            bell.call(_resolve, theirs, error, told)
            continue
        # RuntimeError: that loop is closed, nobody waits there any more
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_resolve, theirs, error, told)


def _resolve(waiters: Sequence[Waiter], error: Exception | None, told: Callable[[asyncio.AbstractEventLoop], None] | None) -> None:
    for waiter in waiters:
        if waiter.done():
            continue  # cancelled: the outcome is unknown to the caller by contract
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)
    if told is not None:
        told(waiters[0].get_loop())
