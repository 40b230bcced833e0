"""The component over a real PostgreSQL server: down at start, killed later, started again."""

from __future__ import annotations

from pathlib import Path

import pytest
from context_driver import added, classes, enricher, next_reading, until

from headrace.component import SystemClock
from headrace.testing import FakeClock, living, run
from headrace.testing.postgres import PASSWORD, PostgresServer
from headrace_enricher_context.config import Column

# one server for all of them, where the tests run in several processes
pytestmark = pytest.mark.xdist_group("postgres")

TABLE = """CREATE TABLE devices (device text PRIMARY KEY, class varchar(20), type text, site text,
    latitude numeric(9, 4), longitude double precision)"""


def fill(server: PostgresServer, *classes_: str) -> None:
    values = ", ".join(f"('d{number}', '{name}', 't', 'größe', 45.5231, -122.5)" for number, name in enumerate(classes_))
    server.execute(TABLE, f"INSERT INTO devices VALUES {values}")


def test_numeric_text_and_null_cells_arrive(postgres: PostgresServer, tmp_path: Path) -> None:
    fill(postgres, "meter")
    postgres.execute("INSERT INTO devices (device) VALUES ('bare')")
    component, context = enricher(postgres.url, tmp_path / "data")
    run(component.open())
    assert context.statuses == [("ok", "")]
    known, bare = added(component, "d0", "bare")
    assert known == {"class": "meter", "type": "t", "site": "größe", "latitude": 45.5231, "longitude": -122.5}
    assert set(bare.values()) == {None}


def test_schemas_odd_names_uuids_and_times(postgres: PostgresServer, tmp_path: Path) -> None:
    postgres.execute(
        "CREATE SCHEMA plant",
        'CREATE TABLE plant."Assets" (id uuid PRIMARY KEY, "Tags" jsonb, since timestamptz, active boolean, "100%" int)',
        """INSERT INTO plant."Assets" VALUES
           ('00000000-0000-0000-0000-00000000000a', '{"line": 3}', '2026-11-23 13:00:00+01', true, 5)""",
    )
    columns = {
        "tags": Column(source="Tags"),
        "since": Column(type="timestamp"),
        "active": Column(type="bool"),
        "share": Column(source="100%", type="int64"),
    }
    component, context = enricher(postgres.url, tmp_path / "data", table="plant.Assets", key="id", columns=columns)
    run(component.open())
    assert context.statuses == [("ok", "")]
    (got,) = added(component, "00000000-0000-0000-0000-00000000000a")
    assert got.pop("since").isoformat() == "2026-11-23T12:00:00+00:00"
    assert got == {"tags": '{"line": 3}', "active": True, "share": 5}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("since", "infinity"),
        ("since", "-infinity"),
        ("since", "20000-06-15 12:00:00+00"),
        ("since", "0044-06-15 12:00:00+00 BC"),
        ("naive", "infinity"),
        ("naive", "294000-01-01 00:00:00"),
        ("day", "infinity"),
        ("day", "0044-03-15 BC"),
        ("at", "24:00:00"),
    ],
)
def test_a_time_that_python_does_not_know_costs_its_cell_only(postgres: PostgresServer, tmp_path: Path, column: str, value: str) -> None:
    postgres.execute(
        "CREATE TABLE devices (device text PRIMARY KEY, since timestamptz, naive timestamp, day date, at time)",
        "INSERT INTO devices VALUES ('good', '2026-11-23 13:00+01', '2026-11-23 12:00', '2026-11-23', '12:00')",
        f"INSERT INTO devices (device, {column}) VALUES ('odd', '{value}')",
    )
    columns = {name: Column(type="timestamp") for name in ("since", "naive", "day")} | {
        "text": Column(source=column),
        "at": Column(),
    }
    component, context = enricher(postgres.url, tmp_path / "data", columns=columns)
    run(component.open())
    assert context.statuses == [("ok", "")]
    good, odd = added(component, "good", "odd")
    assert good["since"].isoformat() == good["naive"].isoformat() == "2026-11-23T12:00:00+00:00"
    assert (good["day"].isoformat(), good["at"]) == ("2026-11-23T00:00:00+00:00", "12:00:00")
    assert odd.pop("text")[:10] == value[:10]  # the hour is that of the server's zone
    assert odd == {**dict.fromkeys(columns.keys() - {"text"}), "at": value if column == "at" else None}
    assert context.metric("enrich_row_problems_total", reason="bad_cell") == (column != "at")


