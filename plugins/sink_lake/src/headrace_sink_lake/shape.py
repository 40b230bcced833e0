"""What the schema of a batch tells of its columns, worked out once for all batches that have it. No I/O."""

from __future__ import annotations

import enum
from typing import NamedTuple

import pyarrow as pa


class Kind(enum.Enum):
    """What there is to do with an array before it is held."""

    AS_IT_IS = enum.auto()
    TEXT = enum.auto()
    WORDS = enum.auto()
    NESTED = enum.auto()
    OTHER = enum.auto()


class Leaf(NamedTuple):
    """A column (`child` -1), or a child of one that is a struct."""

    path: str
    child: int
    kind: Kind


class Column(NamedTuple):
    """A column with something to do: its place, and its leaves; `named` are a struct's children with the names that they are stored by."""

    place: int
    leaves: tuple[Leaf, ...]
    named: tuple[pa.Field, ...]


class Shape:
    """The columns of a schema with something to do, and the schemas of what was made of them."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self.columns = [column for place, field in enumerate(schema) if (column := _column(place, field)) is not None]
        #: Those of the batch before; they mostly fit the next one, and are dear to make.
        self.held_fields: dict[int, tuple[pa.Field, ...]] = {}
        self.held: pa.Schema | None = None


def _column(place: int, field: pa.Field) -> Column | None:
    if not pa.types.is_struct(field.type):
        kind = kind_of(field.type)
        return None if kind is Kind.AS_IT_IS else Column(place, (Leaf(field.name, -1, kind),), ())
    leaves = tuple(Leaf(f"{field.name}.{child.name}", number, kind_of(child.type)) for number, child in enumerate(field.type))
    named = stored_names(field.type)
    same = all(one.name == child.name for one, child in zip(named, field.type, strict=True))
    return None if same and all(leaf.kind is Kind.AS_IT_IS for leaf in leaves) else Column(place, leaves, named)


def kind_of(kind: pa.DataType) -> Kind:
    """What there is to do with arrays of a type; numbers and times need no look."""
    if pa.types.is_string(kind):
        return Kind.TEXT
    if pa.types.is_dictionary(kind):
        return Kind.WORDS
    if pa.types.is_struct(kind):
        return Kind.NESTED
    return Kind.AS_IT_IS if pa.types.is_primitive(kind) else Kind.OTHER


def stored_names(struct: pa.StructType) -> tuple[pa.Field, ...]:
    """The children with names that every reader of the lake takes."""
    # One file with a child named "" makes DuckDB 2.0 refuse the whole lake; it cuts a name at a NUL.
    names: list[str] = []
    for field in struct:
        name = field.name.replace("\0", "\ufffd") or "_"
        while name in names or (name != field.name and struct.get_field_index(name) >= 0):
            name += "_"
        names.append(name)
    return tuple(field.with_name(name) for field, name in zip(struct, names, strict=True))
