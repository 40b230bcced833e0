"""A queue with the smallest segments takes whatever gathers in front of it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import websockets

from headrace.testing.site import SiteProcess

SITE = """
[host]
data_dir = "${HEADRACE_DATA}/host"
[admin]
listen = "127.0.0.1:0"
[tiers.edge.sources.devices]
use = "ingest_ws"
listen = "127.0.0.1:0"
auth = "none"
[tiers.edge.queue]
use = "queue_pmem"
path = "${HEADRACE_DATA}/queue"
size_bytes_max = 134217728
segment_bytes = 8388608
[tiers.edge.outputs.discard]
use = "sink_discard"
"""
DEVICES, MESSAGES = 12, 10  # 14 MiB, most of it at once


async def device(url: str, number: int) -> None:
    message = json.dumps({"pad": "x" * 120_000})
    async with websockets.connect(f"{url}/v1/devices/d{number}/events", proxy=None) as connection:
        for _ in range(MESSAGES):
            await connection.send(message)
        while json.loads(await connection.recv())["ack"] < MESSAGES:
            pass


def test_messages_that_are_more_than_a_segment_together_are_acked(tmp_path: Path) -> None:
    file = tmp_path / "edge.toml"
    file.write_text(SITE)

    async def devices(url: str) -> None:
        async with asyncio.timeout(60):
            await asyncio.gather(*(device(url, number) for number in range(DEVICES)))

    with SiteProcess(file, tmp_path) as site:
        site.start()
        asyncio.run(devices((site.url("devices") or "").replace("http", "ws")))
        assert site.metric("ingest_acked_events_total") == DEVICES * MESSAGES
        assert site.metric("plugin_errors_total", component="devices") == 0
        site.stop()
