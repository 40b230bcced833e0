"""What a site declares of readings, kept in the schema of each file: types and units as metadata of their fields. No I/O.

In a batch a reading has a unit per device class; in a file, which mostly holds one class, it has one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

import pyarrow as pa

from headrace.declared import TYPE, UNIT, UNITS

#: Key of a file's own metadata, for readers that do not know Arrow's schema: reading -> type and unit, as JSON.
READINGS: Final = b"headrace.readings"

#: Reading -> metadata of its field.
Declared = dict[str, dict[bytes, bytes]]


def declared(schemas: Iterable[pa.Schema]) -> Declared:
    """What all of these schemas that have a reading say of it alike."""
    found: Declared = {}
    for schema in schemas:
        for child in schema.field("readings").type:
            own = child.metadata or {}
            known = found.setdefault(child.name, own)
            if known is not own and known != own:
                found[child.name] = dict(known.items() & own.items())
    return {name: metadata for name, metadata in found.items() if metadata}


def classes(rows: pa.RecordBatch) -> list[str | None]:
    """The device classes of the rows (`context.class`), None among them where one has none."""
    context = rows.column("context")
    index = context.type.get_field_index("class")
    if index < 0:
        return [None]
    found: list[str | None] = context.flatten()[index].unique().to_pylist()
    return found


def with_units(schema: pa.Schema, known: Declared, of_classes: Iterable[str | None] | None = None) -> pa.Schema:
    """The file's schema with what is declared of its readings; of_classes: the events' (None: `known` speaks of the file already)."""
    own = list(of_classes) if of_classes is not None else None
    fields, told = [], {}
    for child in schema.field("readings").type:
        metadata = _of_file(known.get(child.name, {}), own)
        fields.append(child.with_metadata(metadata or None))
        words = {key.decode(): metadata[key].decode() for key in (TYPE, UNIT) if key in metadata}
        if words:
            told[child.name] = words
    metadata = {key: value for key, value in (schema.metadata or {}).items() if key != READINGS}
    if told:
        metadata[READINGS] = json.dumps(told, ensure_ascii=False, sort_keys=True).encode()
    structs = {"readings": pa.struct(fields)}
    return pa.schema([field.with_type(structs.get(field.name, field.type)) for field in schema], metadata)


def _of_file(metadata: dict[bytes, bytes], of_classes: list[str | None] | None) -> dict[bytes, bytes]:
    if UNITS not in metadata or of_classes is None:
        return metadata
    units = json.loads(metadata[UNITS])
    own = {units.get(one) if one is not None else None for one in of_classes}
    if len(own) > 1:
        return metadata
    unit = own.pop() if own else None
    rest = {key: value for key, value in metadata.items() if key != UNITS}
    return {**rest, UNIT: unit.encode()} if unit else rest
