"""The component over SQLite: what events get, and what happens when the database is not as it should be."""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from context_driver import added, batch_of, classes, devices, enricher, next_reading, row, sql, sqlite_url, until

from headrace import ConfigError, TransientError
from headrace.component import SystemClock
from headrace.config import Secret
from headrace.testing import FakeClock, living, run
from headrace_enricher_context import EnricherContext
from headrace_enricher_context.config import Column, ContextConfig


def test_events_get_the_context_of_their_device_in_their_order(tmp_path: Path) -> None:
    devices(tmp_path / "c.db", [row("a", **{"class": "pump"}), row("größe 🌊", site="Плант"), row("b", site=None)])
    component, context = enricher(sqlite_url(tmp_path / "c.db"), tmp_path / "data")

    async def check() -> None:
        async with living(component, "enricher"):
            got = added(component, "b", "größe 🌊", "stranger", "a", "b")
            assert [one["class"] for one in got] == ["meter", "meter", None, "pump", "meter"]
            assert [one["site"] for one in got] == [None, "Плант", None, "hall", None]
            assert got[2] == {"class": None, "type": None, "site": None, "latitude": None, "longitude": None}
            assert got[3] == {"class": "pump", "type": "t", "site": "hall", "latitude": 1.5, "longitude": 2.5}
            assert component.enrich(batch_of([])).num_rows == 0

    run(check())
    assert context.statuses == [("ok", "")]
    assert context.metric("enrich_devices") == 3
    assert context.metric("enrich_refresh_total") == 1
    assert context.metric("enrich_refresh_duration_seconds_count") == 1
    assert context.metric("enrich_unknown_device_events_total") == 1
    assert context.metric("enrich_last_refresh_timestamp_seconds") == context.clock.wall()


