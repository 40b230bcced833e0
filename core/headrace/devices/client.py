"""One device over WebSocket: sends, counts acks, reconnects, resumes its session, and sends again what the server does not hold.

The bookkeeping is in `outbox.py`, the decisions about connecting in `reconnect.py`; here bytes move.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import ssl
import time
import urllib.parse
from collections.abc import Callable
from typing import Any, Final

import aiohttp

from headrace.devices.outbox import WINDOW_DEFAULT, Message, Outbox, ProtocolError
from headrace.devices.reconnect import GaveUp, Reconnect
from headrace.devices.totals import Totals

SUBPROTOCOL: Final = "headrace.v1.json"
HEARTBEAT_S: Final = 30.0
HELLO_WAIT_S: Final = 10.0
CLOSE_WAIT_S: Final = 2.0
#: A server's frames are tiny; more than this is not ours.
FRAME_BYTES_MAX: Final = 1 << 20


class DeviceClient:
    """One device. Run `run()` in a task of the caller's; `send` or `offer` messages; wait for `settled()`; cancel `run`.

    `gate` bounds how many clients shake hands at once. `token` is sent as a bearer token; `tls` is whom `wss` trusts, and may
    hold a client certificate. `on_reject(message, code, reason)` hears of messages refused for good. The session's id is
    random: what the client knows of it ends with the client.
    """

    def __init__(
        self,
        http: aiohttp.ClientSession,
        url: str,
        device: str,
        totals: Totals,
        *,
        gate: asyncio.Semaphore | None = None,
        window: int = WINDOW_DEFAULT,
        capacity: int = 4 * WINDOW_DEFAULT,
        rng: random.Random | None = None,
        backoff_first_s: float = 0.1,
        backoff_ceiling_s: float = 10.0,
        on_reject: Callable[[Message, str, str], None] | None = None,
        token: str | None = None,
        tls: ssl.SSLContext | bool = True,
    ) -> None:
        self.device = device
        self.url = f"{url.rstrip('/')}/v1/devices/{urllib.parse.quote(device, safe='')}/events"
        self.outbox = Outbox(totals, capacity, window, on_reject)
        self._session = secrets.token_hex(8)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._tls = tls
        self._http, self._totals, self._gate = http, totals, gate or asyncio.Semaphore(1)
        self._reconnect = Reconnect(device, rng or random.Random(), backoff_first_s, backoff_ceiling_s)
        self.gave_up: GaveUp | None = None
        self._offline_until = 0.0
        self._back = asyncio.Event()
        self._connected_before = False
        self._wake = asyncio.Event()  # the writer has something to look at
        self._room = asyncio.Event()
        self._settled = asyncio.Event()
        self._greeted = asyncio.Event()
        self._room.set()
        self._settled.set()

    def offer(self, payload: bytes, tag: object = None) -> bool:
        """Take one message (a JSON text) without waiting; False when the outbox is full, or the device gave up."""
        if self.gave_up or not self.outbox.add(payload, tag):
            self._room.clear()
            return False
        self._settled.clear()
        self._wake.set()
        return True

    async def send(self, payload: bytes, tag: object = None) -> None:
        """Take one message; wait while the outbox is full. Raises the GaveUp that ended `run`."""
        while not self.offer(payload, tag):
            if self.gave_up:
                raise self.gave_up
            await self._room.wait()

    async def settled(self) -> None:
        """Return when every message taken so far is acked or rejected, or the device gave up."""
        await self._settled.wait()

    async def connected(self) -> None:
        """Return when the first connection stands, or the device gave up."""
        await self._greeted.wait()

    def go_offline(self, seconds: float) -> None:
        """Close the connection once its acks are in, and stay away for so long; messages go on collecting."""
        self._offline_until = time.monotonic() + seconds
        self._back.clear()
        self._wake.set()

    def come_back(self) -> None:
        """End `go_offline` early."""
        self._offline_until = 0.0
        self._back.set()
        self._wake.set()

    async def run(self) -> None:
        """Hold a connection until cancelled. Raises GaveUp when the server's answer will not change."""
        try:
            while True:
                wait_s = await self._one_connection()
                await asyncio.sleep(wait_s)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._offline_until - time.monotonic()):
                        await self._back.wait()
        except GaveUp as error:
            self.gave_up = error
            self._greeted.set()
            self._room.set()
            self._settled.set()
            raise

    async def _one_connection(self) -> float:
        try:
            async with self._gate:
                ws = await self._http.ws_connect(
                    f"{self.url}?session={self._session}&acked={self.outbox.acked}",
                    protocols=(SUBPROTOCOL,),
                    headers=self._headers,
                    ssl=self._tls,
                    heartbeat=HEARTBEAT_S,
                    max_msg_size=FRAME_BYTES_MAX,
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_WAIT_S),
                )
        except aiohttp.WSServerHandshakeError as error:
            self._totals.trouble = f"HTTP {error.status}"
            retry_after = error.headers.get("Retry-After") if error.headers else None
            return self._reconnect.after_status(error.status, retry_after, time.time())
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self._totals.trouble = str(error) or type(error).__name__
            return self._reconnect.wait_s()
        self._totals.connections += 1
        self._totals.trouble = ""
        self._totals.reconnects += self._connected_before
        self._connected_before = True
        try:
            return await self._converse(ws)
        except ProtocolError as error:
            raise GaveUp(self.device, str(error)) from error
        finally:
            self._totals.connections -= 1
            await ws.close()

    async def _converse(self, ws: aiohttp.ClientWebSocketResponse) -> float:
        if ws.protocol == SUBPROTOCOL:
            self.outbox.connected_in_session()
            try:
                hello = await ws.receive(HELLO_WAIT_S)
            except TimeoutError:
                return self._reconnect.wait_s()
            if hello.type is not aiohttp.WSMsgType.TEXT:
                return self._after_close(ws, hello)
            self._receive(hello.data)
        else:
            self.outbox.connected()
        if not self.outbox.in_session:
            self._session = secrets.token_hex(8)  # its numbers are forgotten
        self._greeted.set()
        writer = asyncio.create_task(self._write(ws))
        try:
            return await self._read(ws)
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _read(self, ws: aiohttp.ClientWebSocketResponse) -> float:
        while True:
            frame = await ws.receive()
            if frame.type is not aiohttp.WSMsgType.TEXT:
                return self._after_close(ws, frame)
            self._receive(frame.data)
            self._reconnect.worked()

    def _receive(self, text: str) -> None:
        outbox = self.outbox
        outbox.receive(text, time.monotonic())
        self._wake.set()
        if not outbox.full:
            self._room.set()
        if not len(outbox):
            self._settled.set()

    def _after_close(self, ws: aiohttp.ClientWebSocketResponse, frame: aiohttp.WSMessage) -> float:
        if frame.type is aiohttp.WSMsgType.BINARY:
            raise ProtocolError("expected text frames only, got a binary one")
        if self._offline_until > time.monotonic():
            self._connected_before = False  # it left by itself: coming back is no reconnect
            return 0.0
        reason: Any = frame.extra if frame.type is aiohttp.WSMsgType.CLOSE else ""
        return self._reconnect.after_close(ws.close_code, str(reason or ""))

    async def _write(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        outbox = self.outbox
        while not ws.closed:
            now = time.monotonic()
            leaving = now < self._offline_until
            if leaving and not outbox.on_wire:
                await ws.close()
                return
            payload = None if leaving else outbox.next_payload(now)
            if payload is not None:
                try:
                    await ws.send_frame(payload, aiohttp.WSMsgType.TEXT)
                except (ConnectionError, aiohttp.ClientError):
                    return  # the reader learns why, and the message is still in the outbox
                continue
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(outbox.pause_s(now)):
                    await self._wake.wait()
