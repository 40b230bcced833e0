"""Turns the cells that a database gives into Arrow columns of the configured types. No I/O.

The quick way hands a whole column to Arrow; only where Arrow refuses (text in a number's place, Decimal, a stray byte) is
the column looked at cell by cell. A cell that does not convert becomes null and is reported with its row.
"""

from __future__ import annotations

import datetime
import decimal
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from headrace import TIMESTAMP

TypeName = Literal["string", "float64", "int64", "bool", "timestamp"]

ARROW_TYPES: Final[dict[TypeName, pa.DataType]] = {
    "string": pa.string(),
    "float64": pa.float64(),
    "int64": pa.int64(),
    "bool": pa.bool_(),
    "timestamp": TIMESTAMP,
}


class BeyondPython(str):
    """A time that the database knows and Python does not, such as infinity, as the database writes it."""

    __slots__ = ()


class BadCell(NamedTuple):
    """A cell that became null: index of its row in the column, and what stood there."""

    row: int
    came: str


def to_column(values: Sequence[Any], kind: TypeName) -> tuple[pa.Array, list[BadCell]]:
    """One column of `kind` from database values, and the cells that did not convert."""
    try:
        column = _at_once(values, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return _one_by_one(values, kind)
    if kind == "float64" and not pc.all(pc.is_finite(column), min_count=0).as_py():
        return _one_by_one(values, kind)
    return column, []


def _at_once(values: Sequence[Any], kind: TypeName) -> pa.Array:
    if kind == "timestamp":  # Arrow would take a naive time, or a number, without a word about what it means
        raise TypeError
    if kind == "int64":  # asked for int64, Arrow cuts 1.5 to 1; left alone, it says what it sees
        column = pa.array(values)
        if not (pa.types.is_integer(column.type) or pa.types.is_null(column.type)):
            raise TypeError
        return column.cast(ARROW_TYPES[kind])
    return pa.array(values, ARROW_TYPES[kind])


def _one_by_one(values: Sequence[Any], kind: TypeName) -> tuple[pa.Array, list[BadCell]]:
    convert = _CONVERTERS[kind]
    cells: list[Any] = []
    bad: list[BadCell] = []
    for row, value in enumerate(values):
        try:
            cells.append(None if value is None else convert(_text_if_bytes(value)))
        except (ValueError, TypeError, OverflowError, ArithmeticError):
            cells.append(None)
            bad.append(BadCell(row, repr(value)[:80]))
    return pa.array(cells, ARROW_TYPES[kind]), bad


def _text_if_bytes(value: Any) -> Any:
    return bytes(value).decode() if isinstance(value, bytes | bytearray | memoryview) else value


def _string(value: Any) -> str:
    match value:
        case str():
            value.encode()  # a lone surrogate is not text
            return value
        case bool():
            return "true" if value else "false"
        case datetime.date() | datetime.time():
            return value.isoformat()
        case dict() | list():
            return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    return str(value)


def _float64(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number


def _int64(value: Any) -> int:
    number = int(value)
    if isinstance(value, float | decimal.Decimal) and number != value:
        raise ValueError("not whole")
    if not -(2**63) <= number < 2**63:
        raise OverflowError("beyond 64 bits")
    return number


_TRUTH: Final = {"true": True, "t": True, "yes": True, "1": True, "false": False, "f": False, "no": False, "0": False}


def _bool(value: Any) -> bool:
    truth = _TRUTH.get(str(value).strip().lower())
    if truth is None:
        raise ValueError("neither true nor false")
    return truth


def _timestamp(value: Any) -> datetime.datetime:
    if isinstance(value, str):
        value = datetime.datetime.fromisoformat(value.strip())
    if not isinstance(value, datetime.date):
        raise TypeError("not a time")
    if not isinstance(value, datetime.datetime):
        value = datetime.datetime(value.year, value.month, value.day)
    # A time without zone is taken for UTC, as everywhere in headrace.
    time: datetime.datetime = value
    return time.replace(tzinfo=datetime.UTC) if time.tzinfo is None else time.astimezone(datetime.UTC)


_CONVERTERS: Final[dict[TypeName, Callable[[Any], Any]]] = {
    "string": _string,
    "float64": _float64,
    "int64": _int64,
    "bool": _bool,
    "timestamp": _timestamp,
}
