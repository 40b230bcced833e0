"""Event batches made fit for one Parquet file: checked, and given one type. No I/O."""

from __future__ import annotations

import functools
from collections.abc import Container, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from headrace import CLOCK_FLOOR_US, EVENT_COLUMNS, event_schema
from headrace_sink_lake.texts import CODED, Texts

#: Parquet has no struct without children; a file whose events have none carries this child, always null.
NO_CHILDREN = pa.field("_empty", pa.bool_())
STRUCTS = ("readings", "context")
REQUIRED = tuple(field.name for field in event_schema(pa.struct([]), pa.struct([])) if not field.nullable)


def checked(batch: pa.RecordBatch, texts: Texts) -> pa.RecordBatch | None:
    """The batch with its texts coded; None where rows are bad: `bad_rows` says which. A word is looked at once, not in each row."""
    try:
        for column in batch.columns:
            _look_at(column)
        held = texts.coded(batch)
        for before, after in zip(batch.columns, held.columns, strict=True):
            _look_at_words(before, after)
    except pa.ArrowInvalid:
        return None
    return None if any(held.column(name).null_count for name in REQUIRED) else held


def _look_at(array: pa.Array) -> None:
    # All but the text itself: nothing may be read through an offset or a code that leads elsewhere.
    if pa.types.is_struct(array.type):
        array.validate()
        for number in range(array.type.num_fields):
            _look_at(array.field(number))
    elif pa.types.is_string(array.type):
        array.validate()
        if len(array):
            offsets = np.frombuffer(array.buffers()[1], np.int32)[array.offset : array.offset + len(array) + 1]
            if not (offsets[1:] >= offsets[:-1]).all():
                raise pa.ArrowInvalid("expected offsets that do not fall")
    else:
        array.validate(full=not pa.types.is_primitive(array.type))


def _look_at_words(before: pa.Array, after: pa.Array) -> None:
    if pa.types.is_struct(before.type):
        for number in range(before.type.num_fields):
            _look_at_words(before.field(number), after.field(number))
    elif pa.types.is_string(before.type):
        (after.dictionary if isinstance(after, pa.DictionaryArray) else after).validate(full=True)


def bad_rows(batch: pa.RecordBatch) -> list[int]:
    """The rows that no reader of the lake could read: invalid UTF-8, broken offsets, nulls where there must be none."""
    rows = set(_invalid(batch, np.arange(batch.num_rows)))
    for name in REQUIRED:
        if batch.column(name).null_count:
            rows.update(np.flatnonzero(batch.column(name).is_null().to_numpy(zero_copy_only=False)).tolist())
    return sorted(rows)


def _invalid(batch: pa.RecordBatch, rows: Any) -> list[int]:
    # 19 ns a row for a good batch; DuckDB stops at the first bad byte, which would spoil the whole lake for its readers.
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        # Only rows with bad text can be told from the others: nothing may be read through a broken offset.
        if len(rows) <= 1 or "UTF8" not in str(error):
            return list(rows.tolist())
        half = len(rows) // 2
        # Taken, not sliced: a slice of a struct is validated with all of its children's rows.
        parts = [(batch.take(pa.array(part)), part) for part in (np.arange(half), np.arange(half, len(rows)))]
        return [row for part, own in parts for row in _invalid(part, rows[own])]
    return []


def wrong_clock_rows(batch: pa.RecordBatch) -> int:
    """How many events were received while the host's clock was certainly wrong."""
    received = batch.column("received").cast(pa.int64()).to_numpy()
    return int(np.count_nonzero(received < CLOCK_FLOOR_US)) if received.min(initial=CLOCK_FLOOR_US) < CLOCK_FLOOR_US else 0


def duplicate_names(schema: pa.Schema) -> list[str]:
    """Children of readings or context that have the same name twice."""
    names = [f"{struct}.{field.name}" for struct in STRUCTS for field in schema.field(struct).type]
    return sorted({name for name in names if names.count(name) > 1}) if len(names) != len(set(names)) else []


