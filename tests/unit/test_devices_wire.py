"""The device client, the simulated fleet and the replay against a small server that speaks the device protocol."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from headrace.devices.client import DeviceClient
from headrace.devices.command import main
from headrace.devices.drive import Drive, drive
from headrace.devices.fleet import fleet
from headrace.devices.reconnect import GaveUp
from headrace.devices.replay import Replay, recordings
from headrace.devices.simulate import Simulation
from headrace.devices.totals import Totals


class FakeServer:
    """Stores what it takes per device, in order; each connection follows the next of `scripts`, then `serve` for good."""

    def __init__(self, *scripts: Callable[[FakeServer, web.Request], Awaitable[web.StreamResponse]], hello: bool = True) -> None:
        self.scripts, self.hello = list(scripts), hello
        self.stored: dict[str, list[bytes]] = {}
        self.sessions: list[tuple[str, int]] = []  # named on the upgrades of `in_session_then_drop`, with what was acked
        self.connections = 0
        self.left = asyncio.Event()  # a connection of `serve` ended
        self.twenty = asyncio.Event()  # twenty messages are stored

    async def __aenter__(self) -> FakeServer:
        app = web.Application()
        app.router.add_get("/v1/devices/{device}/events", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"ws://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.connections += 1
        script = self.scripts.pop(0) if self.scripts else serve
        return await script(self, request)

    async def accept(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(protocols=("headrace.v1.json",) if self.hello else ())
        await ws.prepare(request)
        if ws.ws_protocol:
            await ws.send_str('{"hello":{"queue_id":"q","level":"process","window":64}}')
        return ws

    def store(self, request: web.Request, text: str) -> None:
        self.stored.setdefault(request.match_info["device"], []).append(text.encode())
        if sum(map(len, self.stored.values())) >= 20:
            self.twenty.set()


async def serve(server: FakeServer, request: web.Request) -> web.StreamResponse:
    """Store and ack everything."""
    ws = await server.accept(request)
    count = 0
    async for frame in ws:
        server.store(request, frame.data)
        count += 1
        await ws.send_str(f'{{"ack":{count}}}')
    server.left.set()
    return ws


def serve_then_drop(count: int, acked: int) -> Callable[[FakeServer, web.Request], Awaitable[web.StreamResponse]]:
    """Store `count` messages, ack only the first `acked`, and cut the connection."""

    async def script(server: FakeServer, request: web.Request) -> web.StreamResponse:
        ws = await server.accept(request)
        for number in range(1, count + 1):
            server.store(request, (await ws.receive()).data)
            if number <= acked:
                await ws.send_str(f'{{"ack":{number}}}')
        assert request.transport
        request.transport.abort()
        return ws

    return script


def in_session_then_drop(count: int, acked: int) -> Callable[[FakeServer, web.Request], Awaitable[web.StreamResponse]]:
    """Go on with the session, store `count` messages, ack only the first `acked`, and cut the connection."""

    async def script(server: FakeServer, request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse(protocols=("headrace.v1.json",))
        await ws.prepare(request)
        session, stated = request.query["session"], int(request.query["acked"])
        server.sessions.append((session, stated))
        held = len(server.stored.get(request.match_info["device"], []))
        assert stated <= held
        await ws.send_json({"hello": {"window": 64, "session": session, "resume": held, "refused": []}})
        for number in range(1, count + 1):
            frame = await ws.receive()
            if frame.type is not aiohttp.WSMsgType.TEXT:
                return ws
            server.store(request, frame.data)
            if number <= acked:
                await ws.send_str(f'{{"ack":{held + number}}}')
        assert request.transport
        request.transport.abort()
        return ws

    return script


def close_with(code: int, reason: bytes = b"") -> Callable[[FakeServer, web.Request], Awaitable[web.StreamResponse]]:
    async def script(server: FakeServer, request: web.Request) -> web.StreamResponse:
        ws = await server.accept(request)
        await ws.receive()
        await ws.close(code=code, message=reason)
        return ws

    return script


def answer(status: int, **headers: str) -> Callable[[FakeServer, web.Request], Awaitable[web.StreamResponse]]:
    async def script(server: FakeServer, request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers={name.replace("_", "-"): value for name, value in headers.items()})

    return script


async def reject_odd(server: FakeServer, request: web.Request) -> web.StreamResponse:
    """Refuse every odd message for good."""
    ws = await server.accept(request)
    count = 0
    async for frame in ws:
        count += 1
        if count % 2:
            await ws.send_str(f'{{"reject":{count},"code":"payload_invalid","reason":"odd"}}')
        else:
            server.store(request, frame.data)
        await ws.send_str(f'{{"ack":{count}}}')
    return ws


async def too_fast_once(server: FakeServer, request: web.Request) -> web.StreamResponse:
    """Ask for the first message again."""
    ws = await server.accept(request)
    count = 0
    async for frame in ws:
        count += 1
        if count == 1:
            await ws.send_str('{"reject":1,"code":"rate","reason":"too fast","retry_ms":20}')
        else:
            server.store(request, frame.data)
        await ws.send_str(f'{{"ack":{count}}}')
    return ws


async def send_all(server: FakeServer, count: int, device: str = "pump 1/ä") -> Totals:
    """One client sends messages 1..count and waits until they are settled; a GaveUp passes through."""
    totals = Totals()
    async with aiohttp.ClientSession() as http:
        client = DeviceClient(http, server.url, device, totals, backoff_first_s=0.001, backoff_ceiling_s=0.01)
        run = asyncio.create_task(client.run())
        try:
            async with asyncio.timeout(20):
                for number in range(1, count + 1):
                    await client.send(b'{"n":%d}' % number)
                await client.settled()
        finally:
            if run.done():
                await run
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)
    return totals


def numbers(server: FakeServer, device: str = "pump 1/ä") -> list[int]:
    return [json.loads(payload)["n"] for payload in server.stored.get(device, [])]


@pytest.mark.parametrize("hello", [True, False])
def test_every_message_is_stored_once_and_acked(hello: bool) -> None:
    async def run() -> None:
        async with FakeServer(hello=hello) as server:
            totals = await send_all(server, 1500)
            assert numbers(server) == list(range(1, 1501))
            assert (totals.sent, totals.acked, totals.resent, totals.unacked) == (1500, 1500, 0, 0)
            assert totals.connections == 0
            assert totals.latency.count == 1500

    asyncio.run(run())


def test_acks_lost_with_the_connection_are_made_up_by_sending_again() -> None:
    async def run() -> None:
        async with FakeServer(serve_then_drop(40, acked=25), serve_then_drop(30, acked=0)) as server:
            totals = await send_all(server, 200)
            assert numbers(server) == [*range(1, 41), *range(26, 56), *range(26, 201)]
            assert (totals.acked, totals.unacked, totals.reconnects) == (200, 0, 2)
            assert totals.resent >= 15 + 30

    asyncio.run(run())


def test_in_a_session_nothing_is_sent_again_that_the_server_holds() -> None:
    async def run() -> None:
        async with FakeServer(in_session_then_drop(40, 25), in_session_then_drop(30, 0), in_session_then_drop(500, 500)) as server:
            totals = await send_all(server, 200)
            assert numbers(server) == list(range(1, 201))
            assert (totals.acked, totals.unacked, totals.reconnects) == (200, 0, 2)
            assert totals.resumed == (40 - server.sessions[1][1]) + (70 - server.sessions[2][1])
            (session,) = {name for name, _ in server.sessions}
            assert len(session) >= 16

    asyncio.run(run())


def test_a_refused_message_does_not_stop_the_others() -> None:
    async def run() -> None:
        async with FakeServer(reject_odd) as server:
            totals = await send_all(server, 20)
            assert numbers(server) == list(range(2, 21, 2))
            assert (totals.acked, totals.rejected, totals.unacked) == (10, 10, 0)
            assert totals.exit_code() == 1

    asyncio.run(run())


def test_a_message_refused_for_now_is_sent_again_and_acked() -> None:
    async def run() -> None:
        async with FakeServer(too_fast_once) as server:
            totals = await send_all(server, 5)
            assert sorted(numbers(server)) == [1, 2, 3, 4, 5]
            assert (totals.acked, totals.rejected, totals.resent) == (5, 0, 1)

    asyncio.run(run())


@pytest.mark.parametrize("status", [429, 503])
def test_a_refused_upgrade_is_tried_again(status: int) -> None:
    async def run() -> None:
        async with FakeServer(answer(status, Retry_After="0"), answer(status)) as server:
            totals = await send_all(server, 3)
            assert (totals.acked, totals.reconnects, server.connections) == (3, 0, 3)

    asyncio.run(run())


@pytest.mark.parametrize("code", [1012, 1013, 1001])
def test_a_server_that_restarts_gets_everything_again(code: int) -> None:
    async def run() -> None:
        async with FakeServer(close_with(code), close_with(code)) as server:
            totals = await send_all(server, 10)
            assert numbers(server) == list(range(1, 11))
            assert (totals.acked, totals.reconnects) == (10, 2)

    asyncio.run(run())


@pytest.mark.parametrize("code", [1008, 1009])
def test_a_close_for_good_ends_the_client_with_the_reason(code: int) -> None:
    async def run() -> None:
        async with FakeServer(close_with(code, b"not for you")) as server:
            with pytest.raises(GaveUp, match=rf"{code} .*: not for you"):
                await send_all(server, 3)
            assert server.connections == 1

    asyncio.run(run())


def test_an_unknown_device_is_refused_once() -> None:
    async def run() -> None:
        async with FakeServer(answer(401)) as server:
            with pytest.raises(GaveUp, match="HTTP 401"):
                await send_all(server, 3)
            assert server.connections == 1

    asyncio.run(run())


def test_a_server_that_acks_what_was_never_sent_is_not_believed() -> None:
    async def liar(server: FakeServer, request: web.Request) -> web.StreamResponse:
        ws = await server.accept(request)
        await ws.send_str('{"ack":99999}')
        await ws.receive()
        return ws

    async def run() -> None:
        async with FakeServer(liar) as server:
            with pytest.raises(GaveUp, match="got 99999"):
                await send_all(server, 3)

    asyncio.run(run())


def test_a_server_that_is_not_there_yet_is_waited_for() -> None:
    async def run() -> None:
        async with FakeServer() as server:
            url = server.url
        server = FakeServer()
        totals = Totals()
        async with aiohttp.ClientSession() as http:
            client = DeviceClient(http, url, "d", totals, backoff_first_s=0.001, backoff_ceiling_s=0.01)
            client.offer(b'{"n":1}')
            run = asyncio.create_task(client.run())
            await asyncio.sleep(0.02)
            assert not run.done()
            assert "onnect" in totals.trouble
            app = web.Application()
            app.router.add_get("/v1/devices/{device}/events", server._handle)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", int(url.rpartition(":")[2])).start()
            async with asyncio.timeout(20):
                await client.settled()
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)
            await runner.cleanup()
        assert (totals.acked, totals.unacked, totals.trouble) == (1, 0, "")

    asyncio.run(run())


def test_a_device_that_is_called_back_does_not_wait_for_the_end_of_its_outage() -> None:
    async def run() -> None:
        async with FakeServer() as server, aiohttp.ClientSession() as http:
            totals = Totals()
            client = DeviceClient(http, server.url, "d", totals, backoff_first_s=0.001)
            client.offer(b'{"n":1}')
            client.go_offline(3600)
            run = asyncio.create_task(client.run())
            async with asyncio.timeout(20):
                await server.left.wait()
                client.come_back()
                await client.settled()
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)
            assert numbers(server, "d") == [1]

    asyncio.run(run())


def test_a_device_that_goes_offline_sends_afterwards_what_it_collected() -> None:
    async def run() -> None:
        async with FakeServer() as server, aiohttp.ClientSession() as http:
            totals = Totals()
            client = DeviceClient(http, server.url, "d", totals, backoff_first_s=0.001)
            run = asyncio.create_task(client.run())
            async with asyncio.timeout(20):
                client.offer(b'{"n":1}')
                await client.settled()
                client.go_offline(0.1)
                await server.left.wait()
                client.offer(b'{"n":2}')
                await client.settled()
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)
            assert numbers(server, "d") == [1, 2]
            assert (server.connections, totals.reconnects, totals.acked) == (2, 0, 2)

    asyncio.run(run())


# --- the commands ----------------------------------------------------------------------------------------------------


def recorded(folder: Path) -> tuple[list[Path], Path]:
    """Two recordings and their devices CSV; a duplicate timestamp and odd digits included."""
    (folder / "hall.csv").write_text(
        "timestamp,value\n2013-07-04 00:00:00,69.88083514\n2013-07-04 00:00:00,7.0\n2013-07-04T01:00:00+02:00,1e3\n"
    )
    (folder / "road.csv").write_text("timestamp,value\n2015-01-01 00:00:00.5,-0\n2015-01-01 00:00:01,74.93588199999998\n")
    (folder / "devices.csv").write_text(
        "device,class,type,site,latitude,longitude,metric,unit,file\n"
        "hall-1,building,thermometer,office,37.4,-122.2,temperature,Cel,hall.csv\n"
        "road-1,traffic,loop,city,44.9,-93.2,occupancy,%,road.csv\n"
    )
    return [folder / "hall.csv", folder / "road.csv"], folder / "devices.csv"


async def drive_to(server: FakeServer, devices: list[str], feed: Any, **settings: Any) -> tuple[Totals, dict[str, Any], str]:
    out, err = io.StringIO(), io.StringIO()
    how = Drive(url=server.url, devices=devices, window=64, capacity=128, seed=3, as_json=True, out=out, err=err, **settings)
    async with asyncio.timeout(30):
        totals = await drive(how, feed)
    return totals, json.loads(out.getvalue()), err.getvalue()


@pytest.mark.parametrize("speed", [None, 1e6])
def test_replay_sends_every_row_in_file_order_with_the_digits_of_the_file(tmp_path: Path, speed: float | None) -> None:
    async def run() -> None:
        files, devices_csv = recorded(tmp_path)
        sources = recordings([*files, devices_csv], devices_csv)
        async with FakeServer() as server:
            totals, summary, _ = await drive_to(server, [source.device for source in sources], Replay(sources, speed).feed)
            assert server.stored == {
                "hall-1": [
                    b'{"ts":"2013-07-04T00:00:00Z","temperature":69.88083514}',
                    b'{"ts":"2013-07-04T00:00:00Z","temperature":7.0}',
                    b'{"ts":"2013-07-03T23:00:00Z","temperature":1e3}',
                ],
                "road-1": [
                    b'{"ts":"2015-01-01T00:00:00.500000Z","occupancy":-0}',
                    b'{"ts":"2015-01-01T00:00:01Z","occupancy":74.93588199999998}',
                ],
            }
            assert totals.exit_code() == 0
            assert (summary["sent"], summary["acked"], summary["unacked"]) == (5, 5, 0)

    asyncio.run(run())


def test_replay_names_file_and_line_of_a_refused_row(tmp_path: Path) -> None:
    async def run() -> None:
        files, devices_csv = recorded(tmp_path)
        sources = recordings(files[:1], devices_csv)
        async with FakeServer(reject_odd) as server:
            totals, summary, err = await drive_to(server, ["hall-1"], Replay(sources, None).feed, tag_text=str)
            assert f"rejected {files[0]}:2: payload_invalid: odd" in err
            assert f"rejected {files[0]}:4: payload_invalid: odd" in err
            assert summary["rejects_by_code"] == {"payload_invalid": 2}
            assert totals.exit_code() == 1

    asyncio.run(run())


def test_one_device_that_gives_up_does_not_stop_the_others(tmp_path: Path) -> None:
    async def run() -> None:
        files, devices_csv = recorded(tmp_path)
        sources = recordings(files, devices_csv)

        async def by_device(server: FakeServer, request: web.Request) -> web.StreamResponse:
            script = close_with(1008, b"revoked") if request.match_info["device"] == "hall-1" else serve
            return await script(server, request)

        async with FakeServer(by_device, by_device) as server:
            totals, summary, err = await drive_to(server, ["hall-1", "road-1"], Replay(sources, None).feed)
            assert len(server.stored["road-1"]) == 2
            assert "device 'hall-1' gave up" in err
            assert (summary["gave_up"], summary["unacked"]) == (1, 3)
            assert totals.exit_code() == 1

    asyncio.run(run())


def test_simulation_sends_the_fleets_rate_and_every_event_is_acked() -> None:
    async def run() -> None:
        devices = fleet(20, seed=5)
        async with FakeServer() as server:
            simulation = Simulation(devices, rate=400, seconds=1.0, seed=5)
            _, summary, _ = await drive_to(server, [device.device for device in devices], simulation.feed)
            assert summary["acked"] == summary["sent"] == sum(map(len, server.stored.values()))
            assert 200 < summary["acked"] <= 420
            assert set(server.stored) == {device.device for device in devices}

    asyncio.run(run())


def test_a_run_whose_devices_all_gave_up_ends() -> None:
    async def run() -> None:
        devices = fleet(3)
        async with FakeServer(answer(403), answer(403), answer(403)) as server:
            simulation = Simulation(devices, rate=100, seconds=0, seed=1)
            totals, summary, _ = await drive_to(server, [device.device for device in devices], simulation.feed)
            assert summary["gave_up"] == 3
            assert totals.exit_code() == 1

    asyncio.run(run())


def test_a_run_ends_when_the_last_acks_do_not_come() -> None:
    async def silent(server: FakeServer, request: web.Request) -> web.StreamResponse:
        ws = await server.accept(request)
        async for _ in ws:
            pass
        return ws

    async def run() -> None:
        async with FakeServer(silent) as server:

            async def feed(clients: Any, stop: asyncio.Event) -> None:
                await clients[0].send(b"{}")

            totals, summary, _ = await drive_to(server, ["d"], feed, settle_s=0.2)
            assert (summary["acked"], summary["unacked"]) == (0, 1)
            assert totals.exit_code() == 1

    asyncio.run(run())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_with_its_summary(number: signal.Signals) -> None:
    async def run() -> None:
        async with FakeServer() as server:
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                "import sys; from headrace.devices.command import main; sys.exit(main(sys.argv[1:]))",
                *("simulate", "--url", server.url, "--count", "5", "--rate", "200", "--json"),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            async with asyncio.timeout(30):
                await server.twenty.wait()
                child.send_signal(number)
                out, err = await child.communicate()
            summary = json.loads(out)
            assert child.returncode == 0, err
            assert summary["acked"] == summary["sent"] == sum(map(len, server.stored.values())) >= 20

    asyncio.run(run())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["simulate", "--count", "0"], "expected a whole number >= 1, got 0"),
        (["simulate", "--rate", "-1"], "expected a number > 0, got -1"),
        (["simulate", "--rate", "nan"], "expected a number > 0, got nan"),
        (["replay", "x.csv"], "--devices"),
        (["simulate", "--url", "localhost:8080"], "expected ws://HOST:PORT or wss://HOST:PORT, got 'localhost:8080'"),
        (["simulate", "--url", "http://127.0.0.1:8080"], "expected ws://HOST:PORT"),
        (["replay", "x.csv", "--devices", "d.csv", "--speed", "0"], "expected a number > 0, got 0"),
        ([], "COMMAND"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_broken_recording_sends_nothing_and_names_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, devices_csv = recorded(tmp_path)
    files[1].write_text("timestamp,value\n2015-01-01 00:00:00,1\n2015-01-01 00:00:01,warm\n")
    assert main(["replay", *map(str, files), "--devices", str(devices_csv), "--url", "ws://127.0.0.1:9"]) == 2
    assert f"{files[1]}:3: expected a number in the field value, got 'warm'" in capsys.readouterr().err


def test_help_says_what_the_rate_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["simulate", "--help"])
    assert ended.value.code == 0
    assert "whole fleet together" in " ".join(capsys.readouterr().out.split())
