"""The listening socket: who accepts on it, and with which certificate."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Final

#: So many handshakes wait in the kernel while the loop is busy, for example after a restart under thousands of devices.
BACKLOG: Final = 4096


class Listener:
    """Accepts on one socket, with or without TLS, until closed."""

    def __init__(self, handshake_timeout_s: float, close_timeout_s: float) -> None:
        self._handshake_timeout_s, self._close_timeout_s = handshake_timeout_s, close_timeout_s
        self._server: asyncio.Server | None = None
        self._socket: socket.socket | None = None
        self._factory: Callable[[], asyncio.BaseProtocol] | None = None

    async def open(self, listening: socket.socket, factory: Callable[[], asyncio.BaseProtocol], tls: ssl.SSLContext | None) -> None:
        """Accept on a bound socket, which is ours from here on."""
        self._factory = factory
        self._server, self._socket = await self._accept(listening, tls), listening

    async def accept_with(self, tls: ssl.SSLContext | None) -> None:
        """Accept with another context. Connections stay, and so do those that wait in the kernel: the socket is the same one."""
        if self._server is None or self._socket is None:
            return
        # a whole new context, so that no handshake sees half of the old files and half of the new ones
        again = self._socket.dup()
        before, self._server, self._socket = self._server, await self._accept(again, tls), again
        before.close()

    def close(self) -> None:
        """Accept nobody any more; those that are there stay."""
        if self._server is not None:
            self._server.close()
            self._server = self._socket = None

    async def _accept(self, listening: socket.socket, tls: ssl.SSLContext | None) -> asyncio.Server:
        assert self._factory is not None
        return await asyncio.get_running_loop().create_server(
            self._factory,
            sock=listening,
            ssl=tls,
            backlog=BACKLOG,
            # slow-loris: by default a handshake has a minute, and its end half a minute
            ssl_handshake_timeout=self._handshake_timeout_s if tls else None,
            ssl_shutdown_timeout=self._close_timeout_s if tls else None,
        )
