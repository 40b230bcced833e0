"""A process with its tiers: start in order, run under one task group, drain under a deadline, close.

SIGTERM and SIGINT drain; a second one stops at once, which is harmless: what was acked is in the queue. SIGHUP re-reads the
file and restarts only what changed.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import uvloop

from headrace.admin import AdminServer
from headrace.component import SystemClock
from headrace.config import Site, changed
from headrace.engine.supervisor import ComponentStatus, Services, Statuses, Supervised
from headrace.errors import ConfigError, HeadraceError, PluginError
from headrace.faults import Faults
from headrace.hookspecs import QueueInfo
from headrace.log import Log, describe, set_up
from headrace.metrics import PREFIX, Metrics
from headrace.plugins import SitePlugins
from headrace.queue_metrics import QueueCollector
from headrace.register import QueueRegister
from headrace.tier import Tier

#: How long Python lets one thread run before another may: the pipeline must not keep the loop that acks waiting.
SWITCH_INTERVAL_S: Final = 0.000_5
EXIT_FAULT: Final = 70  # EX_SOFTWARE
#: One Ctrl-C may reach us twice: from the terminal, and from the script that started us.
SAME_SIGNAL_S: Final = 1.0


def run(site: Site, tiers: Sequence[str] = (), reload: Callable[[], Site] | None = None) -> int:
    """Run the site (only `tiers`, when given) until a signal; the exit code. `reload` gives the site anew for SIGHUP.

    Raises ConfigError and PluginError for what is wrong before anything was taken in.
    """
    set_up(site.host.log_level)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Host(site, tiers, reload).run())


class Host:
    """One process."""

    def __init__(self, site: Site, tiers: Sequence[str] = (), reload: Callable[[], Site] | None = None) -> None:
        self._site, self._reload_site = site, reload
        self._log = Log("", host=site.host.name)
        self._clock = SystemClock()
        self._metrics = Metrics()
        self._stop = asyncio.Event()
        self._stop_at_once = asyncio.Event()
        self._stop_asked = float("inf")
        self._fault: BaseException | None = None
        self._refused: HeadraceError | None = None
        self._started = self._draining = False
        data_dir = Path(site.host.data_dir)
        data_dir.mkdir(parents=True, exist_ok=True)
        self._register = QueueRegister(data_dir)
        self._register.set_aside_if_unreadable()
        self._facts = SitePlugins(self._log, self._metrics)
        self._statuses = Statuses(self._clock, self._metrics, self._log, self._status_changed)
        self._services = Services(
            metrics=self._metrics,
            clock=self._clock,
            random=random.Random(),
            faults=Faults.from_env(os.environ),
            data_dir=data_dir,
            statuses=self._statuses,
            site=self._facts,
            tell=self._tell,
            log=self._log,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listeners = [Supervised(entry, "host", self._services) for entry in site.listeners.values()]
        wanted = [_tier_named(site, name) for name in tiers] or list(site.tiers)
        self.tiers = [Tier(site.tiers[name], self._services, self._register, self._failed) for name in wanted]
        self.admin = AdminServer(site.admin.listen, self._metrics.registry, self._not_live, self._not_ready, self._components)
        self._metrics.registry.register(QueueCollector(self._queue_infos))
        self._metrics.gauge("build_info", "1; the version is in the label.", version=version("headrace")).set(1)
        self._reload_success = self._metrics.gauge("config_reload_success", "1 when the last SIGHUP was taken, 0 when it was refused.")
        self._reload_success.set(1)

    async def run(self) -> int:
        """Until a signal, or a fault of engine or queue; the exit code."""
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._asked_to_stop)
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._loop.add_signal_handler(signal.SIGHUP, lambda: tasks.create_task(self._reload()))
            starting = asyncio.ensure_future(self._start(tasks))
            try:
                try:
                    await self._unless_stopped(starting, self._stop)
                except HeadraceError as error:  # raised in here, it would leave as a group
                    self._refused = error
                if self._started:
                    await self._stop.wait()
                    if self._fault is None:
                        await self._unless_stopped(asyncio.ensure_future(self._drain()), self._stop_at_once)
            finally:
                await self._close()
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    # all is done: a signal that comes now must not turn a clean end into a kill
                    self._loop.remove_signal_handler(number)
                    signal.signal(number, signal.SIG_IGN)
        if self._refused is not None:
            raise self._refused
        if self._fault is not None:
            self._log.exception("engine fault: the process ends, a restart recovers", self._fault)
            return EXIT_FAULT
        if self._started:
            print(self._summary(), file=sys.stderr)
        return 0

    # --- starting and stopping ---------------------------------------------------------------------------------------

    async def _start(self, tasks: asyncio.TaskGroup) -> None:
        self._report_orphaned_queues()
        self._facts.tell("register_routes", app=self.admin.app)
        try:
            await self.admin.start()
        except OSError as error:
            raise HeadraceError(
                f"admin.listen: {self._site.admin.listen} cannot be had ({error.strerror}); stop what listens there, or set another"
            ) from error
        self._log.info("listening", component="admin", url=self.admin.url)
        for listener in self._listeners:
            await listener.open()
        for tier in self.tiers:
            await tier.start(tasks)
        self._started = True
        # what lives now lives long: the collector need not look at it again and again
        gc.freeze()
        self._facts.tell("host_started")
        self._log.info("started", tiers=[tier.name for tier in self.tiers], pid=os.getpid())

    async def _unless_stopped(self, work: asyncio.Future[Any], stop: asyncio.Event) -> None:
        """Await the work, unless `stop` comes first; then it is cancelled."""
        stopped: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            stopped.cancel()
            work.cancel()
            await asyncio.wait({work})

    def _asked_to_stop(self) -> None:
        now = self._clock.monotonic()
        if self._stop.is_set() and now - self._stop_asked < SAME_SIGNAL_S:
            return
        self._stop_asked = min(self._stop_asked, now)
        if self._stop.is_set():
            self._log.warning("stopping at once: what is unflushed is written again after the next start")
            self._stop_at_once.set()
        self._stop.set()

    def _failed(self, error: BaseException) -> None:
        """Engine or queue cannot go on. Callable from any thread."""
        assert self._loop is not None
        self._fault = self._fault or error
        self._loop.call_soon_threadsafe(self._stop.set)

    async def _drain(self) -> None:
        deadline_s = self._site.host.drain_deadline_s
        self._draining = True
        self._log.info("draining", deadline_s=deadline_s)
        self._facts.tell("host_draining", deadline_s=deadline_s)
        until = self._clock.monotonic() + deadline_s
        for tier in self.tiers:
            await tier.drain_sources(max(0.0, until - self._clock.monotonic()))
            if not await tier.pipeline.drain(max(0.0, until - self._clock.monotonic())):
                self._log.warning("drain deadline passed; the queue keeps the rest", tier=tier.name)

    async def _close(self) -> None:
        self._final = self._totals()
        for tier in self.tiers:
            await tier.close()
        for listener in self._listeners:
            await listener.close()
        await self.admin.close()

    def _report_orphaned_queues(self) -> None:
        opened = {str(Path(tier.queue.config.path).absolute()) for tier in self._site.tiers.values() if tier.queue}
        for orphan in self._register.orphans(opened):
            if self._site.only and orphan.tier not in self._site.tiers:
                continue  # another process runs that tier from the same file
            self._log.error("queue is not in the config any more and may hold events", **orphan._asdict())

    def _summary(self) -> str:
        received, acked, stored, queued = self._final
        where = ", ".join(f"{component} {count:,}" for component, count in stored.items()) or "nowhere"
        left = f"; {queued:,} left in the queue" if queued else ""
        return f"received {received:,} events, acked {acked:,}, stored: {where}{left}"

    def _totals(self) -> tuple[int, int, dict[str, int], int]:
        """received, acked, stored by component, queued."""
        sums: dict[str, int] = {}
        stored: dict[str, int] = {}
        holding = {entry.id for tier in self._site.tiers.values() for entry in tier.outputs.values() if entry.holds}
        for family in self._metrics.registry.collect():
            for sample in family.samples:
                sums[sample.name] = sums.get(sample.name, 0) + int(sample.value)
                if sample.name == f"{PREFIX}sink_written_events_total" and sample.labels["component"] in holding:
                    stored[sample.labels["component"]] = int(sample.value)
        received, acked = (sums.get(f"{PREFIX}ingest_{what}_events_total", 0) for what in ("received", "acked"))
        return received, acked, stored, sums.get(f"{PREFIX}queue_size_events", 0)

    # --- reload ------------------------------------------------------------------------------------------------------

    async def _reload(self) -> None:
        """SIGHUP: take what changed; a file that is wrong, or changes what only a restart can, leaves all as it is."""
        if self._reload_site is None or not self._started or self._draining:
            return
        try:
            site = self._reload_site()
            paths = changed(self._site, site)
            self._refuse_untakeable(site, paths)
        except (ConfigError, PluginError) as error:
            self._reload_success.set(0)
            self._log.error("reload refused; the old config runs on", error=describe(error))
            return
        for tier in self.tiers:
            try:
                await self._reload_tier(tier, site, paths)
            except ConfigError as error:
                self._reload_success.set(0)
                self._log.error("reload refused; the old config runs on", error=describe(error), tier=tier.name)
                return
            except Exception as error:  # a plugin that cannot be built must not end the process
                self._reload_success.set(0)
                self._log.exception("reload went wrong; what was not reached runs on as it was", error, tier=tier.name)
                return
        self._site = site
        self._reload_success.set(1)
        self._log.info("reloaded", changed=paths)

    def _refuse_untakeable(self, site: Site, paths: list[str]) -> None:
        for path in paths:
            parts = path.split(".")
            if parts[0] != "tiers" or len(parts) < 4 or parts[1] not in self._site.tiers or parts[1] not in site.tiers:
                raise ConfigError(
                    str(site.file), path, "what a reload can take (sources, enrichers and outputs)", "a change", "restart the process"
                )

        before, after = ({entry.path: entry.role for entry in each.entries()} for each in (self._site, site))
        for path in paths:
            role = after.get(path) or before.get(path)
            if role == "decoder" or (role == "enricher" and (path in before) != (path in after)):
                raise ConfigError(str(site.file), path, "what a reload can take", f"a change of a {role}", "restart the process")

    async def _reload_tier(self, tier: Tier, site: Site, paths: list[str]) -> None:
        new = site.tiers[tier.name]
        entries = {entry.path: entry for entry in new.entries()}
        known = {entry.path: entry for entry in tier.config.entries()}
        for path in paths:
            entry, old = entries.get(path), known.get(path)
            if not path.startswith(f"tiers.{tier.name}."):
                continue
            entry_id = (entry or known[path]).id
            if (entry or old).role != "source":  # type: ignore[union-attr]
                await tier.pipeline.reload(entry, entry_id)
            elif entry is not None:
                await tier.reload_source(entry, self._tasks)
            else:
                await tier.stop_source(entry_id)
        unchanged = entries.keys() - set(paths)
        for source in tier.sources.values():
            if source.entry.path in unchanged:
                await source.reread()
        await tier.pipeline.reread(unchanged)
        tier.config = new

    # --- what others ask ---------------------------------------------------------------------------------------------

    def _tell(self, fact: str, facts: dict[str, Any]) -> None:
        """Broadcast a fact; callable from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(lambda: self._facts.tell(fact, **facts))

    def _status_changed(self, row: ComponentStatus) -> None:
        facts = {"tier": row.tier, "component": row.component, "status": row.status, "reason": row.reason}
        self._tell("component_status", facts)

    def _queue_infos(self) -> Iterator[QueueInfo]:
        return (tier.queue_hook.queue_info() for tier in self.tiers if tier.open and tier.queue)

    def _not_live(self) -> list[str]:
        now = self._clock.monotonic()
        reasons = []
        for tier in self.tiers:
            if not tier.open:
                continue
            stall_s = tier.config.engine.stall_s
            if now - tier.pipeline.turned > stall_s:
                reasons.append(f"{tier.name}: the pipeline's loop has not turned for {now - tier.pipeline.turned:.0f} s")
            for output, (activity, since) in tier.pipeline.activities().items():
                if activity == "working" and now - since > stall_s:
                    reasons.append(f"{tier.name}.{output}: in one call for {now - since:.0f} s")
        return reasons

    def _not_ready(self) -> list[str]:
        if self._draining or self._stop.is_set():
            return ["draining"]
        if not self._started:
            return ["starting: the queue is being recovered"]
        return [f"{tier.name}: the queue is full" for tier in self.tiers if tier.deliver.refusing]

    def _components(self) -> dict[str, Any]:
        rows = [row._asdict() for row in self._statuses.rows()]
        healths = {(unit.tier, unit.entry.id): unit.health() for tier in self.tiers for unit in tier.units()}
        for row in rows:
            health = healths.get((row["tier"], row["component"]))
            if health is not None and row["status"] == "ok":  # what the engine saw go wrong comes before what it says itself
                row.update(health._asdict())
        queues = [
            {**info._asdict(), "readers": [reader._asdict() for reader in info.readers], "spans": [span._asdict() for span in info.spans]}
            for info in self._queue_infos()
        ]
        return {"host": self._site.host.name, "components": rows, "queues": queues}


def _tier_named(site: Site, name: str) -> str:
    if name not in site.tiers:
        raise ConfigError(str(site.file), f"tiers.{name}", f"one of {', '.join(site.tiers)}", "no such tier")
    return name
