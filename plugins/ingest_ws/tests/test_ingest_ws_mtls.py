"""Client certificates: whose they are, and when they end."""

from __future__ import annotations

import asyncio
import datetime
import json
import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pki
import pytest
import websockets

pytestmark = pytest.mark.usefixtures("each_loop")

#: On the host's loop alone: what is tested there depends neither on it nor on the parser.
on_one_loop = pytest.mark.parametrize("each_loop", ["uvloop-c"], indirect=True)


class Site:
    """The files of a site: authorities, a server's certificate, revocation lists."""

    def __init__(self, folder: Path) -> None:
        self.authority = pki.Authority(folder, "server authority")
        self.devices = pki.Authority(folder, "device authority")
        self.server = self.authority.server()
        self.crl = folder / "revoked.pem"

    def options(self, *, crl: bool = False, **mtls: Any) -> dict[str, Any]:
        if crl:
            self.crl.write_bytes(self.devices.revoke())
            mtls["crl"] = str(self.crl)
        return {
            "auth": "mtls",
            "tls": {"certificate": str(self.server.certificate), "key": str(self.server.key)},
            "mtls": {"client_ca": str(self.devices.file), **mtls},
        }

    def client(self, issued: Any = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.authority.file)
        if issued is not None:
            context.load_cert_chain(issued.certificate, issued.key)
        return context


