"""TLS: the same fast path behind it, and new certificates without a lost connection."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pki
import pytest

pytestmark = pytest.mark.usefixtures("each_loop")


@pytest.fixture
def authority(tmp_path: Path) -> Any:
    return pki.Authority(tmp_path)


def trusting(authority: Any) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority.file)


def tls_options(issued: Any, **more: Any) -> dict[str, Any]:
    return {"certificate": str(issued.certificate), "key": str(issued.key), **more}


def test_messages_are_acked_over_tls(kit: SimpleNamespace, authority: Any) -> None:
    async def scenario() -> None:
        async with kit.running(tls=tls_options(authority.server())) as site, site.connect(hello=True, ssl=trusting(authority)) as ws:
            assert site.component.url.startswith("https://")
            assert "hello" in json.loads(await ws.recv())
            for number in range(1, 501):
                await ws.send(json.dumps({"n": number, "text": "x" * 200}))
            await kit.receive_until_ack(ws, 500)
            assert [json.loads(payload)["n"] for payload in site.deliver.payloads] == list(range(1, 501))
            await ws.close(1000)
            assert ws.close_code == 1000

    asyncio.run(scenario())


@pytest.mark.parametrize("pieces", [1, 2, 400])
def test_frames_right_behind_the_upgrade_request_are_not_lost(kit: SimpleNamespace, authority: Any, pieces: int) -> None:
    """In the same TLS record as the request, in the next one, and in many."""
    request = (
        b"GET /v1/devices/d1/events HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )

    async def scenario() -> None:
        async with kit.running(tls=tls_options(authority.server())) as site:
            reader, writer = await asyncio.open_connection(*site.address, ssl=trusting(authority), server_hostname="localhost")
            frames = [kit.frame(1, json.dumps({"n": number, "text": "y" * 400}).encode()) for number in range(400)]
            if pieces == 1:
                writer.write(request + b"".join(frames))
            else:
                writer.write(request)
                for frame in frames if pieces == 400 else [b"".join(frames)]:
                    writer.write(frame)
            await reader.readuntil(b"\r\n\r\n")
            client = kit.RawClient(reader, writer)
            while (await client.receive())[1] != b'{"ack":400}':
                pass
            assert [json.loads(payload)["n"] for payload in site.deliver.payloads] == list(range(400))
            writer.close()

    asyncio.run(scenario())


def test_a_closed_window_over_tls_stops_reading_and_goes_on(kit: SimpleNamespace, authority: Any) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.gate.clear()
        options = {"tls": tls_options(authority.server()), "window_messages": 8}
        async with kit.running(deliver, **options) as site, site.connect(ssl=trusting(authority)) as ws:
            sending = asyncio.create_task(_send(ws, 1000))
            await kit.until(lambda: site.metric("ingest_received_events_total") == 8)
            deliver.gate.set()
            await kit.receive_until_ack(ws, 1000)
            await sending
            assert [json.loads(payload)["n"] for payload in deliver.payloads] == list(range(1, 1001))

    asyncio.run(scenario())


async def _send(ws: Any, count: int) -> None:
    for number in range(1, count + 1):
        await ws.send(json.dumps({"n": number}))


def test_a_post_over_tls(kit: SimpleNamespace, authority: Any) -> None:
    async def scenario() -> None:
        async with kit.running(tls=tls_options(authority.server())) as site:
            post = b'POST /v1/devices/d1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 7\r\n\r\n{"a":1}'
            status, _, body = await kit.http(site.address, post, ssl=trusting(authority), server_hostname="localhost")
            assert (status, json.loads(body)) == (200, {"accepted": 1, "rejected": []})

    asyncio.run(scenario())


def test_old_versions_and_plain_http_get_nowhere(kit: SimpleNamespace, authority: Any) -> None:
    async def scenario() -> None:
        async with kit.running(tls=tls_options(authority.server(), version_min="1.3")) as site:
            old = trusting(authority)
            old.maximum_version = ssl.TLSVersion.TLSv1_2
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection(*site.address, ssl=old, server_hostname="localhost")
            reader, writer = await asyncio.open_connection(*site.address)
            writer.write(b"GET /v1/devices/d1/events HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"HTTP" not in await _rest(reader)
            writer.close()

    asyncio.run(scenario())


async def _rest(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionError:
        return b""


def test_a_new_certificate_is_shown_to_newcomers_and_costs_no_connection(kit: SimpleNamespace, authority: Any) -> None:
    async def scenario() -> None:
        first = authority.server("server")
        async with kit.running(tls=tls_options(first)) as site, site.connect(ssl=trusting(authority)) as before:
            await before.send('{"n":1}')
            await kit.receive_until_ack(before, 1)
            second = authority.server("server")
            await site.component.reread()
            async with site.connect("d2", ssl=trusting(authority)) as after:
                assert _serial(before) == first.x509.serial_number
                assert _serial(after) == second.x509.serial_number
                expires = site.metric("ingest_certificate_expiry_timestamp_seconds")
                assert expires == second.x509.not_valid_after_utc.timestamp()
                for ws, number in ((before, 2), (after, 1)):
                    await ws.send('{"n":2}')
                    await kit.receive_until_ack(ws, number)
            await site.component.drain(5.0)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*site.address)

    asyncio.run(scenario())


def _serial(ws: Any) -> int:
    return int(ws.transport.get_extra_info("peercert")["serialNumber"], 16)


def test_a_key_that_does_not_fit_leaves_the_old_certificate_in_use(kit: SimpleNamespace, authority: Any) -> None:
    async def scenario() -> None:
        issued = authority.server()
        async with kit.running(tls=tls_options(issued)) as site:
            issued.key.write_bytes(authority.server("another").key.read_bytes())
            await site.component.reread()
            assert site.component.health().status == "degraded"
            assert "server.key" in site.component.health().reason
            async with site.connect(ssl=trusting(authority)) as ws:
                assert _serial(ws) == issued.x509.serial_number
            authority.server("server")
            await site.component.reread()
            assert site.component.health().status == "ok"

    asyncio.run(scenario())


def test_a_client_certificate_is_seen_behind_tls(kit: SimpleNamespace, authority: Any) -> None:
    device, client = authority.device("d1"), trusting(authority)
    client.load_cert_chain(device.certificate, device.key)
    options = {"auth": "mtls", "mtls": {"client_ca": str(authority.file)}}

    async def scenario() -> None:
        async with kit.running(tls=tls_options(authority.server()), **options) as site, site.connect("d1", ssl=client) as ws:
            await ws.send("{}")
            await kit.receive_until_ack(ws, 1)

    asyncio.run(scenario())


def test_a_key_with_a_password(kit: SimpleNamespace, authority: Any) -> None:
    from headrace.config import Secret

    issued = authority.issue(
        "locked", authority.server().x509.extensions.get_extension_for_oid(pki.x509.OID_SUBJECT_ALTERNATIVE_NAME).value, password=b"hush"
    )

    async def scenario() -> None:
        async with kit.running(tls=tls_options(issued, key_password=Secret("hush"))) as site, site.connect(ssl=trusting(authority)) as ws:
            await ws.send("{}")
            await kit.receive_until_ack(ws, 1)
        with pytest.raises(Exception, match="password") as wrong:
            async with kit.running(tls=tls_options(issued, key_password=Secret("wrong-hush"))):
                pass
        assert "hush" not in str(wrong.value)

    asyncio.run(scenario())


async def closed_by_server(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 10) == b""


def test_sockets_that_never_shake_hands_make_room_for_those_that_do(kit: SimpleNamespace, authority: Any) -> None:
    async def scenario() -> None:
        async with kit.running(tls=tls_options(authority.server()), handshakes_max=3) as site:
            await kit.until(lambda: site.component._server)
            places = site.component._server._places
            silent = [await asyncio.open_connection(*site.address) for _ in range(3)]
            await kit.until(lambda: places.waiting == 3)
            for _ in range(2):
                async with site.connect(ssl=trusting(authority)) as ws:
                    await ws.send("{}")
                    await kit.receive_until_ack(ws, 1)
            assert site.metric("ingest_refused_connections_total", reason="evicted") >= 1
            await closed_by_server(silent[0][0])
            for _, writer in silent:
                writer.close()
            await kit.until(lambda: (places.waiting, places.sockets) == (0, 0))

    asyncio.run(scenario())


def test_a_handshake_has_its_time_and_a_bad_one_is_counted(kit: SimpleNamespace, authority: Any) -> None:
    async def scenario() -> None:
        async with kit.running(tls=tls_options(authority.server()), request_timeout_s=0.3) as site:
            await kit.until(lambda: site.component._server)
            places = site.component._server._places
            silent, plain = [await asyncio.open_connection(*site.address) for _ in range(2)]
            plain[1].write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            for reader, _ in (plain, silent):
                with contextlib.suppress(ConnectionError):
                    await asyncio.wait_for(reader.read(), 10)
            await kit.until(lambda: places.sockets == 0)
            counted = [site.metric("ingest_refused_connections_total", reason=reason) for reason in ("tls", "header_timeout")]
            assert sum(counted) == 2
            assert counted[0] >= 1

    asyncio.run(scenario())


def test_an_address_beyond_its_bound_gets_no_handshake(kit: SimpleNamespace, authority: Any) -> None:
    async def scenario() -> None:
        async with kit.running(tls=tls_options(authority.server()), connections_per_address_max=1) as site:
            async with site.connect(ssl=trusting(authority)) as ws:
                with pytest.raises((OSError, ssl.SSLError)):
                    await asyncio.open_connection(*site.address, ssl=trusting(authority), server_hostname="localhost")
                await ws.send("{}")
                await kit.receive_until_ack(ws, 1)
            assert site.metric("ingest_refused_connections_total", reason="address") == 1

    asyncio.run(scenario())
