"""With `updated_column` a reading takes what changed, and the context is the one that a reading of everything would give."""

from __future__ import annotations

import asyncio
import datetime
import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from context_driver import added, classes, enricher, held_of, next_reading, readings, sql, sqlite_url, until
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.config import Secret
from headrace.testing import FakeClock, living
from headrace_enricher_context.cells import ARROW_TYPES
from headrace_enricher_context.config import Column, ContextConfig
from headrace_enricher_context.database import Database
from headrace_enricher_context.held import KEY, Held, read_schema
from headrace_enricher_context.reading import read_context

SCALE = 1_000_000 if os.environ.get("HEADRACE_FULL") else 50_000
MANY = 500 if os.environ.get("HEADRACE_FULL") else 40
COLUMNS = {"class": Column(), "floor": Column(type="int64")}
OPTIONS: dict[str, Any] = {"columns": COLUMNS, "updated_column": "changed", "refresh_interval_s": 10.0, "full_refresh_interval_s": 100.0}


def table(path: Path, *rows: str) -> None:
    sql(path, "CREATE TABLE devices (device TEXT PRIMARY KEY, class TEXT, floor INTEGER, changed)")
    for row in rows:
        sql(path, f"INSERT INTO devices VALUES {row}")


def put(path: Path, row: str) -> None:
    sql(path, f"INSERT OR REPLACE INTO devices VALUES {row}")


def test_changes_are_read_at_once_and_deletions_at_the_next_full_reading(tmp_path: Path) -> None:
    async def main() -> None:
        clock = FakeClock()
        path = tmp_path / "context.db"
        table(path, "('d1', 'meter', 1, '2026-11-26 10:00:00')", "('d2', 'door', 2, '2026-11-26 10:00:01')")
        component, context = enricher(sqlite_url(path), tmp_path / "data", clock=clock, **OPTIONS)
        async with living(component, "enricher"):
            assert readings(context) == 1
            assert context.metric("enrich_refresh_rows_total") == 2
            held = component._held
            await next_reading(clock, context, 11)  # the row with the greatest value comes again, and is the same
            assert context.metric("enrich_refresh_rows_total") == 3
            assert component._held is held
            put(path, "('d1', 'valve', 3, '2026-11-26 10:00:02')")
            put(path, "('d3', NULL, 4, '2026-11-26 10:00:02')")
            sql(path, "DELETE FROM devices WHERE device = 'd2'")
            await next_reading(clock, context, 11)
            assert context.metric("enrich_refresh_rows_total") == 5
            assert added(component, "d1", "d2", "d3", "d4") == [
                {"class": "valve", "floor": 3}, {"class": "door", "floor": 2}, {"class": None, "floor": 4}, {"class": None, "floor": None},
            ]  # fmt: skip
            assert context.metric("enrich_devices") == 3
            await until(lambda: context.metric("enrich_devices") == 2, clock)
            assert classes(component, "d1", "d2", "d3") == ["valve", None, None]
            assert context.metric("enrich_refresh_failures_total") == 0

    asyncio.run(main())


def test_a_query_can_be_read_by_its_changes_as_well(tmp_path: Path) -> None:
    async def main() -> None:
        clock = FakeClock()
        path = tmp_path / "context.db"
        table(path, "('d1', 'meter', 1, 1)", "('d2', 'door', 2, 2)")
        query = "SELECT device, 'a ' || class AS class, floor, changed FROM devices; -- the site's"
        component, context = enricher(sqlite_url(path), tmp_path / "data", clock=clock, query=query.replace(";", ""), **OPTIONS)
        async with living(component, "enricher"):
            assert readings(context) == 1
            put(path, "('d1', 'valve', 3, 3)")
            await next_reading(clock, context, 11)
            assert classes(component, "d1", "d2") == ["a valve", "a door"]
            assert context.metric("enrich_refresh_rows_total") == 4

    asyncio.run(main())


def test_a_column_that_cannot_be_compared_or_is_not_there_is_told(tmp_path: Path) -> None:
    path = tmp_path / "context.db"
    table(path, "('d1', 'meter', 1, 1)", "('d2', 'door', 2, 'yesterday')")
    _, config, fields = parts(path)
    with pytest.raises(Exception, match="values that can be compared in the updated_column 'changed', got int, str"):
        read_context(Database(sqlite_url(path), 5, 60), config, fields, threading.Event())
    other = ContextConfig(database=Secret(sqlite_url(path)), columns=COLUMNS, updated_column="changd")
    with pytest.raises(Exception, match="has no column 'changd'; did you mean 'changed'"):
        read_context(Database(sqlite_url(path), 5, 60), other, fields, threading.Event())


def test_times_are_read_with_an_overlap() -> None:
    from headrace_enricher_context.reading import _earlier

    mark = datetime.datetime(2026, 11, 26, tzinfo=datetime.UTC)
    assert _earlier(mark, 60) == mark - datetime.timedelta(seconds=60)
    assert (_earlier(7, 60), _earlier("x", 60)) == (7, "x")


