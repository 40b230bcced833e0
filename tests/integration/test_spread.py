"""Links that share a tier's events, as an operator changes them."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from headrace.testing.site import SiteError, SiteProcess

SITE = """
[host]
drain_deadline_s = 0.1
[admin]
listen = "127.0.0.1:0"
[tiers.edge.sources.devices]
use = "ingest_ws"
listen = "127.0.0.1:0"
auth = "none"
[tiers.edge.queue]
use = "queue_pmem"
path = "${HEADRACE_DATA}/queue"
segment_bytes = 8388608
size_bytes_max = 33554432
[tiers.edge.outputs.up-a]
use = "transport_zmq"
spread = "middles"
connect = "tcp://127.0.0.1:1"
"""
OTHER = """
[tiers.edge.outputs.up-b]
use = "transport_zmq"
spread = "middles"
connect = "tcp://127.0.0.1:2"
"""


def test_one_that_is_taken_out_too_early_is_missed_and_may_be_retired(site_of: Callable[..., SiteProcess]) -> None:
    site = site_of('[host]\ndata_dir = "${HEADRACE_DATA}"\n' + SITE.partition("[host]\n")[2] + OTHER)
    site.start()
    request = urllib.request.Request(f"{site.url('devices')}/v1/devices/d1/events", b'{"n":1}', {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200
    site.stop()

    whole = site.file.read_text()
    site.file.write_text(whole.replace(OTHER, ""))
    with pytest.raises(SiteError, match=r"outputs\.up-b: expected the output that has 1 positions of spread.*spread_retired = true"):
        site.start()

    site.file.write_text(whole + "spread_retired = true\n")
    site.start()
    assert stages(site)[-1]["outputs"] == ["up-a"]
    assert site.metric("queue_reader_lag_events", reader="up-b") == 1
    site.kill()


def stages(site: SiteProcess) -> list[dict[str, Any]]:
    return [line for line in site.lines() if line.get("message") == "outputs share events"]
