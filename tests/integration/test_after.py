"""`start = "after:lake"`: a site's own lake is replaced by an uplink, and nothing is doubled or lost. As docs/operations.md says."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headrace.testing.site import SiteProcess

EDGE = """
[admin]
listen = "127.0.0.1:0"
[tiers.site.sources.devices]
use = "ingest_ws"
listen = "127.0.0.1:0"
auth = "none"
[tiers.site.queue]
use = "queue_pmem"
path = "{data}/queue"
size_bytes_max = 67_108_864
[tiers.site.outputs.lake]
use = "sink_lake"
path = "{data}/lake"
flush_interval_s = {interval}
"""
UPLINK = """
enabled = false
[tiers.site.outputs.uplink]
use = "transport_zmq"
connect = "{link}"
peer = "central"
start = "after:lake"
[tiers.central.sources.links]
use = "transport_zmq"
listen = "{link}"
[tiers.central.outputs.store]
use = "sink_lake"
path = "{data}/central/lake"
flush_interval_s = 0.2
"""


def test_a_lake_is_replaced_by_an_uplink(tmp_path: Path, site_of: Callable[..., SiteProcess], lake_of: Callable[[Path], Any]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        places = {"data": tmp_path / "data", "link": f"tcp://127.0.0.1:{probe.getsockname()[1]}"}
    site = site_of(EDGE.format(interval=0.1, **places))
    site.start()
    site.post("devices", "boiler", ["1", "2", "3"])
    site.wait_for_metric("sink_written_events_total", 3, component="lake")
    site.stop()
    # what it had no time to flush when it was stopped stays in the queue, behind the lake's cursor
    site = site_of(EDGE.format(interval=3600, **places), "host.drain_deadline_s=0")
    site.start()
    site.post("devices", "boiler", ["4", "5"])
    site.wait_for_metric("sink_written_events_total", 0, component="lake")
    site.stop()

    site = site_of(EDGE.format(interval=3600, **places) + UPLINK.format(**places))
    for life in range(2):  # where it begins is decided once
        site.start()
        site.post("devices", "boiler", [f"{6 + life}"])
        deadline = time.monotonic() + 60
        while site.metric("queue_reader_lag_events", reader="uplink"):  # released when the far tier's lake has it
            assert time.monotonic() < deadline, site.log_end()
            time.sleep(0.02)
        site.stop()
    before, after = lake_of(tmp_path / "data").ids(), lake_of(tmp_path / "data" / "central").ids()
    assert before + after == Counter("1234567")
    assert {"1", "2", "3"} <= before.keys()
    assert {"6", "7"} <= after.keys()
