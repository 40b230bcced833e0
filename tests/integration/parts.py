"""Plugins of a site's own, named by file in the configs of these tests."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
from aiohttp import web
from msgspec import Meta

from headrace import Component, Config, Context, Deliver, PermanentError, RangeKey, TransientError, hookimpl


class Rows(Component):
    """Appends `[device, n]` lines to a file, and a commit line at each flush: resumes from its last commit."""

    class Config(Config, frozen=True, kw_only=True):
        file: Annotated[str, Meta(description="File to append to.")]
        refuse: Annotated[int, Meta(description="The reading n that is refused for good.")] = -1
        hang_on: Annotated[int, Meta(description="The reading n at which a write never returns.")] = -1
        die_on: Annotated[int, Meta(description="The reading n that kills the process.")] = -1

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self._lines: list[str] = []

    @hookimpl
    async def sink_write(self, batch: pa.RecordBatch, key: RangeKey) -> None:
        rows = batch.select(["device", "readings"]).to_pylist()
        numbers = [int(row["readings"]["n"]) for row in rows]
        if self.config.die_on in numbers:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.config.hang_on in numbers:
            await asyncio.Event().wait()
        if self.config.refuse in numbers:
            raise PermanentError("that number", {str(key): [numbers.index(self.config.refuse)]})
        self._lines += [json.dumps([row["device"], number]) for row, number in zip(rows, numbers, strict=True)]

    @hookimpl
    async def sink_flush(self, key: RangeKey) -> None:
        _append(self.config.file, [*self._lines, json.dumps({"id": key.queue_id, "last": key.last})])
        self._lines = []

    @hookimpl
    async def sink_reset(self) -> None:
        self._lines = []

    @hookimpl
    async def sink_resume(self, queue_id: str) -> int | None:
        return max((commit["last"] for commit in _commits(self.config.file) if commit["id"] == queue_id), default=None)


class Stuck(Component):
    """A sink whose first write never returns: `loop` holds up the loop it is on, `thread` a thread of its own."""

    class Config(Config, frozen=True, kw_only=True):
        where: Annotated[str, Meta(description="loop or thread.")]

    idempotence = "key"

    @hookimpl
    async def sink_write(self, batch: pa.RecordBatch, key: RangeKey) -> None:
        if self.config.where == "loop":
            time.sleep(3600)  # noqa: ASYNC251 - what a plugin must not do
        await self.context.call_blocking(time.sleep, 3600)

    @hookimpl
    async def sink_flush(self, key: RangeKey) -> None: ...

    @hookimpl
    async def sink_reset(self) -> None: ...


def _append(file: str, lines: list[str]) -> None:
    with Path(file).open("a") as out:
        out.write("\n".join(lines) + "\n")


def _commits(file: str) -> list[dict[str, Any]]:
    text = Path(file).read_text() if Path(file).exists() else ""
    return [line for line in map(json.loads, text.splitlines()) if isinstance(line, dict)]


class Ends(Component):
    """A source that holds its loop for a while, and returns."""

    @hookimpl
    async def ingest_serve(self, deliver: Deliver) -> None:
        await asyncio.sleep(1.5)
        time.sleep(3)  # noqa: ASYNC251


class Audit(Component):
    """Wraps an output: notes each write before and after."""

    @hookimpl(wrapper=True)
    def sink_write(self, batch: pa.RecordBatch, key: RangeKey) -> Any:
        writing = yield

        async def noted() -> None:
            self._note(f"write {key.first}-{key.last}")
            await writing
            self._note("written")

        return noted()

    def _note(self, line: str) -> None:
        _append(str(self.context.data_dir / "audit.txt"), [line])


class Listener(Component):
    """Notes facts, raises at some, and adds a page to the admin server."""

    facts: list[str]

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.facts = []

    @hookimpl
    def host_started(self) -> None:
        self.facts.append("started")
        raise RuntimeError("a listener that fails")

    @hookimpl
    def component_status(self, tier: str, component: str, status: str, reason: str) -> None:
        self.facts.append(f"{tier}.{component} {status}")

    @hookimpl
    def batch_quarantined(self, tier: str, component: str, reason: str, key: RangeKey, count: int) -> None:
        self.facts.append(f"quarantined {count} by {component}")

    @hookimpl
    def register_routes(self, app: web.Application) -> None:
        async def facts(_: web.Request) -> web.Response:
            return web.json_response(self.facts)

        app.router.add_get("/facts", facts)


class Down(Rows):
    """Rows, once the file `until` is there; before that each write hangs, or fails."""

    class Config(Rows.Config, frozen=True, kw_only=True):
        until: Annotated[str, Meta(description="File whose presence heals it.")]
        how: Annotated[str, Meta(description="hang or fail.")] = "hang"

    @hookimpl
    async def sink_write(self, batch: pa.RecordBatch, key: RangeKey) -> None:
        while not await asyncio.to_thread(Path(self.config.until).exists):
            if self.config.how == "fail":
                raise TransientError("the store is down")
            await asyncio.sleep(0.05)
        await super().sink_write(batch, key)
