"""JSON payloads straight to columns of known readings: what most events of a site are. No I/O.

msgspec reads some hundred payloads at once into structs with a field per reading, of the reading's type, in C: half of what
dictionaries cost, and no value has to be looked at again. An event that has another name, or a value of another type, fails to be
read so, and is read as a dictionary, alone: one such event costs its batch a microsecond or two, and comes out as it would alone.
`pyarrow.json` was measured as well: 960 ns for what takes 650 here, and it has rules of its own (times in texts, repeated names,
numbers).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Meta
from msgspec.structs import astuple

from headrace.encodings import Readings, decode
from headrace.event_time import TIME, Claims, read_claims
from headrace.reading_columns import Gathered, Regular, flat, gather_odd
from headrace.reading_types import ReadingTypes
from headrace.typed_columns import Column, column_of

__all__ = ["ESCAPED", "TypedJson"]

#: Fields of the structs: each costs every event a few nanoseconds. A batch with more names goes the general way.
NAMES_MAX: Final = 64
#: Events at a time, so that they are still in the processor's cache when their values are taken.
CHUNK_ROWS: Final = 512
#: Batches that go the general way after one in which too many events were not as expected.
REST_BATCHES: Final = 32
#: Batches after which a name that did not come is no longer expected.
FORGET_BATCHES: Final = 64

_CLAIM: Final = "claim"
_FIELDS: Final[dict[str, Any]] = {
    _CLAIM: int | float | str | None,
    "number": float | None,
    "integer": Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None,
    "boolean": bool | None,
    "string": str | None,
}
#: What JSON has to escape in a name: msgspec has no fields of such names.
ESCAPED: Final = re.compile(r'["\\\x00-\x1f]')
_REFUSALS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

#: An object that is expected: by name the kind of a member, or its own members.
Members = dict[str, "str | Members"]


class Typed(NamedTuple):
    """What was read: the values by name, the times that the events claim, and which payloads do not decode."""

    gathered: Gathered
    claims: Claims
    bad: list[int]


class TypedJson:
    """Reads the JSON batches of one tier; learns from each what to expect of the next."""

    def __init__(self, types: ReadingTypes) -> None:
        self._types = types
        self._batch = 0
        self._resting = 0
        #: names that came lately, and the batch in which they did
        self._seen: dict[str, int] = {}
        #: which of their first parts stood for an object, when that was last looked at
        self._objects: frozenset[str] = frozenset()
        self._expected: Members = {}
        self._names: tuple[str, ...] = ()
        self._kinds: tuple[str, ...] = ()
        self._event: _Object | None = None
        self._decoder: msgspec.json.Decoder[Any] | None = None

    def expect(self, names: list[str], objects: frozenset[str] | None = None) -> None:
        """These names came, below these objects (None: as before); the next batches may have them too."""
        self._batch += 1
        for name in names:
            if name in self._types.types and name != TIME and not ESCAPED.search(name):
                self._seen[name] = self._batch
        self._seen = {name: last for name, last in self._seen.items() if last > self._batch - FORGET_BATCHES}
        if objects is not None:
            self._objects = objects - {TIME}
        expected: Members = {}
        if len(self._seen) <= NAMES_MAX and self._seen.keys() <= self._types.types.keys():
            expected = _members({name: self._types.types[name] for name in self._seen}, self._objects)
        if expected != self._expected:
            self._plan(expected)

    def read(self, payloads: pa.BinaryArray) -> Typed | None:
        """All payloads; None where they are to be read the general way."""
        if self._resting or self._event is None or not len(payloads):
            self._resting = max(0, self._resting - 1)
            return None
        rows = len(payloads)
        columns = [column_of(kind, rows) for kind in self._kinds]
        claims = Claims([], np.empty(rows, np.int64))
        lines = _Lines(payloads)
        loose: dict[int, Readings] = {}
        bad: list[int] = []
        for first in range(0, rows, CHUNK_ROWS):
            last = min(first + CHUNK_ROWS, rows)
            events = self._together(lines, first, last)
            odd: dict[int, Readings] = {}
            if events is None:
                events = self._alone(payloads.slice(first, last - first), odd, bad, first)
                if len(loose) + len(odd) > (first + CHUNK_ROWS) // 4:
                    self._resting = REST_BATCHES
                    return None
            claimed = self._take(events, columns)
            for index, row in odd.items():
                if isinstance(row.get(TIME), dict):
                    return None  # which is no time, but several readings
                claimed.insert(index - first, row.pop(TIME, None))
                loose[index] = flat(row)
            claims.values.extend(claimed)
            claims.microseconds[first:last] = read_claims(claimed)
        others = np.delete(np.arange(rows), list(loose)) if loose else None
        arrays = {name: column.array() for name, column in zip(self._names, columns, strict=True)}
        return Typed(gather_odd(loose, rows, Regular(arrays, others)), claims, bad)

    def _together(self, lines: _Lines, first: int, last: int) -> list[Any] | None:
        """The events of these payloads; None where one of them is not as expected."""
        assert self._decoder is not None
        if not lines.of_objects:
            return None
        try:
            events: list[Any] = self._decoder.decode_lines(lines.text(first, last))
        except _REFUSALS:
            return None
        return events if len(events) == last - first else None

    def _alone(self, payloads: pa.BinaryArray, odd: dict[int, Readings], bad: list[int], first: int) -> list[Any]:
        """The events that are as expected, one by one; the others go to `odd`, by their indexes from `first` on."""
        assert self._decoder is not None
        events = []
        for index, payload in enumerate(payloads.to_pylist(), first):
            try:
                events.append(self._decoder.decode(payload))
            except _REFUSALS:
                (odd[index],), undecoded = decode([payload])
                bad += [index] * len(undecoded)
        return events

    def _take(self, events: list[Any], columns: list[Column]) -> list[Any]:
        """Add the events' values to the columns; returns the times that they claim."""
        if not events:
            return []
        assert self._event is not None
        claimed, *values = self._event.values(events)
        for column, of_name in zip(columns, values, strict=True):
            column.add(of_name)
        return list(claimed)

    def _plan(self, expected: Members) -> None:
        self._expected, self._event, self._decoder = expected, None, None
        leaves = list(_leaves(expected))
        self._names, self._kinds = tuple(name for name, _ in leaves), tuple(kind for _, kind in leaves)
        if expected:
            self._event = _Object({TIME: _CLAIM, **expected})
            self._decoder = msgspec.json.Decoder(self._event.struct)


