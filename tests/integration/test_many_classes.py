"""200 device classes with everything that devices have been seen to send, through a whole tier: the account balances to the event."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tests.integration.classes import stream

from headrace import decoding
from headrace.testing.crash import test_seed as seed_of_this_run
from headrace.testing.site import SiteProcess

#: Files for 200 classes are too many for a short test: ten groups of them, then.
EVENTS, KEY = (1_000_000, "class") if "HEADRACE_FULL" in os.environ else (4_000, "group")

SITE = """
[host]
data_dir = "${HEADRACE_DATA}"
[admin]
listen = "127.0.0.1:0"
[tiers.site.sources.devices]
use = "./classes.py:Generated"
seed = %d
events = %d
done = "${HEADRACE_DATA}/done"
[tiers.site.queue]
use = "queue_pmem"
path = "${HEADRACE_DATA}/queue"
[[tiers.site.enrichers]]
id = "names"
use = "./classes.py:ByName"
[tiers.site.outputs.lake]
use = "sink_lake"
path = "${HEADRACE_DATA}/lake"
partition_by = ["%s"]
flush_interval_s = 2
"""


def test_every_acked_event_of_200_drifting_classes_is_in_the_lake_or_a_dead_letter(
    site_of: Callable[..., SiteProcess], tmp_path: Path
) -> None:
    shutil.copy(Path(__file__).with_name("classes.py"), tmp_path)
    seed = seed_of_this_run()
    site = site_of(SITE % (seed, EVENTS, KEY))
    site.start()
    deadline = time.monotonic() + (120 if EVENTS < 100_000 else 3600)
    while not (tmp_path / "data" / "done").exists() or site.metric("queue_reader_lag_events"):
        assert time.monotonic() < deadline, site.log_end()
        time.sleep(0.1)
    acked = int((tmp_path / "data" / "done").read_text())
    site.stop()
    assert acked == EVENTS
    made = list(stream(seed, EVENTS))
    lake = duckdb.sql(
        f"select position, readings.id as id from read_parquet('{tmp_path}/data/lake/{KEY}=*/*.parquet', union_by_name = true)"
    )
    stored = dict(lake.fetchall())
    dead = letters(tmp_path / "data" / "site" / "dead_letters.db")
    # to the event: acked = lake + dead letters, none in both, none twice
    assert len(lake.fetchall()) == len(stored)
    assert sorted([*stored, *dead]) == list(range(1, acked + 1))
    assert sorted(dead) == [position for position, one in enumerate(made, 1) if one.garbage]
    assert all(dead[position] == made[position - 1].payload for position in dead), "the bytes as they came"
    assert all(identity == str(position - 1) for position, identity in stored.items())
    verified = subprocess.run([sys.executable, "-m", "headrace", "lake", "verify", str(tmp_path / "data" / "lake")], check=False)
    assert verified.returncode == 0
    values_are_kept(tmp_path, made)


def letters(path: Path) -> dict[int, bytes]:
    rows = sqlite3.connect(path).execute("select position, payload, stage, state from letters").fetchall()
    assert {(stage, state) for _, _, stage, state in rows} <= {("decode", "dead")}
    return {position: payload for position, payload, _, _ in rows}


def values_are_kept(folder: Path, made: list[Any]) -> None:
    """Of a sample: each reading stands in its column, or in `_other`, as the rules of decoding say. Read by pyarrow: to DuckDB names
    that differ in case only are one."""
    step = max(1, len(made) // 500)
    wanted = pa.array([position for position in range(1, len(made) + 1, step) if not made[position - 1].garbage], pa.uint64())
    seen = 0
    for file in (folder / "data" / "lake").glob(f"{KEY}=*/*.parquet"):
        table = pq.read_table(file, columns=["position", "readings"], partitioning=None)
        for row in table.filter(pc.is_in(table["position"], wanted)).to_pylist():
            event = made[row["position"] - 1]
            (decoded,), bad = decoding.decode([event.payload], event.encoding)
            assert not bad
            stored = {name: value for name, value in row["readings"].items() if value is not None and name != "_other"}
            stored |= json.loads(row["readings"].get("_other") or "{}")
            names = {named(name) for name, value in flat(decoded).items() if value is not None}
            # a believed time is no reading any more
            assert {*map(named, stored), "ts"} == names | {"ts"}, row["position"]
            numbers = {name: value for name, value in flat(decoded).items() if type(value) is float and name in stored}
            assert all(str(stored[name]) == str(value) for name, value in numbers.items()), row["position"]
            seen += 1
    assert seen == len(wanted)


def named(name: str) -> str:
    """The column of a reading in the lake."""
    return name.replace("\0", "\ufffd") or "_"


def flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found