@pytest.fixture
def pem(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def status_of(connecting: Any) -> tuple[int, dict[str, Any]]:
    with pytest.raises(websockets.InvalidStatus) as refused:
        await connecting
    return refused.value.response.status_code, json.loads(refused.value.response.body or b"")


async def ended(ws: Any) -> tuple[int, str]:
    await asyncio.wait_for(ws.wait_closed(), 10)
    return ws.close_code, ws.close_reason


def test_the_certificate_says_who_it_is(kit: SimpleNamespace, pem: Site) -> None:
    pump = pem.client(pem.devices.device("pump-7"))

    async def scenario() -> None:
        async with kit.running(**pem.options()) as site:
            async with site.connect("pump-7", ssl=pump) as ws:
                await ws.send('{"n":1}')
                await kit.receive_until_ack(ws, 1)
                assert site.deliver.rows == [("pump-7", b'{"n":1}')]
            status, body = await status_of(site.connect("pump-8", ssl=pump))
            assert (status, body["code"]) == (403, "not_authorized")
            post = b"POST /v1/devices/pump-7/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
            assert (await kit.http(site.address, post, ssl=pump, server_hostname="localhost"))[0] == 200

    asyncio.run(scenario())


@on_one_loop
def test_no_certificate_or_one_that_nobody_vouches_for_gets_nowhere(kit: SimpleNamespace, pem: Site, tmp_path: Path) -> None:
    stranger = pki.Authority(tmp_path, "a stranger").device("pump-7")
    late = pem.devices.issue("late", [pki.x509.DNSName("late")], datetime.timedelta(hours=-1))

    async def scenario() -> None:
        async with kit.running(**pem.options()) as site:
            for context in (pem.client(), pem.client(stranger), pem.client(late)):
                with pytest.raises((ssl.SSLError, ConnectionError, EOFError, websockets.InvalidMessage)):
                    await site.connect("pump-7", ssl=context)
            assert site.metric("ingest_connections_opened_total") == 0

    asyncio.run(scenario())


@on_one_loop
@pytest.mark.parametrize(
    ("san", "names", "device"),
    [
        ("dns:{device}.devices.example", [pki.x509.DNSName("pump-7.devices.example"), pki.x509.DNSName("pump-7.evil.example")], "pump-7"),
        ("uri:urn:device:{device}", [pki.x509.UniformResourceIdentifier("urn:device:pump%20%C3%A4")], "pump%20%C3%A4"),
        ("uri:spiffe://site/{device}", [pki.x509.UniformResourceIdentifier("spiffe://site/d"), pki.x509.DNSName("spiffe://site/x")], "d"),
    ],
)
def test_the_name_stands_where_the_config_says(kit: SimpleNamespace, pem: Site, san: str, names: list[Any], device: str) -> None:
    context = pem.client(pem.devices.issue("it", names))

    async def scenario() -> None:
        async with kit.running(**pem.options(san=san)) as site:
            async with site.connect(device, ssl=context) as ws:
                await ws.send("{}")
                await kit.receive_until_ack(ws, 1)
            assert (await status_of(site.connect("x", ssl=context)))[0] == 403

    asyncio.run(scenario())


@on_one_loop
def test_a_certificate_without_a_name_is_refused_with_the_reason(kit: SimpleNamespace, pem: Site) -> None:
    bare, other = pem.client(pem.devices.issue("bare", [])), pem.client(pem.devices.issue("mail", [pki.x509.RFC822Name("d1@example")]))

    async def scenario() -> None:
        async with kit.running(**pem.options()) as site:
            for context in (bare, other):
                status, body = await status_of(site.connect("d1", ssl=context))
                assert (status, body["code"]) == (401, "not_authorized")
                assert "client certificate" in body["reason"]
            assert site.metric("ingest_auth_failures_total", reason="claims") == 2

    asyncio.run(scenario())


def test_a_gateway_has_its_pattern_in_its_certificate(kit: SimpleNamespace, pem: Site) -> None:
    context = pem.client(pem.devices.device("gw", gateway="meter-*"))

    async def scenario() -> None:
        async with kit.running(**pem.options()) as site, site.connect("gw", ssl=context) as ws:
            await ws.send('[{"device":"meter-1"},{}]')
            await ws.send('{"device":"pump"}')
            frames = await kit.receive_until_ack(ws, 2)
            assert [frame["code"] for frame in frames if "reject" in frame] == ["not_authorized"]
            assert [device for device, _ in site.deliver.rows] == ["meter-1", "gw"]

    asyncio.run(scenario())


def test_a_revoked_certificate_ends_its_connection_and_gets_no_other(kit: SimpleNamespace, pem: Site) -> None:
    doomed, kept = pem.devices.device("d1"), pem.devices.device("d2")

    async def scenario() -> None:
        async with kit.running(**pem.options(crl=True)) as site, site.connect("d2", ssl=pem.client(kept)) as other:
            async with site.connect("d1", ssl=pem.client(doomed)) as ws:
                await ws.send("{}")
                await kit.receive_until_ack(ws, 1)
                await asyncio.to_thread(pem.crl.write_bytes, pem.devices.revoke(doomed))
                assert await ended(ws) == (1008, "credentials revoked"), "without a signal, within 5 s"
            with pytest.raises((ssl.SSLError, ConnectionError, EOFError, websockets.InvalidMessage)):
                await site.connect("d1", ssl=pem.client(doomed))
            await other.send("{}")
            await kit.receive_until_ack(other, 1)

    asyncio.run(scenario())


@on_one_loop
def test_a_list_that_is_out_of_date_shows_in_health(kit: SimpleNamespace, pem: Site) -> None:
    device = pem.devices.device("d1")

    async def scenario() -> None:
        async with kit.running(**pem.options(crl=True)) as site:
            assert site.component.health().status == "ok"
            await asyncio.to_thread(pem.crl.write_bytes, pem.devices.revoke(lasts=-datetime.timedelta(hours=1)))
            await site.component.reread()
            assert "out of date" in site.component.health().reason
            with pytest.raises((ssl.SSLError, ConnectionError, EOFError, websockets.InvalidMessage)):
                await site.connect("d1", ssl=pem.client(device))

    asyncio.run(scenario())


@on_one_loop
def test_an_authority_that_is_taken_out_ends_its_devices_and_one_that_comes_does_not(
    kit: SimpleNamespace, pem: Site, tmp_path: Path
) -> None:
    second = pki.Authority(tmp_path, "second authority")
    old, new = pem.devices.device("d1"), second.device("d2")
    both, only = pem.devices.file.read_bytes() + second.file.read_bytes(), second.file.read_bytes()

    async def scenario() -> None:
        async with kit.running(**pem.options()) as site, site.connect("d1", ssl=pem.client(old)) as ws:
            await asyncio.to_thread(pem.devices.file.write_bytes, both)
            await site.component.reread()
            async with site.connect("d2", ssl=pem.client(new)) as other:
                await ws.send("{}")
                await kit.receive_until_ack(ws, 1)
                await asyncio.to_thread(pem.devices.file.write_bytes, only)
                await site.component.reread()
                assert await ended(ws) == (1008, "credentials revoked")
                await other.send("{}")
                await kit.receive_until_ack(other, 1)

    asyncio.run(scenario())


@on_one_loop
def test_who_comes_by_an_intermediate_comes_again_only_when_the_authorities_change(kit: SimpleNamespace, pem: Site, tmp_path: Path) -> None:
    between = pki.Authority(tmp_path, "between", parent=pem.devices)
    issued, extra = between.device("d1"), pki.Authority(tmp_path, "extra")
    issued.certificate.write_bytes(issued.certificate.read_bytes() + between.file.read_bytes())
    both = pem.devices.file.read_bytes() + extra.file.read_bytes()

    async def scenario() -> None:
        async with kit.running(**pem.options()) as site, site.connect("d1", ssl=pem.client(issued)) as ws:
            reader, writer = await asyncio.open_connection(*site.address, ssl=pem.client(issued), server_hostname="localhost")
            assert (await post(reader, writer))[0] == 200
            pem.authority.server()
            await site.component.reread()
            assert (await post(reader, writer))[0] == 200, "the server's own certificate is not about devices"
            await ws.send("{}")
            await kit.receive_until_ack(ws, 1)
            await asyncio.to_thread(pem.devices.file.write_bytes, both)
            await site.component.reread()
            assert (await post(reader, writer))[0] == 401
            assert await ended(ws) == (1008, "credentials revoked")
            async with site.connect("d1", ssl=pem.client(issued)) as again:
                await again.send("{}")
                await kit.receive_until_ack(again, 1)
            writer.close()

    asyncio.run(scenario())


@on_one_loop
def test_a_connection_ends_with_its_certificate(kit: SimpleNamespace, pem: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace_ingest_ws.auth.admission.ASK_S", 0.02)
    lasts = datetime.datetime.now(datetime.UTC) - pki.NOW + datetime.timedelta(seconds=3)
    context = pem.client(pem.devices.issue("short", [pki.x509.DNSName("short")], lasts))

    async def scenario() -> None:
        async with kit.running(**pem.options()) as site, site.connect("short", ssl=context) as ws:
            assert await ended(ws) == (1008, "credentials expired")

    asyncio.run(scenario())


POST = b"POST /v1/devices/d1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


async def post(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[int, bytes]:
    """One more POST on a connection that stays; its status and head."""
    writer.write(POST)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    await reader.readuntil(b"}")
    return int(head.split()[1]), head


@on_one_loop
@pytest.mark.parametrize("how", ["revoked", "authority"])
def test_a_connection_that_stays_for_posts_does_not_outlive_its_certificate(
    kit: SimpleNamespace, pem: Site, tmp_path: Path, how: str
) -> None:
    """Its handshake was long ago, under files that have changed since."""
    doomed, other = pem.devices.device("d1"), pki.Authority(tmp_path, "another authority")

    def change() -> None:
        if how == "revoked":
            pem.crl.write_bytes(pem.devices.revoke(doomed))
        else:
            pem.devices.file.write_bytes(other.file.read_bytes())

    async def scenario() -> None:
        async with kit.running(**pem.options(crl=how == "revoked")) as site:
            reader, writer = await asyncio.open_connection(*site.address, ssl=pem.client(doomed), server_hostname="localhost")
            assert (await post(reader, writer))[0] == 200
            await asyncio.to_thread(pem.server.certificate.touch)
            await site.component.reread()
            assert (await post(reader, writer))[0] == 200
            await asyncio.to_thread(change)
            await site.component.reread()
            status, head = await post(reader, writer)
            assert status == 401
            assert b"Connection: close" in head, "on this one it would never be let in again"
            assert len(site.deliver.rows) == 2
            writer.close()

    asyncio.run(scenario())


@on_one_loop
def test_nor_its_expiry(kit: SimpleNamespace, pem: Site) -> None:
    lasts = datetime.datetime.now(datetime.UTC) - pki.NOW + datetime.timedelta(seconds=3)
    issued = pem.devices.issue("d1", [pki.x509.DNSName("d1")], lasts)
    context = pem.client(issued)

    async def scenario() -> None:
        async with kit.running(**pem.options()) as site:
            reader, writer = await asyncio.open_connection(*site.address, ssl=context, server_hostname="localhost")
            assert (await post(reader, writer))[0] == 200
            await kit.until(lambda: datetime.datetime.now(datetime.UTC) >= issued.x509.not_valid_after_utc)
            assert (await post(reader, writer))[0] == 401
            assert site.metric("ingest_auth_failures_total", reason="expired") == 1
            writer.close()

    asyncio.run(scenario())
