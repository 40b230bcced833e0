"""A client that ends its side first is still told what it is owed, over TLS too."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pki
import pytest

pytestmark = pytest.mark.usefixtures("each_loop")

UPGRADE = (
    b"GET /v1/devices/d1/events HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
POST = b'POST /v1/devices/d1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\n\r\n{"a":1}'


class TlsClient:
    """TLS by hand: what the standard library's streams cannot do is end one side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, trusting: ssl.SSLContext) -> None:
        self._reader, self._writer = reader, writer
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = trusting.wrap_bio(self._in, self._out, server_hostname="localhost")

    @classmethod
    async def connect(cls, address: tuple[str, int], trusting: ssl.SSLContext) -> TlsClient:
        client = cls(*await asyncio.open_connection(*address), trusting)
        while True:
            try:
                client._tls.do_handshake()
                return client
            except ssl.SSLWantReadError:
                await client._more()

    def send(self, *records: bytes, end: bool = False, fin: bool = False) -> None:
        """All in one write. end: close_notify behind them; fin: and the end of TCP behind that."""
        for record in records:
            self._tls.write(record)
        if end:
            with pytest.raises(ssl.SSLWantReadError):  # for the server's, which comes when it has no more to say
                self._tls.unwrap()
        self._flush()
        if fin:
            self._writer.write_eof()

    async def read(self) -> bytes:
        """All up to the server's end, which has to be said."""
        got = b""
        while True:
            try:
                if not (piece := self._tls.read(65_536)):
                    return got
                got += piece
            except ssl.SSLZeroReturnError:
                return got
            except ssl.SSLWantReadError:
                await self._more()

    def close(self) -> None:
        self._writer.transport.abort()

    def _flush(self) -> None:
        if data := self._out.read():
            self._writer.write(data)

    async def _more(self) -> None:
        self._flush()
        data = await asyncio.wait_for(self._reader.read(65_536), 10)
        assert data, "the server hung up without an end of TLS"
        self._in.write(data)


def trusting(authority: Any) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority.file)


def tls_options(authority: Any) -> dict[str, Any]:
    issued = authority.server()
    return {"tls": {"certificate": str(issued.certificate), "key": str(issued.key)}}


@pytest.fixture
def authority(tmp_path: Path) -> Any:
    return pki.Authority(tmp_path)


def acks(answer: bytes) -> int:
    """The number of the last ack, with nothing behind it."""
    return int(json.loads(answer[answer.rindex(b'{"ack"') :])["ack"])


