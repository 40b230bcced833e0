"""Who is attacked in the control rows of bench_hostile.py: answers, reads, and hangs up.

`sink.py BYTES` prints its port. Loopback only.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop


class Sink(asyncio.Protocol):
    """Says yes to whatever comes first, and ends the connection after so many bytes."""

    def __init__(self, bytes_max: int) -> None:
        self._left = bytes_max
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        if not self._answered:
            self._answered = True
            self._transport.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        self._left -= len(data)
        if self._left <= 0:
            self._transport.abort()


async def main(bytes_max: int) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Sink(bytes_max), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
