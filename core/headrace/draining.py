"""`headrace drain`: empty a queue that nobody opens any more (a dead pod's volume, a tier that left the config) into the next tier.

It is the tier of the file without its sources, on that queue, told to stop as soon as it runs: outputs make safe what is queued, with the
queue's own ids and cursors, and with what they keep in the data folder. The queue's lock keeps everybody else out meanwhile.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from pathlib import Path
from typing import Final, NamedTuple

import uvloop

from headrace.config import Entry, Site
from headrace.errors import ConfigError, HeadraceError
from headrace.hookspecs import QueueInfo
from headrace.host import SWITCH_INTERVAL_S, Host, Part
from headrace.log import set_up
from headrace.register import QueueRegister
from headrace.tables import WORKERS_MAX
from headrace.workers.plan import Process, queue_path, site_of, with_path

PROGRESS_S: Final = 2.0


class Progress(NamedTuple):
    """How a drain gets on: events left at the beginning and now, after so many seconds."""

    begun_with: int
    left: int
    seconds: float

    def __str__(self) -> str:
        rate = (self.begun_with - self.left) / self.seconds if self.seconds else 0.0
        if not self.left:
            return f"{self.begun_with:,} events handed over, {rate:,.0f} a second; the queue is empty"
        soon = f", about {self.left / rate:,.0f} s to go" if rate > 0 else ""
        return f"{self.left:,} of {self.begun_with:,} events left, {rate:,.0f} a second{soon}"


def run(site: Site, tier: str, queue: str | None, minutes: float) -> int:
    """Empty the queue at `queue` (None: the tier's own) through the tier's outputs; 0 when nothing is left, 1 otherwise.

    HeadraceError when there is none, or another process has it (QueueLocked names it).
    """
    adopted, worker = _adopted(site, tier, queue)
    path = adopted.config.path
    if not Path(path).is_dir() or not any(Path(path).iterdir()):
        raise HeadraceError(f"there is no queue at {path}; --queue names its folder")
    process = Process(f"{tier}.drain", (tier,), worker, former=True)
    drained = site_of(site, process, adopted)
    set_up(site.host.log_level)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        left = runner.run(_drain(drained, process, minutes * 60))
    if left == 0:
        _strike(QueueRegister(Path(site.host.data_dir)), tier, adopted)
    return 1 if left else 0


def _adopted(site: Site, name: str, path: str | None) -> tuple[Entry, int]:
    """The queue that is to be emptied, and whose of the tier's workers it was (0: the first one's, or nobody's)."""
    queue = site.tiers[name].queue
    if queue is None or not hasattr(queue.config, "path"):
        raise ConfigError(str(site.file), f"tiers.{name}.queue", "a queue with a path", "none")
    if path is None:
        return queue, 0
    wanted = Path(path).absolute()
    worker = next((number for number in range(WORKERS_MAX) if Path(queue_path(queue, number)).absolute() == wanted), 0)
    return with_path(queue, path), worker


async def _drain(site: Site, process: Process, deadline_s: float) -> int:
    """The events that are left; -1 when nobody knows."""
    with socket.create_server(("127.0.0.1", 0)) as admin:
        host = Host(site, list(site.tiers), part=Part(process, admin, True, None))
        host.drain_deadline_s = deadline_s
        watching = asyncio.ensure_future(_watch(host))
        try:
            code = await host.run()
        finally:
            watching.cancel()
    if code or host.totals is None:
        return -1
    return host.totals.queued


async def _watch(host: Host) -> None:
    await host.started.wait()
    (tier,) = host.tiers
    info: QueueInfo = tier.queue_hook.queue_info()
    begun_with, since = info.size_events, time.monotonic()
    print(f"drain: {begun_with:,} events in {tier.name}'s queue of {len(info.spans)} lives", flush=True)
    host.stopping.ask()
    try:
        while True:
            await asyncio.sleep(PROGRESS_S)
            print(f"drain: {Progress(begun_with, host.queued(), time.monotonic() - since)}{_troubles(host)}", flush=True)
    finally:
        info = tier.last_info or info
        print(f"drain: {Progress(begun_with, info.size_events, time.monotonic() - since)}", flush=True)
        for reader in info.readers:
            if reader.lag_events and reader.name not in tier.config.outputs:
                told = "no output has this name: give it one, or `headrace queue readers remove`"
                print(f"drain: reader {reader.name} holds {reader.lag_events:,} events; {told}", flush=True)


def _troubles(host: Host) -> str:
    rows = [f"; {row.component}: {row.reason}" for row in host.statuses.rows() if row.status == "degraded"]
    return "".join(rows)


def _strike(register: QueueRegister, tier: str, queue: Entry) -> None:
    """The host has struck the path that it opened; a volume that is mounted elsewhere now stands there under the path that it had."""
    for known in register.entries():
        gone = not Path(known.path).exists() and Path(known.path).name == Path(queue.config.path).name
        if gone and (known.tier, known.plugin) == (tier, queue.use):
            register.drained(known.path)
