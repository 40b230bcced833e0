"""JSON payloads to columns in C (json_columns.c), a batch in one call. Importing it fails where that was not built. No I/O.

C takes events that are certainly valid and as expected, and decides nothing about others: these are read as dictionaries.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.encodings import Readings, decode
from headrace.event_time import NO_TIME, TIME, Microseconds, read_claims, read_floats, read_integers
from headrace.reading_columns import Regular, flat, gather_odd
from headrace.reading_types import ARROW_TYPES
from headrace.typed_reader import Members, Typed, leaves

__all__ = ["ColumnsReader"]

_module: Any = import_module("headrace._json_columns")
_ffi, _lib = _module.ffi, _module.lib

_KINDS: Final[dict[str, int]] = {
    "number": _lib.JSON_NUMBER,
    "integer": _lib.JSON_INTEGER,
    "boolean": _lib.JSON_BOOLEAN,
    "string": _lib.JSON_STRING,
}
#: Beside the kinds of claims that C knows: what an odd event claims.
_CLAIM_ODD: Final = 255
#: So many odd events are no reason to read a batch the general way.
_ODD_MIN: Final = 128

Rows = npt.NDArray[np.int64]


class ColumnsReader:
    """Reads batches of events that are expected to have these members."""

    #: What the slots of a plan are made for; a tier has no more names unless it is told to (`readings_max`).
    names_max = 4096
    #: An event costs little until it turns out to be odd.
    rest_batches = 0

    def __init__(self, expected: Members) -> None:
        self._columns = [(name, ARROW_TYPES[kind], _KINDS[kind]) for name, kind in leaves(expected)]
        members: list[tuple[bytes, int, int, int]] = [(TIME.encode(), 0, _lib.JSON_CLAIM, 0)]
        objects = _add_members(members, expected, 0, 1, iter(range(len(self._columns))))
        slots = 1 << (2 * len(members)).bit_length()
        parts = self._parts = {
            "members": _ffi.new("json_member[]", len(members)),
            "first": _ffi.new("int32_t[]", [-1] * objects),
            "slots": _ffi.new("int32_t[]", [-1] * slots),
            "columns": _ffi.new("json_column[]", len(self._columns)),
            "touched": _ffi.new("int32_t[]", len(members)),
        }
        self._texts = [_ffi.from_buffer("uint8_t[]", name) for name, *_ in members]
        # what the plan points to lives until its last blocks are free
        plan = self._plan = _ffi.gc(_ffi.new("json_plan *"), partial(_release, parts))
        for member, text, (_, of_object, kind, place) in zip(parts["members"], self._texts, members, strict=True):
            member.name, member.length = text, len(text)
            member.object, member.kind, member.place, member.next = of_object, kind, place, -1
        for column, (_, _, kind) in zip(parts["columns"], self._columns, strict=True):
            column.kind = kind
        for name, part in parts.items():
            setattr(plan, name, part)
        plan.members_count, plan.columns_count, plan.slots_count = len(members), len(self._columns), slots
        _lib.json_place(plan)

    def read(self, payloads: pa.BinaryArray) -> Typed | None:
        """All payloads; None where they are to be read the general way."""
        rows = len(payloads)
        _, offsets, data = payloads.buffers()
        if data is None:
            data = pa.py_buffer(b"")
        claims = _Claims(rows, data)
        flags = np.zeros(rows, np.uint8)
        odd_max = max(rows, 4 * _ODD_MIN) // 4
        odd = _lib.json_read(
            self._plan, _pointer("uint8_t *", data.address), data.size, _pointer("int32_t *", offsets.address + 4 * payloads.offset), rows,
            claims.given, _ffi.from_buffer("uint8_t[]", flags), odd_max,
        )  # fmt: skip
        if odd < 0:
            raise MemoryError("no memory for the columns of a batch")
        if odd > odd_max:
            return None
        loose: dict[int, Readings] = {}
        bad: list[int] = []
        if odd:
            indexes = np.flatnonzero(flags)
            others, undecoded = decode(payloads.take(pa.array(indexes)).to_pylist())
            if any(isinstance(row.get(TIME), dict) for row in others):
                return None  # which is no time, but several readings
            bad = indexes[undecoded].tolist()
            claims.add_odd(indexes, [row.pop(TIME, None) for row in others])
            loose = dict(zip(indexes.tolist(), map(flat, others), strict=True))
        claims.microseconds = claims.read()
        arrays = {
            name: _array(column, kind, rows)
            for column, (name, kind, _) in zip(self._parts["columns"], self._columns, strict=True)
            if column.count
        }
        return Typed(gather_odd(loose, rows, Regular(arrays, None)), claims, bad)


class _Claims:
    """The times that events claim, as C found them; those of odd events as values."""

    def __init__(self, rows: int, data: pa.Buffer) -> None:
        self._data = data
        self._kinds, self._integers, self._numbers = np.zeros(rows, np.uint8), np.empty(rows, np.int64), np.empty(rows)
        self._odd: dict[int, Any] = {}
        #: for C; it lives as long as the arrays
        self.given = _ffi.new("json_claims *")
        parts = (("kinds", "uint8_t[]", self._kinds), ("integers", "int64_t[]", self._integers), ("numbers", "double[]", self._numbers))
        for name, kind, array in parts:
            setattr(self.given, name, _ffi.from_buffer(kind, array))
        self.microseconds: Microseconds = self._integers

    def add_odd(self, rows: Rows, values: list[Any]) -> None:
        """What these events claim (None: nothing)."""
        self._odd = {row: value for row, value in zip(rows.tolist(), values, strict=True) if value is not None}
        self._kinds[list(self._odd)] = _CLAIM_ODD

    def read(self) -> Microseconds:
        """The times, NO_TIME where there is none."""
        found = np.full(len(self._kinds), NO_TIME, np.int64)
        for kind in (_lib.CLAIM_INTEGER, _lib.CLAIM_NUMBER, _lib.CLAIM_TEXT, _CLAIM_ODD):
            among = self._kinds == kind
            if among.all():
                return self._read(kind, slice(None))
            if among.any():
                found[among] = self._read(kind, np.flatnonzero(among))
        return found

    def _read(self, kind: int, rows: Any) -> Microseconds:
        if kind == _lib.CLAIM_INTEGER:
            return read_integers(self._integers[rows])
        if kind == _lib.CLAIM_NUMBER:
            return read_floats(self._numbers[rows])
        return read_claims([self.value(row) for row in np.arange(len(self._kinds))[rows].tolist()])

    def given_by(self, rows: Rows) -> list[int]:
        """Those of these rows that claim a time."""
        claiming: list[int] = rows[self._kinds[rows] != _lib.CLAIM_NONE].tolist()
        return claiming

    def value(self, row: int) -> Any:
        """What the event claims."""
        kind = self._kinds[row]
        if kind == _CLAIM_ODD:
            return self._odd[row]
        if kind == _lib.CLAIM_NUMBER:
            return float(self._numbers[row])
        whole = int(self._integers[row])
        if kind == _lib.CLAIM_INTEGER:
            return whole
        start, length = whole >> 32, whole & 0xFFFFFFFF
        return self._data.slice(start, length).to_pybytes().decode()


def _add_members(found: list[tuple[bytes, int, int, int]], members: Members, number: int, objects: int, columns: Any) -> int:
    """Add the members of the object of this number, of so many; returns how many objects there are then."""
    for name, kind in members.items():
        if isinstance(kind, dict):
            found.append((name.encode(), number, _lib.JSON_OBJECT, objects))
            objects = _add_members(found, kind, objects, objects + 1, columns)
        else:
            found.append((name.encode(), number, _KINDS[kind], next(columns)))
    return objects


def _array(column: Any, kind: pa.DataType, rows: int) -> pa.Array:
    """The column's blocks as an array, which frees them."""
    nulls, bitmap_bytes = rows - column.count, (rows + 7) // 8
    valid_at = int(column.valid - column.values)
    block = _taken(column, "values", valid_at + bitmap_bytes)
    valid = block.slice(valid_at, bitmap_bytes) if nulls else None
    if column.kind == _lib.JSON_STRING:
        parts = [block.slice(0, 4 * (rows + 1)), _taken(column, "texts", column.texts_size)]
    else:
        parts = [block.slice(0, bitmap_bytes if column.kind == _lib.JSON_BOOLEAN else 8 * rows)]
    return pa.Array.from_buffers(kind, rows, [valid, *parts], nulls)


def _taken(column: Any, name: str, size: int) -> pa.Buffer:
    block = getattr(column, name)
    setattr(column, name, _ffi.NULL)
    return pa.foreign_buffer(int(_ffi.cast("uintptr_t", block)), size, _ffi.gc(block, _lib.json_free, size))


def _release(parts: dict[str, Any], plan: Any) -> None:
    _lib.json_release(plan)


def _pointer(kind: str, address: int) -> Any:
    return _ffi.cast(kind, address)
