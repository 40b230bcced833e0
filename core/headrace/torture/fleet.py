"""The devices of a trial over WebSocket: they send at a steady rate and resume their sessions through whatever happens."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from typing import Final

import aiohttp

from headrace.torture.device import Device
from headrace.torture.events import DEVICE_PREFIX, payload

SUBPROTOCOL: Final = "headrace.v1.json"
RECONNECT_S: Final = 0.1
#: Silence after which a device gives a connection up: longer than any pause of the schedule.
SILENCE_S: Final = 12.0
#: After an outage a device does not send all at once what it would have sent meanwhile.
OWED_MAX: Final = 128
TURN_S: Final = 0.05


class Fleet:
    """`count` devices that send `rate` events per second together.

    They connect to what `urls` give, in turn; each is asked at each connect (None: not now).
    """

    def __init__(self, count: int, rate: float, urls: Sequence[Callable[[], str | None]]) -> None:
        self.devices = [Device(f"{DEVICE_PREFIX}{number}", "t") for number in range(count)]
        self._rate, self._urls = rate / count, urls
        self._issuing = asyncio.Event()
        self._issuing.set()
        self.connects = 0

    @property
    def acked(self) -> int:
        """Events that were acked so far."""
        return sum(device.acked_count for device in self.devices)

    @property
    def unsettled(self) -> int:
        """Events that are neither acked nor refused yet."""
        return sum(device.unsettled for device in self.devices)

    def finish(self) -> None:
        """Issue nothing new; `run` returns when all is settled."""
        self._issuing.clear()

    async def one_more(self) -> Device:
        """A new device sends one event; it, once that is acked."""
        device = Device(f"{DEVICE_PREFIX}fresh", "t")
        self.devices.append(device)
        device.issue()
        async with aiohttp.ClientSession() as http:
            while device.unsettled:
                await self._connected(device, http, self._urls[0])
        return device

    async def run(self) -> None:
        """Send until `finish`, and then until all is settled."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http, asyncio.TaskGroup() as tasks:
            for number, device in enumerate(self.devices):
                tasks.create_task(self._live(device, http, self._urls[number % len(self._urls)]))

    async def _live(self, device: Device, http: aiohttp.ClientSession, url: Callable[[], str | None]) -> None:
        while self._issuing.is_set() or device.unsettled:
            await self._connected(device, http, url)

    async def _connected(self, device: Device, http: aiohttp.ClientSession, url: Callable[[], str | None]) -> None:
        """One connection; returns when it breaks, or all is settled and nothing is to come."""
        try:
            base = url()
            if base is None:
                raise aiohttp.ClientConnectionError
            address = f"{base}/v1/devices/{device.name}/events?session={device.session}&acked={device.acks}"
            async with asyncio.timeout(SILENCE_S):
                socket = await http.ws_connect(
                    address, protocols=(SUBPROTOCOL,), timeout=aiohttp.ClientWSTimeout(ws_close=0.2), ssl=False, max_msg_size=1 << 20
                )
            async with socket:
                self.connects += 1
                device.greeted(json.loads(await socket.receive_str(timeout=SILENCE_S))["hello"])
                async with asyncio.TaskGroup() as tasks:
                    reading = tasks.create_task(self._read(device, socket))
                    try:
                        await self._write(device, socket)
                    finally:
                        reading.cancel()
        except (aiohttp.ClientError, ConnectionError, TypeError, TimeoutError, ExceptionGroup):
            await asyncio.sleep(RECONNECT_S)

    async def _write(self, device: Device, socket: aiohttp.ClientWebSocketResponse) -> None:
        owed_from, issued = time.monotonic(), 0
        while not socket.closed and (self._issuing.is_set() or device.unsettled):
            due = int((time.monotonic() - owed_from) * self._rate)
            while self._issuing.is_set() and issued < due and device.unsettled < OWED_MAX:
                device.issue()
                issued += 1
            issued = max(issued, due - OWED_MAX)
            while (number := device.next()) is not None:
                await socket.send_str(payload(device.name, number))
            await asyncio.sleep(TURN_S)

    async def _read(self, device: Device, socket: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            device.received(json.loads(await socket.receive_str(timeout=SILENCE_S)))
