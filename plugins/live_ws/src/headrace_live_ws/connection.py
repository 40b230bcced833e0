"""One client's connection: a writer that sends what waits, and a reader that takes filters."""

from __future__ import annotations

import asyncio
import datetime
from typing import Final

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web

from headrace import Context
from headrace_live_ws.client import CLOSED, Client
from headrace_live_ws.filters import Filter, FilterError, filter_of_json
from headrace_live_ws.hub import Hub
from headrace_live_ws.meters import Meters
from headrace_live_ws.options import LiveConfig
from headrace_live_ws.snapshot import Snapshots

#: How long a client may take for the close handshake.
CLOSE_WAIT_S: Final = 1.0
#: A client's messages are taken no faster than one in this time.
MESSAGE_PAUSE_S: Final = 0.02


class Connection:
    """Serves one client over its WebSocket. All sending goes through `_send`, which gives up on a client that takes nothing."""

    def __init__(
        self,
        ws: web.WebSocketResponse,
        client: Client,
        hub: Hub,
        snapshots: Snapshots,
        config: LiveConfig,
        context: Context,
        meters: Meters,
    ) -> None:
        self._ws, self._client, self._hub, self._snapshots = ws, client, hub, snapshots
        self._config, self._context, self._meters = config, context, meters

    async def serve(self, transport: asyncio.Transport, with_snapshot: bool) -> None:
        """Run until one side ends it. The connection is closed on return, by force where the client does not answer."""
        try:
            async with asyncio.TaskGroup() as tasks:
                writer = tasks.create_task(self._write(with_snapshot))
                await self._read()
                writer.cancel()
        except* ConnectionError:
            pass  # the client is gone
        except* TimeoutError:
            self._client.close(WSCloseCode.TRY_AGAIN_LATER, "too slow")
            self._meters.closed("slow client")
            self._context.log.warning("client takes nothing, disconnecting it", client_timeout_s=self._config.client_timeout_s)
        try:
            async with asyncio.timeout(CLOSE_WAIT_S):
                code, reason = self._client.closing or (WSCloseCode.OK, "")
                await self._ws.close(code=code, message=reason.encode())
        except TimeoutError:
            pass  # it does not even take the close frame
        finally:
            transport.abort()

    async def _write(self, with_snapshot: bool) -> None:
        async with self._client.sending:
            await self._send(self._heartbeat())
            if with_snapshot:
                await self._send(await self._snapshots.frame(self._client.wanted))
        while self._client.closing is None:
            try:
                async with asyncio.timeout(self._config.heartbeat_s):
                    await self._client.ready.wait()
            except TimeoutError:
                async with self._client.sending:
                    await self._send(self._heartbeat())
            self._client.ready.clear()
            await self._flush()
        self._meters.closed("drain")
        code, reason = self._client.closing
        await self._ws.close(code=code, message=reason.encode())

    async def _flush(self) -> None:
        async with self._client.sending:
            for frame in self._client.frames():
                await self._send(frame.text, frame.events)

    async def _read(self) -> None:
        async for message in self._ws:
            if message.type is WSMsgType.ERROR:
                return
            try:
                if message.type is not WSMsgType.TEXT:
                    raise FilterError("expected a text message, got a binary one")
                wanted, with_snapshot = parse_message(message.data)
            except FilterError as error:
                self._meters.invalid()
                async with self._client.sending:
                    await self._send(msgspec.json.encode({"error": str(error)}))
            else:
                await self._change(wanted, with_snapshot)
            await asyncio.sleep(MESSAGE_PAUSE_S)

    async def _change(self, wanted: Filter, with_snapshot: bool) -> None:
        # Under the lock, so that every event behind the answer passes the new filter.
        async with self._client.sending:
            self._hub.change(self._client, wanted)
            await self._send(msgspec.json.encode({"filter": wanted}))
            if with_snapshot:
                await self._send(await self._snapshots.frame(wanted))

    async def _send(self, text: bytes, events: int = 0) -> None:
        """Hand a text frame to the socket; TimeoutError when the client does not make room for it in time."""
        taken = False
        try:
            async with asyncio.timeout(self._config.client_timeout_s):
                await self._ws.send_frame(text, WSMsgType.TEXT)
            taken = True
        finally:
            if taken:
                self._meters.sent.inc(events)
                self._meters.sent_bytes.inc(len(text))
            else:
                self._meters.gap(events, CLOSED)

    def _heartbeat(self) -> bytes:
        now = datetime.datetime.fromtimestamp(self._context.clock.wall(), datetime.UTC)
        return msgspec.json.encode({"heartbeat": {"time": now, "interval_s": self._config.heartbeat_s}})


def parse_message(text: str) -> tuple[Filter, bool]:
    """A client's message: the filter that it asks for, and whether it wants a snapshot under it."""
    try:
        document = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise FilterError(f"expected JSON: {error}") from None
    if not isinstance(document, dict) or "filter" not in document or not document.keys() <= {"filter", "snapshot"}:
        raise FilterError('expected {"filter": {...}}, with "snapshot": true where one is wanted')
    with_snapshot = document.get("snapshot", False)
    if not isinstance(with_snapshot, bool):
        raise FilterError("snapshot: expected true or false")
    return filter_of_json(document["filter"]), with_snapshot
