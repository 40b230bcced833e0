"""Devices that come, send all sorts of things, and go: `churn.py PORT CONNECTIONS SECONDS LIFE_S SEED`.

Prints one JSON object: lives lived, messages acked, and what went wrong that should not have.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import socket
import struct
import sys
from collections import Counter
from typing import Any

import uvloop

IP_BIND_ADDRESS_NO_PORT = 24


class Fleet:
    def __init__(self, port: int, life_s: float, seed: int) -> None:
        self._port, self._life_s, self._random = port, life_s, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.stopping = False

    async def device(self, number: int, starts_after_s: float) -> None:
        """One device after the other in this place, until the end."""
        await asyncio.sleep(starts_after_s)
        while not self.stopping:
            try:
                if self._random.random() < 0.05:
                    await self._post(number)
                else:
                    await self._connection(number)
                self.counts["lives"] += 1
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                if not self.stopping:
                    self.wrong[type(error).__name__] += 1
                    await asyncio.sleep(1.0)

    async def _open(self, number: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # leaves nothing in TIME_WAIT
        sock.bind((f"127.0.1.{1 + number % 200}", 0))
        await asyncio.wait_for(asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._port)), 30)
        return await asyncio.open_connection(sock=sock, limit=4096)

    async def _post(self, number: int) -> None:
        reader, writer = await self._open(number)
        body = b'[{"n":1},{"n":2}]' if self._random.random() < 0.8 else b"nope"
        writer.write(
            b"POST /v1/devices/soak-%d/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
            % (number, len(body), body)
        )
        answer = await asyncio.wait_for(reader.read(), 30)
        self.counts["posts"] += 1
        if answer.split(b" ", 2)[1] not in (b"200", b"400"):
            self.wrong[answer[:40].decode()] += 1
        writer.close()

    async def _connection(self, number: int) -> None:
        reader, writer = await self._open(number)
        try:
            session = f"?session=s{number}" if number % 10 == 0 else ""
            key = base64.b64encode(os.urandom(16)).decode()
            writer.write(
                f"GET /v1/devices/soak-{number}/events{session} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: headrace.v1.json\r\n\r\n".encode()
            )
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
            if b" 101 " not in head[:20]:
                raise ConnectionRefusedError(head[:20].decode())
            hello = json.loads(await self._text(reader))["hello"]
            count = hello.get("resume") or 0
            ends = asyncio.get_running_loop().time() + self._life_s * (0.5 + self._random.random())
            while not self.stopping and asyncio.get_running_loop().time() < ends:
                sent = self._messages(writer)
                count += sent
                while json.loads(await self._text(reader)).get("ack") != count:
                    pass
                self.counts["acked"] += sent
                await asyncio.sleep(self._life_s / 6 * (0.5 + self._random.random()))
            await self._leave(reader, writer)
        finally:
            writer.transport.abort()

    def _messages(self, writer: asyncio.StreamWriter) -> int:
        """Some messages of all kinds in one write; how many."""
        kinds = [
            (frame(1, b'{"temperature":21.5,"door":false}'), 1),
            (frame(1, b'{"n":1}') * 20, 20),
            (frame(1, b'[{"n":1},{"n":2},{"n":3}]'), 1),
            (frame(1, b"no json"), 1),
            (frame(9, b"are you there") + frame(1, b'{"n":', fin=False) + frame(0, b"7}"), 1),
            (frame(1, b'{"pad":"' + b"x" * 3000 + b'"}'), 1),
        ]
        data, count = self._random.choice(kinds)
        writer.write(data)
        return count

    async def _leave(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        way = self._random.random()
        if way < 0.5:
            writer.write(frame(8, b"\x03\xe8"))
            await asyncio.wait_for(reader.read(), 30)
        elif way < 0.7:
            writer.write(frame(1, b"{" * 5000)[:2000])  # and gone in the middle of a message

    async def _text(self, reader: asyncio.StreamReader) -> bytes:
        """The next text frame."""
        while True:
            first, size = await asyncio.wait_for(reader.readexactly(2), 60)
            if size == 126:
                (size,) = struct.unpack("!H", await reader.readexactly(2))
            payload = await reader.readexactly(size)
            if first & 15 == 8:
                raise ConnectionResetError("closed by the server")
            if first & 15 == 1:
                return payload


def frame(opcode: int, payload: bytes, fin: bool = True) -> bytes:
    """A client's frame; a mask of zeros is a mask."""
    size = len(payload)
    head = bytes((opcode | (0x80 if fin else 0), 0x80 | size)) if size < 126 else bytes((0x80 | opcode, 0xFE)) + struct.pack("!H", size)
    return head + bytes(4) + payload


async def main(port: int, connections: int, seconds: float, life_s: float, seed: int) -> None:
    fleet = Fleet(port, life_s, seed)
    spread_s = min(seconds / 10, 30.0)
    devices: list[asyncio.Task[Any]] = [
        asyncio.create_task(fleet.device(number, spread_s * number / connections)) for number in range(connections)
    ]
    await asyncio.sleep(seconds)
    fleet.stopping = True
    for device in devices:
        device.cancel()
    print(json.dumps({**fleet.counts, "wrong": dict(fleet.wrong)}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    port, connections, seconds, life_s, seed = sys.argv[1:]
    uvloop.run(main(int(port), int(connections), float(seconds), float(life_s), int(seed)))
