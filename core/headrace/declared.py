"""`[schema.<class>]`: what a site declares of its devices' readings, by device class. No I/O.

A reading has one type on a tier, whichever class declares it; its unit is its class's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from headrace.event_time import TIME
from headrace.reading_types import OTHER
from headrace.tables import Declared, DeclaredReading

__all__ = ["TYPE", "UNIT", "UNITS", "field_metadata", "kinds", "read_schema"]

#: Keys of a reading's field metadata. In batches, which hold events of many classes: its type, and its unit by class as JSON.
TYPE: Final = b"type"
UNITS: Final = b"headrace.units"
#: Where all events are of classes with the same unit, as in a file of a lake that is partitioned by class: that unit.
UNIT: Final = b"unit"

_KINDS: Final = {"float64": "number", "int64": "integer", "bool": "boolean", "string": "string"}

#: Says that something is wrong: key path, what was expected, what came.
Problem = Callable[[str, str, str], None]


def kinds(declared: Declared) -> dict[str, str]:
    """The kind (`headrace.reading_types`) of each declared name."""
    return {name: _KINDS[reading.type] for readings in declared.values() for name, reading in readings.items()}


def field_metadata(declared: Declared) -> dict[str, dict[bytes, bytes]]:
    """The metadata of each declared reading's field in event batches."""
    units: dict[str, dict[str, str]] = {}
    found: dict[str, dict[bytes, bytes]] = {}
    for device_class, readings in declared.items():
        for name, reading in readings.items():
            found[name] = {TYPE: reading.type.encode()}
            if reading.unit:
                units.setdefault(name, {})[device_class] = reading.unit
    for name, by_class in units.items():
        found[name][UNITS] = json.dumps(by_class, ensure_ascii=False, sort_keys=True).encode()
    return found


def read_schema(tables: Mapping[str, Any], reading: Callable[[dict[str, Any], str], DeclaredReading | None], problem: Problem) -> Declared:
    """The tables below `[schema]`, each reading made by `reading` (None: it has complained); what is wrong goes to `problem`."""
    declared: dict[str, dict[str, DeclaredReading]] = {}
    first: dict[str, tuple[str, str]] = {}
    for device_class, table in tables.items():
        path = f"schema.{device_class}"
        if not isinstance(table, dict):
            problem(path, f"a table of readings, [{path}]", repr(table))
            continue
        found = declared[device_class] = {}
        for name, values, at in _readings(table, "", path):
            if not isinstance(values, dict):
                problem(at, 'a table such as {type = "float64", unit = "Cel"}', repr(values))
            elif name in (TIME, OTHER, ""):
                problem(at, f"a reading that devices may name (not {TIME!r}, the time, nor {OTHER!r}, what does not fit)", repr(name))
            elif (one := reading(values, at)) is not None:
                kind, where = first.setdefault(name, (one.type, at))
                if one.type != kind:
                    problem(f"{at}.type", f"{kind!r} as in {where}: a reading has one type, whatever the class", repr(one.type))
                found[name] = one
    return declared


def _readings(table: Mapping[str, Any], prefix: str, path: str) -> Iterator[tuple[str, Any, str]]:
    """Name, values and key path of each reading; `gps.lat = {...}` is a table in a table, and the name is dotted."""
    for key, values in table.items():
        name, at = f"{prefix}{key}", f"{path}.{key}"
        if isinstance(values, dict) and values and all(isinstance(value, dict) for value in values.values()):
            yield from _readings(values, f"{name}.", at)
        else:
            yield name, values, at
