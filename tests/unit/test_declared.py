"""`[schema.<class>]`: read with every mistake named, stable types whatever comes first, metadata on the fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headrace.config import examine, load, redacted
from headrace.config_schema import json_schema
from headrace.declared import field_metadata, kinds
from headrace.decoding import ReadingTypes, readings_array
from headrace.engine.types_file import TypesFile
from headrace.log import Log

TIER = """
[tiers.site.sources.dev]
use = "./p.py:Source"
[tiers.site.outputs.out]
use = "./p.py:Sink"
hold = "none"
"""
PLUGINS = """
from headrace import Component, hookimpl
class Source(Component):
    @hookimpl
    async def ingest_serve(self, deliver): ...
class Sink(Component):
    @hookimpl
    async def sink_write(self, batch, key): ...
    @hookimpl
    async def sink_flush(self, key): ...
    @hookimpl
    async def sink_reset(self): ...
"""
SCHEMA = """
[schema.thermostat]
temperature = {type = "float64", unit = "Cel"}
mode = {type = "string"}
gps.lat = {unit = "deg"}
"gps.alt" = {unit = "m"}
[schema."cold store"]
temperature = {unit = "K"}
opened = {type = "int64"}
door.type = {type = "string"}
"""


@pytest.fixture
def file(tmp_path: Path) -> Any:
    (tmp_path / "p.py").write_text(PLUGINS)

    def write(schema: str) -> Path:
        path = tmp_path / "site.toml"
        path.write_text(TIER + schema)
        return path

    return write


def test_readings_are_declared_by_class_and_nested_names_are_dotted(file: Any) -> None:
    site = load(file(SCHEMA), environ={})
    declared = site.tiers["site"].declared
    assert list(declared) == ["thermostat", "cold store"]
    assert kinds(declared) == {
        "temperature": "number", "mode": "string", "gps.lat": "number", "gps.alt": "number", "opened": "integer", "door.type": "string",
    }  # fmt: skip
    metadata = field_metadata(declared)
    assert metadata["temperature"][b"type"] == b"float64"
    assert json.loads(metadata["temperature"][b"headrace.units"]) == {"thermostat": "Cel", "cold store": "K"}
    assert metadata["mode"] == {b"type": b"string"}
    assert redacted(site)["schema"]["cold store"]["opened"] == {"type": "int64", "unit": ""}


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ('[schema.a]\nx = {type = "float"}', "schema.a.x.type: expected 'bool' or 'float64' or 'int64' or 'string', got 'float'"),
        (
            '[schema.a]\nx = {units = "m"}',
            "schema.a.x.units: expected one of type, unit, got the unknown key 'units'; did you mean 'unit'?",
        ),
        ("[schema.a]\nx = {unit = 1}", "schema.a.x.unit: expected a string, got 1"),
        ('[schema.a]\nx = "float64"', "schema.a.x: expected a table such as {type = "),
        ('[schema.a]\ngps.lat = "float64"', "schema.a.gps.lat: expected one of type, unit"),
        ("[schema]\na = 1", "schema.a: expected a table of readings, [schema.a], got 1"),
        ("[schema.a]\nts = {}", "schema.a.ts: expected a reading that devices may name"),
        ("[schema.a]\n_other = {}", "schema.a._other: expected a reading that devices may name"),
        ('[schema.a]\nx = {}\n[schema.b]\nx = {type = "bool"}', "schema.b.x.type: expected 'float64' as in schema.a.x"),
        (
            "[schema.a]\nx = {}\ny = {}\n[tiers.site.engine]\nreadings_max = 1",
            "schema: expected at most 1 readings",
        ),
    ],
)
def test_mistakes_are_named_with_their_key_path(file: Any, schema: str, text: str) -> None:
    _, problems = examine(file(schema), environ={})
    assert len(problems) == 1, problems
    assert text in str(problems[0])


def test_editors_know_the_tables() -> None:
    import jsonschema

    validator = jsonschema.Draft202012Validator(json_schema({}))
    tiers: dict[str, Any] = {"s": {"sources": {}, "outputs": {}}}
    good = {"tiers": tiers, "schema": {"a": {"x": {"type": "int64"}, "gps": {"lat": {"unit": "deg"}}}}}
    assert list(validator.iter_errors(good)) == []
    assert list(validator.iter_errors({"tiers": tiers, "schema": {"a": {"x": {"type": "float"}}}}))


def readings(rows: list[dict[str, Any]], types: ReadingTypes) -> list[dict[str, Any]]:
    array, _ = readings_array(rows, types)
    array.validate(full=True)
    return [{name: value for name, value in row.items() if value is not None} for row in array.to_pylist()]


def test_a_declared_type_holds_whatever_comes_first_and_what_does_not_fit_is_kept() -> None:
    types = ReadingTypes(10, {"mode": "number"}, {"mode": "string", "opened": "integer"}, {"opened": {b"type": b"int64"}})
    assert types.changed
    rows = [
        {"mode": 1, "opened": 2.5},
        {"mode": "eco", "opened": 3.0},
        {"opened": 2**62 + 1},
        {"opened": 2**63},
        {"opened": True},
        {"opened": 1e300},
        {"opened": None},
    ]
    assert readings(rows, types) == [
        {"_other": '{"mode":1,"opened":2.5}'},
        {"mode": "eco", "opened": 3},
        {"opened": 2**62 + 1},
        {"_other": '{"opened":"9223372036854775808"}'},
        {"_other": '{"opened":true}'},
        {"_other": '{"opened":1e300}'},
        {},
    ]
    array, misfits = readings_array(rows, types)
    assert (array.type.field("opened").type, array.type.field("opened").metadata, misfits) == (pa.int64(), {b"type": b"int64"}, 5)


def test_what_is_declared_replaces_what_was_learned_and_stays_when_it_is_declared_no_more(tmp_path: Path) -> None:
    file = tmp_path / "readings.json"
    assert TypesFile(file, 2).extend({"a": "number", "b": "number"}) == {"a": "number", "b": "number"}
    declared = TypesFile(file, 2, {"a": "string", "c": "integer"})
    types = ReadingTypes(2, declared.load(Log("")), declared.declared)
    assert types.changed
    assert types.take(declared.extend(types.types))
    assert TypesFile(file, 2).load(Log("")) == {"a": "string", "b": "number", "c": "integer"}
