"""Plugins of a site's own, one for each role, that note every call of their hooks: what test_hooks_called.py runs.

Each call is a line of `$HEADRACE_DATA/calls.ndjson`: hook, component, thread, and what the test asks about.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from aiohttp import web

from headrace import (
    RAW_SCHEMA,
    Component,
    Context,
    Deliver,
    Origin,
    PermanentError,
    Plan,
    QueueInfo,
    RangeKey,
    TransientError,
    hookimpl,
    origin_batch,
    origins_of,
)
from headrace.position import ORIGIN_SESSION

HEX = 200
AT = datetime.datetime(2026, 11, 23, 12, tzinfo=datetime.UTC)


class Recorder(Component):
    """Base: `note` appends one line."""

    def note(self, hook: str, **facts: Any) -> None:
        name = f"{self.context.tier}.{self.context.id}"
        line = json.dumps({"hook": hook, "component": name, "thread": threading.current_thread().name, **facts}, default=str)
        descriptor = os.open(Path(os.environ["HEADRACE_DATA"]) / "calls.ndjson", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(descriptor, line.encode() + b"\n")  # one write: lines of several threads do not mix
        finally:
            os.close(descriptor)


def raw(*payloads: bytes, encoding: int = 1) -> pa.RecordBatch:
    columns = [["d"] * len(payloads), [AT] * len(payloads), [encoding] * len(payloads), payloads]
    return pa.RecordBatch.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, RAW_SCHEMA, strict=True)], schema=RAW_SCHEMA
    )


class Source(Recorder):
    """Delivers JSON and hex events; the fourth of the JSON events is one that the sink `keyed` refuses."""

    @hookimpl
    async def ingest_serve(self, deliver: Deliver) -> None:
        self.note("ingest_serve")
        json_range = await deliver(raw(*(b'{"n":%d}' % number for number in range(4))))
        hex_range = await deliver(raw(b"10", b"zz", encoding=HEX))
        self.note("ingest_serve.durable", json=json_range, hex=hex_range)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.note("ingest_serve.cancelled")
            raise

    async def drain(self, deadline_s: float) -> None:
        self.note("drain")


class Link(Recorder):
    """The receiving half of a link: the same two events come twice, as after a lost reply."""

    @hookimpl
    async def transport_serve(self, deliver: Deliver) -> None:
        self.note("transport_serve", held=await deliver.position("upstream/0"))
        origins = origin_batch([Origin("upstream/0", 1, 2)])
        ranges = [await deliver(raw(b'{"n":5}', b'{"n":6}'), origins) for _ in range(2)]
        await deliver(raw(), origin_batch([Origin("device/session", 1, 1, 0, ORIGIN_SESSION, b"refused")]))
        await deliver.mark("device/session")
        await deliver.forget(["device/session"])
        await deliver.mark("device/session")
        self.note("transport_serve.durable", ranges=ranges, held=await deliver.position("upstream/0"))
        await asyncio.Event().wait()


class Fan(Recorder):
    """The receiving half of a fan-out."""

    @hookimpl
    async def transport_subscribe(self, deliver: Deliver) -> None:
        self.note("transport_subscribe", range=await deliver(raw(b'{"n":7}')))
        await asyncio.Event().wait()


class QueueSpy(Recorder):
    """Wraps the hooks of the tier's queue."""

    @hookimpl(wrapper=True)
    def queue_info(self) -> Any:
        info = yield
        if not hasattr(self, "told"):
            self.told = True
            self.note("queue_info", level=info.level)
        return info

    @hookimpl(wrapper=True)
    def queue_secret(self) -> Any:
        secret = yield
        self.note("queue_secret", bytes=len(secret))
        return secret

    @hookimpl(wrapper=True)
    def queue_append(self, batch: pa.RecordBatch, origins: pa.RecordBatch) -> Any:
        return self._async((yield), "queue_append", rows=batch.num_rows, origins=origins.num_rows)

    @hookimpl(wrapper=True)
    def queue_origin_position(self, origin: str) -> Any:
        return self._async((yield), "queue_origin_position", origin=origin)

    @hookimpl(wrapper=True)
    def queue_origin_mark(self, origin: str) -> Any:
        return self._async((yield), "queue_origin_mark", origin=origin)

    @hookimpl(wrapper=True)
    def queue_origin_forget(self, origins: Sequence[str]) -> Any:
        return self._async((yield), "queue_origin_forget", origins=list(origins))

    @hookimpl(wrapper=True)
    def queue_reader_open(self, reader: str, start: str) -> Any:
        return self._async((yield), "queue_reader_open", reader=reader, start=start)

    @hookimpl(wrapper=True)
    def queue_reader_drop(self, reader: str) -> Any:
        return self._async((yield), "queue_reader_drop", reader=reader)

    @hookimpl(wrapper=True)
    def queue_read(self, reader: str, after: int, rows_max: int, bytes_max: int) -> Any:
        return self._async((yield), "queue_read", reader=reader, after=after, rows_max=rows_max)

    @hookimpl(wrapper=True)
    def queue_plan(self, reader: str, plan: Plan | None) -> Any:
        return self._async((yield), "queue_plan", reader=reader, plan=plan)

    @hookimpl(wrapper=True)
    def queue_release(self, reader: str, upto: int) -> Any:
        return self._async((yield), "queue_release", reader=reader, upto=upto)

    async def _async(self, call: Any, hook: str, **facts: Any) -> Any:
        result = await call
        self.note(hook, **facts, result=None if hook == "queue_read" else result)
        return result


