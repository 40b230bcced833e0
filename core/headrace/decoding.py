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

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from headrace.encodings import DEPTH_MAX, Readings, check, decode
from headrace.encodings.json_text import split
from headrace.event_time import CLOCK_FLOOR_US, TIME, Times, judge, parse_time, take_times
from headrace.reading_columns import Cells, Gathered, columns_of, gather, readings_array
from headrace.reading_types import ARROW_TYPES, OTHER, ReadingTypes
from headrace.typed_json import COMPILED, TypedJson

__all__ = [
    "ARROW_TYPES",
    "CLOCK_FLOOR_US",
    "COMPILED",
    "DEPTH_MAX",
    "OTHER",
    "TIME",
    "Decoded",
    "ReadingTypes",
    "Readings",
    "Times",
    "TypedJson",
    "check",
    "columns_of",
    "decode",
    "decode_rows",
    "decode_typed",
    "keep_rows",
    "parse_time",
    "readings_array",
    "rows_of",
    "split",
    "take_times",
]


class Decoded(NamedTuple):
    """Events before their readings are columns: the values by name, the times, and the indexes of those that do not decode."""

    gathered: Gathered
    times: Times
    bad: list[int]


def decode_rows(rows: list[Readings], received: pa.Array, past_max_s: int, future_max_s: int) -> Decoded:
    """Events that came as rows; takes the times out of them."""
    times = take_times(rows, received, past_max_s, future_max_s)
    return Decoded(gather(rows), times, [])


def decode_typed(payloads: pa.BinaryArray, received: pa.Array, typed: TypedJson, past_max_s: int, future_max_s: int) -> Decoded | None:
    """JSON payloads of mostly known readings; None where they are to be decoded as rows. The outcome is the same."""
    read = typed.read(payloads)
    if read is None:
        return None
    times, kept = judge(read.claims, received, past_max_s, future_max_s)
    if kept:
        values = [read.claims.value(index) for index in kept]
        read.gathered.cells[TIME], read.gathered.kinds[TIME] = Cells(values, kept), set(map(type, values))
    return Decoded(read.gathered, times, read.bad)


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
