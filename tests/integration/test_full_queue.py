"""A full queue under a thousand devices: nobody is read, newcomers are told to wait, and all go on without connecting again."""

from __future__ import annotations

import asyncio
import http.client
import json
import resource
import struct
from collections.abc import Callable
from pathlib import Path

from headrace.testing.site import SiteProcess

CONNECTIONS, MESSAGES = 1000, 40
MESSAGE = b'{"pad":"' + b"x" * 1000 + b'"}'
SITE = """
[host]
data_dir = "${HEADRACE_DATA}/host"
[admin]
listen = "127.0.0.1:0"
[tiers.edge.sources.devices]
use = "ingest_ws"
listen = "127.0.0.1:0"
auth = "none"
retry_after_s = 7
batch_bytes_max = 1048576
[tiers.edge.queue]
use = "queue_pmem"
path = "${HEADRACE_DATA}/queue"
size_bytes_max = 16777216
segment_bytes = 8388608
cursor_interval_ms = 50
[tiers.edge.outputs.gate]
use = "./gate.py:Gate"
"""
GATE = '''
import asyncio
from pathlib import Path
from headrace import hookimpl
from headrace.testing.discard import SinkDiscard

class Gate(SinkDiscard):
    """A store that takes nothing until a file is there."""

    @hookimpl
    async def sink_write(self, batch, key):
        while not Path(__file__).with_name("open").exists():
            await asyncio.sleep(0.05)
        await super().sink_write(batch, key)
'''


async def device(port: int, number: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"GET /v1/devices/d%d/events HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n" % number
    )
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def last_ack(reader: asyncio.StreamReader) -> None:
    while json.loads(await reader.readexactly((await reader.readexactly(2))[1]))["ack"] != MESSAGES:
        pass


def refusal_of(port: int, method: str, headers: dict[str, str]) -> tuple[int, str | None]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, "/v1/devices/new/events", b"{}" if method == "POST" else None, headers)
    answer = connection.getresponse()
    connection.close()
    return answer.status, answer.getheader("Retry-After")


def test_a_thousand_connections_wait_for_a_full_queue_and_go_on_by_themselves(tmp_path: Path, site_of: Callable[..., SiteProcess]) -> None:
    (tmp_path / "gate.py").write_text(GATE)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    site = site_of(SITE)
    site.start()
    port = int((site.url("devices") or "").rpartition(":")[2])

    async def scenario() -> None:
        clients = [await device(port, number) for number in range(CONNECTIONS)]
        for _, writer in clients:
            writer.write((b"\x81\xfe" + struct.pack("!H", len(MESSAGE)) + bytes(4) + MESSAGE) * MESSAGES)
        await asyncio.to_thread(site.wait_for_metric, "ingest_paused", 1)
        received = site.metric("ingest_received_events_total")
        assert received < CONNECTIONS * MESSAGES * 0.6
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "A" * 22 + "=="}
        for method, headers in (("GET", upgrade), ("POST", {"Content-Type": "application/json"})):
            assert await asyncio.to_thread(refusal_of, port, method, headers) == (503, "7")
        assert site.metric("ingest_refused_requests_total", reason="queue_full") >= 2
        assert site.probe("/readyz")[0] == 503
        assert site.metric("ingest_received_events_total") == received, "nobody is read"
        assert site.metric("ingest_connections") == CONNECTIONS
        (tmp_path / "open").touch()
        await asyncio.wait_for(asyncio.gather(*(last_ack(reader) for reader, _ in clients)), 60)
        assert site.metric("ingest_acked_events_total") == CONNECTIONS * MESSAGES
        assert site.metric("ingest_connections_opened_total") == CONNECTIONS
        for _, writer in clients:
            writer.transport.abort()

    asyncio.run(scenario())
    site.stop()
