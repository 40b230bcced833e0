"""What goes into which column, what fits, what an error means: without a database."""

from __future__ import annotations

import json
import re
from random import Random
from typing import Any

import msgspec
import psycopg
import pyarrow as pa
import pytest
import sqlalchemy as sa

from headrace.testing import event_batch
from headrace.testing.crash import test_seed as seed_of_this_run
from headrace_sink_sql import verdict
from headrace_sink_sql.config import Column, SqlConfig
from headrace_sink_sql.fitting import unfit
from headrace_sink_sql.layout import Target, fitted, wanted
from headrace_sink_sql.rendering import json_text, render
from headrace_sink_sql.sink import SinkSql

TEXTS = ["", "plain", 'quo"te', "back\\slash", "new\nline", "\x01\x7f", "дача🌊", "\u2028", "\\u0000", "\\.", None]
NUMBERS = [0.0, -0.0, 21.0, 0.1, 1e16, 1e300, 5e-324, -1.5, None]


def test_documents_are_json_whatever_is_in_them() -> None:
    rng = Random(seed_of_this_run())
    for rows in (1, 2, 9, 100):
        columns: dict[str, list[Any]] = {
            f'name {number} "quoted"\n': [rng.choice((TEXTS, NUMBERS, (True, False, None))[number % 3]) for _ in range(rows)]
            for number in range(rng.randint(1, 7))
        }
        array = pa.StructArray.from_arrays(
            [pa.array(values, (pa.string(), pa.float64(), pa.bool_())[place % 3]) for place, values in enumerate(columns.values())],
            [*columns],
        )
        children = dict(zip(columns, array.flatten(), strict=True))
        texts = json_text(children, rows).to_pylist()
        expected = [{name: values[row] for name, values in columns.items() if values[row] is not None} for row in range(rows)]
        assert [json.loads(text) for text in texts] == expected
        assert [msgspec.json.decode(text) for text in texts] == expected


def test_numbers_that_json_has_not_are_texts() -> None:
    column = pa.array([float("nan"), float("inf"), float("-inf"), 1.0, None])
    assert json_text({"x": column}, 5).to_pylist() == ['{"x":"NaN"}', '{"x":"Infinity"}', '{"x":"-Infinity"}', '{"x":1}', "{}"]


def test_columns_come_from_readings_and_context_by_dotted_names() -> None:
    config = SqlConfig(
        documents=("readings",), columns={"t": Column(source="readings.a.t"), "site": Column(source="context.site", type="text")}
    )
    batch = event_batch(2, 1, readings={"a.t": [1.0, None]}, context={"site": ["x", "y"]})
    rows = render(batch, wanted(config).targets).to_pylist()
    assert [(row["t"], row["site"], row["readings"]) for row in rows] == [(1.0, "x", '{"a.t":1}'), (None, "y", "{}")]
    bare = render(event_batch(2, 1, readings={}), wanted(config).targets)
    assert bare.column("t").null_count == 2


@pytest.mark.parametrize(
    ("target", "values", "rows"),
    [
        (Target("c", "", "text", sa.String(3)), ["abc", "abcd", None, "äöü"], [1]),
        (Target("c", "", "text", sa.Text()), ["a\0b", "ab"], [0]),
        (Target("c", "", "json", sa.JSON()), ['{"a":"\\u0000"}', '{"a":"\\\\u0000"}', '{"a":"\\\\\\u0000"}', "{}"], [0, 2]),
        (Target("c", "", "integer", sa.SmallInteger()), [1.0, 1.5, 32768.0, -32768.0, float("nan"), None], [1, 2, 4]),
        (Target("c", "", "integer", sa.BigInteger()), [2.0**63, -(2.0**63), float("inf")], [0, 2]),
        (Target("c", "", "integer", sa.Integer()), ["5", "x", None], [1]),
        (Target("c", "", "number", sa.Double()), ["5e3", "warm", None], [1]),
        (Target("c", "", "number", sa.Double()), [1.5, float("nan")], []),
        (Target("c", "", "boolean", sa.Boolean()), [True, None], []),
        (Target("c", "", "boolean", sa.Boolean()), [1.0, None], [0]),
        (Target("c", "", "any", sa.types.NullType()), ["whatever"], []),
    ],
)
def test_rows_that_a_column_never_takes_are_found(target: Target, values: list[Any], rows: list[int]) -> None:
    assert [*unfit(pa.record_batch([pa.array(values)], ["c"]), [target], takes_nul=False)] == rows


def test_positions_beyond_a_signed_integer_are_found() -> None:
    column = pa.array([2**63 - 1, 2**63], pa.uint64())
    assert unfit(pa.record_batch([column], ["position"]), [Target("position", "position", "integer", sa.BigInteger())], True) == {
        1: "position: more than 64 bits"
    }


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_outside_the_years_of_drivers_are_found(unit: str) -> None:
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    first, end = -62_135_596_800 * per_second, 253_402_300_800 * per_second
    times = [0, None, first, first - 1, end - 1, end, -(2**63) + 1, 2**63 - 1] if unit != "ns" else [0, None, -(2**63) + 1, 2**63 - 1]
    column = pa.array(times, pa.timestamp(unit, "UTC"))
    found = unfit(pa.record_batch([column], ["time"]), [Target("time", "time", "time", sa.DateTime())], True)
    assert found == dict.fromkeys([3, 5, 6, 7] if unit != "ns" else [], "time: a time outside the years 1 to 9999")


