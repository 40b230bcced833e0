"""The simulated fleet, its signals and its CSV; the recordings' files."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter as Tally
from pathlib import Path

import pytest

from headrace.devices import signals
from headrace.devices.fleet import CLASSES, SITES, fleet, write_devices_csv
from headrace.devices.replay import Recording, ReplayError, recordings, rows
from headrace.devices.simulate import intervals
from headrace.devices.totals import Latencies

NOON = 1_763_900_000.0


def test_the_same_seed_makes_the_same_fleet_and_readings() -> None:
    times = [NOON + 7.5 * step for step in range(20)]
    first = [[device.payload(at) for at in times] for device in fleet(30, seed=4)]
    again = [[device.payload(at) for at in times] for device in fleet(30, seed=4)]
    other = [[device.payload(at) for at in times] for device in fleet(30, seed=5)]
    assert first == again
    assert first != other


def test_a_larger_fleet_begins_with_the_smaller_one() -> None:
    assert [device.device for device in fleet(50, seed=2)][:20] == [device.device for device in fleet(20, seed=2)]


def test_every_class_and_site_is_there_by_its_share() -> None:
    devices = fleet(200)
    classes = Tally(device.device_class for device in devices)
    assert {name: classes[name] for name in classes} == {kind.name: round(200 * kind.share) for kind in CLASSES}
    assert Tally(device.site for device in devices) == {site.name: 50 for site in SITES}
    assert len({device.device for device in devices}) == 200


def test_readings_are_json_objects_with_a_time_and_plain_values() -> None:
    for device in fleet(60):
        for step in range(50):
            event = json.loads(device.payload(NOON + step))
            assert event.pop("ts") == NOON + step
            assert event
            flat = [child for value in event.values() for child in (value.values() if isinstance(value, dict) else [value])]
            assert all(isinstance(value, (float, int, bool, str)) for value in flat)


def test_the_fleet_csv_has_the_columns_that_context_import_reads(tmp_path: Path) -> None:
    devices = fleet(12)
    write_devices_csv(devices, tmp_path / "fleet.csv")
    with (tmp_path / "fleet.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["device", "class", "type", "site", "latitude", "longitude"]
    assert [row["device"] for row in table] == [device.device for device in devices]
    assert all(-90 <= float(row["latitude"]) <= 90 and -180 <= float(row["longitude"]) <= 180 for row in table)


def test_the_intervals_add_up_to_the_rate() -> None:
    devices = fleet(200)
    assert sum(1 / every_s for every_s in intervals(devices, 500.0)) == pytest.approx(500.0)


def test_a_daily_curve_peaks_at_its_hour_of_solar_time() -> None:
    curve = signals.DailyCurve(mean=10, swing=5, peak_hour=15, noise=0, longitude=30)
    rng = random.Random(1)
    by_hour = {hour: curve.value(hour * 3600.0, 60, rng) for hour in range(24)}
    assert max(by_hour, key=lambda hour: float(by_hour[hour])) == 13  # 15 h solar time at 30 degrees east
    assert by_hour[13] == 15.0
    assert by_hour[1] == 5.0


def test_counters_only_grow_and_walks_stay_in_their_bounds() -> None:
    rng = random.Random(2)
    counter, walk = signals.Counter(10, per_hour=60), signals.Walk(5.0, 0.0, 6.0, step=4.0)
    counts = [float(counter.value(NOON + 60 * step, 60, rng)) for step in range(1500)]
    assert counts == sorted(counts)
    assert counts[-1] - counts[0] == pytest.approx(1500, rel=0.2)
    walked = [float(walk.value(NOON, 60, rng)) for _ in range(1500)]
    assert 0.0 <= min(walked) < 2.0
    assert max(walked) == 6.0


def test_a_toggle_is_on_for_its_share_of_the_time() -> None:
    rng = random.Random(3)
    toggle = signals.Toggle(on_s=300, off_s=900)
    states = [toggle.value(NOON, 10, rng) for _ in range(20_000)]
    assert sum(map(bool, states)) / len(states) == pytest.approx(0.25, abs=0.05)


def test_a_battery_falls_and_is_changed() -> None:
    battery = signals.Battery(100, life_days=10)
    charges = [float(battery.value(NOON, 86_400, random.Random(1))) for _ in range(10)]
    assert charges[:9] == sorted(charges[:9], reverse=True)
    assert charges[9] == 100.0


def test_latency_quantiles_are_right_to_a_bucket() -> None:
    latencies = Latencies()
    assert latencies.quantile(0.5) is None
    for number in range(1, 10_001):
        latencies.add(number / 10_000)
    for q in (0.01, 0.5, 0.9, 0.99):
        value = latencies.quantile(q)
        assert value is not None
        assert q <= value <= q * 1.05
    assert latencies.quantile(1.0) == 1.0
    latencies.add(0.0)
    latencies.add(1e12)


# --- recordings ------------------------------------------------------------------------------------------------------


def write(folder: Path, text: str) -> Recording:
    path = folder / "r.csv"
    path.write_text(text)
    return Recording("d", 'quote"and%s', path)


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("", 1, "expected the header 'timestamp,value', got ''"),
        ("time,value\n", 1, "expected the header 'timestamp,value', got 'time,value'"),
        ("timestamp,value\n2013-01-01 00:00:00,1\n2013-01-01 00:00:00\n", 3, "expected 2 fields, got 1"),
        ("timestamp,value\n2013-01-01 00:00:00,1,2\n", 2, "expected 2 fields, got 3"),
        ("timestamp,value\n\nyesterday,1\n", 3, "expected a timestamp like 2013-12-02 21:15:00, got 'yesterday'"),
        ("timestamp,value\n2013-01-01 00:00:00,\n", 2, "expected a number in the field value, got ''"),
        ("timestamp,value\n2013-01-01 00:00:00,nan\n", 2, "expected a number in the field value, got 'nan'"),
        ("timestamp,value\n2013-01-01 00:00:00,007\n", 2, "expected a number in the field value, got '007'"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, text: str, line: int, problem: str) -> None:
    recording = write(tmp_path, text)
    with pytest.raises(ReplayError) as raised:
        list(rows(recording))
    assert str(raised.value) == f"{recording.path}:{line}: {problem}"


def test_metric_names_are_escaped(tmp_path: Path) -> None:
    recording = write(tmp_path, "timestamp,value\n2013-01-01 00:00:00,1.50\n")
    (row,) = rows(recording)
    assert row.payload == b'{"ts":"2013-01-01T00:00:00Z","quote\\"and%s":1.50}'
    assert (row.line, row.at) == (2, 1_356_998_400.0)


DEVICES_HEADER = "device,class,type,site,latitude,longitude,metric,unit,file\n"


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("device,file\n", 1, "metric is missing"),
        (DEVICES_HEADER + "a,c,t,s,0,0,m,u,\n", 2, "one is empty"),
        (DEVICES_HEADER + "a,c,t,s,0,0,m,u,r.csv\nb,c,t,s,0,0,m,u,r.csv\n", 3, "'r.csv' stands in line 2 too"),
        (DEVICES_HEADER + "a,c,t,s,0,0,m,u,other.csv\n", 1, "expected a row whose file is 'r.csv', found none; files: other.csv"),
        (DEVICES_HEADER + "a,c,t,s,0,0,m,u,r.csv\na,c,t,s,0,0,m,u,q.csv\n", 3, "expected one file per device"),
    ],
)
def test_a_bad_devices_csv_is_named_by_file_and_line(tmp_path: Path, text: str, line: int, problem: str) -> None:
    devices_csv = tmp_path / "devices.csv"
    devices_csv.write_text(text)
    with pytest.raises(ReplayError) as raised:
        recordings([tmp_path / "r.csv", tmp_path / "q.csv"], devices_csv)
    assert str(raised.value).startswith(f"{devices_csv}:{line}: ")
    assert problem in str(raised.value)
