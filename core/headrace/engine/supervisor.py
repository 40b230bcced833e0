"""A component under the host's care: built, opened with retries, run, restarted after a bug, closed.

Only engine and queue may end the process. Whatever a source, an enricher or an output raises is logged, counted, shown as
its status, and answered with a new instance after a backoff.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol

from headrace.component import Clock, Component, Context, Health
from headrace.config import Entry
from headrace.errors import ConfigError, PluginError, QueueError, QueueLocked, TransientError
from headrace.faults import Faults
from headrace.hookspecs import Elsewhere, Role, Status
from headrace.log import Log, describe
from headrace.metrics import Metrics
from headrace.plugins import ComponentPlugins, SitePlugins
from headrace.retry import Backoff
from headrace.workers.plan import Process

OPEN_RETRY_BASE_MS: Final = 200
OPEN_RETRY_MS_MAX: Final = 30_000
CLOSE_S: Final = 30.0


class ComponentStatus(NamedTuple):
    """One row of `/components`; since when it has this status, as a Unix time."""

    tier: str
    component: str
    role: Role
    plugin: str
    status: Status
    reason: str
    since: float


class Statuses:
    """Every component's status, settable from any thread; `changed` is called for each change."""

    def __init__(self, clock: Clock, metrics: Metrics, log: Log, changed: Callable[[ComponentStatus], None]) -> None:
        self._clock, self._metrics, self._log, self._changed = clock, metrics, log, changed
        self._rows: dict[tuple[str, str], ComponentStatus] = {}
        self._lock = threading.Lock()

    def rows(self) -> list[ComponentStatus]:
        with self._lock:
            return list(self._rows.values())

    def forget(self, tier: str, component: str) -> None:
        """The component left the config."""
        with self._lock:
            self._rows.pop((tier, component), None)

    def put(self, tier: str, entry: Entry, status: Status, reason: str) -> None:
        key = tier, entry.id
        with self._lock:
            known = self._rows.get(key)
            if known is not None and (known.status, known.reason) == (status, reason):
                return
            # a reason may change at every try: since when it is not well is the question
            since = known.since if known is not None and known.status == status else self._clock.wall()
            row = ComponentStatus(tier, entry.id, entry.role, entry.use, status, reason, since)
            self._rows[key] = row
        gauge = self._metrics.gauge(
            "component_up", "1 while the component's status is ok.", "min", tier=tier, component=entry.id, plugin=entry.use
        )
        gauge.set(1 if status == "ok" else 0)
        if known is None or known.status != status:
            tell = self._log.warning if status == "degraded" else self._log.info
            tell("component status", tier=tier, component=entry.id, status=status, reason=reason)
        self._changed(row)


class Colleagues(Protocol):
    """The other workers of a tier."""

    def taking(self, origin: str) -> AbstractAsyncContextManager[Elsewhere]:
        """As `Deliver.taking`."""


@dataclass
class Services:
    """What the host shares with every component that it builds; `tell` broadcasts a fact from any thread."""

    metrics: Metrics
    clock: Clock
    random: random.Random
    faults: Faults
    data_dir: Path
    statuses: Statuses
    site: SitePlugins
    tell: Callable[[str, dict[str, Any]], None]
    log: Log = field(default_factory=lambda: Log(""))
    process: Process | None = None
    host_folder: str = "host"
    colleagues: Colleagues | None = None

    def folder(self, tier: str) -> Path:
        """Where this process keeps what is of a tier (or of the listeners): each worker has its own."""
        if tier == "host":
            return self.data_dir / self.host_folder
        return self.data_dir / f"{tier}{self.process.part if self.process else ''}"


async def call_plugin(hook: Callable[..., Any], **arguments: Any) -> Any:
    """Await a plugin's hook or method. What it raises is an Exception: a CancelledError that nobody asked for is a bug too."""
    try:
        return await hook(**arguments)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise RuntimeError("the plugin cancelled its own call") from error


