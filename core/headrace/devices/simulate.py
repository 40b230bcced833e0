"""Lets a simulated fleet send to a server."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import random
import time
from collections.abc import Sequence
from typing import Final

from headrace.devices.client import DeviceClient
from headrace.devices.fleet import SimulatedDevice

#: The scheduler wakes at most this often, so that at high rates one wake-up serves many devices.
TICK_S: Final = 0.005
#: A device is offline once in OUTAGE_EVERY_S on average, for a time within OUTAGE_S; it sends afterwards what it collected.
OUTAGE_EVERY_S: Final = 900.0
OUTAGE_S: Final = (3.0, 20.0)
#: The first handshakes have the server to themselves for so long; a server that is away is not waited for any longer.
CONNECT_WAIT_S: Final = 10.0


def intervals(devices: Sequence[SimulatedDevice], rate: float) -> list[float]:
    """Seconds between two messages of each device, so that all together send `rate` events per second."""
    pace = sum(device.pace for device in devices)
    return [pace / (device.pace * rate) for device in devices]


class Simulation:
    """Sends the fleet's readings at `rate` events per second over all devices, for `seconds` (0: until `stop`)."""

    def __init__(self, devices: Sequence[SimulatedDevice], rate: float, seconds: float, seed: int, outages: bool = True) -> None:
        self._devices, self._rate, self._seconds = devices, rate, seconds
        self._random = random.Random(seed)
        self._outages = outages

    async def feed(self, clients: Sequence[DeviceClient], stop: asyncio.Event) -> None:
        """Offer each device's reading when it is due; a full outbox skips it, and counts that. In the end all are online."""
        await _all_connected(clients, stop)
        every = intervals(self._devices, self._rate)
        start = time.monotonic()
        due = [(start + self._random.uniform(0.0, every_s), index) for index, every_s in enumerate(every)]
        heapq.heapify(due)
        end = start + self._seconds if self._seconds else float("inf")
        while not stop.is_set() and (now := time.monotonic()) < end:
            wall = time.time()
            while due[0][0] <= now:
                at, index = due[0]
                heapq.heapreplace(due, (at + every[index], index))
                client = clients[index]
                if not client.offer(self._devices[index].payload(wall)):
                    client.outbox.totals.skipped += 1
                if self._outages and self._random.random() < every[index] / OUTAGE_EVERY_S:
                    client.go_offline(self._random.uniform(*OUTAGE_S))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(max(due[0][0], now + TICK_S), end) - now):
                    await stop.wait()
        for client in clients:
            client.come_back()


async def _all_connected(clients: Sequence[DeviceClient], stop: asyncio.Event) -> None:
    """Wait until every client has connected once, for CONNECT_WAIT_S at most."""

    async def each() -> None:
        for client in clients:
            await client.connected()

    waiting = [asyncio.create_task(each()), asyncio.create_task(_set(stop))]
    await asyncio.wait(waiting, timeout=CONNECT_WAIT_S, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def _set(event: asyncio.Event) -> None:
    await event.wait()
