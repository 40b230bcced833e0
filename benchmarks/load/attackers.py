"""Clients that mean no good, one kind at a time: `attackers.py KIND --port P --seconds S`. Loopback only.

Prints one JSON object: how many connections it opened, and how many bytes it sent; those of wsload not.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gzip
import json
import os
import random
import signal
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import uvloop

HOST: Final = "127.0.0.1"
#: Where attackers come from: another address than honest devices.
SOURCE: Final = ("127.0.9.1", 0)

#: Compiled by `generator.build`.
WSLOAD: Final = str(Path(__file__).parent.parent / "build" / "wsload")

opened = sent = 0


async def connect(port: int, receive_buffer: int | None = None) -> socket.socket:
    """A connected socket; it waits and tries again while the server takes nobody."""
    global opened
    while True:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # leaves nothing in TIME_WAIT
        try:
            sock.bind(SOURCE)
            await asyncio.get_running_loop().sock_connect(sock, (HOST, port))
        except OSError:
            sock.close()
            await asyncio.sleep(0.05)
            continue
        opened += 1
        return sock


async def send(sock: socket.socket, data: bytes) -> None:
    global sent
    await asyncio.get_running_loop().sock_sendall(sock, data)
    sent += len(data)


def upgrade(device: str, extra: str = "") -> bytes:
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET /v1/devices/{device}/events HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n{extra}\r\n"
    ).encode()


async def upgraded(port: int, device: str, receive_buffer: int | None = None) -> socket.socket:
    sock = await connect(port, receive_buffer)
    await send(sock, upgrade(device))
    await asyncio.get_running_loop().sock_recv(sock, 4096)
    return sock


def frame(payload: bytes, first: int = 0x81) -> bytes:
    """A client's frame; the mask is zero, which costs the server as much as any other."""
    size = len(payload)
    head = bytes((first, 0x80 | size)) if size < 126 else bytes((first, 0xFE)) + struct.pack("!H", size)
    return head + bytes(4) + payload


async def again(life: Callable[[], Awaitable[None]]) -> None:
    """Live, be cut off, and come again, for ever."""
    while True:
        try:
            await life()
        except OSError:
            await asyncio.sleep(0)


async def drip(sock: socket.socket, data: bytes) -> None:
    """One byte a second."""
    try:
        await asyncio.sleep(random.random())
        for at in range(len(data)):
            await send(sock, data[at : at + 1])
            await asyncio.sleep(1.0)
    finally:
        sock.close()


async def read_to_end(sock: socket.socket) -> None:
    try:
        while await asyncio.get_running_loop().sock_recv(sock, 65_536):
            pass
    finally:
        sock.close()


# --- the kinds: each makes lives, which run side by side ---------------------------------------------------------------


def silent(port: int) -> list[Awaitable[None]]:
    """1,000 sockets that send nothing at all."""

    async def life() -> None:
        await read_to_end(await connect(port))

    return [again(life) for _ in range(1000)]


def slow_headers(port: int) -> list[Awaitable[None]]:
    """2,000 sockets, each with its request header byte by byte."""

    async def life() -> None:
        await drip(await connect(port), upgrade("slow"))

    return [again(life) for _ in range(2000)]


def slow_frames(port: int) -> list[Awaitable[None]]:
    """2,000 connections, each with a message byte by byte."""

    async def life() -> None:
        await drip(await upgraded(port, "slow"), frame(b"{" + b" " * 110 + b"}"))

    return [again(life) for _ in range(2000)]


def never_read(port: int) -> list[Awaitable[None]]:
    """200 connections that send bad messages as fast as they are taken, and read none of the rejects."""

    async def life() -> None:
        sock = await upgraded(port, "deaf", 4096)
        bad = frame(b"bad") * 500
        while True:
            await send(sock, bad)

    return [again(life) for _ in range(200)]


def huge_frames(port: int) -> list[Awaitable[None]]:
    """100 connections that announce a frame of 10 GB and begin to send it."""

    async def life() -> None:
        sock = await upgraded(port, "huge")
        await send(sock, b"\x82\xff" + (10 << 30).to_bytes(8, "big") + bytes(4) + bytes(65_536))
        await read_to_end(sock)

    return [again(life) for _ in range(100)]


