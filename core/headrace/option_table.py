"""What there is to say of each option of a Config class: `headrace plugins NAME`, docs/config.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import msgspec
import msgspec.inspect as mi

from headrace.options import Secret, bare, encode


class Option(NamedTuple):
    """One line of an option table. default is None where the option is required."""

    name: str
    type: str
    default: str | None
    unit: str
    limits: str
    description: str


def option_table(kind: type[msgspec.Struct]) -> list[Option]:
    """What `headrace plugins NAME` and docs/config.md say about the options of a Config class; nested ones get dotted names."""
    return list(_options(kind, ""))


def unit_of(name: str) -> str:
    """The unit that an option's name ends in: `wait_ms_max` is milliseconds."""
    words = [word for word in name.rpartition(".")[2].split("_") if word not in ("max", "min")]
    return _UNITS.get(words[-1], "") if words else ""


_UNITS: Final = {
    "s": "seconds",
    "ms": "milliseconds",
    "us": "microseconds",
    "bytes": "bytes",
    "rows": "rows",
    "events": "events",
    "ratio": "share of 1",
    "percent": "percent",
}


def _options(kind: type[msgspec.Struct], prefix: str) -> Iterator[Option]:
    for field in cast(mi.StructType, mi.type_info(kind)).fields:
        name = prefix + field.encode_name
        inner = bare(field.type)
        if not isinstance(inner, mi.StructType):
            extra = field.type.extra_json_schema or {} if isinstance(field.type, mi.Metadata) else {}
            yield Option(name, _type_name(field.type), _default(field), unit_of(name), _limits(field.type), extra.get("description", ""))
        if isinstance(inner, mi.DictType):
            name, inner = f"{name}.<name>", bare(inner.value_type)
        elif isinstance(inner, mi.CollectionType):
            name, inner = f"{name}[]", bare(inner.item_type)
        if isinstance(inner, mi.StructType):
            yield from _options(inner.cls, f"{name}.")


def _type_name(kind: mi.Type) -> str:
    if isinstance(kind, mi.Metadata):
        return _type_name(kind.type)
    if isinstance(kind, mi.UnionType):
        return " or ".join(_type_name(one) for one in kind.types if not isinstance(one, mi.NoneType))
    if isinstance(kind, mi.LiteralType):
        return " or ".join(f'"{value}"' if isinstance(value, str) else str(value) for value in kind.values)
    if isinstance(kind, mi.CustomType):
        return {Secret: "secret", Path: "path"}.get(kind.cls, kind.cls.__name__)
    if isinstance(kind, mi.DictType):
        return f"table of {_type_name(kind.value_type)}"
    if isinstance(kind, mi.CollectionType):
        return f"list of {_type_name(kind.item_type)}"
    if isinstance(kind, mi.StructType):
        return "table"
    names = {mi.StrType: "string", mi.IntType: "integer", mi.FloatType: "number", mi.BoolType: "boolean", mi.AnyType: "any value"}
    return names.get(type(kind), type(kind).__name__.removesuffix("Type").lower())


def default_of(option: mi.Field) -> Any:
    """An option's default as a plain value (a secret masked); None where it has none or is required."""
    if option.required:
        return None
    value = option.default if option.default is not msgspec.NODEFAULT else option.default_factory()
    return msgspec.to_builtins(value, enc_hook=encode)


def _default(option: mi.Field) -> str | None:
    if option.required:
        return None
    value = default_of(option)
    return "" if value is None else msgspec.json.encode(value).decode()


def _limits(kind: mi.Type) -> str:
    kind = bare(kind)
    parts = []
    for name, sign in (("gt", "> "), ("ge", ">= "), ("lt", "< "), ("le", "<= "), ("multiple_of", "multiple of ")):
        if (value := getattr(kind, name, None)) is not None:
            parts.append(f"{sign}{value}")
    for name, word in (("min_length", "at least"), ("max_length", "at most")):
        if (value := getattr(kind, name, None)) is not None:
            parts.append(f"{word} {value} long")
    if pattern := getattr(kind, "pattern", None):
        parts.append(f"matches {pattern}")
    return ", ".join(parts)
