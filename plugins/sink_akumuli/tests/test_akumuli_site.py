"""A whole site with a lake and Akumuli: devices and the lake notice nothing of a server that is down, dies, and comes back."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path

import duckdb
from akumuli_standin import StandIn

from headrace.testing.site import SiteProcess

SITE = Path(__file__).parents[3] / "examples" / "akumuli.toml"
OVERRIDES = (
    "admin.listen=127.0.0.1:0",
    "tiers.site.sources.devices.listen=127.0.0.1:0",
    "tiers.site.queue.size_bytes_max=67108864",
    "tiers.site.engine.retry_max_ms=100",
    "tiers.site.outputs.lake.flush_interval_s=0.2",
    "tiers.site.outputs.akumuli.flush_interval_s=0.2",
    "tiers.site.outputs.akumuli.timeout_s=10.0",
)
DEVICES, EVENTS = 5, 400


def send(site: SiteProcess, first: int) -> None:
    """EVENTS events of each device, in one message each, acked. Their times grow with their numbers."""
    url = site.wait_for_url("devices")
    now = time.time() - 3600
    for device in range(DEVICES):
        events = [{"n": number, "ts": now + number / 100, "pad": "x" * 200} for number in range(first, first + EVENTS)]
        body, headers = json.dumps(events).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}/v1/devices/d{device}/events", body, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert json.load(answer)["accepted"] == EVENTS


def lake_rows(site: SiteProcess) -> int:
    with duckdb.connect() as database:
        files = f"read_parquet('{site.folder}/data/lake/**/*.parquet', union_by_name=true)"
        ((rows, different),) = database.sql(f"select count(*), count(distinct (origin, position)) from {files}").fetchall()
    assert rows == different
    return int(rows)


def site_on(server: StandIn, folder: Path, window: int) -> SiteProcess:
    own = {"connect": server.connect, "query": server.query, "hold_window_bytes": window}
    return SiteProcess(SITE, folder, (*OVERRIDES, *(f"tiers.site.outputs.akumuli.{key}={value}" for key, value in own.items())))


def test_a_server_that_is_down_changes_neither_acks_nor_lake_and_is_filled_when_it_is_back(tmp_path: Path) -> None:
    window = 200_000  # less than what comes meanwhile: some of it has to come from the lake
    with StandIn() as server, site_on(server, tmp_path, window) as site:
        site.start()
        send(site, 0)
        site.wait_for_metric("akumuli_points_total", DEVICES * EVENTS, component="akumuli")
        server.kill()
        for round_ in range(1, 4):
            send(site, round_ * EVENTS)
        sent = 4 * DEVICES * EVENTS
        site.wait_for_metric("sink_written_events_total", sent, component="lake")
        assert lake_rows(site) == sent
        components = site.components()
        assert components["akumuli"]["status"] == "degraded"
        assert "Akumuli" in components["akumuli"]["reason"]
        assert components["lake"]["status"] == "ok"
        # the queue holds no more for it than its window
        site._wait_for(
            lambda: site.metric("queue_reader_lag_bytes", reader="akumuli") <= window, "to release what is behind the window", 60
        )
        server.start()
        site._wait_for(lambda: server.count() == sent, "to fill Akumuli", 60)
        assert [len(points) for points in server.points("n").values()] == [4 * EVENTS] * DEVICES
        for points in server.points("n").values():
            assert [value for _, value in points] == [float(number) for number in range(4 * EVENTS)]
        send(site, 4 * EVENTS)
        site._wait_for(lambda: server.count() == sent + DEVICES * EVENTS, "to go on", 60)
        assert site.metric("akumuli_rebuild_positions") == 0
        assert "n" in json.loads(site.probe("/akumuli/metrics")[1])
        site.stop()