def test_a_query_with_casts_patterns_and_percent_signs(postgres: PostgresServer, tmp_path: Path) -> None:
    fill(postgres, "a", "b")
    query = """SELECT device, (class || ' 10% :x')::text AS class FROM devices
               WHERE device LIKE 'd%' AND '12:30'::time IS NOT NULL ORDER BY device"""
    component, context = enricher(postgres.url, tmp_path / "data", query=query, columns={"class": Column()})
    run(component.open())
    assert context.statuses == [("ok", "")]
    assert classes(component, "d0", "d1") == ["a 10% :x", "b 10% :x"]


def test_changes_by_a_time_of_change_come_once_the_transaction_has_ended(postgres: PostgresServer, tmp_path: Path) -> None:
    fill(postgres, "a", "b", "c")
    postgres.execute(
        "ALTER TABLE devices ADD COLUMN changed timestamptz",
        "UPDATE devices SET changed = now() - interval '1 hour'",
        "UPDATE devices SET changed = now() WHERE device = 'd2'",
    )
    clock = SystemClock()  # the server's times are real ones
    component, context = enricher(postgres.url, tmp_path / "data", clock=clock, updated_column="changed", columns={"class": Column()})
    run(component.open())
    # a transaction that began before the last reading, and is committed only now
    postgres.execute("UPDATE devices SET class = 'late', changed = now() - interval '30 seconds' WHERE device = 'd0'")
    run(component._refresh())
    assert classes(component, "d0", "d1", "d2") == ["late", "b", "c"]
    assert context.metric("enrich_refresh_rows_total") == 3 + 2


@pytest.mark.parametrize("end", ["9999-12-31", "infinity"])
@pytest.mark.parametrize("kind", ["timestamptz", "timestamp"])
def test_changes_are_seen_behind_a_row_of_the_last_times(postgres: PostgresServer, tmp_path: Path, kind: str, end: str) -> None:
    fill(postgres, "a", "b")
    postgres.execute(
        f"ALTER TABLE devices ADD COLUMN changed {kind} DEFAULT now()",
        f"UPDATE devices SET changed = '{end}' WHERE device = 'd1'",
    )
    component, _ = enricher(postgres.url, tmp_path / "data", clock=SystemClock(), updated_column="changed", columns={"class": Column()})
    run(component.open())
    postgres.execute("UPDATE devices SET class = 'moved', changed = now() WHERE device = 'd0'")
    run(component._refresh())
    assert classes(component, "d0", "d1") == ["moved", "b"]


def test_a_view_and_rows_of_one_device_in_a_fixed_order(postgres: PostgresServer, tmp_path: Path) -> None:
    fill(postgres, "a", "c", "b")
    postgres.execute("CREATE VIEW both_names AS SELECT 'one' AS device, class FROM devices")
    component, context = enricher(postgres.url, tmp_path / "data", table="both_names", columns={"class": Column()})
    run(component.open())
    assert classes(component, "one") == ["c"]
    assert context.metric("enrich_row_problems_total", reason="duplicate") == 2


def test_nothing_is_written_and_no_connection_stays(postgres: PostgresServer, tmp_path: Path) -> None:
    fill(postgres, "a")
    postgres.execute("CREATE FUNCTION wipe() RETURNS text LANGUAGE sql AS 'DELETE FROM devices RETURNING device'")
    query = "SELECT wipe() AS device, 'x' AS class"
    component, context = enricher(postgres.url, tmp_path / "data", query=query, columns={"class": Column()})
    run(component.open())
    assert "read-only" in context.statuses[-1][1]
    assert postgres.execute("SELECT count(*) FROM devices") == [(1,)]
    assert postgres.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'headrace context'") == [(0,)]