def test_columns_are_renamed_and_typed(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    sql(
        path,
        'CREATE TABLE "Assets of plant" (serial INTEGER, "Floor No" TEXT, lat TEXT, active INTEGER, since TEXT)',
        "INSERT INTO \"Assets of plant\" VALUES (7, '3', '45.5', 1, '2026-01-01 10:00:00')",
    )
    columns = {
        "floor": Column(source="Floor No", type="int64"),
        "latitude": Column(source="lat", type="float64"),
        "active": Column(type="bool"),
        "since": Column(type="timestamp"),
        "lat_text": Column(source="lat"),
    }
    component, context = enricher(sqlite_url(path), tmp_path / "data", table="Assets of plant", key="serial", columns=columns)
    run(component.open())
    assert context.statuses == [("ok", "")]
    (got,) = added(component, "7")
    assert got.pop("since").isoformat() == "2026-01-01T10:00:00+00:00"
    assert got == {"floor": 3, "latitude": 45.5, "active": True, "lat_text": "45.5"}


def test_a_query_takes_the_place_of_the_table(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    sql(
        path,
        "CREATE TABLE assets (id TEXT, site INTEGER)",
        "CREATE TABLE sites (id INTEGER, name TEXT)",
        "INSERT INTO assets VALUES ('a', 1), ('b', 2), ('hidden', 2)",
        "INSERT INTO sites VALUES (1, 'at 10:30 :north'), (2, '100 %s')",
    )
    query = """-- colons and percent signs mean themselves
        SELECT assets.id AS device, sites.name AS site, 'x:y' AS class FROM assets JOIN sites ON sites.id = assets.site
        WHERE sites.name <> ':nothing' AND assets.id NOT LIKE 'hid%';"""
    component, context = enricher(sqlite_url(path), tmp_path / "data", query=query, columns={"site": Column(), "class": Column()})
    run(component.open())
    assert context.statuses == [("ok", "")]
    assert [one["site"] for one in added(component, "a", "b", "hidden")] == ["at 10:30 :north", "100 %s", None]
    assert classes(component, "a") == ["x:y"]


def test_a_query_cannot_write(tmp_path: Path) -> None:
    devices(tmp_path / "c.db", [row("a")])
    for writing in ("DELETE FROM devices", "insert into devices(device) values ('z')", "  DROP TABLE devices"):
        with pytest.raises(ValueError, match="SELECT"):
            ContextConfig(query=writing)
    query = "WITH gone AS (SELECT 1) DELETE FROM devices"
    component, context = enricher(sqlite_url(tmp_path / "c.db"), tmp_path / "data", query=query)
    run(component.open())
    assert context.statuses[-1][0] == "degraded"
    other, _ = enricher(sqlite_url(tmp_path / "c.db"), tmp_path / "other")
    run(other.open())
    assert classes(other, "a") == ["meter"]


def test_of_several_rows_of_a_device_the_last_in_order_counts_every_time(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rows = [row("a", **{"class": name}) for name in ("x", "y", "z", None)] + [row("b")]
    for attempt in range(5):
        path = tmp_path / f"{attempt}.db"
        random.Random(seed + attempt).shuffle(rows)
        sql(path, "CREATE TABLE devices (device TEXT, class TEXT, type TEXT, site TEXT, latitude REAL, longitude REAL)")
        for one in rows:
            sql(path, "INSERT INTO devices VALUES (" + ", ".join("NULL" if cell is None else repr(cell) for cell in one) + ")")
        component, context = enricher(sqlite_url(path), tmp_path / f"data{attempt}")
        run(component.open())
        assert classes(component, "a", "b") == ["z", "meter"]
        assert context.metric("enrich_row_problems_total", reason="duplicate") == 3
        assert context.metric("enrich_devices") == 2


def test_a_bad_cell_costs_that_cell_only(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    devices(path, [row("a", latitude="north"), row("b", site=b"\xff\xfe"), row("c"), (None, "x", "x", "x", 1, 1)])
    component, context = enricher(sqlite_url(path), tmp_path / "data")
    run(component.open())
    got = added(component, "a", "b", "c")
    assert [one["latitude"] for one in got] == [None, 1.5, 1.5]
    assert [one["site"] for one in got] == ["hall", None, "hall"]
    assert context.metric("enrich_row_problems_total", reason="bad_cell") == 2
    assert context.metric("enrich_row_problems_total", reason="no_key") == 1
    assert context.statuses == [("ok", "")]


def test_the_log_names_device_column_and_cell_of_a_bad_cell(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    devices(tmp_path / "c.db", [row("a", latitude="north")])
    component, _ = enricher(sqlite_url(tmp_path / "c.db"), tmp_path / "data")
    run(component.open())
    record = next(one for one in caplog.records if one.message == "context has bad rows")
    assert "device 'a', column 'latitude': expected float64, got b'north'" in str(record.__dict__)


# --- refresh


def test_changes_appear_after_the_refresh_interval(tmp_path: Path) -> None:
    path, clock = tmp_path / "c.db", FakeClock()
    devices(path, [row("a"), row("b")])
    component, context = enricher(sqlite_url(path), tmp_path / "data", clock=clock, refresh_interval_s=60, unknown_refresh_s=0)

    async def check() -> None:
        async with living(component, "enricher"):
            sql(path, "UPDATE devices SET class = 'new' WHERE device = 'a'", "DELETE FROM devices WHERE device = 'b'")
            assert classes(component, "a", "b") == ["meter", "meter"]
            await next_reading(clock, context, 60)
            assert classes(component, "a", "b") == ["new", None]

    run(check())
    assert context.metric("enrich_devices") == 1


def test_a_new_device_brings_the_reading_forward_once(tmp_path: Path) -> None:
    path, clock = tmp_path / "c.db", FakeClock()
    devices(path, [row("a")])
    component, context = enricher(sqlite_url(path), tmp_path / "data", clock=clock, refresh_interval_s=3600, unknown_refresh_s=10)

    async def check() -> None:
        async with living(component, "enricher"):
            sql(path, "INSERT INTO devices(device, class) VALUES ('new', 'x')")
            assert classes(component, "new", "stranger") == [None, None]
            await next_reading(clock, context, 11)
            assert classes(component, "new", "stranger") == ["x", None]
            await clock.advance(600)
            await asyncio.sleep(0.05)
            assert context.metric("enrich_refresh_total") == 2  # the stranger asks no second time

    run(check())


def test_a_batch_sees_one_context_whole(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    names = [f"d{number}" for number in range(300)]
    devices(path, [row(name, **{"class": "0"}, site="0") for name in names])
    component, _ = enricher(sqlite_url(path), tmp_path / "data", clock=SystemClock(), refresh_interval_s=0.05)
    stop = threading.Event()

    def write() -> None:
        for generation in range(1, 1000):
            if stop.wait(0.02):
                return
            sql(path, f"UPDATE devices SET class = '{generation}', site = '{generation}'")

    async def check() -> None:
        seen: set[str] = set()
        async with living(component, "enricher"):
            while len(seen) < 6:
                generations = {value for one in added(component, *names) for value in (one["class"], one["site"])}
                assert len(generations) == 1
                seen |= generations
                await asyncio.sleep(0.001)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        run(check())
    finally:
        stop.set()
        writer.join()


# --- what goes wrong


def test_a_missing_file_is_not_made_and_the_status_says_what_to_do(tmp_path: Path) -> None:
    component, context = enricher(sqlite_url(tmp_path / "no.db"), tmp_path / "data")
    run(component.open())
    assert classes(component, "a") == [None]
    status, reason = context.statuses[-1]
    assert status == "degraded"
    assert "headrace context import" in reason
    assert "events pass with nulls" in reason
    assert not (tmp_path / "no.db").exists()
    assert context.metric("enrich_refresh_failures_total") == 1
    assert context.metric("enrich_unknown_device_events_total") == 1
    assert component.health().status == "degraded"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"table": "device"}, ["no table 'device'", "did you mean 'devices'?", "tables there: devices", "headrace context import"]),
        ({"key": "serial"}, ["table 'devices' has no column 'serial'", "it has: device, class"]),
        ({"columns": {"x": Column(source="clas")}}, ["has no column 'clas'", "did you mean 'class'?"]),
        ({"query": "SELECT device FROM devices"}, ["the query has no column 'class', 'type'"]),
        ({"query": "SELECT device FROM nowhere"}, ["no such table: nowhere"]),
        ({"devices_max": 1}, ["more than 1 rows", "devices_max"]),
    ],
)
def test_a_wrong_source_degrades_with_the_reason(tmp_path: Path, options: dict[str, Any], expected: list[str]) -> None:
    devices(tmp_path / "c.db", [row("a"), row("b")])
    component, context = enricher(sqlite_url(tmp_path / "c.db"), tmp_path / "data", **options)
    run(component.open())
    status, reason = context.statuses[-1]
    assert status == "degraded"
    assert [part for part in [str(tmp_path / "c.db"), *expected] if part not in reason] == []
    assert component.enrich(batch_of(["a"])).num_rows == 1


def test_a_file_that_is_no_database_degrades(tmp_path: Path) -> None:
    (tmp_path / "c.db").write_bytes(b"not a database" * 100)
    component, context = enricher(sqlite_url(tmp_path / "c.db"), tmp_path / "data")
    run(component.open())
    assert "not a database" in context.statuses[-1][1]


def test_the_last_context_stays_while_the_database_is_gone_and_a_new_one_follows(tmp_path: Path) -> None:
    path, clock = tmp_path / "c.db", FakeClock()
    devices(path, [row("a")])
    component, context = enricher(sqlite_url(path), tmp_path / "data", clock=clock)

    async def check() -> None:
        async with living(component, "enricher"):
            path.rename(tmp_path / "moved.db")
            await next_reading(clock, context, 60)
            assert classes(component, "a") == ["meter"]
            status, reason = context.statuses[-1]
            assert status == "degraded"
            assert "1 devices" in reason
            await clock.advance(3600)
            assert "old" in component.health().reason
            sql(tmp_path / "moved.db", "UPDATE devices SET class = 'later'")
            (tmp_path / "moved.db").rename(path)
            await until(lambda: component.health().status == "ok", clock)
            assert classes(component, "a") == ["later"]

    run(check())
    assert context.statuses[-1] == ("ok", "")
    assert (context.metric("enrich_refresh_failures_total") or 0) >= 1


def test_a_restart_without_database_knows_the_last_context_and_its_age(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    devices(path, [row("a")])
    first, _ = enricher(sqlite_url(path), tmp_path / "data")
    run(first.open())
    path.unlink()

    later = FakeClock()
    later.jump_wall(7200)
    second, context = enricher(sqlite_url(path), tmp_path / "data", clock=later, on_start="wait")
    run(second.open())
    assert classes(second, "a") == ["meter"]
    status, reason = context.statuses[-1]
    assert status == "degraded"
    assert "2026-11-23T12:00:00+00:00 (2:00:00 old, 1 devices)" in reason
    assert context.metric("enrich_devices") == 1
    assert context.metric("enrich_last_refresh_timestamp_seconds") == first.context.clock.wall()


def test_a_kept_context_of_other_columns_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    devices(path, [row("a")])
    first, _ = enricher(sqlite_url(path), tmp_path / "data")
    run(first.open())
    path.unlink()
    second, context = enricher(sqlite_url(path), tmp_path / "data", columns={"class": Column(source="type")})
    run(second.open())
    assert classes(second, "a") == [None]
    assert "no context yet" in context.statuses[-1][1]


def test_a_broken_kept_context_does_not_stop_the_start(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "context.arrows").write_bytes(b"torn")
    devices(tmp_path / "c.db", [row("a")])
    component, context = enricher(sqlite_url(tmp_path / "c.db"), tmp_path / "data")
    run(component.open())
    assert classes(component, "a") == ["meter"]
    assert context.metric("enrich_file_failures_total") == 1
    assert context.statuses[-1] == ("ok", "")
    assert (tmp_path / "data" / "context.broken").exists()


def test_on_start_wait_opens_only_with_a_context(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    waiting, _ = enricher(sqlite_url(path), tmp_path / "data", on_start="wait")
    with pytest.raises(TransientError, match="on_start"):
        run(waiting.open())
    run(waiting.close())
    devices(path, [row("a")])
    again, _ = enricher(sqlite_url(path), tmp_path / "data", on_start="wait")
    run(again.open())
    assert classes(again, "a") == ["meter"]


def test_a_context_that_cannot_be_kept_is_used_and_kept_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, clock = tmp_path / "c.db", FakeClock()
    devices(path, [row("a")])
    component, context = enricher(sqlite_url(path), tmp_path / "data", clock=clock)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    async def check() -> None:
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            await component.open()
        assert classes(component, "a") == ["meter"]
        assert context.metric("enrich_file_failures_total") == 1
        assert "No space left" in context.statuses[-1][1]
        running = asyncio.create_task(component.run())
        await until(lambda: component.health().status == "ok", clock)
        running.cancel()

    run(check())
    assert (tmp_path / "data" / "context.arrows").exists()


def test_a_database_that_never_answers_is_given_up_in_time(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"postgresql+psycopg://site:hush@127.0.0.1:{deaf.getsockname()[1]}/db"
        component, context = enricher(url, tmp_path / "data", connect_timeout_s=1, query_timeout_s=0.1)
        run(component.open())
        run(component.close())
    status, reason = context.statuses[-1]
    assert status == "degraded"
    assert "hush" not in reason
    assert context.metric("enrich_refresh_failures_total") == 1


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///{file}?timeout=soon", "soon"),
        ("postgresql+psycopg://site:hush@127.0.0.1:1/db?colour=blue", "colour"),
        ("postgresql+psycopg://site@127.0.0.1:1/db?password=hush", "refused"),
        ("postgresql+psycopg://site:hush@127.0.0.1:1/db?connect_timeout=never", "connect_timeout"),
    ],
)
def test_wrong_options_in_the_url_degrade_without_the_password(tmp_path: Path, url: str, expected: str) -> None:
    devices(tmp_path / "c.db", [row("a")])
    component, context = enricher(url.format(file=tmp_path / "c.db"), tmp_path / "data")
    run(component.open())
    status, reason = context.statuses[-1]
    assert status == "degraded"
    assert expected in reason
    assert "hush" not in reason


def test_a_driver_that_is_not_installed_is_a_config_error(tmp_path: Path) -> None:
    component, _ = enricher("firebird+none://site:hush@db/x", tmp_path / "data")
    (problem,) = component.check()
    assert "database: no driver for 'firebird+none'" in problem
    with pytest.raises(ConfigError, match="no driver") as caught:
        run(component.open())
    assert "hush" not in str(caught.value) + problem


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"table": "a", "query": "SELECT 1"}, "both"),
        ({"table": ""}, "neither"),
        ({"query": "VACUUM"}, "SELECT"),
        ({"database": "hush"}, "URL"),
        ({"columns": {}}, "columns"),
        ({"columns": {"x": {"type": "float"}}}, "columns"),
        ({"refresh_interval_s": 0}, "refresh_interval_s"),
        ({"on_start": "stop"}, "on_start"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, object], expected: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=expected) as caught:
        msgspec.convert(options, ContextConfig, dec_hook=lambda kind, value: Secret(value))
    assert "hush" not in str(caught.value)


