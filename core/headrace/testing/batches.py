"""Batches to test with: numbered rows, whose content follows from their number."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from headrace.schema import ENCODING_JSON, ORIGIN_TYPE, RAW_SCHEMA, TIMESTAMP, event_schema
from headrace.testing.clock import WALL_START_S

EPOCH: Final = datetime.datetime.fromtimestamp(WALL_START_S, datetime.UTC)
DEVICES: Final = ("thermostat-1", "meter-2", "pump-3")
QUEUE_ID: Final = "5f0c7e4a-0000-4000-8000-000000000001"


def raw_batch(count: int, first: int = 1, devices: Sequence[str] = DEVICES, payload_bytes: int = 0) -> pa.RecordBatch:
    """`count` raw events numbered from `first`: payload `{"n":17}`, padded to at least `payload_bytes`."""
    numbers = range(first, first + count)
    pad = "x" * max(0, payload_bytes - 24)
    extra = f',"pad":"{pad}"' if pad else ""
    columns = [
        pa.array([devices[number % len(devices)] for number in numbers], pa.string()),
        pa.array([EPOCH + datetime.timedelta(seconds=number) for number in numbers], TIMESTAMP),
        pa.array([ENCODING_JSON] * count, pa.uint8()),
        pa.array([f'{{"n":{number}{extra}}}'.encode() for number in numbers], pa.binary()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=RAW_SCHEMA)


def event_batch(
    count: int,
    first: int = 1,
    *,
    origin: str = QUEUE_ID,
    positions: Sequence[int] | None = None,
    devices: Sequence[str] = DEVICES,
    readings: Mapping[str, Sequence[Any]] | None = None,
    context: Mapping[str, Sequence[Any]] | None = None,
) -> pa.RecordBatch:
    """`count` events at positions `first`, ... (or at `positions`) of `origin`.

    readings, context: the children as name -> values; by default readings `n` (the position) and `even`, and no context.
    """
    numbers = list(positions) if positions is not None else list(range(first, first + count))
    if readings is None:
        readings = {"n": [float(number) for number in numbers], "even": [number % 2 == 0 for number in numbers]}
    read, known = _struct(readings, len(numbers)), _struct(context or {}, len(numbers))
    times = pa.array([EPOCH + datetime.timedelta(seconds=number) for number in numbers], TIMESTAMP)
    columns = [
        pa.array([devices[number % len(devices)] for number in numbers], pa.string()),
        times,
        times,
        read,
        known,
        pa.array([origin] * len(numbers), pa.string()).dictionary_encode().cast(ORIGIN_TYPE),
        pa.array(numbers, pa.uint64()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=event_schema(read.type, known.type))


def _struct(children: Mapping[str, Sequence[Any]], count: int) -> pa.StructArray:
    if not children:
        return pa.array([{}] * count, pa.struct([]))
    arrays = {name: pa.array(values) for name, values in children.items()}
    for name, array in arrays.items():
        if len(array) != count:
            raise ValueError(f"expected {count} values of {name!r}, got {len(array)}")
    # numbers are float64 in every event batch, whatever Python type a test wrote
    arrays = {name: array.cast(pa.float64()) if pa.types.is_integer(array.type) else array for name, array in arrays.items()}
    return pa.StructArray.from_arrays(list(arrays.values()), names=list(arrays))
