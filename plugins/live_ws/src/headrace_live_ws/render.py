"""Event batches to JSON, an event at a time as bytes, so that one rendering serves every client. No I/O.

Values are taken from the columns, not row by row. Null readings and context fields are left out; NaN and the infinities
become null, as JSON knows no better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

#: Render so many events before other tasks of the loop get their turn: about half a millisecond.
RENDER_ROWS: Final = 256

# Binary becomes base64, times RFC 3339, decimals strings: msgspec's rules. What it does not know becomes its text.
_encode = msgspec.json.Encoder(enc_hook=str).encode


def render(batch: pa.RecordBatch) -> list[bytes]:
    """Each event of the batch as a JSON object."""
    columns = (
        batch.column("device").to_pylist(),
        time_texts(batch.column("time")),
        time_texts(batch.column("received")),
        struct_rows(batch.column("readings")),
        struct_rows(batch.column("context")),
        batch.column("origin").cast(pa.string()).to_pylist(),
        batch.column("position").to_pylist(),
    )
    return [
        _encode(
            {
                "device": device,
                "time": time,
                "received": received,
                "readings": readings,
                "context": context,
                "origin": origin,
                "position": position,
            }
        )
        for device, time, received, readings, context, origin, position in zip(*columns, strict=True)
    ]


def time_texts(column: pa.Array) -> list[str]:
    """Timestamps as RFC 3339 with microseconds."""
    # By way of a zoneless timestamp: Arrow's cast looks the zone up for every row, which costs 16 times as much.
    plain = column.cast(pa.timestamp("us")).cast(pa.string()).to_pylist()
    return [f"{text.replace(' ', 'T')}Z" for text in plain]


def struct_rows(column: pa.StructArray) -> list[dict[str, Any]]:
    """A struct column as one dict per row, without the children that are null."""
    rows: list[dict[str, Any]] = [{} for _ in range(len(column))]
    for index, field in enumerate(column.type):
        child = pc.struct_field(column, index)
        if child.null_count == len(child):
            continue
        name = field.name
        if child.null_count == 0:
            for row, value in zip(rows, _values(child), strict=True):
                row[name] = value
        else:
            valid = np.flatnonzero(child.is_valid().to_numpy(zero_copy_only=False)).tolist()
            for at, value in zip(valid, _values(child.drop_null()), strict=True):
                rows[at][name] = value
    return rows


def _values(column: pa.Array) -> Sequence[Any]:
    """The values of a column without nulls."""
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        numbers: list[Any] = column.to_numpy(zero_copy_only=False).tolist()
        return numbers
    if pa.types.is_timestamp(column.type):
        return time_texts(column)
    values: list[Any] = column.to_pylist()
    return values
