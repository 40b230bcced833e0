"""Event batches to JSON, an event at a time as bytes, so that one rendering serves every client. No I/O.

Values are taken from the columns, not row by row. Null readings and context fields are left out; NaN and the infinities
become null, as JSON knows no better.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from headrace.typed_json import ESCAPED

#: Render so many events before other tasks of the loop get their turn: about a millisecond.
RENDER_ROWS: Final = 512
#: Names of a struct's children for which a class is made: one of more takes longer to make than it saves.
NAMES_MAX: Final = 64

# Binary becomes base64, times RFC 3339, decimals strings: msgspec's rules. What it does not know becomes its text.
_encode = msgspec.json.Encoder(enc_hook=str).encode


class _Event(msgspec.Struct, gc=False):
    """What is rendered, in this order."""

    device: str
    time: str
    received: str
    readings: Any
    context: Any
    origin: str
    position: int


def render(batch: pa.RecordBatch) -> list[bytes]:
    """Each event of the batch as a JSON object."""
    time, received = batch.column("time"), batch.column("received")
    texts = time_texts(received)
    columns = (
        batch.column("device").to_pylist(),
        texts if time.equals(received) else time_texts(time),
        texts,
        struct_rows(batch.column("readings")),
        struct_rows(batch.column("context")),
        batch.column("origin").cast(pa.string()).to_pylist(),
        batch.column("position").to_pylist(),
    )
    return [_encode(event) for event in map(_Event, *columns)]


def time_texts(column: pa.Array) -> list[str]:
    """Timestamps as RFC 3339 with microseconds."""
    # By way of a zoneless timestamp: Arrow's cast looks the zone up for every row, which costs 16 times as much.
    plain = column.cast(pa.timestamp("us")).cast(pa.string()).to_pylist()
    return [f"{text.replace(' ', 'T')}Z" for text in plain]


def struct_rows(column: pa.StructArray) -> list[Any]:
    """A struct column as one object per row that msgspec writes without the children that are null."""
    # flatten, not field: a null struct has no values below it
    children = {field.name: child for field, child in zip(column.type, column.flatten(), strict=True) if child.null_count < len(child)}
    names = tuple(children)
    if not names or len(names) > NAMES_MAX or ESCAPED.search("".join(names)):
        return _dictionaries(len(column), children)
    values = [_values(child) if child.null_count == 0 else _with_nulls(child) for child in children.values()]
    return list(map(_class_of(names), *values))


@lru_cache(maxsize=256)
def _class_of(names: tuple[str, ...]) -> type[msgspec.Struct]:
    """msgspec makes and writes objects of a class in less than half the time of dictionaries."""
    attributes = [f"f{number}" for number in range(len(names))]
    fields: list[tuple[str, Any, Any]] = [(attribute, Any, None) for attribute in attributes]
    return msgspec.defstruct("Children", fields, rename=dict(zip(attributes, names, strict=True)), omit_defaults=True, gc=False)


def _dictionaries(count: int, children: dict[str, pa.Array]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, child in children.items():
        valid = np.flatnonzero(child.is_valid().to_numpy(zero_copy_only=False)).tolist()
        for at, value in zip(valid, _values(child.drop_null()), strict=True):
            rows[at][name] = value
    return rows


def _with_nulls(column: pa.Array) -> list[Any]:
    """The same with None for nulls."""
    values: list[Any] = [None] * len(column)
    valid = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False)).tolist()
    for at, value in zip(valid, _values(column.drop_null()), strict=True):
        values[at] = value
    return values


def _values(column: pa.Array) -> Sequence[Any]:
    """The values of a column without nulls."""
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        numbers: list[Any] = column.to_numpy(zero_copy_only=False).tolist()
        return numbers
    if pa.types.is_timestamp(column.type):
        return time_texts(column)
    values: list[Any] = column.to_pylist()
    return values
