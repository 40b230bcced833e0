"""A connection whose end is asked for at an awkward moment."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
import websockets
from aiohttp import web

from headrace.component import SystemClock
from headrace.log import Log
from headrace.metrics import Metrics
from headrace_ingest_ws import IngestWs
from headrace_ingest_ws.auth.identity import Identity
from headrace_ingest_ws.connection import Connection
from headrace_ingest_ws.counters import Counters
from headrace_ingest_ws.intake import Intake
from headrace_ingest_ws.parser import frame_buffer


def make_connection() -> Connection:
    counters, log = Counters(Metrics()), Log("test")
    bounds = {"rows_max": 10, "bytes_max": 1000, "wait_us_max": 0, "commits_in_flight": 1}
    intake = Intake(**bounds, clock=SystemClock(), counters=counters, log=log, fault=lambda name: None)
    return Connection(Identity("d1"), IngestWs.Config(auth="none", close_timeout_s=0.3), intake, counters, log, 0.0, frame_buffer()[0])


async def serve(handler: object) -> tuple[web.AppRunner, str]:
    app = web.Application()
    app.router.add_get("/", handler)  # type: ignore[arg-type]
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"ws://127.0.0.1:{runner.addresses[0][1]}/"


def test_an_end_asked_for_during_the_upgrade_comes_right_after_it() -> None:
    async def scenario() -> None:
        connection = make_connection()

        async def handler(request: web.Request) -> web.StreamResponse:
            await connection.finish(1012, "service restart")
            connection.serve(request, lambda: b"{}", lambda connection: None)
            return web.Response()

        runner, url = await serve(handler)
        async with websockets.connect(url) as ws:
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await ws.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012
        await runner.cleanup()

    asyncio.run(scenario())


def test_two_ends_asked_for_at_a_time_are_one_and_both_wait_for_it(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        connection = make_connection()

        async def handler(request: web.Request) -> web.StreamResponse:
            connection.serve(request, lambda: b"{}", lambda connection: None)
            return web.Response()

        runner, url = await serve(handler)
        async with websockets.connect(url) as ws:
            await kit.until(lambda: connection._transport is not None)
            await asyncio.gather(connection.finish(1012, "service restart"), connection.finish(1001, "silent"))
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await ws.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012
            assert connection._transport is not None
            assert connection._transport.is_closing()
        await runner.cleanup()

    asyncio.run(scenario())
