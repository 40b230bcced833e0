"""A `deliver` whose behaviour a test writes down."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Literal, NamedTuple

import pyarrow as pa

from headrace.errors import QueueFull, TransientError
from headrace.hookspecs import Elsewhere, QueueInfo
from headrace.position import NO_ORIGINS, ORIGIN_SESSION, OriginMark, origins_of

#: ok: commit at once. hold: wait for `let_go`. full: raise QueueFull, until `make_room`. transient: raise TransientError.
#: cancel: wait, and end as cancelled when the test calls `cancel_held` (the commit's outcome is unknown).
Step = Literal["ok", "hold", "full", "transient", "cancel"]


class Taken(NamedTuple):
    """One call that took its batch."""

    batch: pa.RecordBatch
    origins: pa.RecordBatch
    first: int
    last: int


class ScriptedDeliver:
    """`headrace.Deliver` that follows `steps`, one per call, and repeats `then` when they are used up.

    `calls` counts all calls. `committed` has what was taken, in the order of the positions; held batches come into it when
    they are let go. Positions count from 1.
    """

    def __init__(self, *steps: Step, then: Step = "ok", info: QueueInfo | None = None) -> None:
        self._steps, self._then = deque(steps), then
        self._info = info
        self._changed = asyncio.Condition()
        self._held: deque[asyncio.Future[bool]] = deque()
        self._room = asyncio.Event()
        self._room.set()
        self._head = 0
        self._marks: dict[str, OriginMark] = {}
        #: what other workers are to hold of every origin
        self.elsewhere = Elsewhere(None, True)
        self.calls = 0
        self.room_waits = self.hurries = 0
        self.committed: list[Taken] = []

    async def __call__(self, batch: pa.RecordBatch, origins: pa.RecordBatch = NO_ORIGINS) -> tuple[int, int]:
        """As the script says; returns (first, last) once 'durable'."""
        step = self._steps.popleft() if self._steps else self._then
        self.calls += 1
        await self._tell()
        if step == "full":
            self._room.clear()
        if not self._room.is_set():
            raise QueueFull("scripted", 100, 100)
        if step == "transient":
            raise TransientError("scripted")
        first, last = self._head + 1, self._head + batch.num_rows
        self._head = last
        if step in ("hold", "cancel"):
            held: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            self._held.append(held)
            await self._tell()
            await held
        self.committed.append(Taken(batch, origins, first, last))
        for origin in origins_of(origins):
            mark = self._marks.get(origin.id)
            if mark is None or origin.last >= mark.last:
                self._marks[origin.id] = OriginMark(origin.last, origin.note if origin.kind == ORIGIN_SESSION else None)
        await self._tell()
        return first, last

    async def room(self) -> None:
        """Return when the test has made room."""
        self.room_waits += 1
        await self._tell()
        await self._room.wait()

    async def position(self, origin: str) -> int | None:
        """The highest position committed from that origin."""
        mark = self._marks.get(origin)
        return mark.last if mark else None

    async def mark(self, origin: str) -> OriginMark | None:
        """The same with its note."""
        return self._marks.get(origin)

    async def forget(self, origins: Sequence[str]) -> None:
        """Drop their marks."""
        for origin in origins:
            self._marks.pop(origin, None)

    @contextlib.asynccontextmanager
    async def taking(self, origin: str) -> AsyncIterator[Elsewhere]:
        """`elsewhere`, at once."""
        yield self.elsewhere

    def hurry(self) -> None:
        """Count the call."""
        self.hurries += 1

    def queue_info(self) -> QueueInfo | None:
        """What the test gave as `info`."""
        return self._info

    # --- the test's side ---------------------------------------------------------------------------------------------

    @property
    def rows(self) -> int:
        """Rows committed so far."""
        return sum(taken.batch.num_rows for taken in self.committed)

    @property
    def held(self) -> int:
        """Calls that wait for `let_go`."""
        return sum(not future.done() for future in self._held)

    def let_go(self, count: int | None = None) -> None:
        """Let the oldest `count` held commits (all) go on."""
        for _ in range(len(self._held) if count is None else count):
            future = self._held.popleft()
            if not future.done():
                future.set_result(True)

    def cancel_held(self) -> None:
        """End all held commits as cancelled: nobody knows whether they are durable."""
        while self._held:
            self._held.popleft().cancel()

    def make_room(self) -> None:
        """Take batches again, and wake who waits in `room`."""
        self._room.set()

    async def until_called(self, calls: int) -> None:
        """Return when there were so many calls."""
        await self._until(lambda: self.calls >= calls)

    async def until_held(self, held: int = 1) -> None:
        """Return when so many commits are held."""
        await self._until(lambda: self.held >= held)

    async def until_rows(self, rows: int) -> None:
        """Return when so many rows are committed."""
        await self._until(lambda: self.rows >= rows)

    async def until_room_awaited(self, waits: int = 1) -> None:
        """Return when the source has called `room` so often."""
        await self._until(lambda: self.room_waits >= waits)

    async def _until(self, reached: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(reached)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
