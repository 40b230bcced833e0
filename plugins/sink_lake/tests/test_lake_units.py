"""What a site declares of readings stands in the schema of each file: a class's unit where the file holds one class."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from lake_driver import events, make_lake, store

from headrace import RangeKey
from headrace_sink_lake import units

UNITS = {"thermostat": "Cel", "meter": "K", "valve": "K"}
METADATA = {"t": {b"type": b"float64", b"headrace.units": json.dumps(UNITS).encode()}, "n": {b"type": b"int64"}}


def declared_events(key: RangeKey, classes: list[str | None]) -> pa.RecordBatch:
    count = key.last - key.first + 1
    batch = events(key, {"t": [20.5] * count, "n": [7] * count, "free": ["x"] * count}, {"class": classes})
    fields = [field.with_metadata(METADATA.get(field.name)) for field in batch.schema.field("readings").type]
    index = batch.schema.get_field_index("readings")
    schema = batch.schema.set(index, batch.schema.field(index).with_type(pa.struct(fields)))
    return pa.RecordBatch.from_arrays(batch.columns, schema=schema)


def stored(path: Path, pattern: str) -> list[tuple[dict[str, Any], Any]]:
    """Of each file: the metadata of its readings' fields, and what its own says."""
    found = []
    for file in sorted(path.glob(pattern)):
        schema = pq.read_schema(file)
        readings = {field.name: field.metadata for field in schema.field("readings").type}
        found.append((readings, json.loads((schema.metadata or {}).get(b"headrace.readings", b"null"))))
    return found


def test_a_file_of_one_class_has_its_unit_and_others_say_nothing_wrong(tmp_path: Path) -> None:
    async def main() -> None:
        lake = make_lake(tmp_path / "lake")
        await lake.open()
        first, second = RangeKey("q", 1, 4), RangeKey("q", 5, 8)
        await lake.sink_write(declared_events(first, ["thermostat", "meter", "door", None]), first)
        await lake.sink_write(events(second, {"t": [1.0] * 4}, {"class": ["thermostat"] * 4}), second)  # of a tier that declares nothing
        await lake.sink_flush(RangeKey("q", 1, 4)._replace(last=8))
        third = RangeKey("q", 9, 10)
        await store(lake, third, (third, declared_events(third, ["thermostat", "thermostat"])))
        await lake.close()

    asyncio.run(main())
    plain = {"t": {b"type": b"float64"}, "n": {b"type": b"int64"}}
    assert [meta for meta, _ in stored(tmp_path / "lake", "class=door/**/*.parquet")] == [{"t": None, "n": plain["n"], "free": None}]
    thermostat = stored(tmp_path / "lake", "class=thermostat/**/*.parquet")
    # where not all batches of a roll agree, what they agree on remains
    assert thermostat[0][0]["t"] is None
    assert thermostat[-1] == (
        {"t": {b"type": b"float64", b"unit": b"Cel"}, "n": plain["n"], "free": None},
        {"t": {"type": "float64", "unit": "Cel"}, "n": {"type": "int64"}},
    )


def test_a_file_of_several_classes_has_a_unit_where_they_agree() -> None:
    schema = declared_events(RangeKey("q", 1, 2), ["meter", "valve"]).schema
    known = units.declared([schema, schema])

    def of(*classes: str | None) -> Any:
        return units.with_units(schema, known, classes).field("readings").type.field("t").metadata

    assert of("meter", "valve") == {b"type": b"float64", b"unit": b"K"}
    assert of("meter", "thermostat") == METADATA["t"]
    assert of("meter", None) == METADATA["t"]
    assert of("pump") == of() == {b"type": b"float64"}


def test_merged_files_keep_what_all_of_them_say() -> None:
    schemas = [
        units.with_units(declared_events(RangeKey("q", 1, 1), [one]).schema, METADATA, [one]) for one in ("meter", "valve", "thermostat")
    ]
    of_k = units.with_units(schemas[0], units.declared(schemas[:2]))
    assert of_k.field("readings").type.field("t").metadata == {b"type": b"float64", b"unit": b"K"}
    mixed = units.with_units(schemas[0], units.declared(schemas))
    assert mixed.field("readings").type.field("t").metadata == {b"type": b"float64"}
    assert json.loads(mixed.metadata[b"headrace.readings"]) == {"t": {"type": "float64"}, "n": {"type": "int64"}}