@pytest.mark.parametrize(
    ("error", "permanent"),
    [
        (psycopg.errors.InvalidTextRepresentation, True),
        (psycopg.errors.NumericValueOutOfRange, True),
        (psycopg.errors.CheckViolation, True),
        (psycopg.errors.RaiseException, True),
        (psycopg.errors.ProgramLimitExceeded, True),
        (psycopg.errors.DiskFull, False),
        (psycopg.errors.AdminShutdown, False),
        (psycopg.errors.TooManyConnections, False),
        (psycopg.errors.DeadlockDetected, False),
        (psycopg.errors.LockNotAvailable, False),
        (psycopg.errors.UndefinedColumn, False),
        (psycopg.errors.InsufficientPrivilege, False),
        (psycopg.errors.ReadOnlySqlTransaction, False),
        (psycopg.errors.InvalidPassword, False),
        (psycopg.OperationalError, False),
    ],
)
def test_only_what_is_the_rows_fault_is_permanent(error: type[psycopg.Error], permanent: bool) -> None:
    assert verdict.is_permanent(error("x")) is permanent
    assert verdict.is_permanent(sa.exc.DBAPIError("insert", {}, error("x"))) is permanent


@pytest.mark.parametrize(
    ("kind", "number", "text", "permanent", "doubled"),
    [
        (sa.exc.IntegrityError, 1062, "Duplicate entry 'a'b-1' for key 'PRIMARY'", True, True),
        (sa.exc.IntegrityError, 1062, "Duplicate entry 'x' for key 'events.note'", True, False),
        (sa.exc.OperationalError, 4025, "CONSTRAINT `positive` failed for `plant`.`events`", True, False),
        (sa.exc.OperationalError, 1205, "Lock wait timeout exceeded; try restarting transaction", False, False),
        (sa.exc.OperationalError, 2013, "Lost connection to server during query", False, False),
        (sa.exc.OperationalError, 1114, "The table 'events' is full", False, False),
    ],
)
def test_what_a_driver_of_mysql_says_is_understood_without_an_sqlstate(
    kind: Any, number: int, text: str, permanent: bool, doubled: bool
) -> None:
    error = kind("insert", {}, Exception(number, text))
    assert verdict.is_permanent(error) is permanent
    assert verdict.is_doubled_key(error, frozenset({"", "other"})) is doubled
    assert verdict.plain(error) == re.sub("'.*' for", "'...' for", text) + f" [{number}]"


def table(*columns: tuple[str, Any], **facts: Any) -> list[dict[str, Any]]:
    return [{"name": name, "type": kind, "nullable": True, **facts.get(name, {})} for name, kind in columns]


GOOD = (
    ("device", sa.Text()),
    ("time", sa.DateTime(timezone=True)),
    ("received", sa.DateTime(timezone=True)),
    ("origin", sa.UUID()),
    ("position", sa.BigInteger()),
    ("readings", sa.JSON()),
    ("context", sa.Text()),
)


def problems(*columns: tuple[str, Any], uniques: dict[str, list[str]] | None = None, **facts: Any) -> list[str]:
    from sqlalchemy.dialects import postgresql

    keys = {"k": ["origin", "position"]} if uniques is None else uniques
    return fitted(wanted(SqlConfig()), table(*columns, **facts), keys, "events", postgresql.dialect())[1]


def test_a_table_that_is_there_is_told_what_it_lacks_and_how_to_mend_it() -> None:
    assert problems(*GOOD) == []
    assert problems(*GOOD, uniques={"h": ["position", "origin", "time"]}) == []
    assert problems(*GOOD[1:]) == ["no column 'device' (ALTER TABLE events ADD COLUMN device TEXT NOT NULL)"]
    assert problems(("divice", sa.Text()), *GOOD[1:])[0].startswith("no column 'device'; did you mean 'divice'? (ALTER")
    assert problems(*GOOD[:4], ("position", sa.Text()), *GOOD[5:]) == [
        "column 'position' is TEXT, expected BIGINT (ALTER TABLE events ALTER COLUMN position TYPE BIGINT)"
    ]
    assert problems(*GOOD, uniques={"other": ["device"]}) == [
        "no unique key on (origin, position) (CREATE UNIQUE INDEX events_event ON events (origin, position))"
    ]
    assert problems(*GOOD, ("plant", sa.Text()), plant={"nullable": False}) == [
        "column 'plant' wants a value and is given none (ALTER TABLE events ALTER COLUMN plant DROP NOT NULL)"
    ]
    assert problems(*GOOD, ("plant", sa.Text()), plant={"nullable": False, "default": "'x'"}) == []


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="other than device"):
        SqlConfig(columns={"device": Column(source="context.x")})
    from headrace.config import Secret

    with pytest.raises(ValueError, match="to be a URL") as caught:
        SqlConfig(database=Secret("pass:word"))
    assert "pass:word" not in str(caught.value)
    assert SinkSql.many_workers