def test_a_time_that_lies_ahead_of_the_reading_is_no_mark() -> None:
    from headrace_enricher_context.reading import _believed

    begun = datetime.datetime(2026, 11, 26, 12, tzinfo=datetime.UTC)
    hour, naive = datetime.timedelta(hours=1), begun.replace(tzinfo=None)
    far = datetime.datetime(9999, 12, 31)
    at = begun.timestamp()
    assert _believed(begun - hour, at) == begun - hour
    assert _believed(begun + hour, at) == begun
    assert _believed(far.replace(tzinfo=datetime.UTC), at) == begun
    # a time without a zone may be of any
    assert _believed(naive + 13 * hour, at) == naive + 13 * hour
    assert _believed(far, at) == naive - 12 * hour
    assert (_believed(7, at), _believed("9999", at), _believed(None, at)) == (7, "9999", None)


keys = st.sampled_from([f"d{number}" for number in range(8)])
rows = st.lists(st.tuples(keys, st.none() | st.text(max_size=2), st.none() | st.integers(0, 3)), max_size=10)
FIELDS = pa.schema([("class", pa.string()), ("floor", pa.int64())])


def as_table(some: list[tuple[str, str | None, int | None]]) -> pa.Table:
    columns = list(zip(*some, strict=True)) or [[], [], []]
    return pa.table([pa.array(values, field.type) for values, field in zip(columns, read_schema(FIELDS), strict=True)], read_schema(FIELDS))


@settings(max_examples=MANY, deadline=None)
@given(first=rows, changes=st.lists(rows, max_size=3))
def test_a_context_with_changed_rows_is_the_one_of_all_rows(first: list[Any], changes: list[list[Any]]) -> None:
    held, known = Held(as_table(first), FIELDS), list(first)
    for changed in changes:
        known += changed
        expected = Held(as_table(known), FIELDS)
        before, held = held, held.with_rows(as_table(changed))
        assert held.same_as(expected)
        assert (held is before) == before.same_as(expected)
        asked = pa.array([f"d{number}" for number in range(9)] * 2)
        assert held.join(asked).added.to_pylist() == expected.join(asked).added.to_pylist()


def test_texts_that_repeat_stay_compact_when_rows_change() -> None:
    count = 200_000
    held = held_of([f"d{number}" for number in range(count)], kind=["a class with a long name"] * count)
    assert pa.types.is_dictionary(held.table.column("kind").type)
    changed = held.with_rows(pa.table([pa.array(["d7", "new"]), pa.array(["other", None])], [KEY, "kind"]))
    assert pa.types.is_dictionary(changed.table.column("kind").type)
    assert changed.join(pa.array(["d6", "d7", "new", "none"])).added.column(0).to_pylist() == [
        "a class with a long name",
        "other",
        None,
        None,
    ]


def parts(path: Path) -> tuple[Database, ContextConfig, pa.Schema]:
    config = ContextConfig(database=Secret(sqlite_url(path)), columns=COLUMNS, updated_column="changed")
    fields = pa.schema([pa.field(name, ARROW_TYPES[column.type]) for name, column in config.columns.items()])
    return Database(config.database.reveal(), 5, 600), config, fields


def test_a_large_context_takes_200_bytes_a_device_and_its_changes_are_few(tmp_path: Path) -> None:
    path = tmp_path / "context.db"
    table(path)
    with sqlite3.connect(path) as connection:
        connection.executemany(
            "INSERT INTO devices VALUES (?, ?, ?, ?)", ((f"sensor-{n:08}", f"class {n % 50}", n % 9, n) for n in range(SCALE))
        )
    database, config, fields = parts(path)
    whole = read_context(database, config, fields, threading.Event())
    assert (len(whole.held), whole.rows, whole.mark) == (SCALE, SCALE, SCALE - 1)
    assert whole.held.nbytes < 200 * SCALE
    put(path, f"('sensor-00000007', 'moved', 1, {SCALE})")
    put(path, f"('newcomer', 'new', 2, {SCALE + 1})")
    changed = read_context(database, config, fields, threading.Event(), whole)
    assert (len(changed.held), changed.rows, changed.mark) == (SCALE + 1, 3, SCALE + 1)
    asked = pa.array(["sensor-00000007", "newcomer", f"sensor-{SCALE - 1:08}", "stranger", "sensor-00000000"])
    assert changed.held.join(asked).added.column("class").to_pylist() == ["moved", "new", f"class {(SCALE - 1) % 50}", None, "class 0"]
    assert whole.held.join(asked).added.column("class").to_pylist() == ["class 7", None, f"class {(SCALE - 1) % 50}", None, "class 0"]
    assert changed.held.nbytes < 200 * SCALE
