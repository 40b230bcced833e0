"""The HTTP side: the page, the checks before the upgrade, and one reader and one writer for each client."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable
from importlib import resources
from pathlib import PurePath
from typing import Final, cast, get_args
from urllib.parse import urlsplit

from aiohttp import WSCloseCode, web

from headrace import Context
from headrace_live_ws.client import Client, Mode
from headrace_live_ws.connection import CLOSE_WAIT_S, Connection
from headrace_live_ws.filters import FilterError, filter_of_query
from headrace_live_ws.hub import Hub
from headrace_live_ws.meters import Meters
from headrace_live_ws.options import LiveConfig
from headrace_live_ws.snapshot import Snapshots

#: What the kernel may hold for one client: enough for 2 MB/s at 100 ms, little enough that a slow one gets fresh events.
SEND_BUFFER_BYTES: Final = 256 << 10
RETRY_AFTER_S: Final = 5

PAGE_TYPES: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
PAGE_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Server:
    """Serves one hub's events. `start`, then `url`; `drain` says good-bye to all clients; `stop` is safe twice."""

    def __init__(self, config: LiveConfig, context: Context, hub: Hub, snapshots: Snapshots, meters: Meters) -> None:
        self._config, self._context, self._hub, self._snapshots, self._meters = config, context, hub, snapshots, meters
        self._runner: web.AppRunner | None = None
        self._draining = False
        self.url = ""

    async def start(self) -> None:
        """Listen; OSError when the address cannot be had."""
        app = web.Application()
        app.router.add_get("/v1/live", self._live)
        for name, body in page_files().items():
            app.router.add_get("/" if name == "index.html" else f"/{name}", page_handler(name, body))
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=CLOSE_WAIT_S, keepalive_timeout=30)
        await self._runner.setup()
        host, port = host_and_port(self._config.listen)
        await web.TCPSite(self._runner, host, port).start()
        address = self._runner.addresses[0]
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        self.url = f"http://{shown}:{address[1]}"

    async def drain(self, deadline_s: float) -> None:
        """Send every client what waits for it and close with 1012; refuse new ones."""
        self._draining = True
        for client in self._hub.clients:
            client.close(WSCloseCode.SERVICE_RESTART, "the service restarts")
        try:
            async with asyncio.timeout(deadline_s):
                while self._hub.clients:
                    self._hub.left.clear()
                    await self._hub.left.wait()
        except TimeoutError:
            self._context.log.warning("clients did not take their last events", clients=len(self._hub.clients))

    async def stop(self) -> None:
        """Close everything, the slow clients included."""
        if self._runner is not None:
            await self.drain(CLOSE_WAIT_S)
            await self._runner.cleanup()
            self._runner = None

    async def _live(self, request: web.Request) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        loopback = is_loopback(host_and_port(self._config.listen)[0])
        if not origin_allowed(origin, request.host, self._config.origins_allowed, loopback=loopback):
            return self._refuse(403, "origin", f"pages of {origin} may not connect; add it to origins_allowed")
        if self._draining:
            return self._refuse(503, "draining", "the service restarts")
        if len(self._hub.clients) >= self._config.clients_max:
            return self._refuse(503, "clients_max", f"{self._config.clients_max} clients are connected, more are not allowed")
        try:
            client, with_snapshot = self._client_of(request)
        except FilterError as error:
            return self._refuse(400, "request", str(error))
        # A ping's answer is due after half of `heartbeat`: a client that reads slowly has as long as for a frame.
        # writer_limit=1: look at the socket's back-pressure after every frame, whatever its size.
        ws = web.WebSocketResponse(
            heartbeat=2 * self._config.client_timeout_s,
            compress=False,
            max_msg_size=self._config.message_bytes_max,
            timeout=CLOSE_WAIT_S,
            writer_limit=1,
        )
        if not ws.can_prepare(request):
            return self._refuse(426, "request", "this is a WebSocket; connect with an upgrade request")
        self._hub.join(client)
        try:
            await ws.prepare(request)
            transport = request.transport
            if transport is None:
                return ws  # gone already
            connection = cast(socket.socket, transport.get_extra_info("socket"))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            await Connection(ws, client, self._hub, self._snapshots, self._config, self._context, self._meters).serve(
                transport, with_snapshot
            )
        finally:
            self._hub.leave(client)
        return ws

    def _client_of(self, request: web.Request) -> tuple[Client, bool]:
        fields = {name: request.query.getall(name) for name in request.query}
        mode = cast(Mode, fields.pop("mode", ["all"])[-1])
        snapshot = fields.pop("snapshot", ["0"])[-1]
        if mode not in get_args(Mode):
            raise FilterError(f"mode: expected all or latest, got {mode[:80]!r}")
        if snapshot not in ("0", "1"):
            raise FilterError(f"snapshot: expected 0 or 1, got {snapshot[:80]!r}")
        config = self._config
        return Client(filter_of_query(fields), mode, config.client_events_max, config.client_bytes_max), snapshot == "1"

    def _refuse(self, status: int, reason: str, text: str) -> web.Response:
        self._meters.refused(reason)
        self._context.log.warning("live client refused", status=status, reason=reason, text=text)
        headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {}
        return web.json_response({"error": text}, status=status, headers=headers)


def origin_allowed(origin: str | None, host: str, allowed: Iterable[str], *, loopback: bool) -> bool:
    """Whether a page of that origin may connect: one that is listed, or was loaded from this server (`host` of the request).

    Programs send no Origin; browsers always do, and pages cannot change it. On loopback a name other than localhost does
    not count as this server: a stranger's name may resolve to 127.0.0.1 (DNS rebinding).
    """
    if origin is None or "*" in allowed or origin in allowed:
        return True
    same = urlsplit(origin).netloc.lower() == host.lower() != ""
    return same and (not loopback or is_loopback(urlsplit(f"//{host}").hostname or ""))


def host_and_port(listen: str) -> tuple[str, int]:
    """The parts of `host:port` or `[host]:port`."""
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether that address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def page_files() -> dict[str, bytes]:
    """The page's files by name, as they are packed with the plugin."""
    folder = resources.files("headrace_live_ws") / "page"
    return {file.name: file.read_bytes() for file in folder.iterdir() if PurePath(file.name).suffix in PAGE_TYPES}


def page_handler(name: str, body: bytes) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """A request handler that gives one file of the page."""
    content_type = PAGE_TYPES[PurePath(name).suffix]

    async def give(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=PAGE_HEADERS)

    return give
