"""What people build instead, behind the broker: a consumer group's reader that writes what it reads to Parquet, then acknowledges.

    python peers/stream_to_parquet.py redis PORT FOLDER
    python peers/stream_to_parquet.py nats-py PORT FOLDER     # with the client library
    python peers/stream_to_parquet.py nats PORT FOLDER        # without: over the plain protocol, one ack for all of a read

The good version of it: large reads, JSON decoded in columns by pyarrow, one file for a second's events, synced and renamed before they
are acknowledged. Prints the Unix time at which the last event was in a file.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

READ = 5_000
FLUSH_S = 1.0

#: devices, payloads, and what acknowledges them
Batch = tuple[list[bytes], list[bytes], Callable[[], None]]


def from_redis(port: int) -> Iterator[Batch]:
    """XREADGROUP and XACK."""
    import redis

    client = redis.Redis(port=port)
    client.xgroup_create("events", "lake", id="0", mkstream=True)
    print("READY", flush=True)
    while True:
        answer = client.xreadgroup("lake", "writer", {"events": ">"}, count=READ, block=200)
        entries = answer[0][1] if isinstance(answer, list) and answer else (next(iter(answer.values()))[0] if answer else [])
        ids = [entry for entry, _ in entries]
        yield (
            [fields[b"device"] for _, fields in entries], [fields[b"payload"] for _, fields in entries],
            lambda ids=ids: client.xack("events", "lake", *ids) if ids else None,
        )  # fmt: skip


def from_nats_py(port: int) -> Iterator[Batch]:
    """A durable pull consumer as the client library has it; each message is acked by itself."""
    import nats

    loop = asyncio.new_event_loop()

    async def subscribe() -> Any:
        client = await nats.connect(f"nats://127.0.0.1:{port}")
        return await client.jetstream().pull_subscribe("s.*", durable="lake", stream="S")

    subscription = loop.run_until_complete(subscribe())
    print("READY", flush=True)

    async def fetch() -> list[Any]:
        try:
            found: list[Any] = await subscription.fetch(READ // 10, timeout=1.0)
        except TimeoutError:
            return []
        return found

    async def acknowledge(messages: list[Any]) -> None:
        for message in messages:
            await message.ack()

    while True:
        messages = loop.run_until_complete(fetch())
        yield (
            [message.subject[2:].encode() for message in messages], [message.data for message in messages],
            lambda messages=messages: loop.run_until_complete(acknowledge(messages)),
        )  # fmt: skip


def from_nats(port: int) -> Iterator[Batch]:
    """A durable pull consumer over the plain protocol, which costs less than a client library; each ack speaks for all before."""
    link = NatsLink(port)
    link.send(b'CONNECT {"verbose":false,"headers":true}\r\nSUB _R 1\r\nSUB _M 2\r\n')
    config = json.dumps(
        {"stream_name": "S", "config": {"durable_name": "lake", "ack_policy": "all", "deliver_policy": "all", "max_ack_pending": -1}}
    )
    link.send(f"PUB $JS.API.CONSUMER.DURABLE.CREATE.S.lake _R {len(config)}\r\n{config}\r\n".encode())
    while link.message() is None:
        pass
    print("READY", flush=True)
    request = b'{"batch":%d,"expires":1000000000}' % READ
    while True:
        link.send(b"PUB $JS.API.CONSUMER.MSG.NEXT.S.lake _M %d\r\n%b\r\n" % (len(request), request))
        devices, payloads, last = [], [], b""
        # a request that is not filled ends with a status, or in silence
        while len(payloads) < READ and (message := link.message()) is not None and message[1]:
            devices.append(message[0][2:])
            payloads.append(message[2])
            last = message[1]
        yield devices, payloads, lambda last=last: link.send(b"PUB %b 4\r\n+ACK\r\n" % last) if last else None


class NatsLink:
    """A connection; what comes is read in large pieces."""

    SILENCE_S = 0.2

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.settimeout(self.SILENCE_S)
        self._buffer, self._at = b"", 0

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def message(self) -> tuple[bytes, bytes, bytes] | None:
        """Subject, reply (empty for a status) and payload of the next message; None after a silence."""
        while True:
            end = self._buffer.find(b"\r\n", self._at)
            if end < 0:
                if not self._more():
                    return None
                continue
            words = self._buffer[self._at : end].split(b" ")
            if words[0] in (b"MSG", b"HMSG"):
                stop = end + 2 + int(words[-1])
                while len(self._buffer) < stop + 2 and self._more():
                    end, stop = end - self._moved, stop - self._moved
                if len(self._buffer) < stop + 2:
                    return None
                self._at = stop + 2
                plain = words[0] == b"MSG"
                return words[1], words[3] if plain and len(words) == 5 else b"", self._buffer[end + 2 : stop]
            self._at = end + 2
            if words[0] == b"PING":
                self.send(b"PONG\r\n")

    _moved = 0

    def _more(self) -> bool:
        try:
            part = self._socket.recv(1 << 18)
        except TimeoutError:
            return False
        if not part:
            raise ConnectionError("NATS has closed the connection")
        self._moved, self._buffer, self._at = self._at, self._buffer[self._at :] + part, 0
        return True


def main(kind: str, port: int, folder: Path) -> None:
    source = {"redis": from_redis, "nats": from_nats, "nats-py": from_nats_py}[kind](port)
    written, number, opened_at = 0, 0, time.monotonic()
    tables: list[pa.Table] = []
    acknowledges: list[Callable[[], None]] = []
    held, expected = 0, None
    for devices, payloads, acknowledge in source:
        if expected is None and (folder / "expected").exists():
            expected = int((folder / "expected").read_text())
        if payloads:
            readings = pa.json.read_json(io.BytesIO(b"\n".join(payloads)))
            tables.append(readings.append_column("device", pa.array(devices, pa.binary()).cast(pa.string())))
            acknowledges.append(acknowledge)
            held += len(payloads)
        if held and (time.monotonic() - opened_at >= FLUSH_S or written + held == expected):
            number += 1
            file = folder / f"{number}.parquet"
            temporary = file.with_suffix(".tmp")
            with temporary.open("wb") as out:
                pq.write_table(pa.concat_tables(tables, promote_options="default"), out, compression="zstd")
                out.flush()
                os.fsync(out.fileno())
            temporary.rename(file)
            for one in acknowledges:
                one()
            written += held
            tables, acknowledges, held, opened_at = [], [], 0, time.monotonic()
            written_at = time.time()
        if expected is not None and written >= expected:
            times = os.times()
            print(written_at, times.user + times.system, flush=True)
            return


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