def test_acks_come_behind_the_end_of_tcp(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.gate.clear()
        async with kit.running(deliver) as site:
            client = await site.raw()
            for _ in range(3):
                client.text(b"{}")
            client.writer.write_eof()
            await kit.until(lambda: site.metric("ingest_received_events_total") == 3)
            await kit.until(lambda: deliver.under_way)
            deliver.gate.set()
            assert acks(await asyncio.wait_for(client.reader.read(), 10)) == 3
            await kit.until(lambda: site.metric("ingest_connections_closed_total", code="1006") == 1)
            assert site.metric("ingest_connections") == 0

    asyncio.run(scenario())


def test_who_is_owed_nothing_is_closed_at_its_end(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running(close_timeout_s=600.0) as site:
            client = await site.raw()
            client.text(b"{}")
            assert (await client.receive())[1] == b'{"ack":1}'
            client.writer.write_eof()
            assert await asyncio.wait_for(client.reader.read(), 10) == b""

    asyncio.run(scenario())


def test_acks_that_do_not_come_hold_an_ended_connection_no_longer_than_the_timeout(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.gate.clear()
        async with kit.running(deliver, close_timeout_s=0.2) as site:
            client = await site.raw()
            client.text(b"{}")
            client.writer.write_eof()
            assert await asyncio.wait_for(client.reader.read(), 10) == b""
            assert deliver.under_way == 1
            deliver.gate.set()

    asyncio.run(scenario())


def test_what_waits_for_the_window_is_taken_behind_the_end(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.gate.clear()
        async with kit.running(deliver, window_messages=4) as site:
            client = await site.raw()
            client.send(b"".join(kit.frame(1, b"{}") for _ in range(30)))
            client.writer.write_eof()
            await kit.until(lambda: site.metric("ingest_received_events_total") == 4)
            deliver.gate.set()
            assert acks(await asyncio.wait_for(client.reader.read(), 10)) == 30

    asyncio.run(scenario())


def test_a_post_is_answered_behind_the_end_of_tcp(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.gate.clear()
        async with kit.running(deliver, request_timeout_s=600.0) as site:
            reader, writer = await asyncio.open_connection(*site.address)
            writer.write(POST)
            writer.write_eof()
            await kit.until(lambda: deliver.under_way)
            deliver.gate.set()
            assert (await asyncio.wait_for(reader.read(), 10)).endswith(b'{"accepted":1,"rejected":[]}')
            writer.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("sent", [POST[:-1], POST[:-7], POST[:40]])
def test_half_a_post_and_an_end_leave_nothing_to_wait_for(kit: SimpleNamespace, sent: bytes) -> None:
    async def scenario() -> None:
        async with kit.running(request_timeout_s=60.0) as site:
            await kit.until(lambda: site.component._server)
            reader, writer = await asyncio.open_connection(*site.address)
            writer.write(sent)
            writer.write_eof()
            assert b"200 OK" not in await asyncio.wait_for(reader.read(), 10)
            writer.close()
            await kit.until(lambda: site.component._server._places.sockets == 0)
            assert site.deliver.calls == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("fin", [False, True], ids=["close_notify", "close_notify-fin"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
@pytest.mark.parametrize("at_once", [True, False])
def test_acks_and_answers_come_behind_the_end_of_tls(
    kit: SimpleNamespace, authority: Any, version: ssl.TLSVersion, fin: bool, at_once: bool
) -> None:
    """at_once: close_notify comes with the request, before it was answered. The end of TCP may be read only behind it: see below."""

    async def scenario() -> None:
        deliver, context = kit.FakeDeliver(), trusting(authority)
        context.maximum_version = version
        async with kit.running(deliver, window_messages=4, **tls_options(authority)) as site:
            count = 15 if at_once else 4
            for sent in ([UPGRADE, kit.frame(1, b"{}") * (count - 3), *(kit.frame(1, b"{}") for _ in range(3))], [POST]):
                deliver.gate.clear()
                client = await TlsClient.connect(site.address, context)
                client.send(*sent, end=at_once)
                await kit.until(lambda: deliver.under_way)
                client.send(end=not at_once, fin=fin)
                deliver.gate.set()
                answer = await client.read()
                if sent == [POST]:
                    assert answer.endswith(b'{"accepted":1,"rejected":[]}')
                else:
                    assert acks(answer) == count
                client.close()
            await kit.until(lambda: site.component._server._places.sockets == 0)
            assert len(deliver.payloads) == count + 1

    asyncio.run(scenario())


def test_an_end_of_tls_before_a_whole_request_or_behind_all_acks_ends_the_connection(kit: SimpleNamespace, authority: Any) -> None:
    async def scenario() -> None:
        async with kit.running(close_timeout_s=600.0, request_timeout_s=600.0, **tls_options(authority)) as site:
            client = await TlsClient.connect(site.address, trusting(authority))
            client.send(UPGRADE[:50], end=True)
            assert await client.read() == b""
            client.close()
            client = await TlsClient.connect(site.address, trusting(authority))
            client.send(UPGRADE, kit.frame(1, b"{}"))
            await kit.until(lambda: site.metric("ingest_acked_events_total") == 1)
            client.send(end=True)
            assert acks(await client.read()) == 1
            client.close()
            await kit.until(lambda: site.component._server._places.sockets == 0)

    asyncio.run(scenario())


def test_the_end_of_tcp_alone_is_a_lost_connection_under_tls(kit: SimpleNamespace, authority: Any) -> None:
    """Anybody on the way could have made it. The messages before it are stored; the device sends them again."""

    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.gate.clear()
        async with kit.running(deliver, **tls_options(authority)) as site:
            client = await TlsClient.connect(site.address, trusting(authority))
            client.send(UPGRADE, kit.frame(1, b"{}"))
            await kit.until(lambda: deliver.under_way)
            client.send(fin=True)
            await kit.until(lambda: site.component._server._places.sockets == 0)
            deliver.gate.set()
            await kit.until(lambda: len(deliver.payloads) == 1)
            client.close()

    asyncio.run(scenario())
