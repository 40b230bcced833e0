"""From payloads to readings: what a device sent, as typed columns. No I/O.

The rules, which make the outcome a function of the events alone:

- A payload is one object (a source splits arrays), in one of the encodings of `headrace.encodings`. Numbers become float64,
  booleans and strings stay; an array becomes the string of its JSON; null is the same as absent; nested objects get dotted
  names. Of a repeated key the last counts.
- The first type seen for a reading's name on a tier is its type for good (`ReadingTypes`). A value of another type, and a
  name beyond `readings_max`, costs nothing: it is kept in the reading `_other`, a JSON object of all that did not fit.
- `ts` is the event's own time: epoch seconds, milliseconds, microseconds or nanoseconds (told apart by magnitude), or
  RFC 3339 (without an offset: UTC). One that cannot be read, or lies outside the window around `received`, stays a reading
  named `ts`, and the event is filed under `received`.
"""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from headrace.encodings import DEPTH_MAX, Readings, check, decode
from headrace.encodings.json_text import split
from headrace.schema import TIMESTAMP

__all__ = [
    "ARROW_TYPES",
    "CLOCK_FLOOR_US",
    "DEPTH_MAX",
    "OTHER",
    "TIME",
    "ReadingTypes",
    "Readings",
    "Times",
    "check",
    "decode",
    "keep_rows",
    "parse_time",
    "readings_array",
    "rows_of",
    "split",
    "take_times",
]

OTHER: Final = "_other"
TIME: Final = "ts"

#: Wall clocks before this (the release of this version) are wrong: then `ts` decides, without a window (DELIVERY 24).
CLOCK_FLOOR_US: Final = 1_793_491_200_000_000  # 2026-11-01

_encode = msgspec.json.Encoder()

# --- readings --------------------------------------------------------------------------------------------------------

ARROW_TYPES: Final[Mapping[str, pa.DataType]] = {"number": pa.float64(), "boolean": pa.bool_(), "string": pa.string()}
_TYPE_NAMES: Final[Mapping[type, str]] = {float: "number", int: "number", bool: "boolean", str: "string", list: "string"}


class ReadingTypes:
    """The type of each reading's name on one tier: the first one seen, for good.

    `types` is what a tier keeps between runs; `changed` tells that it has grown since `take` was called.
    """

    def __init__(self, names_max: int, types: Mapping[str, str] | None = None) -> None:
        self.names_max = names_max
        self.types: dict[str, str] = dict(types or {})
        self.changed = False

    def type_of(self, name: str, value: object) -> str | None:
        """The name's type, given by `value` when the name is new; None when there is no room for another name."""
        known = self.types.get(name)
        if known is None and len(self.types) < self.names_max and name != OTHER:
            known = self.types[name] = _TYPE_NAMES[type(value)]
            self.changed = True
        return known

    def take(self, types: Mapping[str, str]) -> bool:
        """These are the types from now on; whether all that was given out before still holds."""
        holds = self.types.items() <= types.items()
        self.types, self.changed = dict(types), False
        return holds


def readings_array(rows: list[Readings], types: ReadingTypes) -> tuple[pa.StructArray, int]:
    """All readings as one struct array (children in order of appearance), and how many values went to `_other`."""
    columns: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in _names(rows)}
    if any(dict in map(type, values) for values in columns.values()):
        rows = [_flat(row) for row in rows]
        columns = {name: [row.get(name) for row in rows] for name in _names(rows)}
    others: dict[int, Readings] = {}
    fields, arrays = [], []
    for name, values in columns.items():
        first = next((value for value in values if value is not None), None)
        if first is None:
            continue
        kind = types.type_of(name, first)
        array = _column(name, values, kind, others)
        if kind is not None and array.null_count < len(array):
            fields.append(pa.field(name, array.type))
            arrays.append(array)
    if others:
        texts = [_encode.encode(others[row]).decode() if row in others else None for row in range(len(rows))]
        fields.append(pa.field(OTHER, pa.string()))
        arrays.append(pa.array(texts, pa.string()))
    if not arrays:
        return pa.array([{}] * len(rows), pa.struct([])), 0
    return pa.StructArray.from_arrays(arrays, fields=fields), sum(map(len, others.values()))


def _names(rows: list[Readings]) -> dict[str, None]:
    return dict.fromkeys(itertools.chain.from_iterable(rows))


