"""The admin server: `/livez`, `/readyz`, `/metrics`, `/components`.

`/livez` says whether a restart would help: every loop turned, and no task has been at one call for too long. A failing peer
or a full queue never fails it. `/readyz` says whether devices should be sent here: not while recovering, draining, refusing.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

#: Reasons why not; empty means yes.
Probe = Callable[[], Awaitable[list[str]]]


class AdminServer:
    """Serves on `listen` (`host:port`; port 0 takes a free one; or a socket) until closed; `port` is the real one."""

    def __init__(
        self,
        listen: str | socket.socket,
        metrics: Callable[[], Awaitable[bytes]],
        live: Probe,
        ready: Probe,
        components: Callable[[], Awaitable[Any]],
    ) -> None:
        self._socket = None if isinstance(listen, str) else listen
        self._host, _, port = listen.rpartition(":") if isinstance(listen, str) else ("", "", "0")
        self.port = int(port)
        self._metrics, self._live, self._ready, self._components = metrics, live, ready, components
        self.app = web.Application()
        self.app.add_routes(
            [
                web.get("/livez", self._show_live),
                web.get("/readyz", self._show_ready),
                web.get("/metrics", self._show_metrics),
                web.get("/components", self._show_components),
            ]
        )
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Bind; OSError when the address is taken."""
        self._runner = web.AppRunner(self.app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        if self._socket is not None:
            await web.SockSite(self._runner, self._socket).start()
            return
        await web.TCPSite(self._runner, self._host, self.port).start()
        self.port = self._runner.addresses[0][1]

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self.port}"

    async def close(self) -> None:
        """Safe twice, and without `start`."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _show_live(self, _: web.Request) -> web.Response:
        return _verdict(await self._live())

    async def _show_ready(self, _: web.Request) -> web.Response:
        return _verdict(await self._ready())

    async def _show_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=await self._metrics(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _show_components(self, _: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(await self._components()), content_type="application/json")


def _verdict(reasons: list[str]) -> web.Response:
    if reasons:
        return web.Response(status=503, text="\n".join(reasons) + "\n")
    return web.Response(text="ok\n")
