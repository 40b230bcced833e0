"""The process that `headrace run` is where a tier has several workers: it runs none of the site itself.

It starts the processes of the plan, starts again whichever dies, holds their addresses, serves one admin page for all, hands on
reloads, and drains them in the order of their tiers.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import uvloop

from headrace.admin import AdminServer
from headrace.component import SystemClock
from headrace.config import Site, changed
from headrace.errors import ConfigError, HeadraceError, PluginError
from headrace.host import Totals, refuse_untakeable
from headrace.locked import locked
from headrace.log import Log, describe, set_up
from headrace.metrics import Metrics
from headrace.register import QueueRegister, Registered
from headrace.retry import Backoff
from headrace.stopping import Stopping, unless
from headrace.unheld import report_unheld
from headrace.workers.messages import Start
from headrace.workers.pages import Pages
from headrace.workers.plan import Process, processes, queue_paths
from headrace.workers.ports import Ports
from headrace.workers.process import WorkerProcess
from headrace.workers.takeovers import Takeovers

RESTART_BASE_MS: Final = 100
#: An event that kills its process is found by restarts (DELIVERY, execution): they must not become rare.
RESTART_MS_MAX: Final = 5_000
SOCKETS: Final = "workers"


def run(site: Site, reload: Callable[[], Site]) -> int:
    """Run the site until a signal; the exit code, as of a host."""
    set_up(site.host.log_level)
    data_dir = Path(site.host.data_dir)
    data_dir.mkdir(parents=True, exist_ok=True)
    with sockets_folder(data_dir) as folder, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(site, reload, folder))


async def _run(site: Site, reload: Callable[[], Site], sockets: int) -> int:
    try:
        supervisor = Supervisor(site, reload, sockets)
    except OSError as error:
        raise HeadraceError(f"host.data_dir: no socket for a worker can be made below {site.host.data_dir}: {error}") from error
    code = await supervisor.run()
    if code == 0:
        print(supervisor.totals, file=sys.stderr)
    return code


class Supervisor:
    """All processes of one site."""

    def __init__(self, site: Site, reload: Callable[[], Site], sockets: int) -> None:
        self._site, self._reload_site = site, reload
        self._log = Log("", host=site.host.name)
        clock, metrics = SystemClock(), Metrics()
        self._clock = clock
        self._stopping = Stopping(clock.monotonic, self._log)
        self._reload_success = metrics.gauge("config_reload_success", "1 when the last SIGHUP was taken, 0 when it was refused.", "min")
        self._reload_success.set(1)
        register = QueueRegister(Path(site.host.data_dir))
        register.set_aside_if_unreadable()
        registered = register.entries()
        self._report_orphaned_queues(registered)
        report_unheld(site, self._log)
        self.plan = processes(site, registered)
        self.workers = [
            WorkerProcess(process, sockets, clock, Backoff(RESTART_BASE_MS, RESTART_MS_MAX, random.Random()), metrics, self._log)
            for process in self.plan
        ]
        takeovers = Takeovers(self.workers, clock)
        for worker in self.workers:
            worker.takes_over_by(takeovers)
        self._ports = Ports()
        self._pages = Pages(self.workers, metrics)
        self.admin = AdminServer(site.admin.listen, self._pages.metrics, self._pages.not_live, self._not_ready, self._components)
        self.admin.app.router.add_get("/workers/{worker}/{page:.*}", self._pages.one)
        self._hopeless = 0
        self._reloading = asyncio.Lock()
        self.totals = Totals(0, 0, {}, 0)

    async def run(self) -> int:
        """Until a signal, or a config that no worker can start with; the exit code."""
        loop = asyncio.get_running_loop()
        try:
            await self._start_admin()
            await self._run(loop)
        finally:
            await self.admin.close()
            for worker in self.workers:
                await worker.close()
            self._ports.close()
            self._stopping.deaf(loop)
        self.totals = _summed([worker.ended for worker in self.workers if worker.ended is not None])
        return self._hopeless

    async def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        async with asyncio.TaskGroup() as tasks:
            self._stopping.listen(loop, lambda: tasks.create_task(self._one_reload()))
            running = [tasks.create_task(self._keep(worker), name=worker.name) for worker in self.workers]
            await self._stopping.asked.wait()
            await unless(self._stopping.at_once, asyncio.ensure_future(self._drain()))
            for worker in self.workers:
                worker.stop_at_once()
            await asyncio.gather(*(worker.stop(0.0) for worker in self.workers))
            for task in running:
                task.cancel()

    async def _start_admin(self) -> None:
        try:
            await self.admin.start()
        except OSError as error:
            raise HeadraceError(
                f"admin.listen: {self._site.admin.listen} cannot be had ({error.strerror}); stop what listens there, or set another"
            ) from error
        self._log.info("listening", component="admin", url=self.admin.url)

    async def _keep(self, worker: WorkerProcess) -> None:
        await self._hold_addresses(worker)
        code = await worker.run(lambda: self._start_of(worker.process))
        if code:
            self._hopeless = self._hopeless or code
            self._stopping.asked.set()

    async def _hold_addresses(self, worker: WorkerProcess) -> None:
        """An address that is taken, perhaps by workers whose supervisor was killed and that still drain, is waited for."""
        backoff = Backoff(RESTART_BASE_MS, RESTART_MS_MAX, random.Random())
        while True:
            try:
                self._ports.hold(self._site, worker.process)
                return
            except OSError as error:
                worker.reason = f"{error}"
                self._log.warning("address cannot be had yet", worker=worker.name, error=str(error))
                await self._clock.sleep(backoff.next_s())

    def _start_of(self, process: Process) -> Start:
        site = self._site
        return Start(
            file=str(site.file),
            text=site.text,
            overrides=(*site.overrides, *self._ports.overrides(process)),
            name=process.name,
            tiers=process.tiers,
            worker=process.worker,
            workers=process.workers,
            former=process.former,
            first=process is self.plan[0],
        )

    async def _drain(self) -> None:
        """Tier after tier: what a tier still sends has to find the next one up."""
        deadline_s = self._site.host.drain_deadline_s
        self._log.info("draining", deadline_s=deadline_s)
        until = self._clock.monotonic() + deadline_s
        for tiers in dict.fromkeys(process.tiers for process in self.plan):
            left_s = max(0.0, until - self._clock.monotonic())
            await asyncio.gather(*(worker.stop(left_s) for worker in self.workers if worker.process.tiers == tiers))

    # --- reload ------------------------------------------------------------------------------------------------------

    async def _one_reload(self) -> None:
        async with self._reloading:
            if self._stopping.asked.is_set():
                return
            try:
                await self._reload()
            except Exception as error:  # whatever it is: the workers run on
                self._reload_success.set(0)
                self._log.exception("reload went wrong", error)

    async def _reload(self) -> None:
        """SIGHUP: a file that could not be taken is seen by no worker."""
        try:
            site = self._reload_site()
            paths = changed(self._site, site)
            refuse_untakeable(self._site, site, paths)
            for process in self.plan:
                self._ports.hold(site, process)
        except (ConfigError, PluginError, OSError) as error:
            self._reload_success.set(0)
            self._log.error("reload refused; the old config runs on", error=describe(error))
            return
        self._site = site
        problems = await asyncio.gather(
            *(worker.reload(site.text, (*site.overrides, *self._ports.overrides(worker.process))) for worker in self.workers)
        )
        for worker, problem in zip(self.workers, problems, strict=True):
            if problem:
                self._log.error("a worker did not take the reload", worker=worker.name, error=problem)
        self._reload_success.set(0 if any(problems) else 1)
        if not any(problems):
            self._log.info("reloaded", changed=paths)
            report_unheld(site, self._log)

    # --- what others ask ---------------------------------------------------------------------------------------------

    async def _not_ready(self) -> list[str]:
        return ["draining"] if self._stopping.asked.is_set() else await self._pages.not_ready()

    async def _components(self) -> dict[str, Any]:
        return await self._pages.components(self._site.host.name)

    def _report_orphaned_queues(self, registered: list[Registered]) -> None:
        opened = queue_paths(self._site, registered)
        for orphan in registered:
            if orphan.path in opened or (self._site.only and orphan.tier not in self._site.tiers):
                continue
            self._log.error("queue is not in the config any more and may hold events", **orphan._asdict())


@contextlib.contextmanager
def sockets_folder(data_dir: Path) -> Iterator[int]:
    """The descriptor of a new private folder for the workers' sockets; folders that a killed supervisor left are removed."""
    with contextlib.ExitStack() as stack:
        with locked(data_dir / SOCKETS):  # a new folder is not taken for one that was left
            for left in data_dir.glob(f"{SOCKETS}-*"):
                with contextlib.suppress(OSError), _held(left):
                    shutil.rmtree(left, ignore_errors=True)
            folder = Path(tempfile.mkdtemp(prefix=f"{SOCKETS}-", dir=data_dir))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            descriptor = stack.enter_context(_held(folder))
        yield descriptor


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[int]:
    """OSError when another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)


def _summed(ended: list[Any]) -> Totals:
    stored: dict[str, int] = {}
    for one in ended:
        for component, count in one.stored.items():
            stored[component] = stored.get(component, 0) + count
    received, acked, queued, linked = (sum(getattr(one, name) for one in ended) for name in ("received", "acked", "queued", "linked"))
    return Totals(received, acked, stored, queued, linked)