def test_a_slow_query_is_ended_by_the_server(postgres: PostgresServer, tmp_path: Path) -> None:
    query = "SELECT 'a' AS device, 'x' AS class FROM pg_sleep(60)"
    component, context = enricher(
        postgres.url, tmp_path / "data", query=query, columns={"class": Column()}, query_timeout_s=0.2, connect_timeout_s=20
    )
    run(component.open())
    assert "statement timeout" in context.statuses[-1][1]


def test_more_rows_than_a_chunk_arrive_whole(postgres: PostgresServer, tmp_path: Path) -> None:
    query = "SELECT 'd' || n AS device, n AS floor FROM generate_series(1, 25000) AS n"
    component, context = enricher(postgres.url, tmp_path / "data", query=query, columns={"floor": Column(type="int64")})
    run(component.open())
    assert context.metric("enrich_devices") == 25_000
    assert [one["floor"] for one in added(component, "d1", "d10000", "d10001", "d25000", "d25001")] == [1, 10_000, 10_001, 25_000, None]


def test_a_server_that_is_down_at_start_is_found_when_it_comes(postgres: PostgresServer, tmp_path: Path) -> None:
    fill(postgres, "meter")
    postgres.stop()
    clock = FakeClock()
    component, context = enricher(postgres.url, tmp_path / "data", clock=clock)

    async def check() -> None:
        async with living(component, "enricher"):
            assert classes(component, "d0") == [None]
            status, reason = context.statuses[-1]
            assert status == "degraded"
            assert "refused" in reason
            assert PASSWORD not in reason
            assert "***" in reason
            postgres.start()
            await until(lambda: component.health().status == "ok", clock)
            assert classes(component, "d0") == ["meter"]

    run(check())


def test_a_server_that_is_killed_keeps_the_context_and_is_found_again(postgres: PostgresServer, tmp_path: Path) -> None:
    fill(postgres, "meter")
    clock = FakeClock()
    component, context = enricher(postgres.url, tmp_path / "data", clock=clock)

    async def check() -> None:
        async with living(component, "enricher"):
            postgres.kill()
            for _ in range(3):
                await next_reading(clock, context, 61)
            assert classes(component, "d0") == ["meter"]
            assert context.statuses[-1][0] == "degraded"
            assert PASSWORD not in str(context.statuses)
            postgres.start()
            postgres.execute("UPDATE devices SET class = 'pump'")
            await until(lambda: component.health().status == "ok", clock)
            assert classes(component, "d0") == ["pump"]

    run(check())
    assert (context.metric("enrich_refresh_failures_total") or 0) >= 3


def test_a_restart_while_the_server_is_down_knows_the_last_context(postgres: PostgresServer, tmp_path: Path) -> None:
    fill(postgres, "meter")
    first, _ = enricher(postgres.url, tmp_path / "data")
    run(first.open())
    postgres.kill()
    second, context = enricher(postgres.url, tmp_path / "data", on_start="wait")
    run(second.open())
    assert classes(second, "d0") == ["meter"]
    assert "1 devices" in context.statuses[-1][1]


def test_a_wrong_password_and_a_missing_right_are_told_without_the_password(postgres: PostgresServer, tmp_path: Path) -> None:
    fill(postgres, "meter")
    component, context = enricher(postgres.url.replace(PASSWORD, "wrong-secret"), tmp_path / "data")
    run(component.open())
    reason = context.statuses[-1][1]
    assert "password authentication failed" in reason
    assert "wrong-secret" not in reason
    component, context = enricher(postgres.url, tmp_path / "data2", table="absent.devices")
    run(component.open())
    assert "no table 'absent.devices'" in context.statuses[-1][1]
