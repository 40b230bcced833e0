"""JSON payloads straight to columns of known readings: what most events of a site are. No I/O.

A reader (`headrace.json_columns` in C, where it was compiled, else `headrace.json_structs`) is made for the readings that came lately:
it takes the values of events that have such readings, of their types, to columns. An event that is odd is read as a dictionary, and
comes out as it would alone. `pyarrow.json` was measured as well: it is slower than either, and has rules of its own (times in texts,
repeated names, numbers).
"""

from __future__ import annotations

import re
from typing import Final

import pyarrow as pa

from headrace.event_time import TIME
from headrace.json_structs import StructsReader
from headrace.reading_types import ReadingTypes
from headrace.typed_reader import Members, Reader, Typed

try:
    from headrace.json_columns import ColumnsReader

    DEFAULT_READER: type[Reader] = ColumnsReader
except ImportError:  # not compiled here
    DEFAULT_READER = StructsReader

__all__ = ["COMPILED", "DEFAULT_READER", "ESCAPED", "TypedJson"]

#: Whether the reader in C is there.
COMPILED: Final = DEFAULT_READER is not StructsReader

#: Batches after which a name that did not come is no longer expected.
FORGET_BATCHES: Final = 64
#: What JSON has to escape in a name: readers know no such names.
ESCAPED: Final = re.compile(r'["\\\x00-\x1f]')


class TypedJson:
    """Reads the JSON batches of one tier; learns from each what to expect of the next."""

    def __init__(self, types: ReadingTypes, make_reader: type[Reader] = DEFAULT_READER) -> None:
        self._types, self._make_reader = types, make_reader
        self._batch = 0
        self._resting = 0
        #: names that came lately, and the batch in which they did
        self._seen: dict[str, int] = {}
        #: which of their first parts stood for an object, when that was last looked at
        self._objects: frozenset[str] = frozenset()
        #: of the names that are expected, their kinds, and which parts are objects
        self._expected: tuple[dict[str, str], frozenset[str]] = {}, frozenset()
        self._reader: Reader | None = None

    def expect(self, names: list[str], objects: frozenset[str] | None = None) -> None:
        """These names came, below these objects (None: as before); the next batches may have them too."""
        self._batch += 1
        for name in names:
            if name in self._seen or (name in self._types.types and name != TIME and not ESCAPED.search(name)):
                self._seen[name] = self._batch
        self._seen = {name: last for name, last in self._seen.items() if last > self._batch - FORGET_BATCHES}
        if objects is not None:
            self._objects = objects - {TIME}
        kinds: dict[str, str] = {}
        if len(self._seen) <= self._make_reader.names_max and self._seen.keys() <= self._types.types.keys():
            kinds = {name: self._types.types[name] for name in self._seen}
        if (kinds, self._objects) != self._expected:
            self._expected = kinds, self._objects
            self._reader = self._make_reader(_members(kinds, self._objects)) if kinds else None

    def read(self, payloads: pa.BinaryArray) -> Typed | None:
        """All payloads; None where they are to be read the general way."""
        if self._resting or self._reader is None or not len(payloads):
            self._resting = max(0, self._resting - 1)
            return None
        read = self._reader.read(payloads)
        if read is None:
            self._resting = self._reader.rest_batches
        return read


def _members(kinds: dict[str, str], objects: frozenset[str]) -> Members:
    """Names with dots as what they stand for. Of two that exclude each other the first is expected."""
    found: Members = {}
    for name, kind in kinds.items():
        *objects_of, last = _path(name, objects)
        within: str | Members = found
        for part in objects_of:
            if isinstance(within, dict):
                within = within.setdefault(part, {})
        if isinstance(within, dict):
            within.setdefault(last, kind)
    return found


def _path(name: str, objects: frozenset[str]) -> list[str]:
    """The names of the objects that a reading lies in, and its own in the last of them."""
    pieces = name.split(".")
    path = pieces[:1]
    for number, piece in enumerate(pieces[1:], 1):
        if ".".join(pieces[:number]) in objects:
            path.append(piece)
        else:
            path[-1] += f".{piece}"
    return path
