"""JSON Schema (2020-12) of a whole site's file, with the options of the installed plugins, told apart by `use`.

Made for editors: every key has its description, and any value may be a `${...}` instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.component import Component
from headrace.discovery import find, installed
from headrace.hookcheck import roles_of
from headrace.hookspecs import Role
from headrace.listing import description
from headrace.options import Secret
from headrace.tables import ID_PATTERN, Admin, Engine, EntryKeys, Host, OutputKeys

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
REF: Final = "#/$defs/{name}"
FILE_PATTERN: Final = r"^[^:]*(/|\.py)[^:]*:[A-Za-z_]\w*$"


def json_schema(plugins: Mapping[str, type[Component]] | None = None) -> dict[str, Any]:
    """The schema for these plugins (None: all that are installed and can be used)."""
    if plugins is None:
        plugins = {one.name: find(one.name) for one in installed() if one.error is None}
    definitions: dict[str, Any] = {"reference": {"type": "string", "pattern": r"\$\{", "description": "Filled in when the file is read."}}
    tier = _object(
        {
            "sources": _named(_place("source", plugins, definitions)),
            "queue": _place("queue", plugins, definitions),
            "decoders": {"type": "array", "items": _place("decoder", plugins, definitions)},
            "enrichers": {"type": "array", "items": _place("enricher", plugins, definitions)},
            "outputs": _named(_place("output", plugins, definitions)),
            "engine": _struct(Engine, definitions),
        },
        required=["sources", "outputs"],
    )
    site = _object(
        {
            "host": _struct(Host, definitions),
            "admin": _struct(Admin, definitions),
            "tiers": {**_named(tier), "minProperties": 1},
            "listeners": _named(_place("listener", plugins, definitions)),
        },
        required=["tiers"],
    )
    return {"$schema": DIALECT, "title": "A headrace site", **site, "$defs": definitions}


def _place(role: Role, plugins: Mapping[str, type[Component]], definitions: dict[str, Any]) -> dict[str, Any]:
    """What may stand where that role is: one schema per plugin of the role, and one for classes in files."""
    keys = _struct(OutputKeys if role == "output" else EntryKeys, definitions)["properties"]
    choices: list[dict[str, Any]] = []
    for name, plugin in sorted(plugins.items()):
        if role not in roles_of(plugin) and role != "listener":
            continue
        options = _struct(plugin.Config, definitions)
        use = {"const": name, "description": description(plugin).partition("\n")[0]}
        name = f"{role}.{name}"
        definitions[name] = _object({**keys, **options["properties"], "use": use}, ["use", *options.get("required", ())])
        choices.append({"$ref": REF.format(name=name)})
    in_file = {"type": "string", "pattern": FILE_PATTERN, "description": "A class in a file of the site's own."}
    choices.append({"type": "object", "properties": {**keys, "use": in_file}, "required": ["use"]})
    # A table that is switched off is not read any further.
    choices.append({"type": "object", "properties": {"enabled": {"const": False}}, "required": ["enabled"]})
    return {"type": "object", "anyOf": choices}


def _struct(kind: type[msgspec.Struct], definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of one struct; structs nested in it go into the definitions, under the outer module's name."""
    (_,), components = msgspec.json.schema_components([kind], schema_hook=_custom, ref_template=REF)
    own = next(name for name in components if name == kind.__name__ or len(components) == 1)
    schema = components.pop(own)
    prefix = f"{kind.__module__}.{kind.__qualname__}."
    renames = {REF.format(name=name): REF.format(name=prefix + name) for name in components}
    for name, component in components.items():
        definitions[prefix + name] = _fillable(_renamed(component, renames))
    return _fillable(_renamed(schema, renames))


def _fillable(schema: dict[str, Any]) -> dict[str, Any]:
    """Let every value of an object be a `${...}`, where a string would not do anyway."""
    properties = {
        name: value if value.get("type") == "string" and not value.keys() & {"pattern", "enum"} else _or_reference(value)
        for name, value in schema.get("properties", {}).items()
    }
    return {**schema, "properties": properties} if properties else schema


def _or_reference(value: dict[str, Any]) -> dict[str, Any]:
    about: dict[str, Any] = {key: value[key] for key in ("description", "default") if key in value}
    rest = {key: item for key, item in value.items() if key not in about}
    return {**about, "anyOf": [*(rest.pop("anyOf", None) or [rest]), {"$ref": REF.format(name="reference")}]}


def _renamed(value: Any, renames: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: renames.get(item, item) if key == "$ref" else _renamed(item, renames) for key, item in value.items()}
    return [_renamed(item, renames) for item in value] if isinstance(value, list) else value


def _custom(kind: type[Any]) -> dict[str, Any]:
    if kind is Secret:
        return {"type": "string", "writeOnly": True}
    if kind is Path:
        return {"type": "string"}
    raise NotImplementedError(f"options of type {kind!r} are not supported")


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _named(value: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "patternProperties": {ID_PATTERN: value}, "additionalProperties": False}
