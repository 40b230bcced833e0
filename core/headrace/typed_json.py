"""JSON payloads straight to the values of known readings: what most events of a site are. No I/O.

msgspec reads each payload into a struct with a field per reading, of the reading's type, in C: about half of what a dictionary costs,
and no value has to be looked at again. An event that has another name, or a value of another type, fails to be read so, and is read
as a dictionary, alone: one such event costs its batch a microsecond or two, and comes out as it would alone. `pyarrow.json` was
measured as well: slower, and it has rules of its own (times in texts, repeated names, numbers).
"""

from __future__ import annotations

import re
from operator import attrgetter
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta

from headrace.encodings import Readings, decode
from headrace.event_time import TIME
from headrace.reading_columns import Cells, Gathered, flat
from headrace.reading_types import ReadingTypes

__all__ = ["ESCAPED", "TypedJson"]

#: Fields of the struct: each costs every event a few nanoseconds. A batch with more names goes the general way.
NAMES_MAX: Final = 64
#: Events at a time, so that they are still in the processor's cache when their values are taken.
CHUNK_ROWS: Final = 512
#: Batches that go the general way after one in which too many events were not as expected.
REST_BATCHES: Final = 32
#: Batches after which a name that did not come is no longer expected.
FORGET_BATCHES: Final = 64

_FIELDS: Final[dict[str, Any]] = {
    "number": float | None,
    "integer": Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None,
    "boolean": bool | None,
    "string": str | None,
}
_PYTHON: Final[dict[str, type]] = {"number": float, "integer": int, "boolean": bool, "string": str}
#: What JSON has to escape in a name: msgspec has no fields of such names.
ESCAPED: Final = re.compile(r'["\\\x00-\x1f]')
_NOTHING: Final = type(None)
_REFUSALS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Typed(NamedTuple):
    """What was read: the values by name, the times that the events claim, and which payloads do not decode."""

    gathered: Gathered
    claims: list[Any]
    bad: list[int]


class TypedJson:
    """Reads the JSON batches of one tier; learns from each what to expect of the next."""

    def __init__(self, types: ReadingTypes) -> None:
        self._types = types
        self._batch = 0
        self._resting = 0
        #: names that came lately, and the batch in which they did
        self._seen: dict[str, int] = {}
        self._names: tuple[str, ...] = ()
        self._kinds: tuple[str, ...] = ()
        self._struct: type[msgspec.Struct] | None = None
        self._decode: Any = None
        self._values: Any = None

    def expect(self, names: list[str]) -> None:
        """These names came; the next batches may have them too."""
        self._batch += 1
        for name in names:
            if name in self._types.types and name != TIME and not ESCAPED.search(name):
                self._seen[name] = self._batch
        self._seen = {name: last for name, last in self._seen.items() if last > self._batch - FORGET_BATCHES}
        expected = tuple(self._seen)
        kinds = tuple(self._types.types.get(name, "") for name in expected)
        if (expected, kinds) != (self._names, self._kinds):
            self._plan(expected, kinds)

    def read(self, payloads: list[bytes]) -> Typed | None:
        """All payloads; None where they are to be read the general way."""
        if self._resting or self._struct is None:
            self._resting = max(0, self._resting - 1)
            return None
        columns: list[list[Any]] = [[] for _ in (TIME, *self._names)]
        loose: dict[int, Readings] = {}
        bad: list[int] = []
        blank = self._struct()
        for first in range(0, len(payloads), CHUNK_ROWS):
            chunk = payloads[first : first + CHUNK_ROWS]
            try:
                events = list(map(self._decode, chunk))
            except _REFUSALS:
                events = []
                for index, payload in enumerate(chunk, first):
                    try:
                        events.append(self._decode(payload))
                    except _REFUSALS:
                        events.append(blank)
                        (row,), undecoded = decode([payload])
                        if isinstance(row.get(TIME), dict):
                            return None  # which is no time, but several readings
                        loose[index] = flat(row)
                        bad += [index] * len(undecoded)
                if len(loose) > (first + CHUNK_ROWS) // 4:
                    self._resting = REST_BATCHES
                    return None
            for column, values in zip(columns, zip(*map(self._values, events), strict=True), strict=True):
                column += values
        claims, *others = columns
        cells = {name: Cells(values, None) for name, values in zip(self._names, others, strict=True)}
        kinds = {name: {_PYTHON[kind], _NOTHING} for name, kind in zip(self._names, self._kinds, strict=True)}
        for index, row in loose.items():
            _add(row, index, claims, cells, kinds)
        return Typed(Gathered(len(payloads), cells, kinds, loose), claims, bad)

    def _plan(self, names: tuple[str, ...], kinds: tuple[str, ...]) -> None:
        self._names, self._kinds, self._struct = names, kinds, None
        if not names or len(names) > NAMES_MAX or "" in kinds:
            return
        attributes = [f"f{number}" for number in range(len(names) + 1)]
        fields = [(attributes[0], int | float | str | None, None)]
        fields += [(attribute, _FIELDS[kind], None) for attribute, kind in zip(attributes[1:], kinds, strict=True)]
        renamed = dict(zip(attributes, (TIME, *names), strict=True))
        self._struct = msgspec.defstruct("Event", fields, rename=renamed, forbid_unknown_fields=True, gc=False)
        self._decode = msgspec.json.Decoder(self._struct).decode
        self._values = attrgetter(*attributes)


def _add(row: Readings, index: int, claims: list[Any], cells: dict[str, Cells], kinds: dict[str, set[type]]) -> None:
    """One event that was read as a dictionary."""
    for name, value in row.items():
        if name == TIME:
            claims[index] = value
            continue
        found = cells.get(name)
        if found is None:
            found = cells[name] = Cells([], [])
            kinds[name] = set()
        if found.rows is None:
            found.values[index] = value
        else:
            found.rows.append(index)
            found.values.append(value)
        kinds[name].add(type(value))