class _Lines:
    """Payloads as the lines of one text, in which the decoder finds the events that it would find in one payload after the other.

    A text in JSON has no line breaks, so that none goes on in the next payload; what an object goes on with never begins like an
    object (arrays are expected nowhere); and of a payload with several objects there are more events than lines.
    """

    def __init__(self, payloads: pa.BinaryArray) -> None:
        rows = len(payloads)
        offsets = np.frombuffer(payloads.buffers()[1], np.int32)[payloads.offset : payloads.offset + rows + 1].astype(np.int64)
        self._starts = offsets - offsets[0] + np.arange(rows + 1)
        whole = pa.ListArray.from_arrays(pa.array([0, rows], pa.int32()), payloads)
        self._text = memoryview(pc.binary_join(whole, b"\n")[0].as_buffer())
        text = np.frombuffer(self._text, np.uint8)
        self.of_objects = bool((np.diff(offsets) > 0).all() and (text[self._starts[:-1]] == ord("{")).all())

    def text(self, first: int, last: int) -> memoryview:
        """The lines first..last-1."""
        return self._text[self._starts[first] : self._starts[last]]


class _Object:
    """A struct for an object with these members; for those that are objects, structs in it."""

    def __init__(self, members: Members) -> None:
        self._members = [_Object(kind) if isinstance(kind, dict) else kind for kind in members.values()]
        types = [kind.struct | None if isinstance(kind, _Object) else _FIELDS[kind] for kind in self._members]
        fields = [(f"f{number}", kind, None) for number, kind in enumerate(types)]
        renamed = {f"f{number}": name for number, name in enumerate(members)}
        self.struct: Any = msgspec.defstruct("Event", fields, rename=renamed, forbid_unknown_fields=True, gc=False)
        self._blank = self.struct()

    def values(self, objects: Sequence[Any]) -> Iterator[Sequence[Any]]:
        """The values of each member, and of each of the members of a member, in their order."""
        for member, values in zip(self._members, zip(*map(astuple, objects), strict=True), strict=True):
            if isinstance(member, _Object):
                yield from member.values([value or member._blank for value in values])
            else:
                yield values


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


def _leaves(members: Members, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, kind in members.items():
        if isinstance(kind, dict):
            yield from _leaves(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, kind
