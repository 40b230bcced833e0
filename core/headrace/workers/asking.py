"""The admin server of a worker, as its supervisor asks it: over a socket that is there before the worker is, and outlives it."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final

import aiohttp

#: Longest wait for an answer.
ASK_S: Final = 5.0

#: Status, body and content type of a page, or None.
Answer = tuple[int, bytes, str] | None


class AdminClient:
    """Makes the socket, to be handed to each life of the worker, and asks for pages."""

    def __init__(self, folder: int, name: str) -> None:
        """`folder` is the descriptor of the folder for the socket."""
        # by way of the descriptor, a path of any length fits into an address
        path = f"/proc/self/fd/{folder}/{name}"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.bind(path)
        self.socket.listen()
        self._session = aiohttp.ClientSession(
            "http://worker", connector=aiohttp.UnixConnector(path), timeout=aiohttp.ClientTimeout(ASK_S), auto_decompress=False
        )

    async def ask(self, path: str, life: asyncio.Future[Any]) -> Answer:
        """A page; None when no answer comes in time, or before the worker's `life` ends: then nobody would ever answer."""
        asking = asyncio.ensure_future(self._asked(path))
        both: list[asyncio.Future[Any]] = [asking, life]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            asking.cancel()
            return None
        return asking.result()

    async def _asked(self, path: str) -> Answer:
        try:
            async with self._session.get(path) as answer:
                return answer.status, await answer.read(), answer.headers.get("Content-Type", "text/plain")
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None

    async def close(self) -> None:
        await self._session.close()
        self.socket.close()
