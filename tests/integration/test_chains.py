"""Chains of tiers, edge -> middle -> storage, over two links: what is in the lake carries the names that the edges gave."""

from __future__ import annotations

import json
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.testing.site import SiteProcess

EDGE = """
[tiers.{name}.sources.{name}_devices]
use = "ingest_ws"
listen = "127.0.0.1:0"
auth = "none"
[tiers.{name}.queue]
use = "queue_pmem"
path = "{data}/{name}-queue"
size_bytes_max = 67_108_864
[tiers.{name}.outputs.uplink]
use = "transport_zmq"
connect = "{middle}"
peer = "middle"
"""
REST = """
[tiers.middle.sources.links]
use = "transport_zmq"
listen = "{middle}"
[tiers.middle.queue]
use = "queue_pmem"
path = "{data}/middle-queue"
size_bytes_max = 67_108_864
[tiers.middle.outputs.store]
use = "transport_zmq"
connect = "{storage}"
peer = "storage"
[tiers.storage.sources.inlet]
use = "transport_zmq"
listen = "{storage}"
[tiers.storage.outputs.lake]
use = "sink_lake"
path = "{data}/lake"
flush_interval_s = 0.2
"""
QUEUE = """
[tiers.storage.queue]
use = "queue_pmem"
path = "{data}/storage-queue"
size_bytes_max = 67_108_864
"""


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


def post(site: SiteProcess, edge: str, device: str, ids: list[str]) -> None:
    body = json.dumps([{"id": one} for one in ids]).encode()
    address = f"{site.wait_for_url(f'{edge}_devices')}/v1/devices/{device}/events"
    with urllib.request.urlopen(urllib.request.Request(address, body, method="POST")) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("storage", ["with a queue"])
def test_events_keep_the_edges_names_over_two_links(tmp_path: Path, site_of: Callable[..., SiteProcess], lake: Any, storage: str) -> None:
    places = {"data": str(tmp_path / "data"), "middle": free_address(), "storage": free_address()}
    text = '[admin]\nlisten = "127.0.0.1:0"\n' + "".join(EDGE.format(name=name, **places) for name in ("north", "south"))
    text += (REST + (QUEUE if storage == "with a queue" else "")).format(**places)
    site = site_of(text)
    expected = []
    for life in range(2):  # each has queue ids of its own
        site.start()
        for round_ in range(3):
            for edge in ("north", "south"):
                ids = [f"{life}-{edge}-{round_}-{number}" for number in range(2)]
                post(site, edge, "boiler", ids)
                queue_id = next(queue["queue_id"] for queue in json.loads(site.probe("/components")[1])["queues"] if queue["name"] == edge)
                first = life * 6 + round_ * 2 + 1
                expected += [(one, queue_id, first + number) for number, one in enumerate(ids)]
        site.wait_for_metric("sink_written_events_total", 12, component="lake")
        site.stop()
    assert sorted(lake.query("select readings.id, origin, position from {lake}")) == sorted(expected)
