"""Database values to Arrow columns."""

from __future__ import annotations

import datetime
import decimal
import uuid
from typing import Any

import pyarrow as pa
import pytest

from headrace_enricher_context.cells import ARROW_TYPES, TypeName, to_column

NOON = datetime.datetime(2026, 11, 23, 12, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("kind", "came", "expected"),
    [
        ("string", "größe 🌊", "größe 🌊"),
        ("string", "größe".encode(), "größe"),
        ("string", memoryview(b"raw"), "raw"),
        ("string", 42, "42"),
        ("string", 4.5, "4.5"),
        ("string", True, "true"),
        ("string", decimal.Decimal("1.50"), "1.50"),
        ("string", uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        ("string", datetime.date(2026, 11, 23), "2026-11-23"),
        ("string", {"b": [1], "a": "é"}, '{"a": "é", "b": [1]}'),
        ("float64", 1, 1.0),
        ("float64", 2**60, float(2**60)),
        ("float64", decimal.Decimal("2.25"), 2.25),
        ("float64", " -12.5 ", -12.5),
        ("float64", b"7", 7.0),
        ("float64", True, 1.0),
        ("int64", 7, 7),
        ("int64", "-7", -7),
        ("int64", decimal.Decimal("8"), 8),
        ("int64", 9.0, 9),
        ("bool", True, True),
        ("bool", 0, False),
        ("bool", "Yes", True),
        ("bool", b"f", False),
        ("timestamp", NOON, NOON),
        ("timestamp", NOON.replace(tzinfo=None), NOON),
        ("timestamp", "2026-11-23T13:00:00+01:00", NOON),
        ("timestamp", datetime.date(2026, 11, 23), NOON.replace(hour=0)),
    ],
)
def test_a_value_converts(kind: TypeName, came: Any, expected: Any) -> None:
    column, bad = to_column([came, None], kind)
    assert column.equals(pa.array([expected, None], ARROW_TYPES[kind]))
    assert bad == []


@pytest.mark.parametrize(
    ("kind", "came"),
    [
        ("string", b"\xff\xfe"),
        ("string", "lone \ud800 surrogate"),
        ("float64", "north"),
        ("float64", ""),
        ("float64", float("nan")),
        ("float64", "inf"),
        ("float64", b"\xff"),
        ("float64", [1]),
        ("int64", 1.5),
        ("int64", 2**63),
        ("int64", "1.0"),
        ("bool", "perhaps"),
        ("bool", 2),
        ("timestamp", "soon"),
        ("timestamp", 1_795_435_200),
    ],
)
def test_a_value_that_does_not_fit_becomes_null_and_leaves_its_neighbours(kind: TypeName, came: Any) -> None:
    good = {"string": "x", "float64": 1.0, "int64": 1, "bool": True, "timestamp": NOON}[kind]
    column, bad = to_column([good, came, good], kind)
    assert column.equals(pa.array([good, None, good], ARROW_TYPES[kind]))
    assert [cell.row for cell in bad] == [1]
    assert bad[0].came == repr(came)[:80]


@pytest.mark.parametrize("kind", list(ARROW_TYPES))
def test_empty_and_all_null_columns_keep_their_type(kind: TypeName) -> None:
    assert to_column([], kind)[0].type == ARROW_TYPES[kind]
    assert to_column([None, None], kind)[0].equals(pa.nulls(2, ARROW_TYPES[kind]))
