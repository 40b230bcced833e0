"""What stands in for the queue in a tier without one: a bounded hand-over in memory, with the queue's hooks.

Such a tier has a single pace: `queue_append` returns when the one holding output has the batch safe, so that the source
acknowledges no earlier. Nothing here survives the process; the sender still has it.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections import deque
from collections.abc import Sequence
from typing import Final

import pyarrow as pa

from headrace.component import Clock
from headrace.engine.reads import cut_read
from headrace.errors import QueueFull
from headrace.hookspecs import Plan, QueueInfo, QueueRead, QueueSpan, ReaderInfo
from headrace.position import NO_ORIGINS, Missing, OriginMark

BYTES_MAX: Final = 64 << 20


class Buffer:
    """Appended on the sources' loop, read on the pipeline's."""

    def __init__(self, name: str, clock: Clock, holding: bool) -> None:
        self._name, self._clock, self._holding = name, clock, holding
        self._id = str(uuid.uuid4())
        self._lock = threading.Lock()
        self._entries: deque[tuple[QueueRead, int, float]] = deque()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._safe: dict[int, tuple[asyncio.AbstractEventLoop, asyncio.Event]] = {}
        self._plans: dict[str, Plan | None] = {}
        self._head = self._cursor = self._bytes = 0

    def queue_info(self) -> QueueInfo:
        with self._lock:
            lag = self._head - self._cursor
            readers = tuple(ReaderInfo(name, 0, self._cursor, plan, lag, self._bytes) for name, plan in self._plans.items())
            oldest = self._entries[0][2] if self._entries else None
            spans = (QueueSpan(self._id, 1, None),) if self._head else ()
            return QueueInfo(
                self._name,
                self._id,
                "none",
                "memory",
                "none",
                self._head,
                self._cursor + 1,
                lag,
                self._bytes,
                BYTES_MAX,
                oldest,
                readers,
                spans,
            )

    def queue_secret(self) -> bytes:
        return b""

    async def queue_append(self, batch: pa.RecordBatch, origins: pa.RecordBatch) -> tuple[int, int]:
        size = batch.nbytes
        with self._lock:
            if self._holding and self._entries and self._bytes + size > BYTES_MAX:
                raise QueueFull(self._name, self._bytes, BYTES_MAX)
            while self._entries and self._bytes + size > BYTES_MAX:  # live feeds only: the oldest make room
                self._cursor = self._entries[0][0].last
                self._bytes -= self._entries.popleft()[1]
            first, last = self._head + 1, self._head + batch.num_rows
            if last < first:
                return first, last
            self._entries.append((QueueRead(self._id, first, last, batch, origins, ()), size, self._clock.wall()))
            self._head, self._bytes = last, self._bytes + size
            safe = asyncio.Event()
            if self._holding:
                self._safe[last] = (asyncio.get_running_loop(), safe)
            waiting, self._waiting = self._waiting, []
        for loop, event in waiting:
            loop.call_soon_threadsafe(event.set)
        if self._holding:
            await safe.wait()
        return first, last

    async def queue_origin_position(self, origin: str) -> int | None:
        return None

    async def queue_origin_mark(self, origin: str) -> OriginMark | None:
        return None

    async def queue_origin_forget(self, origins: Sequence[str]) -> None:
        pass

    async def queue_reader_open(self, reader: str, start: str) -> ReaderInfo:
        with self._lock:
            self._plans.setdefault(reader, None)
        return next(info for info in self.queue_info().readers if info.name == reader)

    async def queue_reader_drop(self, reader: str) -> None:
        with self._lock:
            self._plans.pop(reader, None)

    async def queue_read(self, reader: str, after: int, rows_max: int, bytes_max: int) -> QueueRead:
        while True:
            with self._lock:
                if after < self._head:
                    return self._part(after + 1, min(after + rows_max, self._head))
                event = asyncio.Event()
                self._waiting.append((asyncio.get_running_loop(), event))
            await event.wait()

    def _part(self, first: int, last: int) -> QueueRead:
        for read, _, _ in self._entries:
            if read.last >= first:
                low, high = max(first, read.first), min(last, read.last)
                if low > first:  # the oldest made room
                    return QueueRead(self._id, first, low - 1, None, NO_ORIGINS, (Missing(first, low - 1, "released"),))
                return cut_read(read, low, high)
        return QueueRead(self._id, first, last, None, NO_ORIGINS, (Missing(first, last, "released"),))

    async def queue_plan(self, reader: str, plan: Plan | None) -> None:
        with self._lock:
            self._plans[reader] = plan

    async def queue_release(self, reader: str, upto: int) -> None:
        with self._lock:
            self._cursor = max(self._cursor, upto)
            while self._entries and self._entries[0][0].last <= self._cursor:
                self._bytes -= self._entries.popleft()[1]
            safe = [self._safe.pop(last) for last in [*self._safe] if last <= self._cursor]
        for loop, event in safe:
            loop.call_soon_threadsafe(event.set)
