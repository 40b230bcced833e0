"""The types of readings on a tier: declared in the config, or the first one seen. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import pyarrow as pa

__all__ = ["ARROW_TYPES", "FITTING", "OTHER", "ReadingTypes"]

#: The reading that keeps what fits no column.
OTHER: Final = "_other"

#: Kind of reading -> type of its column. An `integer` has to be declared: a device that sends 20 may send 20.5 next.
ARROW_TYPES: Final[Mapping[str, pa.DataType]] = {
    "number": pa.float64(),
    "integer": pa.int64(),
    "boolean": pa.bool_(),
    "string": pa.string(),
}

#: What a value of this type makes of a new name.
_KINDS: Final[Mapping[type, str]] = {float: "number", int: "number", bool: "boolean", str: "string", list: "string"}

#: The types of the values that go into a column of this kind as they are, or may do so (a float into integers).
FITTING: Final[Mapping[str | None, frozenset[type]]] = {
    "number": frozenset((float, int)),
    "integer": frozenset((float, int)),
    "boolean": frozenset((bool,)),
    "string": frozenset((str, list)),
    None: frozenset(),
}


class ReadingTypes:
    """The kind of each reading's name on one tier: what is declared, else the first one seen, for good.

    `types` is what a tier keeps between runs; `changed` tells that it has grown since `take` was called. `metadata` is what the
    fields of declared readings carry.
    """

    def __init__(
        self,
        names_max: int,
        types: Mapping[str, str] | None = None,
        declared: Mapping[str, str] | None = None,
        metadata: Mapping[str, Mapping[bytes, bytes]] | None = None,
    ) -> None:
        self.names_max = names_max
        self.types: dict[str, str] = {**(types or {}), **(declared or {})}
        self.changed = self.types != (types or {})
        self.metadata = metadata or {}
        self._fields: dict[str, pa.Field] = {}

    def knows(self, name: str) -> bool:
        """Whether the name has a kind already."""
        return name in self.types

    def type_of(self, name: str, value: object) -> str | None:
        """The name's kind, given by `value` when the name is new; None when there is no room for another name."""
        known = self.types.get(name)
        if known is None and len(self.types) < self.names_max and name != OTHER:
            known = self.types[name] = _KINDS[type(value)]
            self.changed = True
        return known

    def field(self, name: str) -> pa.Field:
        """The field of a known name."""
        field = self._fields.get(name)
        if field is None:
            field = self._fields[name] = pa.field(name, ARROW_TYPES[self.types[name]], metadata=self.metadata.get(name))
        return field

    def take(self, types: Mapping[str, str]) -> bool:
        """These are the types from now on; whether all that was given out before still holds."""
        self._fields.clear()
        holds = self.types.items() <= types.items()
        self.types, self.changed = dict(types), False
        return holds
