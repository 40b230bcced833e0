"""A real server on a free port, a scripted `deliver`, and a client that speaks raw frames."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from weakref import WeakSet

import pyarrow as pa
import pytest
import uvloop
import websockets
from prometheus_client import generate_latest

from headrace import NO_ORIGINS, Context, Elsewhere, Origin, OriginMark, QueueFull, QueueInfo, origins_of
from headrace.component import SystemClock
from headrace.log import Log
from headrace.metrics import Metrics
from headrace.testing.postgres import postgres, postgres_server
from headrace_ingest_ws import IngestWs
from headrace_ingest_ws.auth.options import JwtOptions, MtlsOptions, TlsOptions, TokensOptions
from headrace_ingest_ws.parser import frame_buffer

__all__ = ["postgres", "postgres_server"]

# Under --import-mode=importlib a test file cannot import its neighbours by itself.
sys.path.insert(0, str(Path(__file__).parent))


class FakeDeliver:
    """A queue by script: each call takes the next action ("ok", "full", an exception); "ok" waits for `gate`."""

    def __init__(self, *script: str | BaseException) -> None:
        self.script: deque[str | BaseException] = deque(script)
        self.durable: list[pa.RecordBatch] = []
        self.calls = 0
        self.under_way = 0
        self.under_way_most = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.has_room = asyncio.Event()
        self.queue_id: str | None = None
        self.level = "process"
        self.origins: list[Origin] = []
        #: what other workers hold of every session; None: they cannot be asked now
        self.elsewhere: Elsewhere | None = Elsewhere(None, True)
        self.taken: list[str] = []
        self.marks: dict[str, OriginMark] = {}

    async def __call__(self, batch: pa.RecordBatch, origins: pa.RecordBatch = NO_ORIGINS) -> tuple[int, int]:
        self.calls += 1
        action = self.script.popleft() if self.script else "ok"
        if action == "full":
            raise QueueFull("queue", 100, 100)
        self.under_way += 1
        self.under_way_most = max(self.under_way, self.under_way_most)
        try:
            await asyncio.sleep(0)
            await self.gate.wait()
            if isinstance(action, BaseException):
                raise action
        finally:
            self.under_way -= 1
        self.durable.append(batch)
        self.origins += origins_of(origins)
        self.marks |= {origin.id: OriginMark(origin.last, origin.note) for origin in origins_of(origins)}
        return 0, 0

    async def room(self) -> None:
        await self.has_room.wait()

    async def position(self, origin: str) -> int | None:
        return None

    async def mark(self, origin: str) -> OriginMark | None:
        return self.marks.get(origin)

    async def forget(self, origins: Sequence[str]) -> None:
        for origin in origins:
            self.marks.pop(origin, None)

    @contextlib.asynccontextmanager
    async def taking(self, origin: str) -> AsyncIterator[Elsewhere]:
        self.taken.append(origin)
        if self.elsewhere is None:
            raise TimeoutError
        yield self.elsewhere

    def queue_info(self) -> QueueInfo | None:
        return QueueInfo("queue", self.queue_id, self.level, "ext4", "mmap", 0, 0, 0, 0, 1 << 20, None, (), ())

    @property
    def rows(self) -> list[tuple[str, bytes]]:
        """(device, payload) of every durable event, in order."""
        return [(row["device"], row["payload"]) for batch in self.durable for row in batch.to_pylist()]

    @property
    def payloads(self) -> list[bytes]:
        return [payload for _, payload in self.rows]


class Running:
    """An open component that serves; `task` is its `ingest_serve`."""

    def __init__(self, component: IngestWs, deliver: FakeDeliver, metrics: Metrics) -> None:
        self.component, self.deliver, self._metrics = component, deliver, metrics
        self.task: asyncio.Task[None]
        self.statuses: list[tuple[str, str]] = []

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.component.url.partition("//")[2].rpartition(":")
        return host, int(port)

    def url(self, device: str = "d1", scheme: str = "ws") -> str:
        return f"{scheme}{self.component.url.removeprefix('http')}/v1/devices/{device}/events"

    def connect(self, device: str = "d1", hello: bool = False, session: str = "", acked: int | None = None, **options: Any) -> Any:
        protocols = ["headrace.v1.json"] if hello or session else None
        query = "" if not session else f"?session={session}" if acked is None else f"?session={session}&acked={acked}"
        return websockets.connect(self.url(device) + query, subprotocols=protocols, ping_interval=None, **options)  # type: ignore[arg-type]

    def metric(self, name: str, **labels: str) -> float:
        """A metric's value, 0 when it does not exist yet."""
        return self._metrics.registry.get_sample_value(f"headrace_{name}", labels) or 0.0

    def exposition(self) -> str:
        """All metrics as Prometheus reads them."""
        return generate_latest(self._metrics.registry).decode()

    async def raw(self, device: str = "d1", extra: str = "", receive_buffer: int | None = None) -> RawClient:
        return await RawClient.connect(self.address, device, extra, receive_buffer)


