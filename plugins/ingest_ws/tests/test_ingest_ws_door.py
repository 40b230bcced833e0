"""Before the upgrade: slow, silent, greedy and senseless clients are bounded in number and time, and counted by reason."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.testing import FakeClock
from headrace_ingest_ws.lobby import BEGUN_PER_TURN, CLOSED_PER_TURN, Lobby
from headrace_ingest_ws.polling import ENDS_PER_TURN, PolledTransport

pytestmark = pytest.mark.usefixtures("each_loop")

ATTACKERS = 2000 if os.environ.get("HEADRACE_FULL") else 300

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def honest_exchange(kit: SimpleNamespace, site: SimpleNamespace, **options: Any) -> None:
    async with site.connect("honest", **options) as ws:
        await ws.send('{"ok":1}')
        await kit.receive_until_ack(ws, 1)


async def read_to_end(reader: asyncio.StreamReader) -> bytes:
    try:
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionError:
        return b""


def refused(site: SimpleNamespace, reason: str) -> float:
    return float(site.metric("ingest_refused_connections_total", reason=reason))


def places(site: SimpleNamespace) -> tuple[int, int]:
    found = site.component._server._places
    return found.waiting, found.sockets


def test_a_header_that_comes_byte_by_byte_and_a_socket_that_sends_nothing_are_closed_in_time(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        clock = FakeClock()
        async with kit.running(clock=clock, request_timeout_s=15.0) as site:
            slow, silent = [await asyncio.open_connection(*site.address) for _ in range(2)]
            await kit.until(lambda: places(site) == (2, 2))
            for byte in b"GET /v1/dev":
                slow[1].write(bytes((byte,)))
                await clock.advance(1.0)
                await asyncio.sleep(0.002)
            assert places(site) == (2, 2)
            await clock.advance(6.0)
            assert await read_to_end(slow[0]) == b""
            assert await read_to_end(silent[0]) == b""
            assert refused(site, "header_timeout") == 2
            assert places(site) == (0, 0)
            await honest_exchange(kit, site)

    asyncio.run(scenario())


def test_the_second_request_of_a_connection_has_to_come_in_time_too(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running(request_timeout_s=0.3) as site:
            reader, writer = await asyncio.open_connection(*site.address)
            writer.write(b"POST /v1/devices/d1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}GET /v1/dev")
            answer = await read_to_end(reader)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.count(b"HTTP/1.1") == 1
            writer.close()
            await kit.until(lambda: places(site) == (0, 0))

    asyncio.run(scenario())


def test_hundreds_of_slow_headers_hold_only_the_places_there_are_and_honest_devices_come_in(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        clock = FakeClock()
        async with kit.running(clock=clock, handshakes_max=50, request_timeout_s=400.0) as site:
            attackers: list[Streams] = [await asyncio.open_connection(*site.address) for _ in range(ATTACKERS)]
            for _, writer in attackers:
                writer.write(b"GET /v1/devices/d1/events HTTP/1.1\r\nX:")
            await kit.until(lambda: places(site) == (50, 50))
            honest = asyncio.create_task(honest_exchange(kit, site))
            await clock.advance(99.0)
            await asyncio.sleep(0.05)
            assert refused(site, "evicted") == 0, "nobody has waited for long"
            while not honest.done():
                await clock.advance(101.0)
                for _ in range(4):
                    await asyncio.sleep(0.01)
                    assert max(places(site)) <= 51
            await honest
            assert refused(site, "evicted") >= ATTACKERS - 50
            assert await read_to_end(attackers[0][0]) == b""
            for _, writer in attackers:
                writer.transport.abort()
            await kit.until(lambda: places(site) == (0, 0))

    asyncio.run(scenario())


def test_connections_kept_alive_between_requests_make_room_too(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running(handshakes_max=3) as site:
            idle = [await asyncio.open_connection(*site.address) for _ in range(3)]
            for reader, writer in idle:
                writer.write(b"POST /v1/devices/d1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
                await reader.readuntil(b"}")
            await honest_exchange(kit, site)
            assert refused(site, "evicted") == 1
            assert await read_to_end(idle[0][0]) == b""

    asyncio.run(scenario())


def test_posts_under_way_are_never_evicted_and_a_newcomer_waits(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.gate.clear()
        async with kit.running(deliver, handshakes_max=2) as site:
            posts = [await asyncio.open_connection(*site.address) for _ in range(2)]
            for _, writer in posts:
                writer.write(b"POST /v1/devices/d1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
            await kit.until(lambda: site.metric("ingest_received_events_total") == 2)
            newcomer = asyncio.create_task(kit.http(site.address, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
            await asyncio.sleep(0.1)
            assert places(site) == (2, 2)
            deliver.gate.set()
            for reader, _ in posts:
                assert (await read_to_end(reader)).startswith(b"HTTP/1.1 200 ")
            assert (await newcomer)[0] == 404

    asyncio.run(scenario())


def test_an_address_has_a_bound_of_its_own_from_accept_on(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running(connections_per_address_max=3) as site:
            silent, _half = [await asyncio.open_connection(*site.address) for _ in range(2)]
            upgraded = await site.raw()
            status, headers, body = await kit.http(site.address, b"GET / HTTP/1.1\r\n\r\n")
            assert (status, headers["retry-after"], json.loads(body)["code"]) == (429, "5", "quota")
            assert refused(site, "address") == 1
            await honest_exchange(kit, site, local_addr=("127.0.0.2", 0))
            silent[1].close()
            await kit.until(lambda: places(site)[1] == 2)
            await honest_exchange(kit, site)
            upgraded.writer.close()
            await kit.until(lambda: places(site)[1] == 1)

    asyncio.run(scenario())


def test_an_address_opens_connections_no_faster_than_it_may(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running(connections_per_address_per_s_max=0.3) as site:
            kept = [await site.raw() for _ in range(3)]
            status, headers, body = await kit.http(site.address, b"GET / HTTP/1.1\r\n\r\n")
            assert (status, headers["retry-after"], json.loads(body)["code"]) == (429, "4", "quota")
            assert json.loads(body)["retry_ms"] == 4000
            assert (refused(site, "address_rate"), places(site)[1]) == (1, 3)
            await honest_exchange(kit, site, local_addr=("127.0.0.2", 0))
            kept[0].text(b"{}")
            assert await kept[0].receive() == (1, b'{"ack":1}'), "those that are in stay"

    asyncio.run(scenario())


def test_a_header_without_end_is_cut_off_at_its_bound(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            reader, writer = await asyncio.open_connection(*site.address)
            writer.write(b"GET /v1/devices/d1/events HTTP/1.1\r\nX: " + b"x" * 20_000)
            assert await read_to_end(reader) == b""
            assert refused(site, "header_bytes") == 1
            await honest_exchange(kit, site)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "garbage",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"\x00", b"GET\r\n\r\n", b"HELO x\n\n", b"GET / HTTP/1.1\r\nbad header\r\n\r\n"],
    ids=["tls", "zero", "no target", "smtp", "header"],
)
def test_what_is_no_http_is_refused_at_once_and_counted(kit: SimpleNamespace, garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            reader, writer = await asyncio.open_connection(*site.address)
            writer.write(garbage)
            answer = await read_to_end(reader)
            assert answer.partition(b"\r\n")[0].endswith(b" 400 Bad Request")
            assert b'"code":"http_error"' in answer
            assert site.metric("ingest_refused_requests_total", status="400", reason="malformed") == 1
            assert places(site) == (0, 0)

    asyncio.run(scenario())
    assert "Traceback" not in caplog.text


def test_answers_that_are_never_read_do_not_hold_a_place_for_ever(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        clock = FakeClock()
        async with kit.running(clock=clock, write_timeout_s=30.0) as site:
            site.component._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, site.address)
            request = b"POST /v1/devices/d1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nnope"
            sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(sock, request * 20_000))
            await kit.until(lambda: any(handler._paused for handler in site.component._server._lobby._handlers()))
            await clock.advance(2.0)
            await clock.advance(29.0)
            assert places(site) == (1, 1)
            await clock.advance(5.0)
            await kit.until(lambda: places(site) == (0, 0))
            assert refused(site, "unread") == 1
            sending.cancel()
            await asyncio.wait([sending])
            sock.close()

    asyncio.run(scenario())


def test_no_more_open_files_pauses_accepting_and_the_open_connections_go_on(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        async with kit.running() as site:
            client = await site.raw()
            sock = socket.socket()
            sock.setblocking(False)
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (sock.fileno() + 1, limits[1]))
                await asyncio.get_running_loop().sock_connect(sock, site.address)
                await kit.until(lambda: refused(site, "files") >= 1)
                client.text(b"{}")
                assert await asyncio.wait_for(client.receive(), 10) == (1, b'{"ack":1}')
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            await kit.until(lambda: places(site)[1] == 2)
            sock.close()
            await honest_exchange(kit, site)

    asyncio.run(scenario())


def test_the_limit_of_open_files_is_raised_to_what_the_connections_need(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (512, limits[1]))
            async with kit.running(connections_max=1000, handshakes_max=100):
                assert resource.getrlimit(resource.RLIMIT_NOFILE) == (1000 + 100 + 512, limits[1])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    asyncio.run(scenario())


def test_a_limit_of_open_files_that_is_too_low_is_said_at_once(kit: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with kit.running(connections_max=1_000_000):
            pass

    asyncio.run(scenario())
    assert "fewer files may be open than all connections need" in caplog.text


class Turns:
    """Counts the turns of the loop, and in which of them something was called."""

    def __init__(self) -> None:
        self.count = 0
        self.calls: list[int] = []
        asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self.count += 1
        asyncio.get_running_loop().call_soon(self._turn)

    def watch(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        call = getattr(owner, name)

        def called(*words: Any) -> Any:
            self.calls.append(self.count)
            return call(*words)

        monkeypatch.setattr(owner, name, called)

    @property
    def most(self) -> int:
        return max(map(self.calls.count, set(self.calls)))


def test_requests_that_come_together_go_to_aiohttp_in_one_turn_after_the_other(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with kit.running(clock=FakeClock()) as site:
            streams = [await asyncio.open_connection(*site.address) for _ in range(30)]
            await kit.until(lambda: places(site) == (30, 30))
            turns = Turns()
            turns.watch(monkeypatch, Lobby, "_begin")
            for number, (_, writer) in enumerate(streams):
                writer.write(b"POST /v1/devices/d%d/events HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{" % number)
            await asyncio.sleep(0)
            for _, writer in streams[:-1]:
                writer.write(b"}")  # while the request waits for its turn, or behind it
            streams[-1][1].transport.abort()
            for reader, writer in streams[:-1]:
                assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 200 ")
                writer.close()
            await kit.until(lambda: places(site) == (0, 0))
            assert turns.most == BEGUN_PER_TURN
            assert 29 <= len(turns.calls) <= 30

    asyncio.run(scenario())


def test_sockets_that_time_out_together_are_closed_some_at_a_time(kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        clock = FakeClock()
        async with kit.running(clock=clock, request_timeout_s=15.0) as site:
            streams = [await asyncio.open_connection(*site.address) for _ in range(3 * CLOSED_PER_TURN + 1)]
            await kit.until(lambda: places(site) == (len(streams), len(streams)))
            turns = Turns()
            turns.watch(monkeypatch, Lobby, "turn_out")
            await clock.advance(20.0)
            for reader, _ in streams:
                assert await read_to_end(reader) == b""
            assert (len(turns.calls), turns.most) == (len(streams), CLOSED_PER_TURN)
            assert (refused(site, "header_timeout"), places(site)) == (len(streams), (0, 0))

    asyncio.run(scenario())


def test_connections_that_leave_together_are_looked_after_some_at_a_time(kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            clients = [await site.raw(f"d{number}") for number in range(3 * ENDS_PER_TURN + 1)]
            staying = await site.raw("staying")
            await kit.until(lambda: site.metric("ingest_connections") == len(clients) + 1)
            turns = Turns()
            turns.watch(monkeypatch, PolledTransport, "gone")
            for client in clients:
                client.writer.transport.abort()
            staying.text(b"{}")
            assert await asyncio.wait_for(staying.receive(), 10) == (1, b'{"ack":1}')
            await kit.until(lambda: site.metric("ingest_connections") == 1)
            assert len(turns.calls) == len(clients)
            assert turns.most <= ENDS_PER_TURN
            staying.text(b"{}")
            assert await asyncio.wait_for(staying.receive(), 10) == (1, b'{"ack":2}')

    asyncio.run(scenario())