class Hex(Recorder):
    """Decodes one number in hex."""

    @hookimpl
    def decode_encodings(self) -> Mapping[str, int]:
        self.note("decode_encodings")
        return {"hex": HEX}

    @hookimpl
    def decode(self, payloads: pa.BinaryArray, encoding: int) -> tuple[pa.StructArray, Sequence[int]]:
        texts = payloads.to_pylist()
        self.note("decode", payloads=[text.decode() for text in texts], encoding=encoding)
        bad = [index for index, text in enumerate(texts) if text == b"zz"]
        rows = [None if index in bad else {"n": float(int(text, 16))} for index, text in enumerate(texts)]
        return pa.array(rows, pa.struct([("n", pa.float64())])), bad


class Shift(Recorder):
    """Adds one field."""

    @hookimpl
    def enrich_fields(self) -> pa.Schema:
        self.note("enrich_fields")
        return pa.schema([("shift", pa.string())])

    @hookimpl
    async def enrich_prepare(self, batch: pa.RecordBatch) -> None:
        self.note("enrich_prepare", rows=batch.num_rows)

    @hookimpl
    def enrich(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        self.note("enrich", rows=batch.num_rows)
        return pa.RecordBatch.from_arrays([pa.array(["late"] * batch.num_rows)], schema=pa.schema([("shift", pa.string())]))


class Store(Recorder):
    """A sink in memory with a file for what is flushed; its first write fails once, and reading 3 is refused for good."""

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.file = context.data_dir / "held.json"

    def held(self) -> dict[str, int]:
        held: dict[str, int] = json.loads(self.file.read_text()) if self.file.exists() else {}
        return held

    @hookimpl
    async def sink_write(self, batch: pa.RecordBatch, key: RangeKey) -> None:
        numbers = [row["n"] for row in batch.column("readings").to_pylist()]
        shifts = [row["shift"] for row in batch.column("context").to_pylist()]
        facts = {"key": str(key), "numbers": numbers, "shifts": shifts, "dead": key.dead}
        first_time = not (self.context.data_dir / "tried").exists()
        (self.context.data_dir / "tried").touch()
        if first_time:
            self.note("sink_write.failed", **facts)
            raise TransientError("the first write always fails")
        if 3.0 in numbers:
            self.note("sink_write.refused", **facts)
            raise PermanentError("no threes", {str(key): [numbers.index(3.0)]})
        self.note("sink_write", **facts)

    @hookimpl
    async def sink_flush(self, key: RangeKey) -> None:
        self.note("sink_flush", key=str(key), dead=key.dead)
        self.file.write_text(json.dumps({**self.held(), key.queue_id: key.last}))

    @hookimpl
    async def sink_reset(self) -> None:
        self.note("sink_reset")


class Resuming(Store):
    """Knows what it holds."""

    @hookimpl
    async def sink_resume(self, queue_id: str) -> int | None:
        held = self.held().get(queue_id)
        self.note("sink_resume", queue_id=queue_id, held=held)
        return held


class Keyed(Store):
    """Relies on keys."""

    idempotence = "key"


class Uplink(Recorder):
    """The sending half of a link, whose far side lies in a file; its first send fails once."""

    asked = False

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.file = context.data_dir / "held.json"

    def held(self) -> dict[str, int]:
        held: dict[str, int] = json.loads(self.file.read_text()) if self.file.exists() else {}
        return held

    @hookimpl
    async def transport_queue(self, queue: QueueInfo, secret: bytes) -> None:
        self.note("transport_queue", name=queue.name, level=queue.level, secret=len(secret))

    @hookimpl
    async def transport_resume(self, queue_id: str) -> int | None:
        held = self.held().get(queue_id)
        self.note("transport_resume", queue_id=queue_id, held=held)
        return held

    @hookimpl
    async def transport_send(self, batch: pa.RecordBatch, origins: pa.RecordBatch, key: RangeKey) -> None:
        payloads = [payload.decode() for payload in batch.column("payload").to_pylist()]
        facts = {"key": str(key), "payloads": payloads, "origins": [origin.id for origin in origins_of(origins)]}
        if not (self.context.data_dir / "tried").exists():
            (self.context.data_dir / "tried").touch()
            self.note("transport_send.failed", **facts)
            raise TransientError("the first send always fails")
        self.file.write_text(json.dumps({**self.held(), key.queue_id: key.last}))
        self.note("transport_send", **facts)

    @hookimpl
    async def transport_hurry(self) -> None:
        self.note("transport_hurry")

    @hookimpl
    def transport_bound(self) -> int:
        if not self.asked:
            self.note("transport_bound")
        self.asked = True
        return 0


class Listener(Recorder):
    """Hears the facts."""

    @hookimpl
    def host_started(self) -> None:
        self.note("host_started")

    @hookimpl
    def host_draining(self, deadline_s: float) -> None:
        self.note("host_draining", deadline_s=deadline_s)

    @hookimpl
    def component_status(self, tier: str, component: str, status: str, reason: str) -> None:
        self.note("component_status", of=f"{tier}.{component}", status=status, reason=reason)

    @hookimpl
    def batch_quarantined(self, tier: str, component: str, reason: str, key: RangeKey, count: int) -> None:
        self.note("batch_quarantined", by=component, reason=reason, count=count, key=str(key))

    @hookimpl
    def register_routes(self, app: web.Application) -> None:
        async def hello(_: web.Request) -> web.Response:
            return web.Response(text="hello")

        app.router.add_get("/recorders/hello", hello)
        self.note("register_routes")
