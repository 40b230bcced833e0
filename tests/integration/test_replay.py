"""Recordings replayed through the running site at full speed: the lake's rows equal the CSV rows, one to one."""

from __future__ import annotations

import csv
import os
import random
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from headrace.testing.site import SiteProcess

#: Real recordings (README of the folder: nine sensors, 45,600 readings); not part of the project.
REAL = Path(os.environ.get("HEADRACE_REAL_SENSORS", Path(__file__).parents[3] / "shared" / "data" / "real_sensors"))

Row = tuple[str, datetime, float]


def headrace(*words: str | Path) -> str:
    done = subprocess.run([sys.executable, "-m", "headrace", *map(str, words)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def expected_rows(folder: Path, devices: Path) -> Counter[Row]:
    rows: Counter[Row] = Counter()
    for device in csv.DictReader(devices.open()):
        for row in csv.DictReader((folder / device["file"]).open()):
            time = datetime.fromisoformat(row["timestamp"]).replace(tzinfo=UTC)
            rows[device["device"], time, float(row["value"])] += 1
    return rows


def stored_rows(lake: Any, devices: Path) -> Counter[Row]:
    rows: Counter[Row] = Counter()
    for metric in {device["metric"] for device in csv.DictReader(devices.open())}:
        found = lake.query(f'select device, epoch_us(time), readings."{metric}" from {{lake}} where readings."{metric}" is not null')
        for device, us, value in found:
            rows[device, datetime.fromtimestamp(0, UTC) + timedelta(microseconds=us), value] += 1
    return rows


def replay(site: SiteProcess, lake: Any, folder: Path, devices: Path, capsys: Any) -> None:
    headrace("context", "import", devices, "--database", f"sqlite:///{site.folder}/data/context.db")
    site.start()
    url = (site.url("devices") or "").replace("http", "ws")
    names = [device["file"] for device in csv.DictReader(devices.open())]
    summary = headrace("devices", "replay", *(folder / name for name in names), "--devices", devices, "--url", url, "--speed", "max")
    ended = site.stop()
    expected = expected_rows(folder, devices)
    with capsys.disabled():
        print(f"\n  {ended}\n  replay: {summary.splitlines()[0]}")
    assert stored_rows(lake, devices) == expected
    (positions,) = lake.query("select count(*), count(distinct position), min(position), max(position) from {lake}")
    assert positions == (expected.total(), expected.total(), 1, expected.total())
    classes = dict(lake.query("select device, any_value(context.class) from {lake} group by 1"))
    assert classes == {device["device"]: device["class"] for device in csv.DictReader(devices.open())}


def test_generated_recordings_arrive_one_to_one(site: SiteProcess, lake: Any, tmp_path: Path, capsys: Any) -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    folder = tmp_path / "recordings"
    folder.mkdir()
    with (folder / "devices.csv").open("w") as devices:
        devices.write("device,class,type,site,latitude,longitude,metric,unit,file\n")
        for number in range(6):
            devices.write(f"dev-{number},class-{number % 2},t,s,1.5,-2.5,{'speed' if number % 3 else 'temperature'},Cel,{number}.csv\n")
            moment = datetime(2015, 3, 28, 23, 50)
            with (folder / f"{number}.csv").open("w") as recording:
                recording.write("timestamp,value\n")
                for _ in range(2000):
                    # duplicate timestamps, steps back, long gaps: the blemishes of real recordings
                    moment += timedelta(seconds=rng.choice([0, 1, 300, 300, -3600, 86_400]))
                    recording.write(f"{moment},{rng.choice([rng.uniform(-50, 50), rng.randint(0, 9), 1e300])}\n")
    with capsys.disabled():
        print(f"\n  seed {seed}")
    replay(site, lake, folder, folder / "devices.csv", capsys)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real recordings are not here; HEADRACE_REAL_SENSORS names their folder")
def test_real_recordings_arrive_one_to_one_blemishes_included(site: SiteProcess, lake: Any, capsys: Any) -> None:
    replay(site, lake, REAL, REAL / "devices.csv", capsys)
