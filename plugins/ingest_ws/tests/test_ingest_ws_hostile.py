"""Clients that break rules, stall, lie or vanish: each is answered or cut off, and honest ones notice nothing."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.testing import FakeClock

pytestmark = pytest.mark.usefixtures("each_loop")


async def honest_exchange(kit: SimpleNamespace, site: SimpleNamespace) -> None:
    async with site.connect("honest") as ws:
        await ws.send('{"ok":1}')
        await asyncio.wait_for(kit.receive_until_ack(ws, 1), 5)


def stalled(site: Any) -> bool:
    """The only connection's acks cannot be written, and its window is closed."""
    sessions = [connection._session for connection in site.component._server._connections]
    return all(session.ack_due and not session.open for session in sessions) and bool(sessions)


def test_wrong_utf8_is_rejected_then_closed_with_1007_after_earlier_acks(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.gate.clear()
        async with kit.running(deliver) as site:
            client = await site.raw()
            client.text(b'{"n":1}')
            client.text(b'{"n":"\xff"}')
            client.text(b'{"n":3}')
            await kit.until(lambda: deliver.under_way == 1)
            deliver.gate.set()
            texts, code = await client.receive_until_closed()
            assert code == 1007
            assert texts[-1] == {"ack": 2}
            (reject,) = [text for text in texts if "reject" in text]
            assert (reject["reject"], reject["code"]) == (2, "payload_invalid")
            assert deliver.payloads == [b'{"n":1}']
            await honest_exchange(kit, site)
            await kit.until(lambda: site.metric("ingest_connections_closed_total", code="1007") == 1)

    asyncio.run(scenario())


def test_a_message_of_exactly_the_limit_is_taken_and_a_longer_one_closes_with_1009_after_the_acks(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        async with kit.running(deliver, message_bytes_max=200) as site:
            client = await site.raw()
            fits = b'{"n":"' + b"x" * 192 + b'"}'
            client.text(fits)
            await kit.until(lambda: site.metric("ingest_received_events_total") == 1)
            client.text(fits + b" ")
            texts, code = await client.receive_until_closed()
            assert (len(fits), code) == (200, 1009)
            assert [text for text in texts if "reject" in text] == [
                {"reject": 2, "code": "too_large", "reason": "expected a message of at most 200 bytes"}
            ]
            assert texts[-1] == {"ack": 2}
            assert deliver.payloads == [fits]
            await kit.until(lambda: site.metric("ingest_connections_closed_total", code="1009") == 1)
            assert site.metric("ingest_rejected_events_total", reason="too_large") == 1

    asyncio.run(scenario())


def test_half_messages_share_a_bound_and_who_ends_its_message_is_taken(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        whole = b'{"n":"' + b"x" * 131_000 + b'"}'
        async with kit.running(unfinished_bytes_max=1 << 20) as site:
            clients = [await site.raw(device=f"half-{number}") for number in range(12)]
            frames = [kit.frame(1, whole) for _ in clients]
            for client, frame in zip(clients, frames, strict=True):
                client.send(frame[:-1])
            reading = [asyncio.ensure_future(client.receive_until_closed()) for client in clients]
            await kit.until(lambda: sum(one.done() for one in reading) == 4)
            assert [one.result()[1] for one in reading if one.done()] == [1013] * 4
            assert site.metric("ingest_refused_connections_total", reason="unfinished") == 4
            assert "ingest_rejected_events_total" not in site.exposition(), "what is not acked is sent again"
            await honest_exchange(kit, site)
            assert [one.result()[0] for one in reading if one.done()] == [[]] * 4
            for client, frame, one in zip(clients, frames, reading, strict=True):
                if one.cancel():  # it has read nothing yet
                    await asyncio.wait([one])
                    client.send(frame[-1:])
                    assert await client.receive() == (1, b'{"ack":1}')
            assert site.metric("ingest_acked_events_total") == 9

    asyncio.run(scenario())


def test_fragments_count_together_against_the_limit(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running(message_bytes_max=100) as site:
            client = await site.raw()
            client.send(kit.frame(1, b'{"n":', fin=False) + kit.frame(9, b"are you there") + kit.frame(0, b"1}"))
            assert await client.receive() == (10, b"are you there")
            assert await client.receive() == (1, b'{"ack":1}')
            for _ in range(5):
                client.send(kit.frame(1 if not _ else 0, b" " * 30, fin=False))
            assert (await client.receive_until_closed())[1] == 1009

    asyncio.run(scenario())


def test_the_goodbye_reaches_a_client_that_goes_on_sending_megabytes(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            client = await site.raw()
            client.text(b'{"n":1}')
            client.send(kit.frame(1, b"", announced=8 << 20) + b"x" * (8 << 20))
            texts, code = await asyncio.wait_for(client.receive_until_closed(), 10)
            assert (texts[-1], code) == ({"ack": 2}, 1009)

    asyncio.run(scenario())


def test_an_announced_frame_of_ten_gigabytes_is_refused_at_its_header(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            client = await site.raw()
            client.send(kit.frame(1, b"", announced=10 << 30))
            assert (await client.receive_until_closed())[1] == 1009
            await honest_exchange(kit, site)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "broken", [b"\xf1\x80" + b"\0" * 4, b"\x83\x80" + b"\0" * 4, b"\x09\x80" + b"\0" * 4], ids=["reserved bits", "opcode", "cut ping"]
)
def test_a_frame_that_breaks_the_protocol_closes_with_1002_after_earlier_acks(kit: SimpleNamespace, broken: bytes) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            client = await site.raw()
            client.text(b'{"n":1}')
            client.send(broken)
            texts, code = await client.receive_until_closed()
            assert (texts, code) == ([{"ack": 1}], 1002)

    asyncio.run(scenario())


def test_garbage_behind_the_upgrade_never_hurts_others(kit: SimpleNamespace) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print("seed", seed)
    rng = random.Random(seed)

    async def scenario() -> None:
        async with kit.running(close_timeout_s=0.2) as site:
            clients = [await site.raw(f"g{number}") for number in range(30)]
            for client in clients:
                client.send(rng.randbytes(rng.randrange(1, 400)))
                client.writer.write_eof()
            await honest_exchange(kit, site)
            for client in clients:
                client.writer.transport.abort()
            await kit.until(lambda: site.metric("ingest_connections") == 0)
            assert not site.task.done()
            received = site.metric("ingest_received_events_total")
            rejected = sum(site.metric("ingest_rejected_events_total", reason=code) for code in ("payload_invalid", "too_large"))
            assert received == rejected + site.metric("ingest_acked_events_total")

    asyncio.run(scenario())


def test_a_silent_client_gets_a_ping_and_then_1001_and_one_that_answers_stays(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        clock = FakeClock()
        async with kit.running(clock=clock, idle_timeout_s=10.0) as site:
            silent, lively = await site.raw("silent"), await site.raw("lively")
            await kit.until(lambda: site.metric("ingest_connections") == 2)
            for _ in range(4):
                await clock.advance(4.0)
                lively.send(kit.frame(10, b""))
                await asyncio.sleep(0.02)
            assert await silent.receive() == (9, b"")
            assert await silent.receive_until_closed() == ([], 1001)
            await kit.until(lambda: site.metric("ingest_connections_closed_total", code="1001") == 1)
            lively.text(b'{"n":1}')
            while (answer := await asyncio.wait_for(lively.receive(), 5))[0] == 9:
                pass
            assert answer == (1, b'{"ack":1}')

    asyncio.run(scenario())


def test_who_has_long_been_calm_has_all_its_time_for_what_comes_then(kit: SimpleNamespace) -> None:
    """C looks after connections of which all is plain: what Python knows of their times is older than that."""

    async def scenario() -> None:
        clock, deliver = FakeClock(), kit.FakeDeliver()
        options = {"idle_timeout_s": 1000.0, "message_timeout_s": 20.0, "connection_age_s_max": 300.0, "connection_age_jitter_ratio": 0.0}
        async with kit.running(deliver, clock=clock, **options) as site:
            client, other = await site.raw(), await site.raw("d2")
            for peer in (client, other):
                peer.text(b"{}")
                assert await peer.receive() == (1, b'{"ack":1}')
            for _ in range(50):
                await clock.advance(4.0)
            late = kit.frame(1, b'{"n":2}')
            client.send(late[:8])
            await asyncio.sleep(0.02)
            for _ in range(4):
                await clock.advance(4.0)
            assert site.metric("ingest_connections") == 2, "a message that began late was called late"
            client.send(late[8:])
            assert await client.receive() == (1, b'{"ack":2}')
            client.send(late[:8])
            await asyncio.sleep(0.02)
            for _ in range(6):
                await clock.advance(4.0)
            assert (await client.receive_until_closed())[1] == 1008
            for _ in range(16):
                await clock.advance(4.0)
            assert (await other.receive_until_closed())[1] == 1012, "calm, and old enough all the same"

    asyncio.run(scenario())


def test_silence_counts_from_the_last_message_of_a_calm_connection(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        clock = FakeClock()
        async with kit.running(clock=clock, idle_timeout_s=40.0) as site:
            client = await site.raw()
            for number in range(1, 30):  # far longer than the timeout
                client.text(b"{}")
                assert await client.receive() == (1, b'{"ack":%d}' % number), "no ping before half of the time"
                await clock.advance(4.0)
            for _ in range(3):
                await clock.advance(4.0)
            client.text(b"{}")
            assert await client.receive() == (1, b'{"ack":30}'), "no ping before half of the time"
            for _ in range(6):
                await clock.advance(4.0)
            assert await client.receive() == (9, b"")
            for _ in range(5):
                await clock.advance(4.0)
            assert await client.receive_until_closed() == ([], 1001)

    asyncio.run(scenario())


def test_a_connection_that_is_not_read_is_never_called_idle(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        clock, deliver = FakeClock(), kit.FakeDeliver()
        deliver.gate.clear()
        async with kit.running(deliver, clock=clock, idle_timeout_s=10.0, window_messages=1) as site:
            client = await site.raw()
            client.text(b'{"n":1}')
            client.text(b'{"n":2}')
            await kit.until(lambda: deliver.under_way == 1)
            await clock.advance(60.0)
            deliver.gate.set()
            assert await client.receive() == (1, b'{"ack":1}')
            assert await client.receive() == (1, b'{"ack":2}')

    asyncio.run(scenario())


def test_a_client_that_never_reads_its_acks_is_bounded_and_then_cut_off(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        clock = FakeClock()
        async with kit.running(clock=clock, window_messages=100, write_timeout_s=30.0) as site:
            # accepted sockets inherit it, so that the kernel takes few acks
            site.component._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            client = await site.raw(receive_buffer=4096)
            client.writer.transport.pause_reading()
            sending = asyncio.create_task(_send_forever(client, kit.frame(1, b"bad" * 10)))
            await kit.until(lambda: stalled(site))
            received = -1.0
            while received != (received := site.metric("ingest_received_events_total")):  # noqa: ASYNC110  the kernel may take more
                await asyncio.sleep(0.1)
            assert received < 20_000, "the window is closed and the socket is not read"
            await honest_exchange(kit, site)
            await clock.advance(29.0)
            assert site.metric("ingest_connections_closed_total", code="1006") == 0
            await clock.advance(5.0)
            await kit.until(lambda: site.metric("ingest_connections_closed_total", code="1006") == 1)
            sending.cancel()
            await asyncio.wait([sending])
            client.writer.transport.abort()

    asyncio.run(scenario())


@pytest.mark.parametrize("goodbye", ["failure", "drain"])
def test_a_client_that_never_reads_cannot_hold_up_the_end(kit: SimpleNamespace, goodbye: str) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        async with kit.running(deliver, close_timeout_s=0.3, window_messages=1000) as site:
            site.component._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            client = await site.raw(receive_buffer=4096)
            client.writer.transport.pause_reading()
            sending = asyncio.create_task(_send_forever(client, kit.frame(1, b"bad" * 10)))
            await kit.until(lambda: stalled(site))
            if goodbye == "failure":
                deliver.script.append(RuntimeError("bug"))
                async with site.connect("honest") as ws:
                    await ws.send('{"ok":1}')
                    await asyncio.wait([site.task], timeout=10)
            else:
                await site.component.drain(10.0)
                await asyncio.wait([site.task], timeout=10)
            assert site.task.done()
            assert site.metric("ingest_connections") == 0
            sending.cancel()
            await asyncio.wait([sending])
            client.writer.transport.abort()

    asyncio.run(scenario())


def test_a_flood_of_pings_that_are_never_read_is_bounded(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running(close_timeout_s=0.3) as site:
            site.component._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            client = await site.raw(receive_buffer=4096)
            client.writer.transport.pause_reading()
            for _ in range(5000):
                client.send(kit.frame(9, b"p" * 125))
            client.text(b'{"n":1}')
            await kit.until(lambda: site.metric("ingest_acked_events_total") == 1)
            (connection,) = site.component._server._connections
            assert connection._transport.get_write_buffer_size() < 80_000
            client.writer.transport.abort()

    asyncio.run(scenario())


async def _send_forever(client: SimpleNamespace, data: bytes) -> None:
    while True:
        client.send(data)
        await client.writer.drain()


def test_half_a_request_is_not_waited_for_longer_than_the_timeout(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running(request_timeout_s=0.3, close_timeout_s=0.3) as site:
            reader, writer = await asyncio.open_connection(*site.address)
            writer.write(b"GET /v1/devices/d1/events HTTP/1.1\r\nHost: x\r\n")
            assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()
            half_body = b"POST /v1/devices/d1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 10\r\n\r\n{"
            assert (await kit.http(site.address, half_body))[0] == 408

    asyncio.run(scenario())


def test_a_handshake_without_key_or_with_an_unknown_version_is_refused(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            for headers in (
                b"Sec-WebSocket-Version: 5\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
                b"Sec-WebSocket-Version: 13\r\n",
            ):
                request = (
                    b"GET /v1/devices/d1/events HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + headers + b"\r\n"
                )
                reader, writer = await asyncio.open_connection(*site.address)
                writer.write(request)
                assert (await reader.readline()).split()[1] == b"400"
                writer.close()
            await kit.until(lambda: site.metric("ingest_connections") == 0)

    asyncio.run(scenario())


def test_bytes_right_behind_the_upgrade_request_are_not_lost(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            reader, writer = await asyncio.open_connection(*site.address)
            writer.write(
                b"GET /v1/devices/d1/events HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n" + kit.frame(1, b'{"n":1}')
            )
            await reader.readuntil(b"\r\n\r\n")
            assert await asyncio.wait_for(reader.readexactly(11), 5) == b'\x81\x09{"ack":1}'
            writer.close()

    asyncio.run(scenario())
