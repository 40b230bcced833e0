"""Device sessions against a live server: where they go on, who holds them, and what a device is told."""

from __future__ import annotations

import asyncio
import json
import socket
from types import SimpleNamespace
from typing import Any

import pytest
import websockets

from headrace import Origin, OriginMark
from headrace.position import ORIGIN_SESSION
from headrace_ingest_ws.refusals import RefusedMessage, decode

pytestmark = pytest.mark.usefixtures("each_loop")


async def receive(ws: Any) -> Any:
    return json.loads(await asyncio.wait_for(ws.recv(), 10))


async def resumed(ws: Any) -> tuple[int | None, list[dict[str, Any]]]:
    """What the hello says of the session."""
    hello = (await receive(ws))["hello"]
    return hello["resume"], hello["refused"]


async def rest(ws: Any) -> tuple[list[Any], int]:
    """What still comes, and the code with which the server closes."""
    texts = []
    try:
        while True:
            texts.append(await receive(ws))
    except websockets.ConnectionClosed as closed:
        return texts, closed.rcvd.code if closed.rcvd else 1006


async def close_code(ws: Any) -> int:
    return (await rest(ws))[1]


def test_a_new_session_begins_at_zero_and_its_messages_are_an_origin(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site, site.connect(session="s") as ws:
            hello = (await receive(ws))["hello"]
            assert (hello["session"], hello["resume"], hello["refused"]) == ("s", 0, [])
            await ws.send('{"n":1}')
            await kit.receive_until_ack(ws, 1)
            await ws.send('[{"n":2},{"n":3}]')
            await kit.receive_until_ack(ws, 2)
            assert site.deliver.origins == [
                Origin("d1/s", 1, 1, 0, ORIGIN_SESSION, None),
                Origin("d1/s", 2, 2, 0, ORIGIN_SESSION, None),
            ]
            assert site.metric("ingest_session_hellos_total", resume="new") == 1

    asyncio.run(scenario())


def test_a_connection_without_a_session_has_no_origin_and_no_word_of_it(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site, site.connect(hello=True) as ws:
            assert "resume" not in (await receive(ws))["hello"]
            await ws.send('{"n":1}')
            await kit.receive_until_ack(ws, 1)
            assert site.deliver.origins == []

    asyncio.run(scenario())


def test_a_session_goes_on_behind_what_became_durable_after_its_connection_was_lost(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            deliver = site.deliver
            async with site.connect(session="s") as ws:
                await receive(ws)
                await ws.send('{"n":1}')
                await kit.receive_until_ack(ws, 1)
                deliver.gate.clear()
                await ws.send('{"n":2}')
                await ws.send('{"n":3}')
                await kit.until(lambda: site.metric("ingest_received_events_total") == 3)
                ws.transport.abort()
                await kit.until(lambda: site.metric("ingest_connections") == 0)
            connecting = asyncio.ensure_future(site.connect(session="s", acked=1).__aenter__())
            await kit.until(lambda: deliver.under_way == 1)
            assert not connecting.done()
            deliver.gate.set()
            ws = await connecting
            assert await resumed(ws) == (3, [])
            await ws.send('{"n":4}')
            assert await kit.receive_until_ack(ws, 4)
            assert deliver.payloads == [b'{"n":1}', b'{"n":2}', b'{"n":3}', b'{"n":4}']
            assert site.metric("ingest_session_hellos_total", resume="known") == 1
            await ws.close()

    asyncio.run(scenario())


def test_refused_messages_are_durable_before_their_ack_and_repeated_in_the_hello(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            async with site.connect(session="s") as ws:
                await receive(ws)
                await ws.send("1")
                texts = await kit.receive_until_ack(ws, 1)
                assert texts[0]["reject"] == 1
                (origin,) = site.deliver.origins
                assert (origin.first, origin.last) == (1, 1)
                assert decode(origin.note) == [RefusedMessage(1, "payload_invalid")]
                assert site.deliver.durable[0].num_rows == 0
                await ws.send('{"n":2}')
                await ws.send("3")
                await kit.receive_until_ack(ws, 3)
            async with site.connect(session="s") as ws:
                expected = [{"reject": 1, "code": "payload_invalid"}, {"reject": 3, "code": "payload_invalid"}]
                assert await resumed(ws) == (3, expected)
            async with site.connect(session="s", acked=1) as ws:
                assert await resumed(ws) == (3, expected[1:])
                await ws.send('{"n":4}')
                await kit.receive_until_ack(ws, 4)
            async with site.connect(session="s", acked=2) as ws:  # it never got ack 4, nor worked through the hello before
                assert await resumed(ws) == (4, expected[1:])

    asyncio.run(scenario())


def test_a_refusal_is_not_acked_while_its_commit_is_not_durable(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver(OSError("disk"))
        async with kit.running(deliver) as site, site.connect(session="s") as ws:
            await receive(ws)
            await ws.send("1")
            assert await close_code(ws) == 1011
            assert deliver.marks == {}

    asyncio.run(scenario())


@pytest.mark.parametrize("acked", [5, 10**15])
def test_a_session_that_nobody_knows_counts_on_from_what_is_acked_and_says_so(kit: SimpleNamespace, acked: int) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            async with site.connect(session="s", acked=acked) as ws:
                assert await resumed(ws) == (None, [])
                await ws.send('{"n":1}')
                await kit.receive_until_ack(ws, acked + 1)
            async with site.connect(session="s", acked=acked) as ws:
                assert await resumed(ws) == (acked + 1, [])
            assert site.metric("ingest_session_hellos_total", resume="unknown") == 1

    asyncio.run(scenario())


def test_a_tier_without_a_queue_never_knows_a_session(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.level = "none"
        async with kit.running(deliver) as site, site.connect(session="s") as ws:
            assert await resumed(ws) == (None, [])

    asyncio.run(scenario())


def test_a_newer_connection_takes_over_and_the_older_is_closed_with_4409(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site, site.connect(session="s") as old:
            await receive(old)
            site.deliver.gate.clear()
            await old.send('{"n":1}')
            await kit.until(lambda: site.deliver.under_way == 1)
            await old.send('{"n":2}')
            await kit.until(lambda: site.metric("ingest_received_events_total") == 2)
            connecting = asyncio.ensure_future(site.connect(session="s").__aenter__())
            await kit.until(lambda: site.metric("ingest_sessions_taken_over_total") == 1)
            await old.send('{"n":3}')  # too late: the session is the newer one's
            assert not connecting.done()
            site.deliver.gate.set()
            new = await connecting
            assert await resumed(new) == (2, [])
            texts, code = await rest(old)
            assert texts[-1] == {"ack": 2}, "what the older one sent is acked to it as well"
            assert code == 4409
            await new.send('{"n":3}')
            await kit.receive_until_ack(new, 3)
            assert site.deliver.payloads == [b'{"n":1}', b'{"n":2}', b'{"n":3}']
            await new.close()
            assert site.metric("ingest_connections_closed_total", code="4409") == 1

    asyncio.run(scenario())


def test_a_connection_that_is_taken_over_before_it_is_served_takes_no_message(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            await kit.until(lambda: site.component._server)
            sessions, gap = site.component._server.sessions, asyncio.Event()
            take = sessions.take

            async def with_a_gap(session: str, holder: Any) -> Any:
                found = await take(session, holder)
                await gap.wait()
                return found

            sessions.take = with_a_gap
            older = asyncio.ensure_future(site.connect(session="s").__aenter__())
            await kit.until(lambda: site.component._server._taking == 1)
            sessions.take = take
            newer = await site.connect(session="s").__aenter__()
            assert await resumed(newer) == (0, [])
            gap.set()
            texts, code = await rest(await older)
            assert (len(texts), code) == (1, 4409), "its hello, which is out of date, and at once its end"
            await newer.send('{"n":2}')
            await kit.receive_until_ack(newer, 1)
            assert site.deliver.payloads == [b'{"n":2}']
            await newer.close()

    asyncio.run(scenario())


def test_an_older_connection_that_reads_nothing_holds_nobody_up(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running(window_messages=1000) as site:
            # accepted sockets inherit it, so that the kernel takes few acks
            site.component._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            protocol = "Sec-WebSocket-Protocol: headrace.v1.json\r\n"
            old = await site.raw("d1/events?session=s HTTP/1.1\r\nX-Rest: ", protocol, receive_buffer=4096)
            old.writer.transport.pause_reading()
            old.send(b"".join(kit.frame(1, b"0") for _ in range(1000)))
            await kit.until(lambda: "d1/s" in site.deliver.marks and site.deliver.marks["d1/s"].last == 1000)
            (connection,) = site.component._server._connections
            await kit.until(lambda: connection._unread)
            async with site.connect(session="s", acked=1000) as new:
                assert await resumed(new) == (1000, [])
            old.writer.transport.abort()

    asyncio.run(scenario())


def test_a_take_over_that_waits_too_long_is_told_to_try_again_and_the_next_succeeds(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running(close_timeout_s=0.1) as site, site.connect(session="s") as old:
            await receive(old)
            site.deliver.gate.clear()
            await old.send('{"n":1}')
            await kit.until(lambda: site.deliver.under_way == 1)
            with pytest.raises(websockets.InvalidStatus) as refused:
                await site.connect(session="s").__aenter__()
            assert refused.value.response.status_code == 503
            assert int(refused.value.response.headers["Retry-After"]) >= 1
            site.deliver.gate.set()
            async with site.connect(session="s") as new:
                assert await resumed(new) == (1, [])

    asyncio.run(scenario())


def test_other_sessions_and_other_devices_are_left_alone(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with (
            kit.running() as site,
            site.connect("d1", session="a") as first,
            site.connect("d1", session="b") as second,
            site.connect("d2", session="a") as third,
            site.connect("d1", hello=True) as plain,
        ):
            for ws in (first, second, third, plain):
                await receive(ws)
                await ws.send('{"n":1}')
                await kit.receive_until_ack(ws, 1)
            assert {name: mark.last for name, mark in site.deliver.marks.items()} == {"d1/a": 1, "d1/b": 1, "d2/a": 1}
            assert site.metric("ingest_sessions_taken_over_total") == 0

    asyncio.run(scenario())


def test_sessions_of_many_connections_share_a_commit_with_one_origin_each(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            plain = await site.raw("plain")
            sockets = [await site.connect(f"d{number}", session="s").__aenter__() for number in range(3)]
            for ws in sockets:
                await receive(ws)
            site.deliver.gate.clear()
            plain.text(b'{"n":0}')
            await kit.until(lambda: site.deliver.under_way == 1)
            for turn in range(4):
                for number, ws in enumerate(sockets):
                    await ws.send("no object" if turn == 2 else f'{{"n":{number}}}')
                plain.text(b'{"n":9}')
                await kit.until(lambda turn=turn: site.metric("ingest_received_events_total") == 5 + 4 * turn)
            site.deliver.gate.set()
            for ws in sockets:
                await kit.receive_until_ack(ws, 4)
            commits = [batch for batch in site.deliver.durable if batch.num_rows > 1]
            assert len(site.deliver.origins) == 3 * len(commits)
            assert site.deliver.origins[-1].last == 4
            offsets = [origin.row_offset for origin in site.deliver.origins[-3:]]
            assert offsets == sorted(offsets)
            assert [decode(mark.note) for mark in site.deliver.marks.values()] == [[RefusedMessage(3, "payload_invalid")]] * 3
            for ws in sockets:
                await ws.close()
            plain.writer.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("query", "protocol", "said"),
    [
        ("session=a%2Fb", "headrace.v1.json", "expected a session of 1 to 64 characters"),
        ("session=", "headrace.v1.json", "expected a session of 1 to 64 characters"),
        ("session=s&acked=-1", "headrace.v1.json", "expected acked as a whole number"),
        ("session=s", None, "expected the subprotocol headrace.v1.json"),
    ],
)
def test_a_session_that_cannot_be_is_refused_before_the_upgrade(kit: SimpleNamespace, query: str, protocol: str | None, said: str) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            with pytest.raises(websockets.InvalidStatus) as refused:
                await websockets.connect(f"{site.url()}?{query}", subprotocols=[protocol] if protocol else None).__aenter__()
            assert refused.value.response.status_code == 400
            answer = json.loads(refused.value.response.body)
            assert answer["code"] == "session_invalid"
            assert said in answer["reason"]

    asyncio.run(scenario())


def test_a_message_that_does_not_await_the_hello_is_not_taken(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            reader, writer = await asyncio.open_connection(*site.address)
            head = (
                "GET /v1/devices/d1/events?session=s HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
                "Sec-WebSocket-Protocol: headrace.v1.json\r\n\r\n"
            )
            writer.write(head.encode() + kit.frame(1, b'{"n":1}'))
            await reader.readuntil(b"\r\n\r\n")
            texts, code = await type(await site.raw())(reader, writer).receive_until_closed()
            assert code == 1008
            assert list(texts[0]) == ["hello"]
            assert site.deliver.payloads == []

    asyncio.run(scenario())


def test_upgrades_that_wait_for_their_session_count_as_connections(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running(connections_max=2) as site, site.connect(session="s") as old:
            await receive(old)
            site.deliver.gate.clear()
            await old.send('{"n":1}')
            await kit.until(lambda: site.deliver.under_way == 1)
            connecting = asyncio.ensure_future(site.connect(session="s").__aenter__())
            await kit.until(lambda: site.metric("ingest_sessions_taken_over_total") == 1)
            with pytest.raises(websockets.InvalidStatus) as refused:
                await site.connect().__aenter__()
            assert refused.value.response.status_code == 503
            site.deliver.gate.set()
            await (await connecting).close()

    asyncio.run(scenario())


def test_a_client_that_leaves_while_it_waits_leaves_no_trace(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site, site.connect(session="s") as old:
            await receive(old)
            site.deliver.gate.clear()
            await old.send('{"n":1}')
            await kit.until(lambda: site.deliver.under_way == 1)
            connecting = asyncio.ensure_future(site.connect(session="s").__aenter__())
            await kit.until(lambda: site.metric("ingest_sessions_taken_over_total") == 1)
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
            site.deliver.gate.set()
            assert await close_code(old) == 4409
            sessions = site.component._server.sessions._here
            await kit.until(lambda: sessions._places == {})

    asyncio.run(scenario())


def test_a_drain_acks_what_a_session_sent_and_refuses_who_waits_for_it(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site, site.connect(session="s") as old:
            await receive(old)
            site.deliver.gate.clear()
            await old.send('{"n":1}')
            await kit.until(lambda: site.deliver.under_way == 1)
            connecting = asyncio.ensure_future(site.connect(session="s").__aenter__())
            await kit.until(lambda: site.metric("ingest_sessions_taken_over_total") == 1)
            draining = asyncio.ensure_future(site.component.drain(10))
            await asyncio.sleep(0)
            site.deliver.gate.set()
            with pytest.raises((websockets.InvalidStatus, websockets.InvalidMessage, OSError)):
                await connecting
            await draining
            await site.task
            assert site.deliver.marks == {"d1/s": OriginMark(1, None)}

    asyncio.run(scenario())


def test_nothing_of_a_session_becomes_durable_behind_a_commit_that_failed(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver(OSError("disk"))
        deliver.gate.clear()
        async with kit.running(deliver, commits_in_flight=1) as site, site.connect(session="s") as ws:
            await receive(ws)
            await ws.send('{"n":1}')
            await kit.until(lambda: deliver.under_way == 1)
            await ws.send('{"n":2}')
            await kit.until(lambda: site.metric("ingest_received_events_total") == 2)
            deliver.gate.set()
            assert await close_code(ws) == 1011
            with pytest.raises(OSError, match="disk"):
                await site.task
            assert deliver.marks == {}

    asyncio.run(scenario())


def test_a_full_queue_keeps_the_order_of_a_session(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver("full", "full")
        async with kit.running(deliver) as site, site.connect(session="s") as ws:
            await receive(ws)
            for number in range(1, 6):
                await ws.send(f'{{"n":{number}}}')
            await kit.until(lambda: deliver.calls == 1)
            deliver.has_room.set()
            await kit.receive_until_ack(ws, 5)
            assert deliver.payloads == [b'{"n":%d}' % number for number in range(1, 6)]
            origins = deliver.origins
            assert [origin.first for origin in origins] == [1, *(origin.last + 1 for origin in origins[:-1])]
            assert origins[-1].last == 5

    asyncio.run(scenario())
