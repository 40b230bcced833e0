"""Event batches made fit for one Parquet file: checked, given one type, ordered. No I/O."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace import CLOCK_FLOOR_US, EVENT_COLUMNS, event_schema

#: Parquet has no struct without children; a file whose events have none carries this child, always null.
NO_CHILDREN = pa.field("_empty", pa.bool_())
STRUCTS = ("readings", "context")


def bad_rows(batch: pa.RecordBatch) -> list[int]:
    """The rows that no reader of the lake could read: invalid UTF-8, broken offsets, nulls where there must be none."""
    rows = set(_invalid(batch, np.arange(batch.num_rows)))
    for name, field in zip(EVENT_COLUMNS, event_schema(pa.struct([]), pa.struct([])), strict=True):
        column = batch.column(name)
        if not field.nullable and column.null_count:
            rows.update(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)).tolist())
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
    return int(np.count_nonzero(batch.column("received").cast(pa.int64()).to_numpy() < CLOCK_FLOOR_US))


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
    shapes = [struct if struct.num_fields else pa.struct([NO_CHILDREN]) for struct in (readings, context)]
    schema = event_schema(*shapes)
    kept = {key: value for key, value in (metadata or {}).items() if key not in (b"headrace.queue_id", b"headrace.first", b"ARROW:schema")}
    return schema.with_metadata({**kept, **(schema.metadata or {})})


def grouped(batches: Sequence[pa.RecordBatch]) -> list[tuple[pa.Table, list[int]]]:
    """A table for each set of batches whose types go together (nearly always one), with the indexes of its batches."""
    groups: list[tuple[pa.StructType, pa.StructType, list[int]]] = []
    for index, batch in enumerate(batches):
        own = [plain(batch.schema.field(name).type) for name in STRUCTS]
        for number, (readings, context, members) in enumerate(groups):
            wider = merge(readings, own[0]), merge(context, own[1])
            if None not in wider:
                members.append(index)
                groups[number] = (*wider, members)
                break
        else:
            groups.append((own[0], own[1], [index]))
    return [(_table([batches[i] for i in members], event_schema(one, other)), members) for one, other, members in groups]


def _table(batches: list[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    schema = schema.with_metadata({**(batches[0].schema.metadata or {}), **(schema.metadata or {})})
    return pa.Table.from_batches([aligned(batch, schema) for batch in batches], schema).unify_dictionaries()


def aligned(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The same rows with the columns and children of `schema`, nulls where the batch has none."""
    columns = []
    for field in schema:
        column = batch.column(field.name)
        if column.type != field.type:
            column = _as_struct(column, field.type) if field.name in STRUCTS else column.cast(field.type)
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _as_struct(array: pa.StructArray, target: pa.StructType) -> pa.StructArray:
    children = []
    for field in target:
        index = array.type.get_field_index(field.name)
        child = pa.nulls(len(array), field.type) if index < 0 else array.field(index)
        if pa.types.is_dictionary(child.type):
            child = child.dictionary_decode()
        children.append(child if child.type == field.type else child.cast(field.type))
    mask = array.is_null() if array.null_count else None
    return pa.StructArray.from_arrays(children, fields=list(target), mask=mask)


def copied(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same rows in memory of their own: lets go of the queue's memory that the batch may be a view of (19 ns a row)."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return pa.ipc.open_stream(sink.getvalue()).read_next_batch()


def ordered(table: pa.Table, partitions: Any) -> tuple[pa.Table, Any]:
    """Rows by partition number, device, time, and then as they came; with their partition numbers.

    So a file is in the order that readers of a device's history skip by.
    """
    device = table.column("device").dictionary_encode().unify_dictionaries()
    names = device.chunk(0).dictionary
    rank = np.empty(len(names), dtype=np.int64)
    rank[pc.sort_indices(names).to_numpy()] = np.arange(len(names))
    codes = rank[np.concatenate([chunk.indices.to_numpy() for chunk in device.chunks])]
    times = np.concatenate([chunk.cast(pa.int64()).to_numpy() for chunk in table.column("time").chunks])
    order = _stable_order(codes)
    # A device's events mostly come in the order of their times, and then this is enough; sorting by both costs 66 ns a row.
    back = np.flatnonzero(np.diff(times[order]) < 0)
    if np.any(codes[order[back]] == codes[order[back + 1]]):
        order = np.lexsort((times, codes))
    order = order[_stable_order(partitions[order])]
    return table.take(pa.array(order)), partitions[order]


def _stable_order(codes: Any) -> Any:
    # numpy sorts 16 bits by radix, several times as fast as more.
    return np.argsort(codes.astype(np.uint16) if int(codes.max()) < 1 << 16 else codes, kind="stable")


def storable(table: pa.Table) -> pa.Table:
    """Without readings that no row of the file has, and with a child in each struct."""
    for name in STRUCTS:
        array = table.column(name).combine_chunks()
        keep = [field for field in array.type if name != "readings" or array.field(field.name).null_count < len(array)]
        if len(keep) == array.type.num_fields and keep:
            continue
        children = [array.field(field.name) for field in keep] or [pa.nulls(len(array), NO_CHILDREN.type)]
        mask = array.is_null() if array.null_count else None
        changed = pa.StructArray.from_arrays(children, fields=keep or [NO_CHILDREN], mask=mask)
        index = table.schema.get_field_index(name)
        metadata = table.schema.metadata
        table = table.set_column(index, table.schema.field(index).with_type(changed.type), changed).replace_schema_metadata(metadata)
    return table


def ids(batch: pa.RecordBatch) -> tuple[list[str], Any, Any]:
    """Of a batch of `origin` (a dictionary) and `position`: the origins' names, each row's index into them, each row's position."""
    origin = batch.column(0)
    return origin.dictionary.to_pylist(), origin.indices.to_numpy(), batch.column(1).to_numpy()


def described(schema: pa.Schema) -> dict[str, dict[str, str]]:
    """The children of readings and context with their Arrow types, as commit records name them."""
    return {name: {child.name: str(child.type) for child in schema.field(name).type} for name in STRUCTS}
