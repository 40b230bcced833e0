"""Runs a trial: starts the tiers, drives devices, carries the schedule out, lets it settle, stops everything, reads the lake."""

from __future__ import annotations

import asyncio
import time
import urllib.parse
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from headrace.tables import Site
from headrace.testing.site import SiteProcess
from headrace.torture import lake, schedule
from headrace.torture.device import Device
from headrace.torture.fleet import Fleet
from headrace.torture.layout import Door, Layout, Link
from headrace.torture.outcome import Outcome
from headrace.torture.proxy import Proxy
from headrace.torture.schedule import Owed, Step
from headrace.torture.verdict import ENOUGH, Finding, Happened, judge
from headrace.torture.victim import POINT_OWED_WAIT_S, Victim

#: A trial that settles makes progress within so long, or it has come to a standstill.
STANDSTILL_S: Final = 60.0
POLL_S: Final = 0.1
PROGRESS_S: Final = 5.0
#: Acked events for each device, without which a trial proves nothing.
ACKS_MIN: Final = 10


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to try. seconds: about how long the faults take; rate: events per second of all devices together."""

    seed: int
    seconds: float
    devices: int = 20
    rate: float = 400.0
    overrides: Sequence[str] = ()


class Trial:
    """One run of a layout. `say` gets progress lines."""

    def __init__(self, site: Site, layout: Layout, folder: Path, options: Options, say: Callable[[str], None]) -> None:
        self._site, self.layout, self._folder, self._options, self._say = site, layout, folder, options, say
        self.victims: dict[str, Victim] = {}
        self._ways: dict[Link | Door, Proxy] = {}
        self._weather: dict[str, Counter[str]] = {}
        self.fleet = Fleet(options.devices, options.rate, [self._door_url(door) for door in layout.doors])
        self._acks_min = ACKS_MIN * options.devices
        self._lanes = {name: schedule.tier_lane(options.seed, name, tier.points, options.seconds) for name, tier in layout.tiers.items()}
        self._steps_left = 0

    async def run(self) -> Outcome:
        """Carry it out. TrialError when not even a start succeeds."""
        begun = time.monotonic()
        try:
            await self._open()
            driving = asyncio.ensure_future(self.fleet.run())
            try:
                await self._faults(begun)
                await self._make_up()
                fault_s, healed = time.monotonic() - begun, time.monotonic()
                await self._heal()
                await self._settle(driving)
            finally:
                driving.cancel()
                await asyncio.gather(driving, return_exceptions=True)
            fresh, fresh_s = await self._fresh()
            await self._wait_for_lake()
            await self._stop()
        finally:
            await self._close()
        self._say(f"reading the lake ({lake.reader()})")
        return await asyncio.to_thread(self._outcome, fault_s, time.monotonic() - healed, fresh, fresh_s)

    # --- starting ----------------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        ways: list[Link | Door] = [*self.layout.links, *self.layout.doors]
        for way in ways:
            far = (way.far_tier, way.far) if isinstance(way, Link) else (way.tier, way.source)
            self._ways[way] = Proxy(self._address_of(*far))
            await self._ways[way].open()
            self._weather[way.name] = Counter()
        ports = {way: proxy.port for way, proxy in self._ways.items() if isinstance(way, Link)}
        for name, tier in self.layout.tiers.items():
            own = self._folder / name
            (own / "data").mkdir(parents=True, exist_ok=True)
            overrides = [*tier.overrides, *self.layout.link_overrides(name, self._site, ports), *self._options.overrides]
            environ = {"HEADRACE_DATA": str(own / "data"), "HEADRACE_NAME": name}
            self.victims[name] = Victim(tier, SiteProcess(self._site.file, own, overrides, environ, [name]))
        for name, victim in self.victims.items():
            self._say(f"starting {name}, log in {victim.process.log}")
            victim.process.start(ready=False)
        for victim in self.victims.values():
            await victim.until_ready()

    def _address_of(self, tier: str, component: str) -> Callable[[], tuple[str, int] | None]:
        def address() -> tuple[str, int] | None:
            process = self.victims[tier].process
            url = process.url(component) if process.process is not None else None
            parsed = urllib.parse.urlparse(url or "")
            return (parsed.hostname or "", parsed.port) if parsed.port else None

        return address

    def _door_url(self, door: Door) -> Callable[[], str | None]:
        def url() -> str | None:
            at = self.victims[door.tier].process.url(door.source)
            scheme = "https" if (at or "").startswith(("https", "wss")) else "http"
            return f"{scheme}://127.0.0.1:{self._ways[door].port}" if at else None

        return url

    # --- faults ------------------------------------------------------------------------------------------------------

    async def _faults(self, begun: float) -> None:
        seed, seconds, tiers = self._options.seed, self._options.seconds, self._lanes
        ways = {way: schedule.link_lane(seed, way.name, seconds) for way in self._ways}
        self._steps_left = sum(map(len, tiers.values())) + sum(map(len, ways.values()))
        self._say(f"seed {seed}: {self._steps_left} steps, {', '.join(f'{len(lane)} of {name}' for name, lane in tiers.items())}")
        progress = asyncio.ensure_future(self._progress(begun))
        try:
            async with asyncio.TaskGroup() as tasks:
                for name, lane in tiers.items():
                    tasks.create_task(self._lane(lane, self.victims[name].do))
                for way, lane in ways.items():
                    tasks.create_task(self._lane(lane, partial(self._do_to_way, way)))
        finally:
            progress.cancel()

    def _owed(self, tier: str) -> Owed:
        return schedule.owed(self._lanes[tier], self.layout.tiers[tier].points, self._options.seconds)

    async def _make_up(self) -> None:
        """Who was to answer may have been dead each time that a tier was to die at a point of a link: again, while all others live."""
        for name, victim in self.victims.items():
            for point in self._owed(name).points:
                if not victim.run.points_hit[point]:
                    await self._heal()
                    self._say(f"{name} has not died at {point} yet: once more, while all others live")
                    await victim.do(Step(0.0, "point", 0.0, point, 1), POINT_OWED_WAIT_S)
        if not self._lost_acks():
            await self._heal()
            await self._lose_acks()

    async def _lose_acks(self) -> None:
        """No death met a message on its way: acks are held back until devices wait for some, and lost with their connections."""
        doors, before = [proxy for way, proxy in self._ways.items() if isinstance(way, Door)], self.fleet.acked
        await _until(lambda: self.fleet.acked > before, lambda: None)
        for proxy in doors:
            proxy.set("stall_back")
        await _until(lambda: any(device.waits for device in self.fleet.devices), lambda: None)
        for proxy in doors:
            proxy.set("cut")
            proxy.set("fair")
        await _until(lambda: bool(self._lost_acks()), lambda: None)

    def _lost_acks(self) -> int:
        return sum(device.resent + device.resumed for device in self.fleet.devices)

    async def _lane(self, steps: Sequence[Step], do: Callable[[Step], Awaitable[None]]) -> None:
        for step in steps:
            await asyncio.sleep(step.gap_s)
            await do(step)
            self._steps_left -= 1

    async def _do_to_way(self, way: Link | Door, step: Step) -> None:
        proxy = self._ways[way]
        assert step.deed in ("cut", "stall", "stall_there", "stall_back")
        proxy.set(step.deed)
        await asyncio.sleep(step.hold_s)
        proxy.set("fair")
        self._weather[way.name][step.deed] += 1

    # --- settling ----------------------------------------------------------------------------------------------------

    async def _heal(self) -> None:
        for proxy in self._ways.values():
            proxy.set("fair")
        for victim in self.victims.values():
            victim.keep_alive()
            await victim.until_ready()

    async def _settle(self, driving: asyncio.Future[None]) -> None:
        # also where most of the time was outage
        await _until(lambda: self.fleet.acked >= self._acks_min, lambda: self.fleet.acked)
        self.fleet.finish()
        self._say(f"faults are over; {self.fleet.unsettled:,} events of devices are to be settled")
        await _until(driving.done, lambda: self.fleet.unsettled)
        if driving.done():
            driving.result()

    async def _fresh(self) -> tuple[Device | None, float | None]:
        """One event more, from a device that was never there; it, and how long it took to be in the lake is told by the lake."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(STANDSTILL_S):
                device = await self.fleet.one_more()
        except TimeoutError:
            return None, None
        return device, time.monotonic() - begun

    async def _wait_for_lake(self) -> None:
        expected = self.fleet.acked
        self._say(f"{expected:,} events are acked; waiting for the lake")
        found = 0

        def enough() -> bool:
            nonlocal found
            found = lake.count(self.layout.lakes)
            return found >= expected

        await _until(enough, lambda: found, pause_s=0.3)

    async def _stop(self) -> None:
        for name in self.layout.order:
            self.victims[name].keep_alive()
            await self.victims[name].stop()

    async def _close(self) -> None:
        for victim in self.victims.values():
            victim.process.__exit__()
        for proxy in self._ways.values():
            await proxy.close()

    # --- telling -----------------------------------------------------------------------------------------------------

    async def _progress(self, begun: float) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            kills = ", ".join(f"{name} {victim.run.kills}" for name, victim in self.victims.items())
            cuts = sum(sum(counter.values()) for counter in self._weather.values())
            self._say(
                f"{time.monotonic() - begun:4.0f} s: acked {self.fleet.acked:,}, killed {kills}, links and doors cut or stalled {cuts}, "
                f"{self._steps_left} steps to go"
            )

    def judged(self, fresh: Device | None) -> list[Finding]:
        """Read the lake and judge it by what the devices know."""
        findings = judge(self.fleet.devices, lake.rows(self.layout.lakes), fresh, self._happened(), self.layout.one_way)
        for victim in self.victims.values():
            for death in victim.run.deaths:
                findings[ENOUGH].against(death)
        return findings

    def _outcome(self, fault_s: float, settle_s: float, fresh: Device | None, fresh_s: float | None) -> Outcome:
        devices = self.fleet.devices
        findings = self.judged(fresh)
        return Outcome(
            findings=findings,
            tiers={name: victim.run for name, victim in self.victims.items()},
            links=self._weather,
            connections={way.name: proxy.connections for way, proxy in self._ways.items()},
            acked=self.fleet.acked,
            resent=sum(device.resent for device in devices),
            resumed=sum(device.resumed for device in devices),
            refused=sum(len(device.refused) for device in devices),
            stored=lake.count(self.layout.lakes),
            fault_s=fault_s,
            settle_s=settle_s,
            fresh_s=fresh_s,
        )

    def _happened(self) -> Happened:
        counts = [("acked events", self.fleet.acked, self._acks_min)]
        counts.append(("steps that were not carried out", -self._steps_left, 0))
        for name, victim in self.victims.items():
            least = self._owed(name)
            counts.append((f"kills of {name}", victim.run.kills, least.kills))
            counts += [(f"deaths of {name} at {point}", victim.run.points_hit[point], 1) for point in least.points]
        counts.append(("messages whose ack was lost (sent again, or settled by a hello)", self._lost_acks(), 1))
        for link in self.layout.links:
            counts.append((f"connections of {link.name}", self._ways[link].connections, 2))
        return counts


async def _until(done: Callable[[], bool], progress: Callable[[], object], pause_s: float = POLL_S) -> None:
    """Until it is so, or nothing moved for STANDSTILL_S: what is missing then, the verdict says."""
    last, since = progress(), time.monotonic()
    while not await asyncio.to_thread(done):
        if (now := progress()) != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > STANDSTILL_S:
            return
        await asyncio.sleep(pause_s)
