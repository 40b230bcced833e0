"""`headrace akumuli rebuild` and `info`."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from akumuli_bench import sink
from akumuli_queue import events, expected, feed
from akumuli_standin import StandIn
from test_akumuli_kill import stored
from test_akumuli_lake import DEVICES, lake_holds, nothing

from headrace.cli import main
from headrace.testing import run
from headrace.testing.batches import QUEUE_ID

SITE = """
[host]
data_dir = "FOLDER"
[tiers.data.sources.devices]
use = "ingest_ws"
listen = "127.0.0.1:0"
auth = "none"
[tiers.data.queue]
use = "queue_pmem"
path = "FOLDER/queue"
[tiers.data.outputs.akumuli]
use = "sink_akumuli"
connect = "CONNECT"
query = "QUERY"
lake = "FOLDER/lake"
"""


def site_of(server: Any, folder: Path) -> str:
    file = folder / "site.toml"
    file.write_text(SITE.replace("FOLDER", str(folder)).replace("CONNECT", server.connect).replace("QUERY", server.query))
    return str(file)


def test_a_rebuild_fills_an_empty_database_and_the_output_goes_on_behind_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake_holds(tmp_path, 1, 5000)
    with StandIn() as server:
        site = site_of(server, tmp_path)
        assert main(["akumuli", "rebuild", site]) == 0
        assert "5,000 events" in capsys.readouterr().out
        assert stored(server) == expected(5000, DEVICES)
        server.stop()
        server.start()
        # the site's folder for the output is data/akumuli; `sink` has its files in a folder of that name, too
        (tmp_path / "data" / "akumuli").rename(tmp_path / "again")
        tmp_path.joinpath("again").rename(tmp_path / "data" / "data")
        run(feed(lambda: sink(server, tmp_path / "data"), 6000, DEVICES, random.Random(1), nothing, oldest=4000))
        assert stored(server) == expected(6000, DEVICES)


def test_a_rebuild_that_was_interrupted_goes_on_also_when_the_server_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lake_holds(tmp_path, 1, 6000)
    monkeypatch.setattr("headrace_sink_akumuli.command.EVENT_BYTES", 20_000)  # windows of 10,000 rows at least
    monkeypatch.setattr("headrace_sink_akumuli.lake.CHUNK_ROWS", 500)
    with StandIn() as server:
        site = site_of(server, tmp_path)
        # the guard's points come first, four times 150 kB
        for more in (700_000, 150_000, 300_000):
            server.kill_at = len(server.received) + more
            assert main(["akumuli", "rebuild", site]) == 1
            assert "Akumuli" in capsys.readouterr().err
            assert (tmp_path / "data" / "akumuli" / "rebuild.json").exists()
            if not server.running:
                server.start()
        assert main(["akumuli", "rebuild", site]) == 0
        assert stored(server) == expected(6000, DEVICES)


def test_a_database_with_points_is_not_rebuilt_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake_holds(tmp_path, 1, 100)
    with StandIn() as server:
        run(feed(lambda: sink(server, tmp_path / "other"), 100, DEVICES, random.Random(1), nothing))
        assert main(["akumuli", "rebuild", site_of(server, tmp_path)]) == 1
        assert "expected an empty database, found 2 metrics" in capsys.readouterr().err


def test_tags_are_those_of_each_devices_newest_event(tmp_path: Path) -> None:
    import pyarrow as pa

    from headrace import RangeKey
    from headrace.testing import event_batch, fake_context, living
    from headrace_sink_lake import LakeConfig, SinkLake

    async def fill() -> None:
        lake = SinkLake(LakeConfig(path=str(tmp_path / "lake"), partition_by=("site",)), fake_context(tmp_path / "lake-data"))
        async with living(lake, "output") as hook:
            for first, site in ((1, "old"), (11, "new")):
                context = {"site": [site] * 10}
                batch = event_batch(10, first, devices=["a"], readings={"n": [1.0] * 10}, context=context)
                assert isinstance(batch, pa.RecordBatch)
                key = RangeKey(QUEUE_ID, first, first + 9)
                await hook.sink_write(batch=batch, key=key)
                await hook.sink_flush(key=key)

    run(fill())
    with StandIn() as server:
        assert main(["akumuli", "rebuild", site_of(server, tmp_path)]) == 0
        assert [(name, len(points)) for name, points in server.points().items()] == [("n class=unknown device=a site=new type=unknown", 20)]


def test_info_says_what_the_server_holds_and_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake_holds(tmp_path, 1, 2000)
    with StandIn() as server:
        site = site_of(server, tmp_path)
        assert main(["akumuli", "rebuild", site]) == 0
        capsys.readouterr()
        server.kill()
        server.start()
        assert main(["akumuli", "info", site, "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["series_known"] == 2 * DEVICES
        assert facts["series_behind"] > 0
        assert facts["positions"] == {QUEUE_ID: 2000}
        assert facts["positions_safe"] == {QUEUE_ID: 0}
        assert not facts["rebuild_unfinished"]
        assert main(["akumuli", "info", site]) == 0
        assert "series_behind" in capsys.readouterr().out
        assert events(1, 1, 1).num_rows == 1
