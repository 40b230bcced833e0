"""`examples/tiers.toml` in one process: what devices send to the edge is in the lake of the middle, under the edge's names."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from headrace.check import check
from headrace.testing.site import SiteProcess

FILE = Path(__file__).parents[2] / "examples" / "tiers.toml"


def test_it_would_start(tmp_path: Path) -> None:
    findings = check(FILE, environ={"HEADRACE_DATA": str(tmp_path)}, ports=False)
    assert [finding.text for finding in findings if not finding.ok] == []


@pytest.fixture
def overrides() -> list[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        link = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    return [
        "admin.listen=127.0.0.1:0", "tiers.edge.sources.devices.listen=127.0.0.1:0", f"tiers.edge.outputs.uplink.connect={link}",
        f"tiers.middle.sources.links.listen={link}", "tiers.middle.outputs.live.listen=127.0.0.1:0",
    ]  # fmt: skip


def test_both_tiers_in_one_process(tmp_path: Path, lake: Any, overrides: list[str]) -> None:
    with SiteProcess(FILE, tmp_path, overrides) as site:
        for life in range(2):  # each has a queue id of its own at the edge
            site.start()
            body = b'[{"id":"%d-1"},{"id":"%d-2"}]' % (life, life)
            address = site.wait_for_url("devices") + "/v1/devices/boiler/events"
            with urllib.request.urlopen(urllib.request.Request(address, body, method="POST")) as answer:
                assert answer.status == 200
            site.wait_for_metric("link_received_events_total", 2, component="links")
            assert site.metric("link_connected", component="uplink") == 1
            assert site.stop().endswith("stored: uplink 2, lake 2")
    assert lake.ids() == {"0-1": 1, "0-2": 1, "1-1": 1, "1-2": 1}
    ids = lake.query("select readings.id, origin, position from {lake} order by 1")
    assert [position for _, _, position in ids] == [1, 2, 3, 4], "the edge's positions, which go on over its restart"
    assert len({origin for _, origin, _ in ids}) == 2
