"""A TCP proxy that stands for a network: it can be cut, and made to carry nothing, in both directions or in one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Literal

Weather = Literal["fair", "cut", "stall", "stall_there", "stall_back"]
CHUNK_BYTES: Final = 1 << 16


class Proxy:
    """Listens on a port of its own (`port`) and carries bytes to `target()`, asked at each connection (None: nobody there).

    Cut: connections break, and new ones too. Stalled: they stand, and nothing comes through; what was under way comes afterwards.
    `stall_there` holds only what goes to the target, `stall_back` only what comes from it.
    """

    def __init__(self, target: Callable[[], tuple[str, int] | None]) -> None:
        self._target = target
        self._there, self._back = asyncio.Event(), asyncio.Event()
        self._cut = False
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.connections = 0
        self.set("fair")

    async def open(self) -> None:
        """Listen on 127.0.0.1."""
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0, limit=CHUNK_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]

    def set(self, weather: Weather) -> None:
        """From now on."""
        self._cut = weather == "cut"
        for event, held in ((self._there, ("stall", "stall_there")), (self._back, ("stall", "stall_back"))):
            if weather in held:
                event.clear()
            else:
                event.set()
        if self._cut:
            self._break()

    async def close(self) -> None:
        """No more connections."""
        self._server.close()
        self._break()
        await self._server.wait_closed()

    def _break(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        far: asyncio.StreamWriter | None = None
        try:
            address = self._target()
            if self._cut or address is None:
                return
            far_reader, far = await asyncio.open_connection(*address, limit=CHUNK_BYTES)
            self._writers.add(far)
            if self._cut:
                return
            self.connections += 1
            ways = [
                asyncio.ensure_future(_pump(reader, far, self._there)),
                asyncio.ensure_future(_pump(far_reader, writer, self._back)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            pass
        finally:
            for one in (writer, far):
                if one is not None:
                    self._writers.discard(one)
                    one.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, open_: asyncio.Event) -> None:
    try:
        while True:
            await open_.wait()
            chunk = await reader.read(CHUNK_BYTES)
            await open_.wait()
            if not chunk:
                return
            writer.write(chunk)
            await writer.drain()
    except OSError:
        return
