"""Driving one output: from its durable cursor to its store, whatever fails.

The order is: write, flush (safe there), release (forgotten here). `Output` holds what all outputs share: the cursor, the
answer to each kind of error, and the search for the event at fault. How batches are fed differs by what the far
side can promise, in the modules `output_streaming`, `output_planned`, `output_sending` and `output_loose`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal

import numpy as np
import pyarrow as pa

from headrace.component import Clock, Component
from headrace.config import Engine
from headrace.engine.narrowing import Narrowing
from headrace.engine.pacing import Waits
from headrace.engine.pipeline import Pipeline
from headrace.engine.quarantine import Refused, SettingAside
from headrace.engine.reading import Events, RawReading, Reading
from headrace.engine.spreading import Share
from headrace.engine.supervisor import Supervised, call_plugin
from headrace.errors import HookError, PermanentError, TransientError
from headrace.faults import Faults
from headrace.hookspecs import Plan, QueueInfo, ReaderInfo
from headrace.log import describe
from headrace.metrics import Metrics
from headrace.position import NO_ORIGINS, Missing, RangeKey, slice_origins
from headrace.retry import Backoff
from headrace.schema import plain_context

#: Points of the engine at which crash tests kill the process.
FAULT_POINTS: Final = (
    "engine.after_plan",
    "engine.after_write",
    "engine.before_flush",
    "engine.after_flush",
    "engine.after_release",
    "engine.after_dead_letters",
)

#: A range that kills does so while it is decoded, enriched or written. When the loop still turns this long after it was begun,
#: as it does while a store hangs, a death says nothing about the range.
ACQUITTED_S: Final = 10.0
#: Stage of the dead letters that killed the process: they are never decoded again.
CRASH: Final = "crash"

Activity = Literal["idle", "working", "waiting"]


@dataclass
class OutputServices:
    """What a tier shares with its outputs. `released` is called after each move of a cursor. shares: what those take that share events;
    waits: of the sources' thread, for a core."""

    queue: Any
    pipeline: Pipeline
    raw: RawReading
    engine: Engine
    quarantine: SettingAside
    metrics: Metrics
    clock: Clock
    faults: Faults
    backoff: Callable[[], Backoff]
    released: Callable[[], None]
    shares: Mapping[str, Share] = field(default_factory=dict)
    waits: Callable[[], Waits | None] = lambda: None


class StoreError(Exception):
    """What the output raised, told apart from faults of engine and queue (which end the process)."""

    def __init__(self, stage: str, cause: Exception) -> None:
        super().__init__(f"{stage}: {describe(cause)}")
        self.stage, self.cause = stage, cause


