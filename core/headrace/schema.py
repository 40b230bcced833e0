"""The two kinds of batch that cross hooks, as Arrow schemas.

Both carry `headrace.kind` in the schema's metadata. A *raw* batch is what sources deliver and queues store; an *event*
batch is what enrichers and outputs see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

KIND: Final = b"headrace.kind"

TIMESTAMP: Final = pa.timestamp("us", tz="UTC")

#: device: the authenticated identity, never taken from the payload. received: the server's wall clock. encoding: one of
#: the ENCODING_* numbers or a site's own (128-255). payload: the device's bytes of ONE event, already checked to decode.
RAW_SCHEMA: Final = pa.schema(
    [
        pa.field("device", pa.string(), nullable=False),
        pa.field("received", TIMESTAMP, nullable=False),
        pa.field("encoding", pa.uint8(), nullable=False),
        pa.field("payload", pa.binary(), nullable=False),
    ],
    metadata={KIND: b"raw"},
)

#: Fixed for good: they lie in queues. What the core decodes; SenML is resolved by the source and stored as JSON.
ENCODING_JSON: Final = 1
ENCODING_MSGPACK: Final = 2
ENCODING_CBOR: Final = 3
ENCODING_SITE_FIRST: Final = 128

#: The columns of an event batch, in this order. The children of `readings` and `context` differ from batch to batch.
EVENT_COLUMNS: Final = ("device", "time", "received", "readings", "context", "origin", "position")

#: origin and position are the event's global id, given by the first durable queue that took it.
ORIGIN_TYPE: Final = pa.dictionary(pa.int32(), pa.string())

#: The types that readings have.
READING_TYPES: Final = (pa.float64(), pa.string(), pa.bool_(), pa.int64(), pa.null())
#: Positions begin with 1, and are kept by stores whose integers have a sign.
POSITION_MAX: Final = (1 << 63) - 1


def event_schema(readings: pa.StructType, context: pa.StructType) -> pa.Schema:
    """The schema of an event batch with these readings and this context."""
    return pa.schema(
        [
            pa.field("device", pa.string(), nullable=False),
            pa.field("time", TIMESTAMP, nullable=False),
            pa.field("received", TIMESTAMP, nullable=False),
            pa.field("readings", readings),
            pa.field("context", context),
            pa.field("origin", ORIGIN_TYPE, nullable=False),
            pa.field("position", pa.uint64(), nullable=False),
        ],
        metadata={KIND: b"event"},
    )


#: How a text of `context` may come to outputs that declare `takes_dictionaries`.
WORDS_TYPE: Final = pa.dictionary(pa.int32(), pa.string())


def plain_context(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same events, with strings in place of dictionaries in `context`."""
    index = EVENT_COLUMNS.index("context")
    context = batch.column(index)
    if not any(field.type == WORDS_TYPE for field in context.type):
        return batch
    children = [context.field(number) for number in range(context.type.num_fields)]
    children = [child.dictionary_decode() if child.type == WORDS_TYPE else child for child in children]
    fields = [field.with_type(child.type) for field, child in zip(context.type, children, strict=True)]
    plain = pa.StructArray.from_arrays(children, fields=fields, mask=context.is_null() if context.null_count else None)
    return batch.set_column(index, batch.schema.field(index).with_type(plain.type), plain)


def kind_of(schema: pa.Schema) -> str:
    """`"raw"` or `"event"`; a ValueError names what came instead."""
    kind: str = (schema.metadata or {}).get(KIND, b"").decode()
    if kind not in ("raw", "event"):
        raise ValueError(
            f"expected a batch whose schema metadata has {KIND.decode()} = raw or event, got {kind!r} in {schema.names}"
            "; make it with schema=headrace.RAW_SCHEMA"
        )
    return kind


_RAW_COLUMNS: Final = range(len(RAW_SCHEMA.names))


def check_batch(batch: pa.RecordBatch) -> None:
    """ValueError when this is neither a raw nor an event batch: a queue that stored it could not give it to any output."""
    required: Sequence[str | int]
    if not isinstance(batch, pa.RecordBatch):
        raise TypeError(f"expected a pyarrow.RecordBatch, got {type(batch).__name__}")
    if batch.schema.equals(RAW_SCHEMA, check_metadata=True):  # what nearly all are, thousands a second
        required = _RAW_COLUMNS
    elif kind_of(batch.schema) == "raw":
        if not batch.schema.equals(RAW_SCHEMA):
            raise ValueError(f"expected a raw batch of {_shape(RAW_SCHEMA)}, got {_shape(batch.schema)}")
        required = _RAW_COLUMNS
    else:
        _check_events(batch)
        required = ("device", "time", "received", "origin", "position")
    for column in required:
        if nulls := batch.column(column).null_count:
            name = batch.schema.names[column] if isinstance(column, int) else column
            raise ValueError(f"expected a value in every row of {name!r}, got {nulls} nulls")


def _check_events(batch: pa.RecordBatch) -> None:
    """ValueError when the columns are not those of an event batch, by name and by type."""
    columns = dict(zip(batch.schema.names, batch.schema.types, strict=True))
    readings, context = columns.get("readings"), columns.get("context")
    if tuple(batch.schema.names) != EVENT_COLUMNS or not isinstance(readings, pa.StructType) or not isinstance(context, pa.StructType):
        raise ValueError(f"expected an event batch of {', '.join(EVENT_COLUMNS)}, got {_shape(batch.schema)}")
    expected = event_schema(readings, context)
    if list(columns.values()) != expected.types:
        raise ValueError(f"expected an event batch of {_shape(expected)}, got {_shape(batch.schema)}")
    for fields in (list(readings), list(context)):
        if len({field.name for field in fields}) < len(fields):
            raise ValueError(f"expected fields of different names, got {_shape(pa.schema(fields))}")
    if strange := [field for field in readings if field.type not in READING_TYPES]:
        raise ValueError(f"expected readings that are numbers, booleans or texts, got {strange[0].name}: {strange[0].type}")
    bounds = pc.min_max(batch.column("position")).as_py()  # None where there are no values
    if bounds["min"] is not None and not 0 < bounds["min"] <= bounds["max"] <= POSITION_MAX:
        raise ValueError(f"expected positions from 1 to {POSITION_MAX}, got {bounds['min']} to {bounds['max']}")


def _shape(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
