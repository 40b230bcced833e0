"""Devices that issue ids and remember which of them were acked: the oracle of crash tests.

Each event carries an id of its own. After the faults, every acked id must be in the store: one time, or up to as often as it
was sent when its ack got lost on the way and the device sent it again. Devices that resume a session allow no second time.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import aiohttp

WINDOW: Final = 64
RECONNECT_S: Final = 0.05
SUBPROTOCOL: Final = "headrace.v1.json"


class Verdict(NamedTuple):
    """What the store holds, compared with what was acked. The first two must be empty.

    resumed: ids that a hello settled, so that they were not sent again. refused: ids of messages that were no events.
    """

    lost: list[str]
    doubled: list[str]
    acked: int
    resent: int
    stored: int
    resumed: int = 0
    refused: int = 0

    def __str__(self) -> str:
        return (
            f"acked {self.acked:,} ids, {self.resumed:,} of them by a hello, re-sent {self.resent:,} whose ack was lost, "
            f"refused {self.refused:,}, stored {self.stored:,}; lost {len(self.lost)}, doubled {len(self.doubled)}"
        )


class Oracle:
    """A fleet of `devices` connections that send as fast as their window allows while `run` runs.

    `sessions`: they resume theirs, and then every id may be stored one time only. `bad_every`: one message in so many is no
    event; should a device not hear of its refusal, it counts as acked and then as lost.
    """

    def __init__(
        self, devices: int = 10, pad_bytes: int = 40, sessions: bool = False, bad_every: int = 0, pause_s: float = 0.0, name: str = "oracle"
    ) -> None:
        """pause_s: between two answers, for tests that need traffic and no load. name: its devices' names begin so."""
        self.sent: Counter[str] = Counter()
        self.acked: set[str] = set()
        self.rejected: set[str] = set()
        self.resumed = 0
        self._pad = "x" * pad_bytes
        self._sessions, self._bad_every, self._pause_s = sessions, bad_every, pause_s
        self._devices = [_Device(f"{name}-{number}") for number in range(devices)]

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
        doubled = [issued for issued, count in stored.items() if count > (1 if self._sessions else self.sent[issued])]
        resent = sum(1 for count in self.sent.values() if count > 1)
        counts = (len(self.acked), resent, sum(stored.values()), self.resumed, len(self.rejected))
        return Verdict(sorted(lost), sorted(doubled), *counts)

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
            protocols = (SUBPROTOCOL,) if self._sessions else ()
            if self._sessions:
                address += f"?session={device.session}&acked={device.acks}"
            async with session.ws_connect(address, protocols=protocols, timeout=aiohttp.ClientWSTimeout(ws_close=0.2)) as socket:
                if self._sessions:
                    self._resume(device, json.loads(await socket.receive_str())["hello"])
                else:
                    device.acks = 0  # messages count from 1 on each connection
                device.on_wire = deque(device.unacked)
                for issued in device.on_wire:
                    await self._send(socket, issued)
                while device.on_wire or not until.is_set():
                    while len(device.on_wire) < WINDOW and not until.is_set():
                        issued = device.issue()
                        await self._send(socket, issued)
                    self._take(device, json.loads(await socket.receive_str()))
                    if self._pause_s:
                        await asyncio.sleep(self._pause_s)
        except (aiohttp.ClientError, ConnectionError, TypeError, TimeoutError):
            await asyncio.sleep(RECONNECT_S)

    async def _send(self, socket: aiohttp.ClientWebSocketResponse, issued: str) -> None:
        self.sent[issued] += 1
        event = json.dumps({"id": issued, "pad": self._pad})
        bad = self._bad_every and int(issued.rpartition("/")[2]) % self._bad_every == 0
        await socket.send_str(event[:-1] if bad else event)

    def _resume(self, device: _Device, hello: dict[str, Any]) -> None:
        """What the server settled while nobody heard of it."""
        assert hello["resume"] is not None, f"{device.name}: the server forgot session {device.session}, of which {device.acks} are acked"
        device.on_wire = deque(device.unacked)
        for refused in hello["refused"]:
            self._take(device, refused)
        self.resumed += hello["resume"] - device.acks
        self._take(device, {"ack": hello["resume"]})

    def _take(self, device: _Device, answer: dict[str, Any]) -> None:
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
        self.name, self.session = name, secrets.token_hex(4)
        self.unacked: deque[str] = deque()
        self.on_wire: deque[str] = deque()  # what was sent on this connection and is not acked, oldest first
        self.acks = self._issued = 0

    def issue(self) -> str:
        self._issued += 1
        issued = f"{self.name}/{self._issued}"
        self.unacked.append(issued)
        self.on_wire.append(issued)
        return issued
