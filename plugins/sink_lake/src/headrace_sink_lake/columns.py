"""Event batches made fit for one Parquet file: checked, and given one type. No I/O."""

from __future__ import annotations

import functools
from collections.abc import Container, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from headrace import CLOCK_FLOOR_US, EVENT_COLUMNS, event_schema
from headrace_sink_lake.texts import Texts

#: Parquet has no struct without children; a file whose events have none carries this child, always null.
NO_CHILDREN = pa.field("_empty", pa.bool_())
STRUCTS = ("readings", "context")
REQUIRED = tuple(field.name for field in event_schema(pa.struct([]), pa.struct([])) if not field.nullable)
REQUIRED_PLACES = tuple(map(EVENT_COLUMNS.index, REQUIRED))


def checked(batch: pa.RecordBatch, texts: Texts) -> pa.RecordBatch | None:
    """The batch with its texts coded, by names that all readers take; None where rows are bad: `bad_rows` says which."""
    try:
        held = texts.coded(batch)
    except pa.ArrowInvalid:
        return None
    return None if any(held.column(place).null_count for place in REQUIRED_PLACES) else held


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
    received = batch.column("received").view(pa.int64()).to_numpy()
    return int(np.count_nonzero(received < CLOCK_FLOOR_US)) if received.min(initial=CLOCK_FLOOR_US) < CLOCK_FLOOR_US else 0


def duplicate_names(schema: pa.Schema) -> list[str]:
    """Children of readings or context that have the same name twice."""
    names = [f"{struct}.{field.name}" for struct in STRUCTS for field in schema.field(struct).type]
    return sorted({name for name in names if names.count(name) > 1}) if len(names) != len(set(names)) else []


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


def of_file(schema: pa.Schema, metadata: Any, name: str) -> pa.StructType:
    """The type of a file's readings or context, without the child that stands for none; metadata: the file's footer.

    A device may well send a boolean of that name. That one is not null in each row.
    """
    struct = plain(schema.field(name).type)
    return pa.struct([]) if list(struct) == [NO_CHILDREN] and _all_null(metadata, f"{name}.{NO_CHILDREN.name}") else struct


def _all_null(metadata: Any, path: str) -> bool:
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    found = [group.column(place) for group in groups for place in range(group.num_columns) if group.column(place).path_in_schema == path]
    return all(column.statistics is not None and column.statistics.null_count == column.num_values for column in found)


def file_schema(readings: pa.StructType, context: pa.StructType, metadata: dict[bytes, bytes] | None) -> pa.Schema:
    """The schema of a file of merged ones, from the types of their children; metadata: what one of them has."""
    schema = event_schema(*(struct if struct.num_fields else pa.struct([NO_CHILDREN]) for struct in (readings, context)))
    kept = {key: value for key, value in (metadata or {}).items() if key not in (b"headrace.queue_id", b"headrace.first", b"ARROW:schema")}
    return schema.with_metadata({**kept, **(schema.metadata or {})})


def shapes(batches: Sequence[pa.RecordBatch]) -> list[tuple[pa.Schema, list[pa.RecordBatch]]]:
    """Batches whose types go together (nearly always all of them), with the schema that holds their rows."""
    found: list[tuple[pa.StructType, pa.StructType, list[pa.RecordBatch]]] = []
    before: tuple[pa.Schema, list[pa.RecordBatch]] | None = None
    for batch in batches:
        if before is not None and batch.schema.equals(before[0]):
            before[1].append(batch)
            continue
        own = [plain(batch.schema.field(name).type) for name in STRUCTS]
        for number, (readings, context, members) in enumerate(found):
            wider = merge(readings, own[0]), merge(context, own[1])
            if None not in wider:
                members.append(batch)
                found[number] = (*wider, members)
                break
        else:
            members = [batch]
            found.append((own[0], own[1], members))
        before = batch.schema, members
    return [(file_schema(readings, context, members[0].schema.metadata), members) for readings, context, members in found]


def aligned(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The same rows with the columns, children and types of `schema`, nulls where the batch has none."""
    columns = []
    for field in schema:
        column = batch.column(field.name)
        if column.type != field.type:
            column = _as_struct(column, field.type) if field.name in STRUCTS else as_type(column, field.type)
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _as_struct(array: pa.StructArray, target: pa.StructType) -> pa.StructArray:
    children = []
    for field in target:
        index = array.type.get_field_index(field.name)
        children.append(pa.nulls(len(array), field.type) if index < 0 else as_type(array.field(index), field.type))
    mask = array.is_null() if array.null_count else None
    return pa.StructArray.from_arrays(children, fields=list(target), mask=mask)


def as_type(array: pa.Array, target: pa.DataType) -> pa.Array:
    """The same values: text as a dictionary or not."""
    if array.type == target:
        return array
    if pa.types.is_dictionary(target) and pa.types.is_string(array.type):
        return array.dictionary_encode()
    if pa.types.is_dictionary(array.type) and not pa.types.is_dictionary(target):
        array = array.dictionary_decode()
    return array if array.type == target else array.cast(target)


def absent(rows: pa.RecordBatch, starts: Sequence[int]) -> list[set[str]]:
    """Of the parts of the rows that begin at these places, each up to the next, the readings that no row of it has."""
    readings = rows.column(rows.schema.get_field_index("readings"))
    found: list[set[str]] = [set() for _ in starts]
    for number, field in enumerate(readings.type):
        child = readings.field(number)
        if child.null_count:
            present = np.logical_or.reduceat(child.is_valid().to_numpy(zero_copy_only=False), starts)
            for part in np.flatnonzero(~present).tolist():
                found[part].add(field.name)
    return found


def storable(rows: pa.RecordBatch, without: Container[str]) -> pa.RecordBatch:
    """Without these readings, which no row of the file has, and with a child in each struct."""
    index = rows.schema.get_field_index("readings")
    array = rows.column(index)
    keep = [number for number, field in enumerate(array.type) if field.name not in without]
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
    return as_required(file_schema(readings, context, rows.schema.metadata), [rows.schema])


def as_required(schema: pa.Schema, parts: Sequence[pa.Schema]) -> pa.Schema:
    """The schema with the structs required that are so in all of these."""
    fields = [field.with_nullable(any(part.field(field.name).nullable for part in parts)) for field in schema]
    return pa.schema(fields, schema.metadata)


def ids(batch: pa.RecordBatch) -> tuple[list[str], Any, Any]:
    """Of a batch of `origin` (a dictionary) and `position`: the origins' names, each row's index into them, each row's position."""
    origin = batch.column(0)
    return origin.dictionary.to_pylist(), origin.indices.to_numpy(), batch.column(1).to_numpy()


def described(schema: pa.Schema) -> dict[str, dict[str, str]]:
    """The children of readings and context with their Arrow types, as commit records name them."""
    return {name: {child.name: str(child.type) for child in schema.field(name).type} for name in STRUCTS}