def half_messages(port: int) -> list[Awaitable[None]]:
    """2,000 connections, each with all of the longest message but its last byte."""

    async def life() -> None:
        sock = await upgraded(port, "half")
        await send(sock, b"\x81\xff" + (131_072).to_bytes(8, "big") + bytes(4) + b"{" + b" " * 131_070)
        await read_to_end(sock)

    return [again(life) for _ in range(2000)]


def bombs(port: int) -> list[Awaitable[None]]:
    """50 clients that POST a gzip body of 0.5 MB, half of what is taken, that would be 512 MB."""
    bomb = gzip.compress(bytes(256 << 20), 9) * 2

    async def life() -> None:
        sock = await connect(port)
        head = f"POST /v1/devices/bomb/events HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n"
        await send(sock, head.encode() + b"Connection: close\r\n\r\n")
        reading = asyncio.ensure_future(read_to_end(sock))
        await send(sock, bomb)
        await reading

    return [again(life) for _ in range(50)]


def reconnects(port: int) -> list[Awaitable[None]]:
    """10,000 connections at once (by wsload), which leave as soon as all are through, and come again."""

    async def life() -> None:
        words = ["--port", str(port), "--path", "/v1/devices/again-%CONN%/events", "--conns", "10000", "--connect-burst", "10000"]
        words += ["--window", "0", "--warmup", "0", "--seconds", "0.1", "--src-spread", "100"]
        quiet = asyncio.subprocess.DEVNULL  # the server knows how many there were, also of a round that is not finished
        wsload = await asyncio.create_subprocess_exec(WSLOAD, *words, stdout=quiet, stderr=quiet)
        await wsload.wait()

    return [again(life)]


def garbage(port: int) -> list[Awaitable[None]]:
    """100 clients that send random bytes, half of them behind an upgrade."""

    async def life() -> None:
        sock = await (upgraded(port, "noise") if random.random() < 0.5 else connect(port))
        await send(sock, random.randbytes(random.randrange(1, 5000)))
        await read_to_end(sock)

    return [again(life) for _ in range(100)]


def bad_tokens(port: int) -> list[Awaitable[None]]:
    """50 clients that try one invalid token after the other, as fast as they are answered."""

    async def life() -> None:
        sock = await connect(port)
        while True:
            token = base64.b32encode(os.urandom(43)).decode().lower().rstrip("=")[:68]
            await send(sock, upgrade("dev-1", f"Authorization: Bearer hrt_{token[:16]}_{token[16:]}\r\n"))
            if not await asyncio.get_running_loop().sock_recv(sock, 4096):
                raise ConnectionError

    return [again(life) for _ in range(50)]


def flood(port: int) -> list[Awaitable[None]]:
    """16 connections of one device that send as fast as they can, and read."""

    async def life() -> None:
        sock = await upgraded(port, "flood")
        reading = asyncio.ensure_future(read_to_end(sock))
        good = frame(b'{"temperature":21.5}') * 500
        while not reading.done():
            await send(sock, good)

    return [again(life) for _ in range(16)]


KINDS: Final = {
    kind.__name__.replace("_", "-"): kind
    for kind in (silent, slow_headers, slow_frames, half_messages, never_read, huge_frames, bombs, reconnects, garbage, bad_tokens, flood)
}


async def main(kind: str, port: int, seconds: float) -> None:
    lives = KINDS[kind](port)  # some make what they send first, which may take seconds
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await asyncio.wait([asyncio.ensure_future(life) for life in lives], timeout=seconds)
    children = f"/proc/self/task/{os.getpid()}/children"
    for child in Path(children).read_text().split():  # noqa: ASYNC240
        os.kill(int(child), signal.SIGKILL)
    print(json.dumps({"opened": opened, "sent_bytes": sent}), flush=True)
    os._exit(0)  # thousands of sockets are closed by the kernel at once


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=8.0)
    options = parser.parse_args()
    uvloop.run(main(options.kind, options.port, options.seconds))
