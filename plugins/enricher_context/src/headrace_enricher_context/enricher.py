"""The component: holds the context, joins it to event batches, and reads it again in the background."""

from __future__ import annotations

import asyncio
import datetime
import threading
from typing import Any, ClassVar

import pyarrow as pa

from headrace import Component, Context, Health, TransientError, hookimpl
from headrace_enricher_context.cells import ARROW_TYPES
from headrace_enricher_context.config import ContextConfig
from headrace_enricher_context.database import Database, Unavailable, config_error
from headrace_enricher_context.held import Held
from headrace_enricher_context.reading import Reading, origin_of, read_context
from headrace_enricher_context.schedule import Schedule
from headrace_enricher_context.stored import BrokenFile, ContextFile

#: So many devices that the database does not know are remembered, so that each brings a reading forward only once.
STRANGERS_MAX = 4096


class EnricherContext(Component):
    """Adds to each event what the site's database says about its device; nulls where it says nothing."""

    Config = ContextConfig
    many_workers = True
    fault_points: ClassVar[tuple[str, ...]] = ("context_read", "context_written", "context_swapped")

    config: ContextConfig

    def __init__(self, config: ContextConfig, context: Context) -> None:
        super().__init__(config, context)
        self._fields = pa.schema([pa.field(name, ARROW_TYPES[column.type]) for name, column in config.columns.items()])
        # The one reference that `enrich` reads and a refresh replaces: a batch sees the old context or the new one, whole.
        self._held = Held.empty(self._fields)
        # What the next reading of changes goes on from, and when all rows are read again (monotonic).
        self._before: Reading | None = None
        self._full_at = float("-inf")
        self._as_of: float | None = None
        self._saved = False
        self._file = ContextFile(context.data_dir, origin_of(config), context.fault)
        self._database = _database(config)
        self._schedule = _schedule(config, context)
        self._stop = threading.Event()
        self._strangers: set[str] = set()
        self._problem = ""
        self._metrics = _Metrics(context)

    # --- hooks

    @hookimpl
    def enrich_fields(self) -> pa.Schema:
        """One nullable field per entry of `columns`, in their order."""
        return self._fields

    @hookimpl
    def enrich(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """What the context in use says of each event's device; nulls, and a count, where it says nothing."""
        joined = self._held.join(batch.column("device"))
        if joined.unknown_events:
            self._metrics.unknown.inc(joined.unknown_events)
            self._note_strangers(joined.unknown)
        return joined.added

    # --- life

    async def open(self) -> None:
        """Read the context; where that fails, take the last one from the file, or do as `on_start` says."""
        if error := config_error(f"{self.context.tier}.{self.context.id}", self._database):
            raise error
        self._stop.clear()
        await self._load_file()
        await self._refresh()
        if self._problem and self._as_of is None and self.config.on_start == "wait":
            raise TransientError(f'{self._problem}; on_start = "wait": no event passes before the first context')

    async def run(self) -> None:
        """Read again when the schedule says so."""
        while True:
            now = self.context.clock.monotonic()
            if self._schedule.wait_s(now) > 0:
                await self.context.clock.sleep(self._schedule.nap_s(now))
            else:
                await self._refresh()

    async def reload(self, config: Any) -> bool:
        """Take a new URL, password or interval at once; other fields, or another source of them, need a restart."""
        if origin_of(config) != origin_of(self.config) or config_error("", _database(config)):
            return False
        self.config = config
        self._database = _database(config)
        self._schedule = _schedule(config, self.context)
        self._before = None
        return True

    async def close(self) -> None:
        self._stop.set()

    def check(self) -> list[str]:
        """A driver that is not installed."""
        problem = self._database.driver_problem()
        return [f"database: {problem}"] if problem else []

    def health(self) -> Health:
        return Health("degraded" if self._problem else "ok", self._reason())

    # --- reading

    async def _refresh(self) -> None:
        """One try to read the database, in a thread; afterwards context, status, metrics and schedule say how it went."""
        clock = self.context.clock
        begun = clock.monotonic()
        self._schedule.begin(begun)
        try:
            reading = await self._read()
            self.context.fault("context_read")
            self._schedule.succeeded(clock.monotonic())
            await self._take(reading)
        except TransientError as error:
            self._metrics.failures.inc()
            wait = self._schedule.failed(clock.monotonic())
            self.context.log.warning("context refresh failed", error=str(error), retry_s=round(wait, 1), devices=len(self._held))
            self._set_problem(str(error))
            return
        self._metrics.refreshes.inc()
        self._metrics.duration.observe(clock.monotonic() - begun)

    async def _read(self) -> Reading:
        # Each try has a stop of its own: a thread that hangs in a driver must not touch what comes after it.
        stop = self._stop = threading.Event()
        config, now = self.config, self.context.clock.monotonic()
        before = self._before if now < self._full_at else None
        try:
            async with asyncio.timeout(config.connect_timeout_s + config.query_timeout_s):
                reading = await self.context.call_blocking(
                    read_context, self._database, config, self._fields, stop, before, self.context.clock.wall()
                )
        except TimeoutError:
            limit = f"{self.config.query_timeout_s:g} s (query_timeout_s)"
            raise Unavailable(f"{self._database.name}: no answer within {limit}") from None
        finally:
            stop.set()
        if before is None:
            self._full_at = now + config.full_refresh_interval_s
        self._before = reading if reading.mark is not None and config is self.config else None
        return reading

    async def _take(self, reading: Reading) -> None:
        before, held = self._held, reading.held
        changed = self._as_of is None or (held is not before and not await self.context.call_blocking(held.same_as, before))
        at = self.context.clock.wall()
        if changed:
            self._held = held
            self.context.fault("context_swapped")
            tell = self.context.log.info if len(held) else self.context.log.warning
            tell("context read", devices=len(held), before=len(before), rows=reading.rows, bytes=held.nbytes)
        self._as_of = at
        self._metrics.hold(len(self._held), at)
        self._metrics.rows.inc(reading.rows)
        for reason, count in reading.problems.items():
            self._metrics.problems[reason].inc(count)
        if reading.named or any(reading.problems.values()):
            self.context.log.warning("context has bad rows", **reading.problems, examples=reading.named)
        self._set_problem(await self._save(changed, at))

    # --- the file

    async def _save(self, changed: bool, at: float) -> str:
        try:
            if changed or not self._saved:
                await self.context.call_blocking(self._file.save, self._held, at)
            else:
                await self.context.call_blocking(self._file.confirm, at)
            self._saved = True
        except (OSError, TransientError) as error:
            self._saved = False
            self._metrics.file_failures.inc()
            self.context.log.warning("context file not written", error=str(error))
            return f"the context could not be saved for a restart: {error}"
        return ""

    async def _load_file(self) -> None:
        try:
            stored = await self.context.call_blocking(self._file.load, self._fields)
        except (BrokenFile, OSError) as error:
            self._metrics.file_failures.inc()
            self.context.log.warning("context file not read", error=str(error))
            return
        if stored is not None:
            self._held, self._as_of = stored
            self._saved = True
            self._metrics.hold(len(self._held), stored.at)

    # --- status

    def _set_problem(self, problem: str) -> None:
        self._problem = problem
        self.context.status("degraded" if problem else "ok", self._reason())

    def _reason(self) -> str:
        if not self._problem:
            return ""
        if self._as_of is None:
            return f"{self._problem}; no context yet, events pass with nulls"
        age_s = max(0, round(self.context.clock.wall() - self._as_of))
        since = datetime.datetime.fromtimestamp(self._as_of, datetime.UTC).isoformat(timespec="seconds")
        return f"{self._problem}; using the context of {since} ({datetime.timedelta(seconds=age_s)} old, {len(self._held)} devices)"

    def _note_strangers(self, unknown: pa.StringArray) -> None:
        if self._schedule.early or self._schedule.failures:
            return
        room = STRANGERS_MAX - len(self._strangers)
        new = set(unknown.slice(0, STRANGERS_MAX).to_pylist()) - self._strangers
        if new and room:
            self._strangers.update(sorted(new)[:room])
            self.context.log.info("unknown devices", count=len(new), examples=sorted(new)[:3])
            self._schedule.ask_early()


class _Metrics:
    """The component's metrics, each made once so that it is there from the start."""

    def __init__(self, context: Context) -> None:
        metrics = context.metrics
        self.unknown = metrics.counter("enrich_unknown_device_events_total", "Events of devices that the context does not know.")
        self.refreshes = metrics.counter("enrich_refresh_total", "Readings of the context database that succeeded.")
        self.rows = metrics.counter("enrich_refresh_rows_total", "Rows that readings of the context database took.")
        self.failures = metrics.counter("enrich_refresh_failures_total", "Readings of the context database that failed.")
        self.duration = metrics.histogram("enrich_refresh_duration_seconds", "Time from asking the database to the new context.")
        self.file_failures = metrics.counter("enrich_file_failures_total", "Context files that could not be written or read.")
        self.devices = metrics.gauge("enrich_devices", "Devices in the context that is in use.", "max")
        self.last = metrics.gauge("enrich_last_refresh_timestamp_seconds", "When the database last confirmed the context that is in use.")
        self.problems = {
            reason: metrics.counter("enrich_row_problems_total", "Rows and cells left out by readings of the database.", reason=reason)
            for reason in ("duplicate", "no_key", "bad_cell")
        }

    def hold(self, devices: int, at: float) -> None:
        self.devices.set(devices)
        self.last.set(at)


def _database(config: ContextConfig) -> Database:
    return Database(config.database.reveal(), config.connect_timeout_s, config.query_timeout_s)


def _schedule(config: ContextConfig, context: Context) -> Schedule:
    return Schedule(config.refresh_interval_s, config.unknown_refresh_s, config.retry_s_max, context.random)
