"""The very protocol of `ingest_ws` as an echo server, so that conformance suites can be pointed at it.

`python -m headrace_ingest_ws.echo --port 9001 --parser c` answers every message with itself, at any path. Loopback only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
from typing import Final

from aiohttp import web

from headrace_ingest_ws.handshake import handshake_problem, switch_protocols
from headrace_ingest_ws.parser import FrameBuffer, frame_buffer
from headrace_ingest_ws.polling import Poller
from headrace_ingest_ws.websocket import ANY_NUMBER, WebSocket

_HOST: Final = "127.0.0.1"


class Echo(WebSocket):
    """Sends every message back; while its client does not read, it takes one message at a time and then waits."""

    def __init__(self, buffer: FrameBuffer, message_bytes_max: int) -> None:
        super().__init__(buffer, message_bytes_max, close_timeout_s=5.0)

    def room(self) -> int:
        if self._refusing:
            return ANY_NUMBER
        return 0 if self._unread else 1

    def took_run(self, run: bytes, count: int) -> None:
        for message in run.split(b"\n"):
            self.took(message, True)

    def took(self, message: bytes, is_text: bool) -> None:
        size, first = len(message), 0x81 if is_text else 0x82
        if size < 126:
            head = bytes((first, size))
        elif size < 65_536:
            head = bytes((first, 126)) + size.to_bytes(2, "big")
        else:
            head = bytes((first, 127)) + size.to_bytes(8, "big")
        self._write(head + message)

    def reads_again(self) -> None:
        self.go_on()


async def start_echo(port: int, parser: str, message_bytes_max: int = 1 << 40) -> tuple[web.AppRunner, int]:
    """An echo server on loopback, and its port; `runner.cleanup()` ends it. ImportError when the parser is not there."""
    buffer, _, _ = frame_buffer("c" if parser == "c" else "python")

    poller = Poller(buffer)

    async def upgrade(request: web.Request) -> web.StreamResponse:
        if (problem := handshake_problem(request)) is not None:
            return web.Response(status=400, text=problem, headers={"Sec-WebSocket-Version": "13"})
        echo = Echo(buffer, message_bytes_max)
        if (switched := switch_protocols(request, echo, None, poller)) is not None:
            echo.start(switched[0], b"", switched[1])
        return web.Response()

    async def close_poller(_app: web.Application) -> None:
        poller.close()

    app = web.Application()
    app.on_cleanup.append(close_poller)
    app.router.add_get("/{path:.*}", upgrade)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    listening = socket.create_server((_HOST, port))
    await web.SockSite(runner, listening).start()
    return runner, listening.getsockname()[1]


async def _main(port: int, parser: str) -> None:
    _, real_port = await start_echo(port, parser)
    print(f"ws://{_HOST}:{real_port}/ parser={parser}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description="WebSocket echo server on loopback, on the protocol of ingest_ws")
    arguments.add_argument("--port", type=int, required=True, help="0 takes a free one")
    arguments.add_argument("--parser", choices=["c", "python"], default="c")
    options = arguments.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(options.port, options.parser))
