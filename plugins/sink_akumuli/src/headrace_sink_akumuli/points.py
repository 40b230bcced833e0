"""From an event batch to the points of its readings: columns in, columns out. No I/O.

A number becomes a point, a boolean 0 or 1. Strings (and `_other`) have no place in a time series: they are counted, and the lake has
them, as it has numbers that are not finite.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace_sink_akumuli.names import UNKNOWN
from headrace_sink_akumuli.timeline import TIME_US_MAX

#: Radix sort, for 16-bit keys only.
_SMALL: Final = 1 << 16


class Rows(NamedTuple):
    """The rows of a batch in the order of devices and time.

    devices: the different ones, by code; codes, time_us (int64), order: one for each row, `order` its number in the batch.
    """

    devices: list[str]
    codes: Any
    time_us: Any
    order: Any


class Column(NamedTuple):
    """The points of one reading, by device and time: codes (into `Rows.devices`), time_us, values (finite), rows (of the batch)."""

    reading: str
    codes: Any
    time_us: Any
    values: Any
    rows: Any


def rows_of(batch: pa.RecordBatch) -> Rows:
    """The batch's rows, ordered by device and time; rows that agree in both stay in the batch's order."""
    device = batch.column("device").dictionary_encode()
    codes = device.indices.to_numpy()
    time_us = batch.column("time").cast(pa.int64()).to_numpy()
    names = device.dictionary.to_pylist()
    small = codes.astype(np.uint16) if len(names) <= _SMALL else codes
    if len(time_us) < 2 or (time_us[1:] >= time_us[:-1]).all():
        order = np.argsort(small, kind="stable")
    else:
        by_time = np.argsort(time_us, kind="stable")
        order = by_time[np.argsort(small[by_time], kind="stable")]
    return Rows(names, codes[order], time_us[order], order)


def columns_of(batch: pa.RecordBatch, rows: Rows, refused: dict[str, int]) -> Iterator[Column]:
    """The batch's readings that have points. What makes none is added to `refused` by reason: `string`, `nonfinite`, `time`, `type`."""
    readings = batch.column("readings")
    children = readings.flatten() if readings.null_count else [readings.field(index) for index in range(readings.type.num_fields)]
    placed = (rows.time_us > 0) & (rows.time_us <= TIME_US_MAX)
    everywhere = bool(placed.all())
    for field, array in zip(readings.type, children, strict=True):
        values = _values(array, refused)
        if values is None:
            continue
        values = values[rows.order]
        keep = np.isfinite(values)
        _count(refused, "nonfinite", len(values) - array.null_count - int(keep.sum()))
        if not everywhere:
            _count(refused, "time", int((keep & ~placed).sum()))
            keep &= placed
        if keep.all():
            yield Column(field.name, rows.codes, rows.time_us, values, rows.order)
        elif keep.any():
            yield Column(field.name, rows.codes[keep], rows.time_us[keep], values[keep], rows.order[keep])


def _values(array: pa.Array, refused: dict[str, int]) -> Any:
    """The column as float64, null as NaN; None when it has no numbers."""
    kind = array.type
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return pc.fill_null(array.cast(pa.float64(), safe=False), float("nan")).to_numpy(zero_copy_only=False)
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
    _count(refused, "string" if text else "type", len(array) - array.null_count)
    return None


def _count(refused: dict[str, int], reason: str, count: int) -> None:
    if count:
        refused[reason] = refused.get(reason, 0) + count


def tags_of(batch: pa.RecordBatch, rows: Sequence[int], names: Sequence[str]) -> list[dict[str, str]]:
    """For each of these rows the context's fields as text; what is null, empty, absent or no scalar is `unknown`."""
    context = batch.column("context")
    if context.null_count:
        context = pa.StructArray.from_arrays(context.flatten(), fields=list(context.type))
    taken = {name: _texts(context, name, rows) for name in names}
    return [{name: taken[name][index] for name in names} for index in range(len(rows))]


def _texts(context: pa.StructArray, name: str, rows: Sequence[int]) -> list[str]:
    index = context.type.get_field_index(name)
    if index < 0:
        return [UNKNOWN] * len(rows)
    values = context.field(index).take(pa.array(rows, pa.int64())).to_pylist()
    return [text_of(value) for value in values]


def text_of(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value) or UNKNOWN if isinstance(value, str | int | float) else UNKNOWN