def test_a_reload_takes_another_database_at_once(tmp_path: Path) -> None:
    clock = FakeClock()
    devices(tmp_path / "old.db", [row("a", **{"class": "old"})])
    devices(tmp_path / "new.db", [row("a", **{"class": "new"})])
    component, _ = enricher(sqlite_url(tmp_path / "old.db"), tmp_path / "data", clock=clock)

    async def check() -> None:
        async with living(component, "enricher"):
            assert await component.reload(ContextConfig(database=Secret(sqlite_url(tmp_path / "new.db"))))
            await until(lambda: classes(component, "a") == ["new"], clock)
            assert not await component.reload(ContextConfig(columns={"other": Column()}))

    run(check())


# --- kill -9

CRASHED = """
import asyncio, sys
from pathlib import Path
from typing import Any
sys.path.insert(0, {tests!r})
from context_driver import enricher, sqlite_url
component, _ = enricher(sqlite_url(Path({database!r})), Path({folder!r}), faults="{point}=kill")
asyncio.run(component.open())
"""


@pytest.mark.parametrize("point", EnricherContext.fault_points)
def test_a_kill_leaves_the_old_context_or_the_new_one_whole(tmp_path: Path, point: str) -> None:
    path = tmp_path / "c.db"
    devices(path, [row("a", **{"class": "old"}), row("b", **{"class": "old"})])
    first, _ = enricher(sqlite_url(path), tmp_path / "data")
    run(first.open())
    sql(path, "UPDATE devices SET class = 'new'")

    script = CRASHED.format(tests=str(Path(__file__).parent), database=str(path), folder=str(tmp_path / "data"), point=point)
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == -signal.SIGKILL

    path.unlink()
    second, context = enricher(sqlite_url(path), tmp_path / "data")
    run(second.open())
    assert classes(second, "a", "b") == ["old", "old"]  # every point lies before the rename
    assert context.metric("enrich_file_failures_total") == 0
