"""What stands in for the queue in a tier without one: a bounded hand-over in memory, with the queue's hooks.

Such a tier has a single pace: `queue_append` returns when the one holding output has the batch safe, so that the source
acknowledges no earlier. Nothing here survives the process; the sender still has it. What comes over links has positions already: it is
held as stretches of the queues that sent it (`passing`), and how far each of them is safe is for the store to say.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

import pyarrow as pa

from headrace.component import Clock
from headrace.engine.passing import Stretch, is_passed, passed_id, stretches, told_id
from headrace.engine.reads import alike, cut_read, joined
from headrace.errors import QueueFull
from headrace.hookspecs import BY_FLUSH, Plan, QueueInfo, QueueRead, QueueSpan, ReaderInfo
from headrace.position import NO_ORIGINS, Missing, OriginMark

BYTES_MAX: Final = 64 << 20
#: Queue ids of which it is remembered how far the store holds them.
HELD_MAX: Final = 65_536

#: Asks the tier's store up to where it holds a queue id.
AskStore = Callable[[str], Awaitable[int | None]]


class _Entry(NamedTuple):
    read: QueueRead
    size: int
    since: float


class _Held:
    """How far a queue that sends to here is safe in the store, and how far it is under way. In its own positions; None: nothing."""

    def __init__(self, safe: int | None) -> None:
        self.safe = self.staged = safe
        self.staged_at = 0  # the buffer's position


class Buffer:
    """Appended on the sources' loop, read on the pipeline's. level: what survives when the store has it, where links lead to here."""

    def __init__(self, name: str, clock: Clock, holding: bool, level: str = "none", ask_store: AskStore | None = None) -> None:
        self._name, self._clock, self._holding = name, clock, holding
        self._level, self._ask_store = level, ask_store
        #: whether a read is worth waiting for: what a live feed shows is about now, and joined only where it has gathered by itself
        self.patient = ask_store is not None
        #: whether a read may give several entries together: not where each is waited for by whoever handed it over
        self._joins = ask_store is not None or not holding
        self._id = str(uuid.uuid4())
        self._lock = threading.Lock()
        self._entries: deque[_Entry] = deque()
        self._spans: deque[QueueSpan] = deque()
        self._held: dict[str, _Held] = {}
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._safe: list[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._plans: dict[str, Plan | None] = {}
        self._head = self._cursor = self._bytes = 0

    def queue_info(self) -> QueueInfo:
        with self._lock:
            lag = self._head - self._cursor
            oldest = self._entries[0].since if self._entries else None
            readers = tuple(ReaderInfo(name, 0, self._cursor, plan, lag, self._bytes, oldest) for name, plan in self._plans.items())
            return QueueInfo(
                self._name,
                self._id,
                self._level,
                "memory",
                "none" if self._ask_store is None else BY_FLUSH,
                self._head,
                self._cursor + 1,
                lag,
                self._bytes,
                BYTES_MAX,
                oldest,
                readers,
                tuple(self._spans),
            )

    def queue_secret(self) -> bytes:
        return b""

    async def queue_append(self, batch: pa.RecordBatch, origins: pa.RecordBatch) -> tuple[int, int]:
        size = batch.nbytes
        with self._lock:
            if self._holding and self._entries and self._bytes + size > BYTES_MAX:
                raise QueueFull(self._name, self._bytes, BYTES_MAX)
            while self._entries and self._bytes + size > BYTES_MAX:  # live feeds only: the oldest make room
                self._cursor = self._entries[0].read.last
                self._bytes -= self._entries.popleft().size
            first = self._head + 1
            relied = self._stage(batch, origins, size)
            last = self._head
            safe = asyncio.Event()
            if self._holding and relied > self._cursor:
                self._safe.append((relied, asyncio.get_running_loop(), safe))
            else:
                safe.set()
            waiting, self._waiting = self._waiting, []
        for loop, event in waiting:
            loop.call_soon_threadsafe(event.set)
        await safe.wait()
        return first, last

    def _stage(self, batch: pa.RecordBatch, origins: pa.RecordBatch, size: int) -> int:
        """Take what is new of the batch. The position that is safe when all of it is, what was under way already included."""
        if not is_passed(origins):
            if batch.num_rows:
                self._take(Stretch(self._id, self._head + 1, self._head + batch.num_rows, batch, origins, ()), self._id, size)
            return self._head if batch.num_rows else 0
        relied = 0
        for queue_id in {name.partition("/")[0] for name in origins.column("id").to_pylist()}:
            if (held := self._held.get(queue_id)) is not None:
                relied = max(relied, held.staged_at)
        for stretch in [*stretches(batch, origins, self._staged)]:
            held = self._held.setdefault(stretch.queue_id, _Held(None))
            shift = stretch.first - self._head - 1
            self._take(stretch, passed_id(stretch.queue_id, shift), stretch.batch.nbytes if stretch.batch is not None else 0)
            held.staged, held.staged_at = stretch.last, self._head
            relied = self._head
        return relied

    def _staged(self, queue_id: str) -> int | None:
        held = self._held.get(queue_id)
        return held.staged if held is not None else None

    def _take(self, stretch: Stretch, span_id: str, size: int) -> None:
        shift = stretch.first - self._head - 1
        first, last = self._head + 1, stretch.last - shift
        missing = tuple(Missing(hole.first - shift, hole.last - shift, hole.reason) for hole in stretch.missing)
        read = QueueRead(span_id, first, last, stretch.batch, stretch.origins, missing)
        self._entries.append(_Entry(read, size, self._clock.wall()))
        if not self._spans or self._spans[-1].queue_id != span_id:
            if self._spans:
                self._spans[-1] = self._spans[-1]._replace(last=self._head)
            self._spans.append(QueueSpan(span_id, first, None))
        self._head, self._bytes = last, self._bytes + size

    async def queue_origin_position(self, origin: str) -> int | None:
        """What the store holds of the queue that an origin names. What is under way is not counted, nor waited for: should it come
        again, it is left out, and relied on."""
        if self._ask_store is None:
            return None
        queue_id = origin.partition("/")[0]
        if queue_id not in self._held:
            safe = await self._ask_store(queue_id)
            with self._lock:
                held = self._held.setdefault(queue_id, _Held(safe))
                if len(self._held) > HELD_MAX:  # the store is asked again, should one of them come back
                    over = (name for name, old in self._held.items() if old.staged == old.safe and name != queue_id)
                    self._held.pop(next(over, ""), None)
                return held.safe
        return self._held[queue_id].safe

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
                    return self._part(after + 1, after + rows_max, bytes_max)
                event = asyncio.Event()
                self._waiting.append((asyncio.get_running_loop(), event))
            await event.wait()

    def _part(self, first: int, last: int, bytes_max: int) -> QueueRead:
        """Positions first..last, or fewer: one entry, or, where they may be joined, those that follow each other under one id with one
        schema, up to `bytes_max`."""
        parts: list[QueueRead] = []
        size = 0
        for read, entry_bytes, _ in self._entries:
            if read.last < first:
                continue
            if not parts and read.first > first:  # the oldest made room, or the store went back behind what it had told
                return self._gone(first, read.first - 1)
            if read.first > last or (parts and (not self._joins or size + entry_bytes > bytes_max or not alike(parts, read))):
                break
            parts.append(cut_read(read, max(first, read.first), min(last, read.last)))
            size += entry_bytes
        return joined(parts) if parts else self._gone(first, self._head)

    def _gone(self, first: int, last: int) -> QueueRead:
        span = next(span for span in self._spans if span.last is None or span.last >= first)
        last = min(last, span.last or last)
        return QueueRead(span.queue_id, first, last, None, NO_ORIGINS, (Missing(first, last, "released"),))

    async def queue_plan(self, reader: str, plan: Plan | None) -> None:
        with self._lock:
            self._plans[reader] = plan

    async def queue_release(self, reader: str, upto: int) -> None:
        with self._lock:
            self._cursor = max(self._cursor, upto)
            while self._entries and self._entries[0].read.last <= self._cursor:
                entry = self._entries.popleft()
                self._bytes -= entry.size
                queue_id, shift = told_id(entry.read.queue_id)
                if (held := self._held.get(queue_id)) is not None:
                    held.safe = max(held.safe or 0, entry.read.last + shift)
            while len(self._spans) > 1 and (self._spans[0].last or 0) <= self._cursor:
                self._spans.popleft()
            safe = [event for event in self._safe if event[0] <= self._cursor]
            self._safe = [event for event in self._safe if event[0] > self._cursor]
        for _, loop, event in safe:
            loop.call_soon_threadsafe(event.set)
