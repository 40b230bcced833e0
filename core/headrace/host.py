"""A process with its tiers: start in order, run under one task group, drain under a deadline, close.

SIGTERM and SIGINT drain; a second one stops at once, which is harmless: what was acked is in the queue. SIGHUP re-reads the
file and restarts only what changed. Where workers make a site several processes, each of them is a host, and a `Part` of it.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

import uvloop
from prometheus_client import generate_latest

from headrace.admin import AdminServer
from headrace.component import SystemClock
from headrace.config import Entry, Site, changed
from headrace.engine.supervisor import Colleagues, ComponentStatus, Services, Statuses, Supervised
from headrace.errors import ConfigError, HeadraceError, PluginError, QueueError
from headrace.faults import Faults
from headrace.hookspecs import QueueInfo
from headrace.log import Log, describe, set_up
from headrace.loop_watch import LoopWatch
from headrace.metrics import PREFIX, Metrics
from headrace.plugins import SitePlugins
from headrace.position import OriginMark
from headrace.queue_metrics import RULES, QueueCollector
from headrace.queue_rates import SAMPLE_S, ReleaseRates
from headrace.register import QueueRegister
from headrace.scheduling import short_slices
from headrace.stopping import Stopping, unless
from headrace.tier import Tier
from headrace.unheld import report_unheld
from headrace.workers.merging import told_rules
from headrace.workers.plan import Process, queue_paths

#: How long Python lets one thread run before another may: the pipeline must not keep the loop that acks waiting. With 0.2 ms the
#: loop waits less often for more than a millisecond, and a site at full load stores a fifth less.
SWITCH_INTERVAL_S: Final = 0.000_5

#: The collector looks at everything behind so many looks at what is younger. With 10,000 connections that holds up all threads for a
#: tenth of a second, and with Python's 10 a rush of newcomers makes for one every ten seconds.
FULL_COLLECTION_EVERY: Final = 100
EXIT_FAULT: Final = 70  # EX_SOFTWARE
#: `spread` and `spread_retired` of an output that is not there, or shares nothing.
_NOT_SPREAD: Final = (None, False)


class Part(NamedTuple):
    """Which of a site's processes this is, where workers make them several.

    admin: where its supervisor asks it. first: whether it is the first of all. colleagues: the other workers of its tier.
    """

    process: Process
    admin: socket.socket
    first: bool
    colleagues: Colleagues | None


class Totals(NamedTuple):
    """What a process did, in events: received, acked, stored by component, left in the queue, and taken from other tiers."""

    received: int
    acked: int
    stored: dict[str, int]
    queued: int
    linked: int = 0

    def __str__(self) -> str:
        where = ", ".join(f"{component} {count:,}" for component, count in self.stored.items()) or "nowhere"
        left = f"; {self.queued:,} left in the queue" if self.queued else ""
        links = f", over links {self.linked:,}" if self.linked else ""
        return f"received {self.received:,} events, acked {self.acked:,}{links}, stored: {where}{left}"


def run(site: Site, tiers: Sequence[str] = (), reload: Callable[[], Site] | None = None) -> int:
    """Run the site (only `tiers`, when given) until a signal; the exit code. `reload` gives the site anew for SIGHUP.

    Raises ConfigError and PluginError for what is wrong before anything was taken in.
    """
    set_up(site.host.log_level)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    short_slices()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            host = Host(site, tiers, reload)
        except OSError as error:  # such as a data_dir of somebody else
            raise HeadraceError(f"cannot start: {error}") from error
        code = runner.run(host.run())
    if host.totals is not None:
        print(host.totals, file=sys.stderr)
    return code


class Host:
    """One process."""

    def __init__(self, site: Site, tiers: Sequence[str] = (), reload: Callable[[], Site] | None = None, part: Part | None = None) -> None:
        self._site, self._reload_site, self._part = site, reload, part
        self._log = Log("", host=site.host.name, **({"worker": part.process.name} if part else {}))
        self._clock = SystemClock()
        self._metrics = Metrics()
        self.stopping = Stopping(self._clock.monotonic, self._log)
        self.drain_deadline_s = site.host.drain_deadline_s
        #: set when every tier runs
        self.started = asyncio.Event()
        #: known when a process that had started has ended well
        self.totals: Totals | None = None
        self._fault: BaseException | None = None
        self._refused: HeadraceError | None = None
        self._draining = False
        data_dir = Path(site.host.data_dir)
        data_dir.mkdir(parents=True, exist_ok=True)
        self._register = QueueRegister(data_dir)
        self._register.set_aside_if_unreadable()
        self._facts = SitePlugins(self._log, self._metrics)
        self.statuses = self._statuses = Statuses(self._clock, self._metrics, self._log, self._status_changed)
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
            process=part.process if part else None,
            colleagues=part.colleagues if part and part.process.workers > 1 else None,
            host_folder="host" if part is None or part.first else f"host.{part.process.name}",
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_watch = LoopWatch(self._log)
        self._listeners = [Supervised(entry, "host", self._services) for entry in site.listeners.values()]
        wanted = [_tier_named(site, name) for name in tiers] or list(site.tiers)
        self.tiers = [Tier(site.tiers[name], self._services, self._register, self._failed) for name in wanted]
        self.admin = AdminServer(
            part.admin if part else site.admin.listen, self._metrics_page, self._not_live, self._not_ready, self._components
        )
        self._rates = ReleaseRates()
        self._metrics.registry.register(QueueCollector(self._queue_infos, self._rates))
        self._metrics.rules.update(RULES)
        self._metrics.gauge("build_info", "1; the version is in the label.", version=version("headrace")).set(1)
        self._reload_success = self._metrics.gauge(
            "config_reload_success", "1 when the last SIGHUP was taken, 0 when it was refused.", "min"
        )
        self._reload_success.set(1)

    async def run(self) -> int:
        """Until a signal, or a fault of engine or queue; the exit code."""
        self._loop = asyncio.get_running_loop()
        self._loop_watch.add("sources", self._loop, threading.get_ident())
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            # a supervisor says itself when it is time to reload
            self.stopping.listen(self._loop, (lambda: None) if self._part else (lambda: tasks.create_task(self.reload())))
            sampling = tasks.create_task(self._sample())
            starting = asyncio.ensure_future(self._start(tasks))
            try:
                try:
                    await unless(self.stopping.asked, starting)
                except HeadraceError as error:  # raised in here, it would leave as a group
                    self._refused = error
                except OSError as error:  # such as a full disk below data_dir: no bug, so no traceback
                    self._refused = HeadraceError(f"cannot start: {error}")
                if self.started.is_set():
                    await self.stopping.asked.wait()
                    if self._fault is None:
                        await unless(self.stopping.at_once, asyncio.ensure_future(self._drain()))
            finally:
                self._loop_watch.close()
                sampling.cancel()
                await self._close()
                self.stopping.deaf(self._loop)
        if self._refused is not None:
            raise self._refused
        if self._fault is not None:
            self._log.exception("engine fault: the process ends, a restart recovers", self._fault)
            return EXIT_FAULT
        if self.started.is_set():
            self.totals = self._final
        return 0

    # --- starting and stopping ---------------------------------------------------------------------------------------

    async def _start(self, tasks: asyncio.TaskGroup) -> None:
        self._report_orphaned_queues()
        self._report_unheld()
        self._facts.tell("register_routes", app=self.admin.app)
        try:
            await self.admin.start()
        except OSError as error:
            raise HeadraceError(
                f"admin.listen: {self._site.admin.listen} cannot be had ({error.strerror}); stop what listens there, or set another"
            ) from error
        if self._part is None:
            self._log.info("listening", component="admin", url=self.admin.url)
        for listener in self._listeners:
            await listener.open()
        for tier in self.tiers:
            await tier.start(tasks)
            if (runs_on := tier.pipeline.runs_on()) is not None:
                self._loop_watch.add(f"{tier.name}.outputs", *runs_on)
        self._loop_watch.start()
        self.started.set()
        # what lives now lives long: the collector need not look at it again and again
        gc.freeze()
        gc.set_threshold(*gc.get_threshold()[:2], FULL_COLLECTION_EVERY)
        self._facts.tell("host_started")
        self._log.info("started", tiers=[tier.name for tier in self.tiers], pid=os.getpid())

    def _failed(self, error: BaseException) -> None:
        """Engine or queue cannot go on. Callable from any thread."""
        assert self._loop is not None
        self._fault = self._fault or error
        self._loop.call_soon_threadsafe(self.stopping.asked.set)

    async def _drain(self) -> None:
        deadline_s = self.drain_deadline_s
        self._draining = True
        self._log.info("draining", deadline_s=deadline_s)
        self._facts.tell("host_draining", deadline_s=deadline_s)
        until = self._clock.monotonic() + deadline_s
        for tier in self.tiers:
            before = tier.lags()
            await tier.drain_sources(max(0.0, until - self._clock.monotonic()))
            in_time = await tier.pipeline.drain(max(0.0, until - self._clock.monotonic()))
            left = {output: lag for output, lag in tier.lags().items() if lag}
            facts = {"tier": tier.name, "queued": before, "left": left}
            if in_time:
                self._log.info("drained", **facts)
            else:
                self._log.warning("drain deadline passed; the queue keeps the rest", **facts)

    async def _close(self) -> None:
        self._final = self._totals()
        for tier in self.tiers:
            await tier.close()
        for listener in self._listeners:
            await listener.close()
        await self.admin.close()

    def _report_orphaned_queues(self) -> None:
        if self._part is not None:
            return  # the supervisor does
        for orphan in self._register.orphans(queue_paths(self._site)):
            if self._site.only and orphan.tier not in self._site.tiers:
                continue  # another process runs that tier from the same file
            self._log.error("queue is not in the config any more and may hold events", **orphan._asdict())

    def _report_unheld(self) -> None:
        if self._part is None:
            report_unheld(self._site, self._log)

    def _totals(self) -> Totals:
        sums: dict[str, float] = {}  # not all of them are numbers of events: a reader that stands takes for ever
        stored: dict[str, int] = {}
        holding = {entry.id for tier in self._site.tiers.values() for entry in tier.outputs.values() if entry.holds}
        for family in self._metrics.registry.collect():
            for sample in family.samples:
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
                if sample.name == f"{PREFIX}sink_written_events_total" and sample.labels["component"] in holding:
                    stored[sample.labels["component"]] = int(sample.value)
        names = ("ingest_received_events_total", "ingest_acked_events_total", "queue_size_events")
        received, acked, queued = (int(sums.get(PREFIX + name, 0)) for name in names)
        links = ("link_received_events_total", "fanout_received_events_total")
        return Totals(received, acked, stored, queued, sum(int(sums.get(PREFIX + name, 0)) for name in links))

    async def give_up(self, origin: str) -> OriginMark | None:
        """Another worker takes this origin over: the mark of the queue here. QueueError where there is none that keeps marks."""
        (tier,) = self.tiers
        if tier.queue is None:
            raise QueueError(f"tier {tier.name!r} has no queue that remembers {origin}")
        return await tier.give_up(origin)

    def queued(self) -> int:
        """Events in the queues that are open."""
        return sum(info.size_events for info in self._queue_infos())

    # --- reload ------------------------------------------------------------------------------------------------------

    async def reload(self) -> str:
        """SIGHUP: take what changed; a file that is wrong, or changes what only a restart can, leaves all as it is. What went
        wrong, or nothing."""
        if self._reload_site is None or not self.started.is_set() or self._draining:
            return ""
        try:
            site = self._reload_site()
            paths = changed(self._site, site)
            refuse_untakeable(self._site, site, paths)
        except (ConfigError, PluginError) as error:
            self._reload_success.set(0)
            self._log.error("reload refused; the old config runs on", error=describe(error))
            return str(error)
        for tier in self.tiers:
            try:
                await self._reload_tier(tier, site, paths)
            except ConfigError as error:
                self._reload_success.set(0)
                self._log.error("reload refused; the old config runs on", error=describe(error), tier=tier.name)
                return describe(error)
            except Exception as error:  # a plugin that cannot be built must not end the process
                self._reload_success.set(0)
                self._log.exception("reload went wrong; what was not reached runs on as it was", error, tier=tier.name)
                return describe(error)
        self._site = site
        self._reload_success.set(1)
        self._log.info("reloaded", changed=paths)
        self._report_unheld()
        return ""

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

    async def _sample(self) -> None:
        """How far the readers of queues are, for the rates."""
        while True:
            await self._clock.sleep(SAMPLE_S)
            self._rates.take(self._queue_infos(), self._clock.monotonic())

    async def _metrics_page(self) -> bytes:
        return generate_latest(self._metrics.registry) + (told_rules(self._metrics.rules) if self._part else b"")

    async def _not_live(self) -> list[str]:
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

    async def _not_ready(self) -> list[str]:
        if self._draining or self.stopping.asked.is_set():
            return ["draining"]
        if not self.started.is_set():
            waiting = [f"{row.tier}.{row.component}: {row.reason}" for row in self._statuses.rows() if row.status == "degraded"]
            return [f"starting: {row}" for row in waiting] or ["starting: the queue is being recovered"]
        return [f"{tier.name}: {tier.deliver.why}" for tier in self.tiers if tier.deliver.refusing]

    async def _components(self) -> dict[str, Any]:
        rows = [row._asdict() for row in self._statuses.rows()]
        healths = {(unit.tier, unit.entry.id): unit.health() for tier in self.tiers for unit in tier.units()}
        for row in rows:
            health = healths.get((row["tier"], row["component"]))
            if health is not None and row["status"] == "ok":  # what the engine saw go wrong comes before what it says itself
                row.update(health._asdict())
        rows += [
            {"tier": tier.name, "component": part, "role": part, "plugin": "", "since": None, **health._asdict()}
            for tier in self.tiers
            for part, health in (("decoding", tier.pipeline.decoding()), ("dead_letters", tier.pipeline.dead_letters()))
        ]
        queues = [
            {**info._asdict(), "readers": [reader._asdict() for reader in info.readers], "spans": [span._asdict() for span in info.spans]}
            for info in self._queue_infos()
        ]
        return {"host": self._site.host.name, "components": rows, "queues": queues}


def _tier_named(site: Site, name: str) -> str:
    if name not in site.tiers:
        raise ConfigError(str(site.file), f"tiers.{name}", f"one of {', '.join(site.tiers)}", "no such tier")
    return name


def refuse_untakeable(old: Site, new: Site, paths: Sequence[str]) -> None:
    """ConfigError for the first of the changed `paths` that no reload can take."""
    for path in paths:
        parts = path.split(".")
        if parts[0] != "tiers" or len(parts) < 4 or parts[1] not in old.tiers or parts[1] not in new.tiers:
            raise ConfigError(
                str(new.file), path, "what a reload can take (sources, enrichers and outputs)", "a change", "restart the process"
            )
    before, after = ({entry.path: entry.role for entry in each.entries()} for each in (old, new))
    for path in paths:
        role = after.get(path) or before.get(path)
        if role == "decoder" or (role == "enricher" and (path in before) != (path in after)):
            raise ConfigError(str(new.file), path, "what a reload can take", f"a change of a {role}", "restart the process")
    old_keys, new_keys = ({entry.path: _spread(entry) for entry in each.entries() if entry.role == "output"} for each in (old, new))
    for path in paths:
        if old_keys.get(path, _NOT_SPREAD) != new_keys.get(path, _NOT_SPREAD):
            hint = "restart the process: who takes what changes at one position for all of them"
            raise ConfigError(str(new.file), f"{path}.spread", "what a reload can take", "a change of who shares the events", hint)


def _spread(entry: Entry) -> tuple[str | None, bool]:
    return entry.output.spread, entry.output.spread_retired
