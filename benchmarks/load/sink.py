"""Who is attacked in the control rows of bench_hostile.py: answers, reads, and hangs up.

`sink.py BYTES SECONDS` prints its port. Loopback only.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import sys
from typing import cast

import uvloop


class Sink(asyncio.Protocol):
    """Says yes to whatever comes first, and ends the connection after so many bytes or seconds."""

    def __init__(self, bytes_max: int, seconds_max: float) -> None:
        self._left, self._seconds_max = bytes_max, seconds_max
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self._timer = asyncio.get_running_loop().call_later(self._seconds_max, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        if not self._answered:
            self._answered = True
            self._transport.write(yes(data))
        self._left -= len(data)
        if self._left <= 0:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()


def yes(request: bytes) -> bytes:
    """101, with the right key where the request has one."""
    key = re.search(rb"Sec-WebSocket-Key: (\S+)", request)
    accept = base64.b64encode(hashlib.sha1((key[1] if key else b"") + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    return b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n"


async def main(bytes_max: int, seconds_max: float) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Sink(bytes_max, seconds_max), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2])))
