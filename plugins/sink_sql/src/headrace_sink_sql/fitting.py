"""Which rows a table will never take: found in columns, before the database is asked, so that all are named at once. No I/O.

What is not found here the database finds: one row at a time, by its line in the COPY, or by halving.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from headrace_sink_sql.layout import Target

#: Signed bits of integer columns.
_BITS: Final = ((sa.SmallInteger, 15), (sa.BigInteger, 63), (sa.Integer, 31))
#: The years 1 to 9999 in seconds, the end not included: drivers know no others, and Arrow writes some as years that they are not.
_YEARS_S: Final = (-62_135_596_800, 253_402_300_800)
_PER_SECOND: Final = {"s": 1, "ms": 1_000, "us": 1_000_000}  # nanoseconds of 64 bits lie within
#: In JSON text an escaped NUL; an even number of backslashes before it would be one that is itself escaped.
_JSON_NUL: Final = r"(^|[^\\])(\\\\)*\\u0000"


def unfit(rendered: pa.RecordBatch, targets: Sequence[Target], takes_nul: bool, takes_odd_numbers: bool = True) -> dict[int, str]:
    """Rows that do not fit, and why: the first reason counts. takes_nul: whether the database keeps NUL in text; takes_odd_numbers:
    NaN and infinities in columns of their own."""
    found: dict[int, str] = {}
    for target, column in zip(targets, rendered.columns, strict=True):
        if not takes_odd_numbers and pa.types.is_floating(column.type):
            for row in pc.indices_nonzero(pc.fill_null(pc.invert(pc.is_finite(column)), False)).to_pylist():
                found.setdefault(row, f"{target.name}: not a finite number, which the database does not take")
        for mask, reason in _reasons(target, column, takes_nul):
            for row in pc.indices_nonzero(pc.fill_null(mask, False)).to_pylist():
                found.setdefault(row, f"{target.name}: {reason}")
    return dict(sorted(found.items()))


def _reasons(target: Target, column: pa.Array, takes_nul: bool) -> Iterator[tuple[Any, str]]:
    if column.null_count == len(column):
        return
    if pa.types.is_timestamp(column.type) and (per_second := _PER_SECOND.get(column.type.unit)):
        first, end = (pa.scalar(bound * per_second) for bound in _YEARS_S)
        count = column.view(pa.int64())
        yield pc.or_(pc.less(count, first), pc.greater_equal(count, end)), "a time outside the years 1 to 9999"
    text = pa.types.is_string(column.type)
    if text and not takes_nul:
        if target.kind == "json":
            yield pc.match_substring_regex(column, _JSON_NUL), "a NUL in a text, which the database does not take"
        else:
            yield pc.match_substring(column, "\0"), "a NUL in the text, which the database does not take"
    if target.kind == "text":
        length = getattr(target.type, "length", None)
        if length is not None:
            yield pc.greater(pc.utf8_length(column if text else column.cast(pa.string())), length), f"longer than {length} characters"
    elif target.kind == "integer":
        bits = next((bits for kind, bits in _BITS if isinstance(target.type, kind)), 63)
        yield from _integers(column, bits)
    elif target.kind == "number" and text:
        yield pa.array([not _is_number(value) for value in column.to_pylist()]), "not a number"
    elif target.kind == "boolean" and not pa.types.is_boolean(column.type):
        yield pc.is_valid(column), "not a boolean"


def _integers(column: pa.Array, bits: int) -> Iterator[tuple[Any, str]]:
    if pa.types.is_string(column.type):
        yield (
            pa.array([value is not None and not _is_integer(value, bits) for value in column.to_pylist()]),
            f"not an integer of {bits + 1} bits",
        )
    elif pa.types.is_boolean(column.type):
        yield pc.is_valid(column), "a boolean, not an integer"
    elif pa.types.is_floating(column.type):
        whole = pc.equal(pc.floor(column), column)
        inside = pc.and_(pc.greater_equal(column, -(2.0**bits)), pc.less(column, 2.0**bits))
        yield pc.invert(pc.and_(whole, inside)), f"not an integer of {bits + 1} bits"
    elif pa.types.is_unsigned_integer(column.type):
        yield pc.greater(column, pa.scalar(2**bits - 1, pa.uint64())), f"more than {bits + 1} bits"


def _is_number(text: str | None) -> bool:
    try:
        if text is not None:
            float(text)
    except ValueError:
        return False
    return True


def _is_integer(text: str, bits: int) -> bool:
    try:
        return -(1 << bits) <= int(text) < 1 << bits
    except ValueError:
        return False
