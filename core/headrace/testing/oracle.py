"""Devices that issue ids and remember which of them were acked: the oracle of crash tests.

Each event carries an id of its own. After the faults, every acked id must be in the store: one time, or up to as often as it
was sent when its ack got lost on the way and the device sent it again.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import aiohttp

WINDOW: Final = 64
RECONNECT_S: Final = 0.05


class Verdict(NamedTuple):
    """What the store holds, compared with what was acked. The first two must be empty."""

    lost: list[str]
    doubled: list[str]
    acked: int
    resent: int
    stored: int

    def __str__(self) -> str:
        return (
            f"acked {self.acked:,} ids, re-sent {self.resent:,} whose ack was lost, stored {self.stored:,}; "
            f"lost {len(self.lost)}, doubled {len(self.doubled)}"
        )


class Oracle:
    """A fleet of `devices` connections that send as fast as their window allows while `run` runs."""

    def __init__(self, devices: int = 10, pad_bytes: int = 40) -> None:
        self.sent: Counter[str] = Counter()
        self.acked: set[str] = set()
        self.rejected: set[str] = set()
        self._pad = "x" * pad_bytes
        self._devices = [_Device(f"oracle-{number}") for number in range(devices)]

    async def run(self, url: Callable[[], str | None], until: asyncio.Event) -> None:
        """Send until `until` is set, through whatever dies meanwhile; `url` is asked at each connect (None: not now)."""
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
            for device in self._devices:
                tasks.create_task(self._live(device, session, url, until))

    async def settle(self, url: Callable[[], str | None], timeout_s: float = 30.0) -> None:
        """Send again what is unacked, and nothing new, until all is acked."""
        async with aiohttp.ClientSession() as session, asyncio.timeout(timeout_s), asyncio.TaskGroup() as tasks:
            for device in self._devices:
                tasks.create_task(self._settle(device, session, url))

    def verdict(self, stored: Mapping[str, int]) -> Verdict:
        """Compare with how often the store holds each id."""
        lost = [issued for issued in self.acked if issued not in stored]
        doubled = [issued for issued, count in stored.items() if count > self.sent[issued]]
        resent = sum(1 for count in self.sent.values() if count > 1)
        return Verdict(sorted(lost), sorted(doubled), len(self.acked), resent, sum(stored.values()))

    async def _live(self, device: _Device, session: aiohttp.ClientSession, url: Callable[[], str | None], until: asyncio.Event) -> None:
        while not until.is_set():
            await self._connected(device, session, url(), until)

    async def _settle(self, device: _Device, session: aiohttp.ClientSession, url: Callable[[], str | None]) -> None:
        while device.unacked:
            done = asyncio.Event()
            done.set()
            await self._connected(device, session, url(), done)

    async def _connected(self, device: _Device, session: aiohttp.ClientSession, url: str | None, until: asyncio.Event) -> None:
        """One connection: everything unacked first, then new events until `until`; ends when all is acked, or it breaks."""
        try:
            if url is None:
                raise aiohttp.ClientConnectionError
            address = f"{url}/v1/devices/{device.name}/events"
            async with session.ws_connect(address, timeout=aiohttp.ClientWSTimeout(ws_close=0.2)) as socket:
                device.on_wire = deque(device.unacked)
                for issued in device.on_wire:
                    await self._send(socket, issued)
                while device.on_wire or not until.is_set():
                    while len(device.on_wire) < WINDOW and not until.is_set():
                        issued = device.issue()
                        await self._send(socket, issued)
                    self._take(device, json.loads(await socket.receive_str()))
        except (aiohttp.ClientError, ConnectionError, TypeError, TimeoutError):
            await asyncio.sleep(RECONNECT_S)

    async def _send(self, socket: aiohttp.ClientWebSocketResponse, issued: str) -> None:
        self.sent[issued] += 1
        await socket.send_str(json.dumps({"id": issued, "pad": self._pad}))

    def _take(self, device: _Device, answer: dict[str, int]) -> None:
        if "reject" in answer:
            self.rejected.add(device.on_wire[answer["reject"] - device.acks - 1])
        for _ in range(answer.get("ack", device.acks) - device.acks):
            issued = device.on_wire.popleft()
            device.unacked.popleft()
            if issued not in self.rejected:
                self.acked.add(issued)
        device.acks = answer.get("ack", device.acks)


class _Device:
    def __init__(self, name: str) -> None:
        self.name = name
        self.unacked: deque[str] = deque()
        self._wire: deque[str] = deque()
        self.acks = self._issued = 0

    @property
    def on_wire(self) -> deque[str]:
        """What was sent on this connection and is not acked, oldest first."""
        return self._wire

    @on_wire.setter
    def on_wire(self, issued: deque[str]) -> None:
        self._wire, self.acks = issued, 0  # messages count from 1 on each connection

    def issue(self) -> str:
        self._issued += 1
        issued = f"{self.name}/{self._issued}"
        self.unacked.append(issued)
        self._wire.append(issued)
        return issued
