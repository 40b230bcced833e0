"""The component: the hooks of a queue over the synchronous ring, on two loops and three threads.

`queue_append` runs on the sources' loop, reading and releasing on that of the outputs. Commits run in a thread at level
`power` (the loop that acknowledges devices must not wait for a disk), inline at level `process`, where one costs about
3 us and a thread's hand-over more. A third thread does the upkeep: cursors, seals, spare segments, giving back.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pyarrow as pa

from headrace import (
    Component,
    Context,
    OriginMark,
    Plan,
    QueueError,
    QueueInfo,
    QueueRead,
    ReaderInfo,
    TransientError,
    hookimpl,
)
from headrace_queue_pmem import reading
from headrace_queue_pmem.bell import LoopBell
from headrace_queue_pmem.committer import Committer, settle
from headrace_queue_pmem.config import QueueConfig
from headrace_queue_pmem.failing import told
from headrace_queue_pmem.frame import Entry, encode
from headrace_queue_pmem.head import HEAD
from headrace_queue_pmem.inspection import check, inspect
from headrace_queue_pmem.lock import is_held
from headrace_queue_pmem.marks import marks_of
from headrace_queue_pmem.opening import Opened, open_queue
from headrace_queue_pmem.ring import Ring
from headrace_queue_pmem.telling import Telling, medium_name
from headrace_queue_pmem.trim import trim
from headrace_queue_pmem.upkeep import close, upkeep
from headrace_queue_pmem.upkeep_thread import UpkeepThread

T = TypeVar("T")

#: How long a release waits at most for the space that it makes: a disk may hang, and the cursor has moved anyway.
PASS_S_MAX = 1.0
#: Between two tries of what waits for the medium.
ANSWER_S = 1.0


class QueuePmem(Component):
    """A persistent queue in one directory. See README.md for its guarantees and FORMAT.md for what it writes."""

    Config = QueueConfig
    many_workers = True
    fault_points: ClassVar[tuple[str, ...]] = (
        "queue_pmem.span_begun",
        "queue_pmem.before_write",
        "queue_pmem.segment_added",
        "queue_pmem.after_write",
        "queue_pmem.after_persist",
        "queue_pmem.before_release",
        "queue_pmem.after_release",
    )
    config: QueueConfig

    def __init__(self, config: QueueConfig, context: Context) -> None:
        super().__init__(config, context)
        self._ring: Ring | None = None  # while it may be used
        self._opened: Opened | None = None  # until its files are let go of
        self._telling: Telling | None = None
        self._committer: Committer | None = None
        self._bell: LoopBell | None = None
        self._upkeep: UpkeepThread | None = None
        self._inline = False
        self._waiters: list[asyncio.Future[None]] = []
        self._waiters_lock = threading.Lock()

    # --- life --------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Take the lock, probe the medium, recover. QueueLocked, QueueFormatError, ConfigError; TransientError on I/O errors."""
        if self._ring is not None:
            return
        telling = self._telling = Telling(self.context, self.config)
        try:
            await self.context.call_blocking(self._open, telling)
            self._start(telling)
        except OSError as error:
            await self.close()  # what is open of it would keep the next try out
            raise TransientError(f"queue {self.context.tier!r} at {self.config.path} cannot be opened: {told(error)}", 5.0) from error

    def _start(self, telling: Telling) -> None:
        self._bell = LoopBell(asyncio.get_running_loop())
        self._committer = Committer(
            self._in_use,
            self.config.commit_wait_us_max / 1e6,
            self.config.commit_bytes_max,
            self._committed,
            telling.commit_failed,
            self._bell,
        )
        self._committer.start()
        self._inline = self.config.level == "process"
        self._upkeep = UpkeepThread(self._in_use, self.config.cursor_interval_ms / 1000, telling.upkeep_failed)
        self._upkeep.start()

    async def drain(self, deadline_s: float) -> None:
        """Return when nothing is in flight."""
        committer = self._committer
        if committer is None or committer.idle:
            return
        with committer.lock:
            waiter = committer.submit(None, asyncio.get_running_loop())
        committer.wake()
        await asyncio.wait([waiter], timeout=deadline_s)

    async def close(self) -> None:
        """Commit what is in flight, leave cursors and marks durable, record where the log ends, and let go of the files."""
        ring, self._ring = self._ring, None
        if ring is None:
            return
        await self.context.call_blocking(self._close, ring)
        if self._bell is not None:
            self._bell.close()
            self._bell = None
        with self._waiters_lock:
            waiters, self._waiters = self._waiters, []
        settle(waiters, QueueError(f"queue {self.context.tier!r} is closed"))

    def check(self) -> list[str]:
        """What can be said without opening the queue: the options, and the soundness of a queue that is stopped."""
        problems = []
        directory = Path(self.config.path)
        if (directory / HEAD).exists() and not is_held(directory):
            try:
                problems += [f"{directory}: {problem}" for problem in check(inspect(directory)).problems]
            except (OSError, QueueError) as error:
                problems.append(str(error))
        if self.config.size_bytes_max < 2 * self.config.segment_bytes:
            problems.append(
                f"size_bytes_max: expected at least two segments ({2 * self.config.segment_bytes} bytes), got {self.config.size_bytes_max}"
            )
        return problems

    # --- hooks -------------------------------------------------------------------------------------------------------

    @hookimpl
    def queue_info(self) -> QueueInfo:
        """The queue's facts; from any thread."""
        ring = self._in_use
        with ring.lock:
            events, size_bytes, oldest_s = ring.sizes()
            return QueueInfo(
                name=self.context.tier,
                queue_id=str(ring.span.id) if ring.span else None,
                level=self.config.level,
                medium=medium_name(ring.medium, self._opened.probe) if self._opened else "",
                method=ring.medium.method,
                head=ring.upto,
                tail=ring.tail,
                size_events=events,
                size_bytes=size_bytes,
                size_bytes_max=ring.bytes_max,
                oldest_event_s=oldest_s,
                readers=ring.reader_infos(),
                spans=ring.span_infos(),
                batch_bytes_max=ring.batch_bytes_max,
            )

    @hookimpl
    def queue_secret(self) -> bytes:
        """The secret in the queue's head, made with the queue."""
        return self._in_use.head.secret

    @hookimpl
    async def queue_append(self, batch: pa.RecordBatch, origins: pa.RecordBatch) -> tuple[int, int]:
        """Store one batch with its origins; return (first, last) once it is durable."""
        ring, committer = self._in_use, self._committer
        assert committer is not None
        assert self._telling is not None
        with committer.lock:
            committer.check()
            if origins.num_rows:
                with ring.lock:
                    batch, origins, dropped = trim(batch, origins, ring.marks.staged)
                if dropped:
                    self._telling.dropped(dropped)
            if batch.num_rows == 0 and origins.num_rows == 0:
                waiter = None if committer.idle else committer.submit(None, asyncio.get_running_loop())
                first, last = ring.next, ring.next - 1
            else:
                entry = self._entry(batch, origins)
                ring.reserve(entry)
                if self._inline and committer.idle and ring.fits(entry):
                    return self._commit_inline(ring, committer, entry)
                waiter = committer.submit(entry, asyncio.get_running_loop())
                first, last = entry.first, entry.last
        # Durable first: the source acknowledges its sender when this returns.
        if waiter is not None:
            committer.wake()
            await waiter
        return first, last

    @hookimpl
    async def queue_origin_position(self, origin: str) -> int | None:
        """The highest position held from that origin, once nothing of it is in flight."""
        mark = await self.queue_origin_mark(origin)
        return mark.last if mark else None

    @hookimpl
    async def queue_origin_mark(self, origin: str) -> OriginMark | None:
        """The same with the note of its last row."""
        ring, committer = self._in_use, self._committer
        assert committer is not None
        while True:
            with committer.lock, ring.lock:
                if not ring.marks.in_flight(origin):
                    mark = ring.marks.mark(origin)
                    return OriginMark(mark.last, mark.note) if mark else None
                waiter = committer.submit(None, asyncio.get_running_loop())
            committer.wake()
            await asyncio.wait([waiter])
            if not waiter.cancelled():
                waiter.exception()  # a failed commit takes its marks back: look again

    @hookimpl
    async def queue_origin_forget(self, origins: Sequence[str]) -> None:
        """Drop the marks of origins that are over; durable with the next note of the marks."""
        ring = self._in_use
        with ring.lock:
            ring.marks.forget(origins)

    @hookimpl
    async def queue_reader_open(self, reader: str, start: str) -> ReaderInfo:
        """Open a reader, creating it where it is new."""
        ring = self._in_use
        known = reader in ring.head.readers
        if not known and len(ring.head.readers) >= self.config.readers_max:
            raise QueueError(
                f"reader {reader!r}: expected at most {self.config.readers_max} readers (readers_max), "
                f"got one more than {', '.join(sorted(ring.head.readers))}"
            )
        return await self._patient(lambda: self._blocking(ring.open_reader, reader, start))

    @hookimpl
    async def queue_reader_drop(self, reader: str) -> None:
        """Forget a reader; unknown names are fine."""
        ring = self._in_use
        await self._patient(lambda: self._blocking(ring.drop_reader, reader))
        self._wake_upkeep()

    @hookimpl
    async def queue_read(self, reader: str, after: int, rows_max: int, bytes_max: int) -> QueueRead:
        """The next positions behind `after`; waits while there are none, and while the medium gives nothing."""
        ring = self._in_use
        while True:
            try:
                found = reading.read(ring, reader, after, rows_max, bytes_max)
            except OSError:
                found = await self._patient(lambda: self._blocking(reading.read, ring, reader, after, rows_max, bytes_max))
            if found is not None:
                return found
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            with self._waiters_lock:
                if self._ring is None:
                    raise QueueError(f"queue {self.context.tier!r} is closed")
                self._waiters.append(waiter)
            try:
                # Looked at again behind the append: a commit publishes first and looks for waiters then, without the lock.
                if ring.upto <= after:
                    await waiter
            finally:
                with self._waiters_lock:
                    if waiter in self._waiters:
                        self._waiters.remove(waiter)

    @hookimpl
    async def queue_plan(self, reader: str, plan: Plan | None) -> None:
        """Keep a reader's plan; durable on return."""
        ring = self._in_use
        if self._inline:
            with contextlib.suppress(OSError):
                ring.plan(reader, plan)
                return
        await self._patient(lambda: self._blocking(ring.plan, reader, plan))

    @hookimpl
    async def queue_release(self, reader: str, upto: int) -> None:
        """Move a reader's cursor; durable within cursor_interval_ms. While appends are refused: return once space is given back."""
        ring, upkeep = self._in_use, self._upkeep
        if not ring.release(reader, upto) or upkeep is None:
            return
        if ring.refused:
            # Whoever waits for room looks again when this returns: earlier there is none yet, and nothing else would tell it.
            await upkeep.passed(PASS_S_MAX)
        else:
            upkeep.wake()

    # --- appending ---------------------------------------------------------------------------------------------------

    def _entry(self, batch: pa.RecordBatch, origins: pa.RecordBatch) -> Entry:
        entry = encode(batch, origins, int(self.context.clock.wall() * 1e6))
        entry.marks = marks_of(origins)
        return entry

    def _commit_inline(self, ring: Ring, committer: Committer, entry: Entry) -> tuple[int, int]:
        started = time.perf_counter()
        try:
            ring.commit([entry])
        except Exception as error:
            ring.give_up([entry])
            # The caller's task has seen it; whoever waits for that task has not.
            loop = asyncio.get_running_loop()
            committer.unseen.add(error, [loop])
            committer.unseen.told(loop)
            assert self._telling is not None
            self._telling.commit_failed(error, 1)
            raise
        self._committed([entry], time.perf_counter() - started)
        return entry.first, entry.last

    def _committed(self, entries: Sequence[Entry], seconds: float) -> None:
        assert self._telling is not None
        assert self._opened is not None
        self._telling.committed(entries, seconds, self._opened.ring.marks.evicted)
        if self._waiters:
            with self._waiters_lock:
                waiters, self._waiters = self._waiters, []
            settle(waiters, None)

    # --- inside ------------------------------------------------------------------------------------------------------

    @property
    def _in_use(self) -> Ring:
        if self._ring is None:
            raise QueueError(f"queue {self.context.tier!r} at {self.config.path} is not open")
        return self._ring

    def _open(self, telling: Telling) -> None:
        opened = open_queue(self.config, self.context)
        try:
            opened.ring.on_damage = telling.damaged
            upkeep(opened.ring)
        except BaseException:
            opened.ring.close()
            opened.lock.close()
            raise
        self._opened, self._ring = opened, opened.ring
        telling.opened(opened.ring, opened.report, opened.probe, opened.seconds)

    def _close(self, ring: Ring) -> None:
        if self._committer is not None:
            self._committer.stop()
        if self._upkeep is not None:
            self._upkeep.stop()
        try:
            close(ring)
        except OSError as error:
            self.context.log.error("queue close incomplete", error=str(error), path=self.config.path)
        ring.close()
        self._committer = self._upkeep = None
        if self._opened is not None:
            self._opened.lock.close()
            self._opened = None

    def _wake_upkeep(self) -> None:
        if self._upkeep is not None:
            self._upkeep.wake()

    async def _patient(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call that needs the medium until that answers: whoever reads can do nothing better than wait, and say so."""
        waited = False
        while True:
            try:
                found = await call()
            except OSError as error:
                assert self._telling is not None
                self._telling.waits(error)
                waited = True
                await asyncio.sleep(ANSWER_S)
                if self._ring is None:
                    raise QueueError(f"queue {self.context.tier!r} is closed") from error
                continue
            if waited and self._telling is not None:
                self._telling.goes_on()
            return found

    async def _blocking(self, call: Callable[..., T], *args: Any) -> T:
        """Run a call that waits for the disk, from whichever loop."""
        return await asyncio.get_running_loop().run_in_executor(None, call, *args)
