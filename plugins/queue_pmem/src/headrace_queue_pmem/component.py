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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import pyarrow as pa
from prometheus_client import Counter, Gauge

from headrace import (
    Component,
    ConfigError,
    Context,
    OriginMark,
    Plan,
    QueueError,
    QueueFull,
    QueueInfo,
    QueueRead,
    ReaderInfo,
    TransientError,
    hookimpl,
)
from headrace.metrics import COUNT_BUCKETS, OverWorkers
from headrace_queue_pmem import reading
from headrace_queue_pmem.bell import LoopBell
from headrace_queue_pmem.committer import Committer, settle
from headrace_queue_pmem.config import QueueConfig
from headrace_queue_pmem.frame import Entry, encode
from headrace_queue_pmem.head import HEAD
from headrace_queue_pmem.inspection import check, inspect
from headrace_queue_pmem.lock import Lock, is_held
from headrace_queue_pmem.marks import Marks, marks_of
from headrace_queue_pmem.medium import FileMedium, Medium
from headrace_queue_pmem.pmem import PmemMedium
from headrace_queue_pmem.probe import VOLATILE, Probe, probe
from headrace_queue_pmem.quarantine import Quarantine
from headrace_queue_pmem.recovery import Report, recover
from headrace_queue_pmem.ring import Damage, Options, Ring
from headrace_queue_pmem.trim import trim
from headrace_queue_pmem.upkeep import close, upkeep
from headrace_queue_pmem.upkeep_thread import UpkeepThread

