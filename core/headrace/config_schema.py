"""JSON Schema (2020-12) of a whole site's file, with the options of the installed plugins, told apart by `use`.

Made for editors: every key has its description, and any value may be a `${...}` instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

import msgspec
import msgspec.inspect as mi

from headrace.component import Component
from headrace.discovery import find, installed
from headrace.hookcheck import FACTS, implemented, roles_of
from headrace.hookspecs import Role
from headrace.listing import description
from headrace.option_table import default_of
from headrace.options import Secret, bare
from headrace.tables import ID_PATTERN, Admin, DeclaredReading, Engine, EntryKeys, Host, OutputKeys, TierKeys

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
REFERENCE: Final = {"$ref": "#/$defs/reference"}
FILE_PATTERN: Final = r"^[^:]*(/|\.py)[^:]*:[A-Za-z_]\w*$"


def json_schema(plugins: Mapping[str, type[Component]] | None = None) -> dict[str, Any]:
    """The schema for these plugins (None: all that are installed and can be used)."""
    if plugins is None:
        plugins = {one.name: find(one.name) for one in installed() if one.error is None}
    definitions: dict[str, Any] = {"reference": {"type": "string", "pattern": r"\$\{", "description": "Filled in when the file is read."}}
    # `gps.lat = {...}` is a table in a table
    definitions["readings"] = {
        "type": "object",
        "additionalProperties": {"anyOf": [_struct(DeclaredReading), {"$ref": "#/$defs/readings"}]},
        "description": "The readings of a device class: name, and what is declared of it.",
    }
    tier = _object(
        {
            "sources": _named(_place("source", plugins, definitions)),
            "queue": _place("queue", plugins, definitions),
            "decoders": {"type": "array", "items": _place("decoder", plugins, definitions)},
            "enrichers": {"type": "array", "items": _place("enricher", plugins, definitions)},
            "outputs": _named(_place("output", plugins, definitions)),
            "engine": _struct(Engine),
            **_properties(TierKeys),
        },
        required=["sources", "outputs"],
    )
    site = _object(
        {
            "host": _struct(Host),
            "admin": _struct(Admin),
            "schema": {"type": "object", "additionalProperties": {"$ref": "#/$defs/readings"}},
            "tiers": {**_named(tier), "minProperties": 1},
            "listeners": _named(_place("listener", plugins, definitions)),
        },
        required=["tiers"],
    )
    return {"$schema": DIALECT, "title": "A headrace site", **site, "$defs": definitions}


def _place(role: Role, plugins: Mapping[str, type[Component]], definitions: dict[str, Any]) -> dict[str, Any]:
    """What may stand where that role is: one schema per plugin of the role, and one for classes in files."""
    keys = _properties(OutputKeys if role == "output" else EntryKeys)
    if role not in ("decoder", "enricher"):
        del keys["id"]  # there the table's name is the id
    choices: list[dict[str, Any]] = []
    for name, plugin in sorted(plugins.items()):
        if not (implemented(plugin) & FACTS if role == "listener" else role in roles_of(plugin)):
            continue
        use = {"const": name, "description": description(plugin).partition("\n")[0]}
        definitions[f"{role}.{name}"] = _object({**keys, **_properties(plugin.Config), "use": use}, ["use", *_required(plugin.Config)])
        choices.append({"$ref": f"#/$defs/{role}.{name}"})
    in_file = {"type": "string", "pattern": FILE_PATTERN, "description": "A class in a file of the site's own."}
    choices.append({"type": "object", "properties": {**keys, "use": in_file}, "required": ["use"]})
    # A table that is switched off is not read any further.
    choices.append({"type": "object", "properties": {"enabled": {"const": False}}, "required": ["enabled"]})
    return {"type": "object", "anyOf": choices}


def _struct(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return _object(_properties(kind), _required(kind))


def _properties(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {option.encode_name: _option(option) for option in cast(mi.StructType, mi.type_info(kind)).fields}


def _required(kind: type[msgspec.Struct]) -> list[str]:
    return [option.encode_name for option in cast(mi.StructType, mi.type_info(kind)).fields if option.required]


def _option(option: mi.Field) -> dict[str, Any]:
    about = dict(option.type.extra_json_schema or {}) if isinstance(option.type, mi.Metadata) else {}
    if (default := default_of(option)) is not None:
        about["default"] = default
    value = _value(option.type)
    if value == {} or (value.get("type") == "string" and not value.keys() & {"pattern", "enum"}):
        return {**about, **value}
    return {**about, "anyOf": [value, REFERENCE]}


def _value(kind: mi.Type) -> dict[str, Any]:
    """The schema of one type. msgspec's own generator cannot be used: it fails on the default of a Secret."""
    kind = bare(kind)
    if isinstance(kind, mi.StructType):
        return _struct(kind.cls)
    if isinstance(kind, mi.UnionType):
        return {"anyOf": [_value(one) for one in kind.types if not isinstance(one, mi.NoneType)]}  # TOML has no null
    if isinstance(kind, mi.LiteralType | mi.EnumType):
        return {"enum": list(kind.values) if isinstance(kind, mi.LiteralType) else [one.value for one in kind.cls]}
    if isinstance(kind, mi.DictType):
        return {"type": "object", "additionalProperties": _value(kind.value_type), **_limits(kind, "minProperties", "maxProperties")}
    if isinstance(kind, mi.CollectionType):
        return {"type": "array", "items": _value(kind.item_type), **_limits(kind, "minItems", "maxItems")}
    if isinstance(kind, mi.CustomType):
        return {"type": "string", "writeOnly": True} if kind.cls is Secret else {"type": "string"}
    names = {mi.StrType: "string", mi.IntType: "integer", mi.FloatType: "number", mi.BoolType: "boolean"}
    name = names.get(type(kind))
    return {"type": name, **_limits(kind, "minLength", "maxLength")} if name else {}


def _limits(kind: mi.Type, shortest: str, longest: str) -> dict[str, Any]:
    words = {
        "ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum", "multiple_of": "multipleOf",
        "pattern": "pattern", "min_length": shortest, "max_length": longest,
    }  # fmt: skip
    found = {word: getattr(kind, name, None) for name, word in words.items()}
    return {word: limit for word, limit in found.items() if limit is not None}


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _named(value: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "patternProperties": {ID_PATTERN: value}, "additionalProperties": False}