def _column(name: str, values: list[Any], kind: str | None, others: dict[int, Readings]) -> pa.Array:
    """One reading's column; what does not fit its type moves to `others`, by row."""
    if kind is None or any(_TYPE_NAMES.get(seen) != kind for seen in set(map(type, values)) if seen is not type(None)):
        values = list(values)
        for row, value in enumerate(values):
            if value is not None and _TYPE_NAMES[type(value)] != kind:
                others.setdefault(row, {})[name] = value
                values[row] = None
    if kind == "string":
        values = [_encode.encode(value).decode() if isinstance(value, list) else value for value in values]
    if kind == "number":
        return _numbers(name, values, others)
    return pa.array(values, ARROW_TYPES[kind] if kind else pa.null())


def _numbers(name: str, values: list[Any], others: dict[int, Readings]) -> pa.Array:
    try:
        return pa.array(values, pa.float64())
    except pa.ArrowInvalid:  # integers beyond 2**53: the nearest float64, as every JSON reader with doubles does
        for row, value in enumerate(values):
            try:
                values[row] = None if value is None else float(value)
            except OverflowError:
                others.setdefault(row, {})[name] = str(value)
                values[row] = None
        return pa.array(values, pa.float64())


def _flat(row: Readings, prefix: str = "") -> Readings:
    flat: Readings = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


# --- time ------------------------------------------------------------------------------------------------------------


class Times(NamedTuple):
    """The events' times (TIMESTAMP), how many claimed a time outside the window, and how many one that cannot be read."""

    time: pa.Array
    outside: int
    unreadable: int


def take_times(rows: list[Readings], received: pa.Array, past_max_s: int, future_max_s: int) -> Times:
    """Take `ts` out of the rows where it is believed; elsewhere `received` is the time and `ts` stays a reading."""
    arrived = received.cast(pa.int64()).to_numpy()
    claims = [row.get(TIME) for row in rows]
    claimed = np.array([_NO_TIME if us is None else us for us in map(parse_time, claims)], dtype=np.int64)
    readable = claimed != _NO_TIME
    early, late = arrived - past_max_s * 1_000_000, arrived + future_max_s * 1_000_000
    believed = readable & ((arrived < CLOCK_FLOOR_US) | ((claimed >= early) & (claimed <= late)))
    for index in np.flatnonzero(believed).tolist():
        del rows[index][TIME]
    claims_made = len(claims) - claims.count(None)
    unreadable = claims_made - int(readable.sum())
    outside = int(readable.sum()) - int(believed.sum())
    time = pa.array(np.where(believed, claimed, arrived), pa.int64()).cast(TIMESTAMP)
    return Times(time, outside, unreadable)


_NO_TIME: Final = -(2**63)

#: A number below the bound counts in the unit: 1e11 s is the year 5138, 1e11 ms is 1973.
_EPOCH_UNITS: Final = ((1e11, 1_000_000, 1), (1e14, 1_000, 1), (1e17, 1, 1), (1e20, 1, 1_000))


def parse_time(claim: object) -> int | None:
    """A claimed time (`ts`) in microseconds since the epoch, or None when it cannot be read."""
    kind = type(claim)
    if kind is int or kind is float:
        return _epoch_us(claim)  # type: ignore[arg-type]
    return _rfc3339_us(claim) if isinstance(claim, str) else None


def _epoch_us(number: float) -> int | None:
    size = abs(number)
    for bound, times, over in _EPOCH_UNITS:
        if size < bound:
            # an integer stays one: a float has no microseconds left at 1e15
            return number * times // over if isinstance(number, int) else round(number * times / over)
    return None


def _rfc3339_us(text: str) -> int | None:
    try:
        # fromisoformat takes at most microseconds; what is finer is cut, not refused
        moment = datetime.datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return (moment - _EPOCH) // datetime.timedelta(microseconds=1)


_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def rows_of(readings: pa.StructArray, bad: Sequence[int]) -> list[Readings]:
    """A decoder plugin's struct array as rows, so that the same rules apply to it."""
    rows: list[Readings] = [row or {} for row in readings.to_pylist()]
    for index in bad:
        rows[index] = {}
    return rows


def keep_rows(batch: pa.RecordBatch, drop: Sequence[int]) -> pa.RecordBatch:
    """The batch without these rows."""
    if not drop:
        return batch
    mask = np.ones(batch.num_rows, dtype=bool)
    mask[list(drop)] = False
    return batch.filter(pa.array(mask))
