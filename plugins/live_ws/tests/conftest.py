"""What the tests of live_ws share: event batches from plain rows, and a running component."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pyarrow as pa
import pytest

from headrace import EVENT_COLUMNS, TIMESTAMP, RangeKey
from headrace.component import SystemClock
from headrace.testing import FakeContext, fake_context, living
from headrace_live_ws import LiveWs

QUEUE = "5f0c7f9e"
NOW_US = 1_763_930_000_000_000

Row = dict[str, Any]


def make_batch(rows: Sequence[Row], readings: pa.DataType | None = None, context: pa.DataType | None = None) -> pa.RecordBatch:
    """Rows of device, position, readings and context as an event batch; types are inferred where they are not given."""
    positions = [row.get("position", index) for index, row in enumerate(rows)]
    times = pa.array([NOW_US + index for index in range(len(rows))], TIMESTAMP)
    columns = [
        pa.array([row["device"] for row in rows], pa.string()),
        times,
        times,
        structs(rows, "readings", readings),
        structs(rows, "context", context),
        pa.array([row.get("origin", QUEUE) for row in rows], pa.string()).dictionary_encode(),
        pa.array(positions, pa.uint64()),
    ]
    return pa.RecordBatch.from_arrays(columns, names=list(EVENT_COLUMNS))


def structs(rows: Sequence[Row], name: str, kind: pa.DataType | None) -> pa.StructArray:
    """One of the struct columns; without children where no row has a value."""
    values = [row.get(name, {}) for row in rows]
    return pa.array(values, kind or (None if any(values) else pa.struct([])))


class Feed:
    """A running LiveWs, and what a test does with it."""

    def __init__(self, live: LiveWs, hook: Any, session: aiohttp.ClientSession, context: FakeContext) -> None:
        self.live, self.hook, self.session, self.context = live, hook, session, context
        self.position = 0

    @property
    def url(self) -> str:
        return self.live.url

    async def connect(self, query: str = "", **options: Any) -> aiohttp.ClientWebSocketResponse:
        """A client that has read its first frame, so that every later event concerns it."""
        ws: aiohttp.ClientWebSocketResponse = await self.session.ws_connect(f"{self.url}/v1/live{query}", max_msg_size=0, **options)
        assert "heartbeat" in await receive(ws)
        return ws

    async def write(self, rows: Sequence[Row], **options: Any) -> None:
        """One `sink_write` of these rows; positions are counted where they are not given."""
        first = self.position + 1
        self.position += len(rows)
        numbered = [{"position": first + index, **row} for index, row in enumerate(rows)]
        await self.hook.sink_write(batch=make_batch(numbered, **options), key=RangeKey(QUEUE, first, self.position))

    def metric(self, name: str, **labels: str) -> float:
        """The value of one of the component's metrics; 0 when it never moved."""
        return self.context.metric(name, **labels) or 0.0


async def receive(ws: aiohttp.ClientWebSocketResponse) -> dict[str, Any]:
    """The next frame, decoded."""
    async with asyncio.timeout(20):
        text = await ws.receive_str()
    frame: dict[str, Any] = msgspec.json.decode(text)
    return frame


@contextlib.asynccontextmanager
async def running(data_dir: Path, **options: Any) -> AsyncIterator[Feed]:
    """A LiveWs on a free port, living as the host lets it."""
    context = fake_context(data_dir, clock=SystemClock(), plugin="live_ws")
    live = LiveWs(msgspec.convert({"listen": "127.0.0.1:0", "tick_ms": 10, **options}, LiveWs.Config), context)
    async with aiohttp.ClientSession() as session, living(live, "output") as hook:
        yield Feed(live, hook, session, context)


Running = Callable[..., AbstractAsyncContextManager[Feed]]


@pytest.fixture
def feed(tmp_path: Path) -> Running:
    """`async with feed(option=...) as running_feed`."""

    def start(**options: Any) -> AbstractAsyncContextManager[Feed]:
        return running(tmp_path, **options)

    return start


@pytest.fixture
def event_batch() -> Callable[..., pa.RecordBatch]:
    """`make_batch`."""
    return make_batch