class Turn:
    """Whose an output is, between a write and the flush that makes it safe: the queue's events and replayed letters take turns."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._holder: object = None

    async def take(self, who: object) -> None:
        """Wait until it is free, or `who` has it already."""
        if self._holder is not who:
            await self._lock.acquire()
            self._holder = who

    def give(self, who: object) -> None:
        """Nothing of `who` is unflushed there; fine also when it has no turn."""
        if self._holder is who:
            self._holder = None
            self._lock.release()


class Supervised:
    """One entry of the config and its current component. All methods run on the loop that the component lives on."""

    def __init__(self, entry: Entry, tier: str, services: Services, patient: bool = False) -> None:
        """patient: a first `open` waits for what only a person can mend too, instead of ending the process."""
        self.entry, self.tier, self._services = entry, tier, services
        self.log = services.log.bind(tier=tier, component=entry.id)
        self._backoff = Backoff(OPEN_RETRY_BASE_MS, OPEN_RETRY_MS_MAX, services.random)
        self._opened = asyncio.Event()
        self.turn = Turn()
        self._restarting = asyncio.Lock()
        self._was_open = patient
        self._spoke = False
        #: the level at which the far side of an output keeps what it is given, where it said so
        self.far_level: str | None = None
        self.status("starting", "not open yet")
        self._build()

    def _build(self) -> None:
        context = self._context(self.entry.id)
        self.component: Component = self.entry.plugin(self.entry.config, context)
        participants = [
            wrapper(wrapper.Config(), self._context(f"{self.entry.id}.wrap{index}")) for index, wrapper in enumerate(self.entry.wrappers)
        ]
        self.plugins = ComponentPlugins(self.component, self.entry.role, self.entry.use, participants)
        self.hook = self.plugins.hook
        name = f"{self.tier}.{self.entry.id}"
        self._services.site.remove(name)
        self._services.site.add(self.component, name)

    def _context(self, component_id: str) -> Context:
        services, use = self._services, self.entry.use
        data_dir = services.folder(self.tier) / component_id
        data_dir.mkdir(parents=True, exist_ok=True)
        return Context(
            id=component_id,
            tier=self.tier,
            plugin=use,
            log=self.log.bind(plugin=use),
            metrics=services.metrics.labelled(tier=self.tier, component=component_id, plugin=use),
            clock=services.clock,
            random=services.random,
            data_dir=data_dir,
            fault=self._fault,
            status=self._component_says,
            far_level=self._far_side_keeps,
            worker=services.process.worker if services.process else 0,
            workers=services.process.workers if services.process else 1,
            nice=getattr(self.entry.keys, "nice", 0),
        )

    def _fault(self, name: str) -> None:
        if name not in self.entry.plugin.fault_points:
            raise ValueError(f"fault point {name!r} is not in {self.entry.plugin.__name__}.fault_points")
        self._services.faults.hit(name)

    def status(self, status: Status, reason: str = "") -> None:
        """What the component, or the engine on its behalf, says of it."""
        self._services.statuses.put(self.tier, self.entry, status, reason)

    def tried(self, reason: str, attempts: int, seconds: float, circuit_open: bool) -> None:
        """A try failed, and the next one comes in so many seconds."""
        self.circuit(circuit_open)
        tries = f"; circuit open: {attempts} tries failed, the next one comes in {seconds:.0f} s" if circuit_open else ""
        self.status("degraded", reason + tries)

    def circuit(self, is_open: bool) -> None:
        """Whether an output is only tried now and then, because it failed for so long."""
        if self.entry.role == "output":
            gauge = self._services.metrics.gauge(
                "sink_circuit_open",
                "1 while the output failed so often that it is only tried once in `retry_max_ms`.",
                "max",
                tier=self.tier,
                component=self.entry.id,
                plugin=self.entry.use,
            )
            gauge.set(is_open)

    def _component_says(self, status: Literal["ok", "degraded"], reason: str) -> None:
        self._spoke = True
        self.status(status, reason)

    def _far_side_keeps(self, level: str) -> None:
        if level == self.far_level:
            return
        if self.far_level is not None:
            self._far_level_gauge(self.far_level).set(0)
        self.far_level = level
        self._far_level_gauge(level).set(1)

    def _far_level_gauge(self, level: str) -> Any:
        text = "1 for the level at which the far side of an output keeps what it is given."
        return self._services.metrics.gauge("far_level_info", text, "max", tier=self.tier, component=self.entry.id, level=level)

    async def is_open(self) -> None:
        """Return when the component is open: at once, unless it is being restarted."""
        await self._opened.wait()

    async def open(self) -> None:
        """Open the component, however long that takes.

        The first time it raises what waiting cannot mend: config, plugin, queue files. Later on nothing ends the process.
        """
        self.status("starting", "opening")
        await self._open()

    async def _open(self) -> None:
        while True:
            self._spoke = False
            try:
                await call_plugin(self.component.open)
            except (ConfigError, PluginError, QueueError) as error:
                if not self._was_open and not self._will_be_free(error):
                    await self.close()
                    raise
                await self._wait_after(error, "component did not open", None)
            except TransientError as error:
                await self._wait_after(error, "component did not open", error.retry_after_s)
            except Exception as error:
                self.log.exception("component failed to open", error)
                await self._wait_after(error, "component failed to open", None)
            else:
                self._backoff.reset()
                self.circuit(False)
                self._opened.set()
                self._was_open = True
                if not self._spoke:  # what the component said of itself while it opened stands
                    self.status("ok")
                return

    def _will_be_free(self, error: Exception) -> bool:
        """Whether the queue is held only to be emptied, by another one than we are ourselves."""
        empties = self._services.process is not None and self._services.process.former
        return isinstance(error, QueueLocked) and error.drains and not empties

    def health(self) -> Health:
        """What the component says when asked."""
        try:
            return self.component.health()
        except Exception as error:
            self.failed("health", error)
            return Health("degraded", f"health: {describe(error)}")

    async def _wait_after(self, error: Exception, message: str, retry_after_s: float | None) -> None:
        self.failed("open", error)
        self.log.warning(message, error=describe(error))
        seconds = self._backoff.next_s(retry_after_s)
        self.tried(f"{message}: {describe(error)}", self._backoff.attempts, seconds, self._backoff.slowest)
        await self.close()
        await self._services.clock.sleep(seconds)
        if self.entry.role != "queue":  # the tier is bound to the hooks of this instance, which may open again
            await self._rebuild()

    async def _rebuild(self) -> None:
        while True:
            try:
                self._build()
            except Exception as error:
                self.failed("build", error)
                self.log.exception("component cannot be built", error)
                self.status("degraded", f"component cannot be built: {describe(error)}")
                await self._services.clock.sleep(self._backoff.next_s())
            else:
                return

    def failed(self, stage: str, error: Exception) -> None:
        """Count an error of the component."""
        kind = "transient" if isinstance(error, TransientError) else type(error).__name__
        labels = {"tier": self.tier, "component": self.entry.id, "plugin": self.entry.use, "stage": stage, "error_type": kind}
        self._services.metrics.counter("plugin_errors_total", "Errors that a component raised.", **labels).inc()

    async def run(self) -> None:
        """The component's own long loop; after an error a new instance takes over. Ends when the loop returns."""
        await self._opened.wait()
        while True:
            component = self.component
            try:
                await call_plugin(component.run)
            except Exception as error:
                self.failed("run", error)
                self.log.exception("component loop failed", error)
                if component is self.component:
                    await self.restart(f"its loop failed: {describe(error)}")
                await self._services.clock.sleep(self._backoff.next_s())
            else:
                if component is self.component:
                    return

    async def restart(self, reason: str) -> None:
        """A new instance in the place of this one; when another call is about that already, wait for it."""
        component = self.component
        async with self._restarting:
            if component is not self.component:
                return
            self._opened.clear()
            self.status("degraded", f"restarting: {reason}")
            await self.close()
            await self._rebuild()
            await self._open()

    async def close(self) -> None:
        """Close the component, in CLOSE_S at most; what its `close` raises is logged and ends there."""
        try:
            async with asyncio.timeout(CLOSE_S):
                await call_plugin(self.component.close)
        except Exception as error:
            self.log.exception("component failed to close", error)
        self.component.context.close()

    async def reload(self, entry: Entry) -> bool:
        """Whether the component took the changed config without a restart. Raises ConfigError where it refuses it."""
        try:
            taken = await call_plugin(self.component.reload, config=entry.config)
        except ConfigError:
            raise
        except Exception as error:
            self.failed("reload", error)
            self.log.exception("component failed to reload", error)
            return False
        if taken:
            self.reconfigured(entry)
        return bool(taken)

    async def reread(self) -> None:
        """Let the component look again at the files that its config names."""
        if not self._opened.is_set():
            return  # it will read them when it opens
        try:
            await call_plugin(self.component.reread)
        except Exception as error:
            self.failed("reread", error)
            self.log.exception("component failed to read its files again", error)

    def reconfigured(self, entry: Entry) -> None:
        """The entry changed in the config; the next instance is built from it."""
        self.entry = entry

    def __repr__(self) -> str:
        return f"Supervised({self.tier}.{self.entry.id})"