def readable(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same rows, with names of readings and context that every reader takes."""
    for index in map(EVENT_COLUMNS.index, STRUCTS):
        array, field = batch.column(index), batch.schema.field(index)
        stored = _stored_names(field.type)
        if stored != field.type:
            children = [array.field(number) for number in range(stored.num_fields)]
            mask = array.is_null() if array.null_count else None
            array = pa.StructArray.from_arrays(children, fields=list(stored), mask=mask)
            batch = batch.set_column(index, field.with_type(stored), array)
    return batch


@functools.lru_cache(maxsize=256)
def _stored_names(struct: pa.StructType) -> pa.StructType:
    # One file with a child named "" makes DuckDB 2.0 refuse the whole lake; it cuts a name at a NUL.
    names: list[str] = []
    for field in struct:
        name = field.name.replace("\0", "\ufffd") or "_"
        while name in names or (name != field.name and struct.get_field_index(name) >= 0):
            name += "_"
        names.append(name)
    return pa.struct([field.with_name(name) for field, name in zip(struct, names, strict=True)])


@functools.lru_cache(maxsize=256)
def merge(one: pa.StructType, other: pa.StructType) -> pa.StructType | None:
    """The struct type that holds both, children in the order of their first appearance; None where their types clash."""
    if one == other:
        return one
    fields = {field.name: field.type for field in one}
    for field in other:
        known = fields.get(field.name)
        if known is None or pa.types.is_null(known):
            fields[field.name] = field.type
        elif not pa.types.is_null(field.type) and field.type != known:
            return None
    return pa.struct(list(fields.items()))


@functools.lru_cache(maxsize=256)
def plain(struct: pa.StructType) -> pa.StructType:
    """The type as the lake stores it: dictionaries are Parquet's business."""
    return pa.struct([(f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type) for f in struct])


def without_placeholder(struct: pa.StructType) -> pa.StructType:
    """The type without the child that stands for none."""
    return pa.struct([field for field in struct if field != NO_CHILDREN])


def file_schema(readings: pa.StructType, context: pa.StructType, metadata: dict[bytes, bytes] | None) -> pa.Schema:
    """The schema of a file of merged ones, from the types of their children; metadata: what one of them has."""
    schema = event_schema(*(struct if struct.num_fields else pa.struct([NO_CHILDREN]) for struct in (readings, context)))
    kept = {key: value for key, value in (metadata or {}).items() if key not in (b"headrace.queue_id", b"headrace.first", b"ARROW:schema")}
    return schema.with_metadata({**kept, **(schema.metadata or {})})


def grouped(batches: Sequence[pa.RecordBatch]) -> list[tuple[pa.RecordBatch, list[int]]]:
    """The rows of each set of batches whose types go together (nearly always one), with the indexes of its batches."""
    shapes: list[tuple[pa.StructType, pa.StructType, list[int]]] = []
    for index, batch in enumerate(batches):
        own = [plain(batch.schema.field(name).type) for name in STRUCTS]
        for number, (readings, context, members) in enumerate(shapes):
            wider = merge(readings, own[0]), merge(context, own[1])
            if None not in wider:
                members.append(index)
                shapes[number] = (*wider, members)
                break
        else:
            shapes.append((own[0], own[1], [index]))
    return [(_joined([batches[index] for index in members], one, other), members) for one, other, members in shapes]


def _joined(batches: list[pa.RecordBatch], readings: pa.StructType, context: pa.StructType) -> pa.RecordBatch:
    schema = file_schema(readings, context, batches[0].schema.metadata)
    batches = _with_coded_devices(batches)
    uncoded = {path for batch in batches for path in _texts(batch.schema)}
    fields = []
    for field in schema:
        if pa.types.is_struct(field.type):
            children = [child.with_type(_held_type(f"{field.name}.{child.name}", child.type, uncoded)) for child in field.type]
            fields.append(field.with_type(pa.struct(children)))
        else:
            fields.append(field.with_type(_held_type(field.name, field.type, uncoded)))
    held = pa.schema(fields, schema.metadata)
    return pa.concat_batches([aligned(batch, held) for batch in batches])


def _with_coded_devices(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """The batches with one dictionary of devices, made of all at once: batch by batch each device would be looked up in every batch."""
    index = EVENT_COLUMNS.index("device")
    devices = pa.chunked_array([batch.column(index) for batch in batches]).dictionary_encode()
    field = batches[0].schema.field(index).with_type(devices.type)
    return [batch.set_column(index, field, coded) for batch, coded in zip(batches, devices.chunks, strict=True)]


def _texts(schema: pa.Schema) -> list[str]:
    """The columns and children that are text, and not coded."""
    own = [field.name for field in schema if pa.types.is_string(field.type)]
    return own + [f"{name}.{child.name}" for name in STRUCTS for child in schema.field(name).type if pa.types.is_string(child.type)]


def _held_type(path: str, kind: pa.DataType, uncoded: set[str]) -> pa.DataType:
    return CODED if pa.types.is_string(kind) and path not in uncoded else kind


def aligned(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The same rows with the columns, children and types of `schema`, nulls where the batch has none."""
    columns = []
    for field in schema:
        column = batch.column(field.name)
        if column.type != field.type:
            column = _as_struct(column, field.type) if field.name in STRUCTS else _as(column, field.type)
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _as_struct(array: pa.StructArray, target: pa.StructType) -> pa.StructArray:
    children = []
    for field in target:
        index = array.type.get_field_index(field.name)
        children.append(pa.nulls(len(array), field.type) if index < 0 else _as(array.field(index), field.type))
    mask = array.is_null() if array.null_count else None
    return pa.StructArray.from_arrays(children, fields=list(target), mask=mask)


def _as(array: pa.Array, target: pa.DataType) -> pa.Array:
    if array.type == target:
        return array
    if pa.types.is_dictionary(target) and pa.types.is_string(array.type):
        return array.dictionary_encode()
    if pa.types.is_dictionary(array.type) and not pa.types.is_dictionary(target):
        array = array.dictionary_decode()
    return array if array.type == target else array.cast(target)


def presence(rows: pa.RecordBatch, partitions: Any) -> dict[str, Any]:
    """Of each reading with nulls, by partition number, whether the partition has a value of it."""
    readings, count = rows.column("readings"), int(partitions.max(initial=0)) + 1
    found = {}
    for number, field in enumerate(readings.type):
        child = readings.field(number)
        if child.null_count:
            found[field.name] = np.zeros(count, dtype=np.bool_)
            found[field.name][partitions[child.is_valid().to_numpy(zero_copy_only=False)]] = True
    return found


def storable(rows: pa.RecordBatch, absent: Container[str]) -> pa.RecordBatch:
    """Without these readings, which no row of the file has, and with a child in each struct."""
    index = rows.schema.get_field_index("readings")
    array = rows.column(index)
    keep = [number for number, field in enumerate(array.type) if field.name not in absent]
    if len(keep) == array.type.num_fields:
        return rows
    fields = [array.type.field(number) for number in keep] or [NO_CHILDREN]
    children = [array.field(number) for number in keep] or [pa.nulls(len(array), NO_CHILDREN.type)]
    mask = array.is_null() if array.null_count else None
    changed = pa.StructArray.from_arrays(children, fields=fields, mask=mask)
    return rows.set_column(index, rows.schema.field(index).with_type(changed.type), changed)


def seen_schema(rows: pa.RecordBatch) -> pa.Schema:
    """The schema of a file of these rows as readers see it: texts are text."""
    readings, context = (plain(rows.schema.field(name).type) for name in STRUCTS)
    return file_schema(readings, context, rows.schema.metadata)


def ids(batch: pa.RecordBatch) -> tuple[list[str], Any, Any]:
    """Of a batch of `origin` (a dictionary) and `position`: the origins' names, each row's index into them, each row's position."""
    origin = batch.column(0)
    return origin.dictionary.to_pylist(), origin.indices.to_numpy(), batch.column(1).to_numpy()


def described(schema: pa.Schema) -> dict[str, dict[str, str]]:
    """The children of readings and context with their Arrow types, as commit records name them."""
    return {name: {child.name: str(child.type) for child in schema.field(name).type} for name in STRUCTS}