class Output:
    """One output of a tier. `flushed` is the last position that is safe there; `attempted` the last one handed over since."""

    #: How the names of its hooks begin.
    hooks: ClassVar[str] = "sink"

    def __init__(self, unit: Supervised, services: OutputServices) -> None:
        self.unit, self.id, self.keys = unit, unit.entry.id, unit.entry.output
        self._s = services
        self._queue, self._clock = services.queue, services.clock
        self._reads: Reading = services.raw if unit.entry.plugin.takes == "raw" else services.pipeline
        self._backoff = services.backoff()
        self._narrowing = Narrowing()
        self._bugs = 0
        self._dead: set[int] = set()
        self._lethal: set[int] = set()
        self._noted: Plan | None = None
        self._noted_at = 0.0
        self._noting = asyncio.Lock()
        self._writer: Component | None = None
        self._nudged = asyncio.Event()
        self.reader: ReaderInfo | None = None
        self.flushed = self.attempted = 0
        self.draining = False
        self.skip_to = 0
        self.activity: tuple[Activity, float] = ("idle", self._clock.monotonic())
        labels = {"tier": unit.tier, "component": self.id, "plugin": unit.entry.use}
        metrics = services.metrics.labelled(**labels)
        self._count_written = metrics.counter("sink_written_events_total", "Events that the output reported safe.")
        self._count_attempts = metrics.counter("sink_attempts_total", "Writes and flushes begun.")
        self._flush_seconds = metrics.histogram("sink_flush_duration_seconds", "Seconds per flush.")
        self._last_success = metrics.gauge("sink_last_success_timestamp_seconds", "Unix time of the last flush that succeeded.")
        self._metrics = metrics

    # --- life --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Open the output, and feed it until it is drained."""
        self._doing("waiting")
        await self.unit.open()
        await self.drive()

    async def drive(self) -> None:
        """Feed the open output until it is drained."""
        try:
            while True:
                try:
                    await self._begin()
                    self.unit.turn.give(self)
                    await self._feed()
                    break
                except StoreError as error:
                    await self._answer(error)
        except asyncio.CancelledError:
            # stopped, not crashed: a restart must not find a range that seems to have killed the process
            await self._lived()
            raise
        # not where it ends otherwise: the output may hold something unflushed, which nobody else's flush may cover
        self.unit.turn.give(self)

    async def abandon(self) -> None:
        """After an error that ended `drive`, where the output lives on: nothing unflushed counts, and others may have it."""
        await self._reset()
        self.unit.turn.give(self)

    async def _begin(self) -> None:
        """Find the position to start from."""
        raise NotImplementedError

    async def _feed(self) -> None:
        """Feed batches; returns when drained, raises StoreError when the output fails."""
        raise NotImplementedError

    def nudge(self) -> None:
        """Flush soon: the queue passed half of its size, or the tier drains."""
        self._nudged.set()

    def hurry(self) -> None:
        """Whoever waits for what is queued now cannot go on before it is safe (DELIVERY 11)."""
        self.nudge()

    def drain(self) -> None:
        """Take what is queued, flush, and end."""
        self.draining = True
        self.nudge()

    # --- what killed the process -------------------------------------------------------------------------------------

    async def _note(self, plan: Plan | None) -> None:
        """Keep the plan; its attempts are durable before the range is touched."""
        async with self._noting:
            await self._queue.queue_plan(reader=self.id, plan=plan)
            self._noted, self._noted_at = plan, self._clock.monotonic()

    async def _lived(self) -> None:
        """The range that was begun did not kill the process: do not count it."""
        raise NotImplementedError

    async def acquit(self) -> None:
        """Called now and then: a range that was begun long ago is no suspect any more."""
        if self._noted is not None and self._noted.attempts and self._clock.monotonic() - self._noted_at > ACQUITTED_S:
            await self._lived()

    def _doing(self, activity: Activity) -> None:
        self.activity = (activity, self._clock.monotonic())

    def _info(self) -> QueueInfo:
        info: QueueInfo = self._queue.queue_info()
        return info

    # --- calls into the output ---------------------------------------------------------------------------------------

    def _given(self, events: Events) -> pa.RecordBatch:
        """What the component gets of these events."""
        plugin = self.unit.entry.plugin
        return events.batch if plugin.takes == "raw" or plugin.takes_dictionaries else plain_context(events.batch)

    async def _call(self, stage: str, **arguments: Any) -> Any:
        self._doing("waiting")
        # from the first write to the flush (or reset) the output is one driver's: what it holds unflushed is of one queue
        await self.unit.turn.take(self)
        await self.unit.is_open()
        component = self.unit.component
        if stage in ("write", "flush") and self._writer not in (None, component):
            # a flush of the new instance would not cover what the old one took
            raise StoreError(stage, TransientError("restarted while it held unflushed events"))
        if stage == "write":
            self._writer = component
        self._doing("working")
        self._count_attempts.inc()
        try:
            return await call_plugin(getattr(self.unit.hook, f"{self.hooks}_{stage}"), **arguments)
        except Exception as error:
            raise StoreError(stage, error) from error

    async def _flushed(self, key: RangeKey, rows: int) -> None:
        """`key` is safe there: forget it here, and count it."""
        self._s.faults.hit("engine.after_flush")
        self._writer = None
        self.unit.turn.give(self)
        self.flushed = self.attempted = key.last
        self._count_written.inc(rows)
        for hole in key.missing:
            self._count_missing(hole)
        self._last_success.set(self._clock.wall())
        await self._queue.queue_release(reader=self.id, upto=key.last)
        self._s.faults.hit("engine.after_release")
        self._s.released()
        self._narrowing.done(key.last)
        self._dead = {position for position in self._dead if position > key.last}
        self._lethal &= self._dead
        if self._backoff.attempts or self._bugs:
            self._backoff.reset()
            self._bugs = 0
            self.unit.circuit(False)
            self.unit.status("ok")

    async def _skipped(self) -> None:
        """With `hold = "window"`: go on behind what the queue no longer holds for this output."""
        hole = Missing(self.flushed + 1, self.skip_to, "window")
        self.flushed = self.attempted = self.skip_to
        self._count_missing(hole)
        self.unit.log.error("output fell out of its window: rebuild this range from another store", first=hole.first, last=hole.last)
        await self._queue.queue_release(reader=self.id, upto=self.skip_to)
        self._s.released()

    def _count_missing(self, hole: Missing) -> None:
        counter = self._metrics.counter("output_missing_events_total", "Positions that the queue could not give.", reason=hole.reason)
        counter.inc(hole.size)
        self.unit.log.warning("positions missing", first=hole.first, last=hole.last, reason=hole.reason)

    # --- errors ------------------------------------------------------------------------------------------------------

    async def _answer(self, failure: StoreError) -> None:
        """After an error nothing unflushed counts as taken: reset, and write again from the cursor."""
        error = failure.cause
        self.unit.failed(failure.stage, error)
        self._metrics.counter("sink_failures_total", "Writes and flushes that failed.", error_type=_kind(error)).inc()
        await self._lived()
        await self._reset()
        self._writer = None
        self.unit.turn.give(self)
        if isinstance(error, TransientError):
            await self._wait(describe(error), error.retry_after_s)
        elif isinstance(error, PermanentError) and self.attempted > self.flushed:
            try:
                await self._after_refusal(error)
            except HookError as wrong:
                await self._after_bug(StoreError(failure.stage, wrong))
        else:
            await self._after_bug(failure)
        self.attempted = self.flushed

    async def _reset(self) -> None:
        """Have the output forget what is unflushed."""
        try:
            await self._call("reset")
        except StoreError as reset:
            self.unit.log.exception("output failed to reset", reset.cause)
            await self._restart(describe(reset.cause))

    async def _restart(self, reason: str) -> None:
        self._doing("waiting")
        await self.unit.restart(reason)

    async def _wait(self, reason: str, retry_after_s: float | None = None) -> None:
        self.unit.log.warning("output waits before the next try", error=reason)
        seconds = self._backoff.next_s(retry_after_s)
        self.unit.tried(reason, self._backoff.attempts, seconds, circuit_open=self._backoff.slowest)
        self._doing("waiting")
        await self._clock.sleep(seconds)

    async def _after_refusal(self, error: PermanentError) -> None:
        """The store will never take it: the named rows, or the one found by halving, become dead letters."""
        positions = self._named(error)
        if not positions and self._narrowing.failed(self.flushed + 1, self.attempted):
            positions = [self.flushed + 1]
        if positions and self._dead.issuperset(positions):
            # it refuses a range that has no row left: nothing more can be set aside
            await self._wait(describe(error))
            return
        for position in positions:
            await self._set_aside(position, describe(error), "output")

    async def _after_bug(self, failure: StoreError) -> None:
        self._bugs += 1
        reason = describe(failure.cause)
        self.unit.log.exception("output failed", failure.cause, stage=failure.stage, attempt=self._bugs)
        await self._restart(reason)
        await self._wait(reason)
        suspect = self._bugs >= self._s.engine.attempts_max and self.attempted > self.flushed and self._may_halve()
        if suspect and self._narrowing.failed(self.flushed + 1, self.attempted):
            await self._set_aside(self.flushed + 1, f"bug: {reason}", "output")

    def _may_halve(self) -> bool:
        """Whether a range that failed without a definite refusal may come again in other bounds."""
        return True

    def _named(self, error: PermanentError) -> list[int]:
        """The positions of the rows that a PermanentError names."""
        raise NotImplementedError

    async def _set_aside(self, position: int, reason: str, stage: str) -> None:
        self._doing("waiting")
        read = await self._reads.raw(self.id, position, position)
        if read.batch is not None:
            row: pa.RecordBatch = read.batch.slice(0, 1)
            origins = slice_origins(read.origins, 0, 1) if read.origins.num_rows else NO_ORIGINS
            refused = Refused(row, [position], read.queue_id, self.id, stage, self.id, reason, origins)
            await self._s.quarantine.add(refused, self._holding)
        self._s.faults.hit("engine.after_dead_letters")
        self._dead.add(position)
        if stage == CRASH:
            self._lethal.add(position)
        self.unit.log.warning("event set aside", position=position, queue_id=read.queue_id, reason=reason)

    def _holding(self, reason: str | None) -> None:
        self._doing("waiting")
        self.unit.status("degraded" if reason else "ok", reason or "")

    async def _load_dead(self) -> None:
        """The positions that earlier runs set aside: every rewrite leaves them out."""
        info = self._info()
        for span in info.spans:
            last = info.head if span.last is None else span.last
            if last > self.flushed:
                await self._load_dead_of(span.queue_id, max(span.first, self.flushed + 1), last)

    async def _load_dead_of(self, queue_id: str, first: int, last: int) -> None:
        # what decoders and enrichers refused concerns those that take events
        for stage in ("output", CRASH) if self._reads is self._s.raw else ("%",):
            self._dead |= await self._s.quarantine.positions(queue_id, first, last, self.id, stage)
        self._lethal |= await self._s.quarantine.positions(queue_id, first, last, self.id, CRASH)

    def _before_lethal(self, after: int, rows: int) -> int:
        """How many of the `rows` positions behind `after` lie before the next one that killed the process."""
        return min((position - after - 1 for position in self._lethal if after < position <= after + rows), default=rows)

    def _without_rows(self, first: int, last: int, reason: str = "") -> Events:
        """first..last, or as far as the queue id goes: missing for `reason`, or dead. Nothing of it is read."""
        spans = self._info().spans
        span = next((span for span in spans if span.last is None or span.last >= first), None)
        assert span is not None, f"no queue id has position {first}"
        last = min(last, span.last or last)
        missing = (Missing(first, last, reason),) if reason else ()
        key = RangeKey(span.queue_id, first, last, missing, () if reason else tuple(range(first, last + 1)))
        return Events(key, self._reads.empty(), np.empty(0, np.uint64))


def _kind(error: Exception) -> str:
    if isinstance(error, TransientError):
        return "transient"
    return "permanent" if isinstance(error, PermanentError) else "bug"


def resume_floor(info: QueueInfo, reader: ReaderInfo) -> int:
    """The position behind which everything may be this output's: where it began, or where the oldest id held begins."""
    return max(reader.start, info.spans[0].first - 1) if info.spans else max(reader.start, reader.cursor)


def rows_at(positions: np.ndarray[Any, Any], rows: Sequence[int], plugin: str) -> list[int]:
    """The positions of the rows that a PermanentError names; HookError when the batch has no such row."""
    wrong = [row for row in rows if not isinstance(row, int) or not 0 <= row < len(positions)]
    if wrong:
        raise HookError(plugin, f"PermanentError.rows must name rows of a batch of {len(positions)}, got {wrong[:5]}")
    return [int(position) for position in positions[list(rows)]]