@contextlib.asynccontextmanager
async def running(
    deliver: FakeDeliver | None = None,
    *,
    clock: Any = None,
    fault: Callable[[str], None] = lambda name: None,
    data_dir: Path = Path(),
    **options: Any,
) -> AsyncIterator[Running]:
    metrics = Metrics()
    clock = clock or SystemClock()
    statuses: list[tuple[str, str]] = []
    log, status = Log("test"), lambda *told: statuses.append(told)
    context = Context("devices", "site", "ingest_ws", log, metrics, clock, random.Random(1), data_dir, fault, status)
    tables = {"tls": TlsOptions, "tokens": TokensOptions, "jwt": JwtOptions, "mtls": MtlsOptions}
    options = {name: tables[name](**value) if name in tables else value for name, value in options.items()}
    config = IngestWs.Config(**{"auth": "none", "listen": "127.0.0.1:0", "close_timeout_s": 2.0, **options})
    component = IngestWs(config, context)
    site = Running(component, deliver or FakeDeliver(), metrics)
    site.statuses = statuses
    await component.open()
    site.task = asyncio.create_task(component.ingest_serve(site.deliver))
    try:
        yield site
    finally:
        RawClient.leave(site.address)  # else the server waits close_timeout_s for each: a test of the end ends it itself
        site.task.cancel()
        await asyncio.wait([site.task])
        await component.close()
        context.close()


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for something that has no event to wait for; fails loudly."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for did not come"
        await asyncio.sleep(0.002)


def frame(opcode: int, payload: bytes, *, fin: bool = True, announced: int | None = None) -> bytes:
    """A client's frame, masked; `announced` lies about the length."""
    size = len(payload) if announced is None else announced
    head = bytes((opcode | (0x80 if fin else 0),))
    if size < 126:
        head += bytes((0x80 | size,))
    elif size < 65_536:
        head += b"\xfe" + struct.pack("!H", size)
    else:
        head += b"\xff" + struct.pack("!Q", size)
    mask = os.urandom(4)
    return head + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


class RawClient:
    """A WebSocket client that sends whatever bytes a test likes."""

    _all: ClassVar[WeakSet[RawClient]] = WeakSet()

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.head = b""  # of the answer

    @classmethod
    async def connect(
        cls,
        address: tuple[str, int],
        device: str,
        extra: str = "",
        receive_buffer: int | None = None,
        connection: str = "Connection: Upgrade",
    ) -> RawClient:
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
        reader, writer = await asyncio.open_connection(sock=sock, limit=4096 if receive_buffer else 1 << 16)
        writer.write(
            f"GET /v1/devices/{device}/events HTTP/1.1\r\nHost: test\r\n{connection}\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{extra}\r\n".encode()
        )
        client = cls(reader, writer)
        cls._all.add(client)
        client.head = await reader.readuntil(b"\r\n\r\n")
        return client

    @classmethod
    def leave(cls, address: tuple[str, int]) -> None:
        """Hang up all that are connected there."""
        for client in list(cls._all):
            if client.writer.get_extra_info("peername") == address:
                client.writer.transport.abort()

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def text(self, payload: bytes) -> None:
        self.writer.write(frame(1, payload))

    async def receive(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame."""
        first, second = await self.reader.readexactly(2)
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", await self.reader.readexactly(2))
        return first & 0x0F, await self.reader.readexactly(size)

    async def receive_until_closed(self) -> tuple[list[Any], int]:
        """Every text frame as JSON, and the close code (1006: the server hung up without one)."""
        texts: list[Any] = []
        try:
            while True:
                opcode, payload = await self.receive()
                if opcode == 8:
                    self.writer.close()
                    return texts, struct.unpack("!H", payload[:2])[0]
                if opcode == 1:
                    texts.append(json.loads(payload))
        except (asyncio.IncompleteReadError, ConnectionError):
            return texts, 1006


async def receive_until_ack(ws: Any, last: int) -> list[dict[str, Any]]:
    """The frames up to the ack of message `last`."""
    frames = []
    while True:
        frames.append(json.loads(await asyncio.wait_for(ws.recv(), 10)))
        if frames[-1].get("ack") == last:
            return frames


async def http(address: tuple[str, int], request: bytes, **connecting: Any) -> tuple[int, dict[str, str], bytes]:
    """One raw HTTP request with `Connection: close`; status, headers, body."""
    reader, writer = await asyncio.open_connection(*address, **connecting)
    writer.write(request)
    head, _, body = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
    writer.close()
    lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    return int(lines[0].split()[1]), headers, body


@pytest.fixture
def kit() -> SimpleNamespace:
    """The helpers above: with pytest's importlib mode, test modules cannot import their conftest."""
    return SimpleNamespace(
        FakeDeliver=FakeDeliver,
        running=running,
        until=until,
        frame=frame,
        receive_until_ack=receive_until_ack,
        RawClient=RawClient,
        http=http,
    )


@pytest.fixture(params=["asyncio-python", "uvloop-c"])
def each_loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`asyncio.run` on the standard loop with the Python parser, and on the host's loop with the C one."""
    loop, kind = request.param.split("-")
    if kind == "c":
        pytest.importorskip("headrace_ingest_ws._wsframes", reason="the C parser was not built here", exc_type=ImportError)
    monkeypatch.setattr("headrace_ingest_ws.component.frame_buffer", lambda: frame_buffer(kind))
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy() if loop == "uvloop" else asyncio.DefaultEventLoopPolicy())
    yield
    asyncio.set_event_loop_policy(before)


@pytest.fixture
def parser(request: pytest.FixtureRequest, each_loop: None) -> str:
    """Which parser `each_loop` has chosen."""
    return str(request.node.callspec.params["each_loop"].partition("-")[2])