PROBE_SYNCS = 20
T = TypeVar("T")


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
        self._ring: Ring | None = None
        self._lock: Lock | None = None
        self._committer: Committer | None = None
        self._bell: LoopBell | None = None
        self._upkeep: UpkeepThread | None = None
        self._inline = False
        self._degraded = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._waiters_lock = threading.Lock()
        self._probe = Probe("unknown", False, 0, 0)

    # --- life --------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Take the lock, probe the medium, recover. QueueLocked, QueueFormatError, ConfigError; TransientError on I/O errors."""
        if self._ring is not None:
            return
        self._make_metrics()
        self._loop = asyncio.get_running_loop()
        try:
            await self.context.call_blocking(self._open)
        except OSError as error:
            self._let_go()
            raise TransientError(f"queue {self.context.tier!r} at {self.config.path} cannot be opened: {error}", 5.0) from error
        except BaseException:
            self._let_go()
            raise
        self._bell = LoopBell(self._loop)
        self._committer = Committer(
            self._opened,
            self.config.commit_wait_us_max / 1e6,
            self.config.commit_bytes_max,
            self._committed,
            self._commit_failed,
            self._bell,
        )
        self._committer.start()
        self._inline = self.config.level == "process"
        self._upkeep = UpkeepThread(self._opened, self.config.cursor_interval_ms / 1000, self._upkeep_failed)
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
        ring = self._opened
        with ring.lock:
            events, size_bytes, oldest_s = ring.sizes()
            return QueueInfo(
                name=self.context.tier,
                queue_id=str(ring.span.id) if ring.span else None,
                level=self.config.level,
                medium=self._medium_name(ring.medium),
                method=ring.medium.method,
                head=ring.upto,
                tail=ring.tail,
                size_events=events,
                size_bytes=size_bytes,
                size_bytes_max=ring.bytes_max,
                oldest_event_s=oldest_s,
                readers=ring.reader_infos(),
                spans=ring.span_infos(),
            )

    @hookimpl
    def queue_secret(self) -> bytes:
        """The secret in the queue's head, made with the queue."""
        return self._opened.head.secret

    @hookimpl
    async def queue_append(self, batch: pa.RecordBatch, origins: pa.RecordBatch) -> tuple[int, int]:
        """Store one batch with its origins; return (first, last) once it is durable."""
        ring, committer = self._opened, self._committer
        assert committer is not None
        with committer.lock:
            committer.unseen.check()
            if origins.num_rows:
                with ring.lock:
                    batch, origins, dropped = trim(batch, origins, ring.marks.staged)
                if dropped:
                    self._duplicates.inc(dropped)
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
        ring, committer = self._opened, self._committer
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
        ring = self._opened
        with ring.lock:
            ring.marks.forget(origins)

    @hookimpl
    async def queue_reader_open(self, reader: str, start: str) -> ReaderInfo:
        """Open a reader, creating it where it is new."""
        ring = self._opened
        known = reader in ring.head.readers
        if not known and len(ring.head.readers) >= self.config.readers_max:
            raise QueueError(
                f"reader {reader!r}: expected at most {self.config.readers_max} readers (readers_max), "
                f"got one more than {', '.join(sorted(ring.head.readers))}"
            )
        return await self._blocking(ring.open_reader, reader, start)

    @hookimpl
    async def queue_reader_drop(self, reader: str) -> None:
        """Forget a reader; unknown names are fine."""
        await self._blocking(self._opened.drop_reader, reader)
        self._wake_upkeep()

    @hookimpl
    async def queue_read(self, reader: str, after: int, rows_max: int, bytes_max: int) -> QueueRead:
        """The next positions behind `after`; waits while there are none."""
        ring = self._opened
        while True:
            found = reading.read(ring, reader, after, rows_max, bytes_max)
            if found is not None:
                return found
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            with self._waiters_lock:
                # Looked at again under the lock that the committer takes after it published: no wake-up is missed.
                if ring.upto > after:
                    continue
                if self._ring is None:
                    raise QueueError(f"queue {self.context.tier!r} is closed")
                self._waiters.append(waiter)
            try:
                await waiter
            finally:
                with self._waiters_lock:
                    if waiter in self._waiters:
                        self._waiters.remove(waiter)

    @hookimpl
    async def queue_plan(self, reader: str, plan: Plan | None) -> None:
        """Keep a reader's plan; durable on return."""
        ring = self._opened
        if self._inline:
            ring.plan(reader, plan)
        else:
            await self._blocking(ring.plan, reader, plan)

    @hookimpl
    async def queue_release(self, reader: str, upto: int) -> None:
        """Move a reader's cursor; durable within cursor_interval_ms."""
        if self._opened.release(reader, upto):
            self._wake_upkeep()

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
            self._commit_failed(error, 1)
            raise
        self._committed([entry], time.perf_counter() - started)
        return entry.first, entry.last

    def _committed(self, entries: Sequence[Entry], seconds: float) -> None:
        events = sum(entry.count for entry in entries)
        self._commit_seconds.observe(seconds)
        self._commit_events.observe(events)
        self._received.inc(events)
        if self._degraded:
            self._tell_status("ok", "")
        if evicted := self._marks.evicted - self._evicted_told:
            self._evicted_told += evicted
            self._evicted.inc(evicted)
        if self._waiters:
            with self._waiters_lock:
                waiters, self._waiters = self._waiters, []
            settle(waiters, None)

    def _commit_failed(self, error: Exception, batches: int) -> None:
        self._failures.inc(batches)
        if not isinstance(error, QueueFull):
            self._tell_status("degraded", f"commits fail: {error}")
        self.context.log.error("queue commit failed", error=str(error), batches=batches)

    def _tell_status(self, status: Literal["ok", "degraded"], reason: str) -> None:
        """From whichever thread: the host's side of `status` belongs to the loop."""
        self._degraded = status == "degraded"
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
                self._loop.call_soon_threadsafe(self.context.status, status, reason)

    # --- inside ------------------------------------------------------------------------------------------------------

    @property
    def _opened(self) -> Ring:
        if self._ring is None:
            raise QueueError(f"queue {self.context.tier!r} at {self.config.path} is not open")
        return self._ring

    def _open(self) -> None:
        directory = Path(self.config.path)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = Lock(directory)
        self._probe = probe(directory, PROBE_SYNCS if self.config.level == "power" else 0)
        if self.config.level == "power" and self._probe.filesystem in VOLATILE:
            raise ConfigError(
                "",
                f"{self.context.tier}.queue.level",
                f"a level that {self.config.path} can give",
                f"power on {self._probe.filesystem}, which does not survive power loss",
                'use level = "process", or a path on a disk',
            )
        medium = self._medium(directory)
        self._quarantine = Quarantine(directory)
        options = Options(self.config.segment_bytes, self.config.size_bytes_max, self.config.view_bytes_max)
        self._marks = Marks(self.config.sessions_max, self.config.sessions_per_device_max, self.config.queue_origins_max)
        self._evicted_told = 0
        started = time.perf_counter()
        ring, report = recover(self.context.tier, self.config.path, medium, options, self._marks, self.context.fault)
        seconds = time.perf_counter() - started
        ring.on_damage = self._damaged
        upkeep(ring)
        self._ring = ring
        self._tell(ring, report, seconds)

    def _medium(self, directory: Path) -> Medium:
        level, filesystem, dax = self.config.level, self._probe.filesystem, self._probe.dax
        if self.config.medium != "file":
            try:
                return PmemMedium(directory, level, filesystem, dax)
            except OSError as error:
                if self.config.medium == "pmem":
                    raise ConfigError(
                        "",
                        f"{self.context.tier}.queue.medium",
                        "libpmemobj for medium = pmem",
                        str(error),
                        "install libpmemobj1, or use auto",
                    ) from error
                self.context.log.warning("libpmemobj is missing: the queue uses preallocated files", path=str(directory), error=str(error))
        return FileMedium(directory, level, filesystem, dax)

    def _tell(self, ring: Ring, report: Report, seconds: float) -> None:
        medium = self._medium_name(ring.medium)
        self._metric_gauge(
            "durability_info", "What the queue really does.", level=self.config.level, medium=medium, method=ring.medium.method
        ).set(1)
        self._metric_gauge("queue_recovered_events", "Events that the last open found in the queue.").set(report.events)
        self._metric_gauge("queue_recovery_duration_seconds", "How long the last open took.", "max").set(seconds)
        for damage in report.damage:
            self._damaged(damage)
        for name, reason in report.set_aside:
            self.context.log.error("queue segment set aside", segment=name, reason=reason, path=self.config.path)
            self._quarantined("segment").inc()
        for repair in report.repairs:
            self.context.log.warning("queue repaired", what=repair, path=self.config.path)
        self.context.log.info(
            "queue open",
            path=self.config.path,
            level=self.config.level,
            medium=medium,
            method=ring.medium.method,
            sync_p50_us=self._probe.sync_p50_us,
            sync_p99_us=self._probe.sync_p99_us,
            events=report.events,
            tail_frames_dropped=report.tail_dropped,
            seconds=round(seconds, 3),
        )

    def _medium_name(self, medium: Medium) -> str:
        return ("dax-" if self._probe.dax else "") + medium.filesystem + ("" if medium.name == "pmem" else "-file")

    def _damaged(self, damage: Damage) -> None:
        lost = max(damage.last - damage.first + 1, 0)
        self._quarantined(damage.reason).inc(lost)
        where = self._quarantine.keep(damage)
        self.context.log.error(
            "queue damage set aside",
            segment=damage.segment,
            offset=damage.offset,
            bytes=damage.length,
            first=damage.first,
            last=damage.last,
            reason=damage.reason,
            kept=where,
        )

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
        self._let_go()

    def _let_go(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _wake_upkeep(self) -> None:
        if self._upkeep is not None:
            self._upkeep.wake()

    def _upkeep_failed(self, error: Exception) -> None:
        self.context.log.error("queue upkeep failed", error=str(error), path=self.config.path)

    async def _blocking(self, call: Callable[..., T], *args: Any) -> T:
        """Run a call that waits for the disk, from whichever loop."""
        return await asyncio.get_running_loop().run_in_executor(None, call, *args)

    # --- metrics -----------------------------------------------------------------------------------------------------

    def _make_metrics(self) -> None:
        metrics, queue = self.context.metrics, self.context.tier
        self._commit_seconds = metrics.histogram("queue_commit_duration_seconds", "Time of one commit, from write to durable.", queue=queue)
        self._commit_events = metrics.histogram("queue_commit_events", "Events in one commit.", COUNT_BUCKETS, queue=queue)
        self._received = metrics.counter("queue_received_events_total", "Events that became durable here.", queue=queue)
        self._duplicates = metrics.counter("queue_duplicate_events_total", "Events that were held already and dropped.", queue=queue)
        self._evicted = metrics.counter(
            "queue_evicted_sessions_total", "Device sessions whose mark was given up for others: the oldest idle.", queue=queue
        )
        self._failures = metrics.counter(
            "queue_commit_failures_total", "Batches whose commit failed; their sources were told.", queue=queue
        )

    def _metric_gauge(self, name: str, documentation: str, over_workers: OverWorkers | None = None, **labels: str) -> Gauge:
        return self.context.metrics.gauge(name, documentation, over_workers, queue=self.context.tier, **labels)

    def _quarantined(self, reason: str) -> Counter:
        return self.context.metrics.counter(
            "queue_quarantined_records_total", "Events that were lost to damage, by reason.", queue=self.context.tier, reason=reason
        )
