"""Devices on a real server: acks, rejects, back-pressure, the end of connections."""

from __future__ import annotations

import asyncio
import json
import os
import time
from types import SimpleNamespace
from typing import Any

import pytest
import websockets

from headrace import RAW_SCHEMA, ConfigError, TransientError
from headrace_ingest_ws import IngestWs

pytestmark = pytest.mark.usefixtures("each_loop")


def event(number: int) -> str:
    return json.dumps({"n": number})


def test_an_ack_comes_only_after_deliver_returned(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.gate.clear()
        async with kit.running(deliver) as site, site.connect() as ws:
            await ws.send(event(1))
            await kit.until(lambda: deliver.under_way == 1)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(ws.recv(), 0.1)
            deliver.gate.set()
            assert await ws.recv() == '{"ack":1}'
            assert deliver.payloads == [b'{"n": 1}']

    asyncio.run(scenario())


def test_rows_carry_the_device_of_the_url_and_the_servers_clock(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site, site.connect("pump%207") as ws:
            before = time.time()
            await ws.send('[{"device": "another"}, {"b": 2}]')
            assert await ws.recv() == '{"ack":1}'
            (batch,) = site.deliver.durable
            assert batch.schema.equals(RAW_SCHEMA, check_metadata=True)
            assert site.deliver.rows == [("pump 7", b'{"device": "another"}'), ("pump 7", b'{"b": 2}')]
            assert set(batch["encoding"].to_pylist()) == {1}
            for received in batch["received"].to_pylist():
                assert before - 1 <= received.timestamp() <= time.time() + 1

    asyncio.run(scenario())


def test_hello_comes_first_to_those_who_offer_the_subprotocol(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running(window_messages=7, message_bytes_max=500, events_per_message_max=3, idle_timeout_s=60) as site:
            facts = {"level": "process", "window": 7, "message_bytes_max": 500, "events_per_message_max": 3, "idle_timeout_s": 60.0}
            async with site.connect(hello=True) as ws:
                assert ws.subprotocol == "headrace.v1.json"
                assert json.loads(await ws.recv()) == {"hello": {"queue": None, **facts}}
            site.deliver.queue_id = "0b5e"
            async with site.connect(hello=True) as ws:
                assert json.loads(await ws.recv())["hello"]["queue"] == "0b5e"
            async with site.connect() as ws:
                await ws.send(event(1))
                assert await ws.recv() == '{"ack":1}'

    asyncio.run(scenario())


BAD_MESSAGES: dict[str, tuple[str | bytes, str]] = {
    "invalid JSON": ('{"a":', "payload_invalid"),
    "not an object": ("42", "payload_invalid"),
    "empty": ("", "payload_invalid"),
    "empty array": ("[]", "payload_invalid"),
    "binary frame": (b'{"a":1}', "payload_invalid"),
    "too many events": ("[{},{},{},{},{}]", "too_large"),
}


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_a_bad_message_is_rejected_before_its_ack_and_costs_nothing_else(kit: SimpleNamespace, name: str) -> None:
    message, code = BAD_MESSAGES[name]

    async def scenario() -> None:
        async with kit.running(events_per_message_max=4) as site, site.connect() as ws:
            for sent in (event(1), message, event(3)):
                await ws.send(sent)
            frames = await kit.receive_until_ack(ws, 3)
            (at,) = [index for index, frame in enumerate(frames) if "reject" in frame]
            assert frames[at]["reject"] == 2
            assert frames[at]["code"] == code
            assert frames[at]["reason"]
            assert all(frame["ack"] < 2 for frame in frames[:at])
            assert site.deliver.payloads == [event(1).encode(), event(3).encode()]
            refused = 5 if code == "too_large" else 1
            assert site.metric("ingest_rejected_events_total", reason=code) == refused
            assert site.metric("ingest_received_events_total") == 2 + refused
            assert site.metric("ingest_acked_events_total") == 2

    asyncio.run(scenario())


def test_an_array_with_one_bad_event_is_refused_whole_and_names_it(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site, site.connect() as ws:
            await ws.send('[{"a":1}, 7, {"b":2}]')
            reject, ack = await kit.receive_until_ack(ws, 1)
            assert (reject["reject"], reject["code"], reject["index"]) == (1, "payload_invalid", 1)
            assert ack == {"ack": 1}
            assert site.deliver.calls == 0

    asyncio.run(scenario())


def test_thousands_of_pipelined_messages_arrive_one_time_in_order(kit: SimpleNamespace) -> None:
    count, bad_every = 3000, 100

    async def device(kit: SimpleNamespace, site: Any, name: str) -> list[dict[str, Any]]:
        async with site.connect(name) as ws:

            async def send() -> None:
                for number in range(1, count + 1):
                    await ws.send("bad" if number % bad_every == 0 else event(number))

            sending = asyncio.create_task(send())
            frames: list[dict[str, Any]] = await kit.receive_until_ack(ws, count)
            await sending
            return frames

    async def scenario() -> None:
        async with kit.running(window_messages=500, batch_rows_max=700) as site:
            names = ["a", "b", "c"]
            all_frames = await asyncio.gather(*(device(kit, site, name) for name in names))
            for name, frames in zip(names, all_frames, strict=True):
                assert [payload for sender, payload in site.deliver.rows if sender == name] == [
                    event(number).encode() for number in range(1, count + 1) if number % bad_every
                ]
                acks = [frame["ack"] for frame in frames if "ack" in frame]
                assert acks == sorted(set(acks))
                assert [frame["reject"] for frame in frames if "reject" in frame] == list(range(bad_every, count + 1, bad_every))
                acked = 0
                for frame in frames:
                    assert frame.get("reject", acked + 1) > acked
                    acked = frame.get("ack", acked)
            assert max(batch.num_rows for batch in site.deliver.durable) <= 700
            assert site.metric("ingest_received_events_total") == 3 * count
            assert (
                site.metric("ingest_acked_events_total") + site.metric("ingest_rejected_events_total", reason="payload_invalid")
                == 3 * count
            )

    asyncio.run(scenario())


def test_one_commit_of_many_messages_is_answered_with_one_ack(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.gate.clear()
        async with kit.running(deliver, commits_in_flight=1) as site, site.connect() as ws:
            for number in range(50):
                await ws.send(event(number))
                if not number:
                    await kit.until(lambda: deliver.under_way == 1)
            await kit.until(lambda: site.metric("ingest_received_events_total") == 50)
            deliver.gate.set()
            assert [frame["ack"] for frame in await kit.receive_until_ack(ws, 50)] == [1, 50]

    asyncio.run(scenario())


def test_two_connections_of_one_device_count_each_for_themselves(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site, site.connect() as one, site.connect() as two:
            await one.send(event(1))
            await one.send(event(2))
            await two.send(event(3))
            assert (await kit.receive_until_ack(one, 2))[-1] == {"ack": 2}
            assert (await kit.receive_until_ack(two, 1))[-1] == {"ack": 1}
            assert sorted(site.deliver.payloads) == [event(1).encode(), event(2).encode(), event(3).encode()]
            assert site.metric("ingest_connections") == 2

    asyncio.run(scenario())


def test_the_window_stops_reading_until_acks_are_out(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.gate.clear()
        async with kit.running(deliver, window_messages=4) as site, site.connect() as ws:
            for number in range(20):
                await ws.send(event(number))
            await kit.until(lambda: site.metric("ingest_received_events_total") == 4)
            await asyncio.sleep(0.05)
            assert site.metric("ingest_received_events_total") == 4
            deliver.gate.set()
            await kit.receive_until_ack(ws, 20)
            assert deliver.payloads == [event(number).encode() for number in range(20)]

    asyncio.run(scenario())


def test_a_full_queue_stops_reading_refuses_newcomers_and_goes_on_by_itself(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver("full")
        async with kit.running(deliver, retry_after_s=9) as site, site.connect() as ws:
            await ws.send(event(1))
            await kit.until(lambda: site.metric("ingest_paused") == 1)
            for number in range(2, 200):
                await ws.send(event(number))
            assert site.component.health().status == "degraded"
            with pytest.raises(websockets.InvalidStatus) as refused:
                async with site.connect("d2"):
                    pass
            answer = refused.value.response
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "9")
            assert json.loads(answer.body or b"") == {"code": "busy", "reason": "the queue is full", "retry_ms": 9000}
            post = b"POST /v1/devices/d1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
            status, headers, _ = await kit.http(site.address, post)
            assert (status, headers["retry-after"]) == (503, "9")
            assert site.metric("ingest_refused_requests_total", status="503", reason="queue_full") == 2
            # a message on its way when reading stopped may have been taken, not more
            assert site.metric("ingest_received_events_total") <= 2
            deliver.has_room.set()
            await kit.receive_until_ack(ws, 199)
            assert deliver.payloads == [event(number).encode() for number in range(1, 200)]
            assert site.metric("ingest_paused") == 0
            async with site.connect("d2") as late:
                await late.send(event(1))
                await kit.receive_until_ack(late, 1)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("failure", "code", "raised"),
    [
        (TransientError("disk"), 1013, TransientError),
        (RuntimeError("bug"), 1011, RuntimeError),
        (asyncio.CancelledError(), 1013, TransientError),
    ],
    ids=["transient", "bug", "cancelled"],
)
def test_a_failed_commit_is_never_acked_and_ends_every_connection(
    kit: SimpleNamespace, failure: BaseException, code: int, raised: type[Exception]
) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver("ok", failure)
        async with kit.running(deliver) as site, site.connect() as ws, site.connect("idle") as idle:
            await ws.send(event(1))
            await kit.receive_until_ack(ws, 1)
            await ws.send(event(2))
            for connection in (ws, idle):
                with pytest.raises(websockets.ConnectionClosed) as closed:
                    await connection.recv()
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == code
            with pytest.raises(raised):
                await site.task
            assert site.metric("ingest_acked_events_total") == 1
            assert site.metric("ingest_connections") == 0
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*site.address)

    asyncio.run(scenario())


def test_drain_acks_what_was_taken_then_closes_with_1012(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.gate.clear()
        async with kit.running(deliver) as site, site.connect() as ws, site.connect("idle") as idle:
            await ws.send(event(1))
            await ws.send("bad")
            await kit.until(lambda: site.metric("ingest_received_events_total") == 2 and deliver.under_way)
            drained = asyncio.create_task(site.component.drain(10.0))
            await asyncio.sleep(0.05)
            assert not drained.done()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*site.address)
            await ws.send(event(3))
            deliver.gate.set()
            await kit.receive_until_ack(ws, 2)
            for connection in (ws, idle):
                with pytest.raises(websockets.ConnectionClosed) as closed:
                    await connection.recv()
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 1012
            await drained
            await asyncio.wait_for(site.task, 5)
            assert deliver.payloads == [event(1).encode()], "what came after the drain began is not taken"
            assert site.metric("ingest_connections_closed_total", code="1012") == 2

    asyncio.run(scenario())


def test_drain_gives_up_at_its_deadline_without_an_ack(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.gate.clear()
        async with kit.running(deliver, close_timeout_s=0.2) as site, site.connect() as ws:
            await ws.send(event(1))
            await kit.until(lambda: deliver.under_way == 1)
            await site.component.drain(0.05)
            site.task.cancel()
            with pytest.raises(websockets.ConnectionClosed):
                await ws.recv()
            await asyncio.wait([site.task])
            assert site.metric("ingest_acked_events_total") == 0

    asyncio.run(scenario())


def test_devices_that_connect_while_it_drains_hold_up_nothing(kit: SimpleNamespace) -> None:
    async def storm(site: Any) -> None:
        while not site.task.done():
            try:
                async with site.connect() as ws:
                    await ws.send(event(1))
                    await ws.recv()
            except (OSError, websockets.WebSocketException):
                await asyncio.sleep(0)

    async def scenario() -> None:
        async with kit.running() as site:
            clients = [asyncio.create_task(storm(site)) for _ in range(20)]
            await kit.until(lambda: site.metric("ingest_acked_events_total") > 100)
            await site.component.drain(10.0)
            await asyncio.wait_for(site.task, 5)
            await asyncio.gather(*clients)
            assert site.metric("ingest_connections") == 0
            opened = site.metric("ingest_connections_opened_total")
            codes = ("1000", "1005", "1006", "1012")
            assert sum(site.metric("ingest_connections_closed_total", code=code) for code in codes) == opened

    asyncio.run(scenario())


def test_drain_before_serving_and_close_without_open_do_nothing(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            fresh = IngestWs(site.component.config, site.component.context)
            await fresh.drain(1.0)
            await fresh.close()
            await fresh.close()

    asyncio.run(scenario())


def test_a_client_that_closes_after_its_last_message_gets_its_acks_first(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.gate.clear()
        async with kit.running(deliver) as site:
            client = await site.raw()
            client.text(b'{"n":1}')
            client.send(kit.frame(8, (4000).to_bytes(2, "big")))
            await kit.until(lambda: deliver.under_way == 1)
            deliver.gate.set()
            assert await client.receive_until_closed() == ([{"ack": 1}], 4000)
            await kit.until(lambda: site.metric("ingest_connections") == 0)
            assert site.metric("ingest_connections_closed_total", code="other") == 1

    asyncio.run(scenario())


def test_messages_of_a_client_that_left_are_durable_all_the_same(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.gate.clear()
        async with kit.running(deliver) as site:
            client = await site.raw()
            client.text(b'{"n":1}')
            await kit.until(lambda: deliver.under_way == 1)
            client.writer.transport.abort()
            await kit.until(lambda: site.metric("ingest_connections") == 0)
            deliver.gate.set()
            await kit.until(lambda: site.metric("ingest_acked_events_total") == 1)
            assert site.metric("ingest_connections_closed_total", code="1006") == 1
            async with site.connect() as ws:
                await ws.send(event(1))
                await kit.receive_until_ack(ws, 1)

    asyncio.run(scenario())


def test_a_client_that_left_in_its_handshake_is_no_error(kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    broken: list[int] = []

    def reset_once(descriptor: int, data: Any) -> int:
        if broken or not bytes(data).startswith(b"HTTP/1.1 101 "):
            return write(descriptor, data)
        broken.append(descriptor)
        raise ConnectionResetError

    write = os.write
    monkeypatch.setattr("headrace_ingest_ws.polling.os.write", reset_once)

    async def scenario() -> None:
        async with kit.running() as site:
            with pytest.raises((websockets.WebSocketException, OSError, EOFError)):
                async with site.connect():
                    pass
            assert broken
            async with site.connect() as ws:
                await ws.send(event(1))
                assert await ws.recv() == '{"ack":1}'
            assert site.metric("ingest_refused_requests_total", status="500", reason="bug") == 0
            await kit.until(lambda: site.metric("ingest_connections") == 0)

    asyncio.run(scenario())


def test_connections_max_refuses_with_503_until_one_leaves(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running(connections_max=1) as site:
            async with site.connect():
                with pytest.raises(websockets.InvalidStatus, match="503"):
                    async with site.connect():
                        pass
            await kit.until(lambda: site.metric("ingest_connections") == 0)
            async with site.connect() as ws:
                await ws.send(event(1))
                await kit.receive_until_ack(ws, 1)
            assert site.metric("ingest_connections_opened_total") == 2

    asyncio.run(scenario())


@pytest.mark.parametrize("device", ["x" * 129, "a%2Fb", "%ff", "%00", "a%0Ab", ".."])
def test_a_bad_device_name_is_refused_with_400(kit: SimpleNamespace, device: str) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            request = f"GET /v1/devices/{device}/events HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n"
            status, _, body = await kit.http(site.address, request.encode())
            assert (status, json.loads(body)["code"]) == (400, "device_invalid")

    asyncio.run(scenario())


def test_a_connection_header_in_several_lines_is_one_list(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            client = await kit.RawClient.connect(site.address, "d1", connection="Connection: keep-alive\r\nConnection: Upgrade")
            assert client.head.startswith(b"HTTP/1.1 101 ")
            client.text(b"{}")
            assert await client.receive() == (1, b'{"ack":1}')

    asyncio.run(scenario())


def test_a_get_without_upgrade_says_what_to_do(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            status, headers, body = await kit.http(
                site.address, b"GET /v1/devices/d1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            )
            assert (status, headers["upgrade"]) == (426, "websocket")
            assert "WebSocket" in json.loads(body)["reason"]
            status, _, body = await kit.http(site.address, b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert (status, json.loads(body)["code"]) == (404, "http_error")

    asyncio.run(scenario())


def test_a_port_in_use_may_be_free_later(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            host, port = site.address
            config = IngestWs.Config(auth="none", listen=f"{host}:{port}")
            with pytest.raises(TransientError, match="cannot listen"):
                await IngestWs(config, site.component.context).open()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:8080", "[::]:8080", "192.0.2.1:80", "8080", "host.example:80", "127.0.0.1:99999", "127.0.0.1:x"]
)
def test_a_listen_address_that_anyone_could_reach_is_refused(kit: SimpleNamespace, listen: str) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            component = IngestWs(IngestWs.Config(auth="none", listen=listen), site.component.context)
            assert len(component.check()) == 1
            with pytest.raises(ConfigError, match="listen"):
                await component.open()
            await component.close()

    asyncio.run(scenario())


def test_auth_has_to_be_written_down() -> None:
    import msgspec

    with pytest.raises(msgspec.ValidationError, match="auth"):
        msgspec.convert({}, IngestWs.Config)
    assert msgspec.convert({"auth": "none", "listen": "localhost:0"}, IngestWs.Config).listen == "localhost:0"


def test_ipv6_loopback_works(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        try:
            async with kit.running(listen="[::1]:0") as site:
                assert site.component.url.startswith("http://[::1]:")
                async with site.connect() as ws:
                    await ws.send(event(1))
                    await kit.receive_until_ack(ws, 1)
        except TransientError as error:
            pytest.skip(f"no IPv6 here: {error}")

    asyncio.run(scenario())
