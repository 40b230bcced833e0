"""A whole site takes every encoding, and a POST under a key is stored once whatever is killed."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import cbor2
import msgspec

from headrace.testing.site import SiteProcess

READINGS = [
    {"ts": 1_795_435_200 + number, "n": number, "on": number % 2 == 0, "mode": f"m{number}", "gps": {"lat": 1.5}} for number in range(20)
]
RECORDS = [
    {"t": record["ts"], "n": name, key: value}
    for record in READINGS
    for name, key, value in (("n", "v", record["n"]), ("on", "vb", record["on"]), ("mode", "vs", record["mode"]), ("gps.lat", "v", 1.5))
]
LABELS = {"n": 0, "v": 2, "vs": 3, "vb": 4, "t": 6}
MESSAGES: dict[str, tuple[str, bytes]] = {
    "json": ("application/json", msgspec.json.encode(READINGS)),
    "msgpack": ("application/msgpack", msgspec.msgpack.encode(READINGS)),
    "cbor": ("application/cbor", cbor2.dumps(READINGS)),
    "senml": ("application/senml+json", msgspec.json.encode(RECORDS)),
    "senml-cbor": ("application/senml+cbor", cbor2.dumps([{LABELS[key]: value for key, value in record.items()} for record in RECORDS])),
}


async def send(site: SiteProcess, encoding: str, kind: str, message: bytes) -> None:
    """The message over WebSocket, as one device, and over POST, as another."""
    base = f"{site.wait_for_url('devices')}/v1/devices"
    async with aiohttp.ClientSession() as http, http.ws_connect(f"{base}/{encoding}-ws/events?encoding={encoding}") as socket:
        await (socket.send_str(message.decode()) if encoding in ("json", "senml") else socket.send_bytes(message))
        assert json.loads((await socket.receive(timeout=20)).data) == {"ack": 1}
        async with http.post(f"{base}/{encoding}-post/events", data=message, headers={"Content-Type": kind}) as answer:
            assert await answer.json() == {"accepted": 20, "rejected": []}


async def post_once(site: SiteProcess, number: int) -> bool:
    """One event under its key; True when it was known already. A server that dies in between raises."""
    url = f"{site.wait_for_url('devices')}/v1/devices/once/events"
    async with aiohttp.ClientSession() as http, http.post(url, json={"n": number}, headers={"Idempotency-Key": f"k{number}"}) as answer:
        assert answer.status == 200
        return "Idempotent-Replayed" in answer.headers


def test_every_encoding_gives_the_same_rows(site: SiteProcess, lake: Any) -> None:
    site.start()

    async def all_of_them() -> None:
        await asyncio.gather(*(send(site, encoding, *message) for encoding, message in MESSAGES.items()))

    asyncio.run(all_of_them())
    site.stop()
    rows = lake.query('select device, epoch(time), readings.n, readings."on", readings.mode, readings."gps.lat" from {lake} order by time')
    by_device: dict[str, list[Any]] = {}
    for device, *row in rows:
        by_device.setdefault(device, []).append(row)
    assert len(by_device) == 2 * len(MESSAGES)
    expected = [[record["ts"], record["n"], record["on"], record["mode"], 1.5] for record in READINGS]
    assert [device for device, got in by_device.items() if got != expected] == []


def test_a_key_is_known_after_a_kill(site: SiteProcess, lake: Any) -> None:
    site.start()
    assert asyncio.run(post_once(site, 1)) is False
    site.kill()
    site.start()
    assert asyncio.run(post_once(site, 1)) is True
    site.kill()
    # durable, and nobody told yet: the client cannot know, and asks again
    site.start(faults="ingest_ws.after_deliver=kill@1")
    try:
        asyncio.run(post_once(site, 2))
        raise AssertionError("the server answered")
    except aiohttp.ClientError:
        site.wait_until_dead()
    site.start()
    assert asyncio.run(post_once(site, 2)) is True
    assert asyncio.run(post_once(site, 3)) is False
    site.stop()
    assert lake.query("select readings.n, count(*) from {lake} group by 1 order by 1") == [(1.0, 1), (2.0, 1), (3.0, 1)]


WORKERS = """
[host]
data_dir = "${HEADRACE_DATA}/host"
[admin]
listen = "127.0.0.1:0"
[tiers.edge]
workers = 2
[tiers.edge.sources.devices]
use = "ingest_ws"
listen = "127.0.0.1:0"
auth = "none"
[tiers.edge.queue]
use = "queue_pmem"
path = "${HEADRACE_DATA}/queue"
[tiers.edge.outputs.discard]
use = "sink_discard"
"""


def test_a_key_is_known_to_every_worker(site_of: Any) -> None:
    site = site_of(WORKERS)
    site.start()

    async def repeat() -> list[bool]:
        # each on a connection of its own, so that the kernel spreads them over the workers; some at a time
        first = await asyncio.gather(*(post_once(site, 1) for _ in range(6)))
        return [*first, *[await post_once(site, 1) for _ in range(6)]]

    assert asyncio.run(repeat()).count(False) == 1
    assert site.metric("ingest_acked_events_total", tier="edge", component="devices", plugin="ingest_ws") == 1
