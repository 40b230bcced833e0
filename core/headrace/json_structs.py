"""JSON payloads to columns by msgspec, where `headrace.json_columns` was not compiled. No I/O.

msgspec reads some hundred payloads at once into structs with a field per reading, of the reading's type: half of what dictionaries
cost, and no value has to be looked at again. An event that has another name, or a value of another type, fails to be read so, and is
read as a dictionary, alone: one such event costs its batch a microsecond or two, and comes out as it would alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Meta
from msgspec.structs import astuple

from headrace.encodings import Readings, decode
from headrace.event_time import TIME, ListedClaims, read_claims
from headrace.reading_columns import Regular, flat, gather_odd
from headrace.typed_columns import Column, column_of
from headrace.typed_reader import Members, Typed, leaves

__all__ = ["StructsReader"]

#: Events at a time, so that they are still in the processor's cache when their values are taken.
CHUNK_ROWS: Final = 512

_CLAIM: Final = "claim"
_FIELDS: Final[dict[str, Any]] = {
    _CLAIM: int | float | str | None,
    "number": float | None,
    "integer": Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None,
    "boolean": bool | None,
    "string": str | None,
}
_REFUSALS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class StructsReader:
    """Reads batches of events that are expected to have these members."""

    #: Fields of the structs: each costs every event a few nanoseconds.
    names_max = 64
    #: Looking for odd events one by one costs as much as reading all of them the general way.
    rest_batches = 32

    def __init__(self, expected: Members) -> None:
        self._names, self._kinds = zip(*leaves(expected), strict=True)
        self._event = _Object({TIME: _CLAIM, **expected})
        self._decoder = msgspec.json.Decoder(self._event.struct)

    def read(self, payloads: pa.BinaryArray) -> Typed | None:
        """All payloads; None where they are to be read the general way."""
        rows = len(payloads)
        columns = [column_of(kind, rows) for kind in self._kinds]
        claims = ListedClaims([], np.empty(rows, np.int64))
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
        if not lines.of_objects:
            return None
        try:
            events: list[Any] = self._decoder.decode_lines(lines.text(first, last))
        except _REFUSALS:
            return None
        return events if len(events) == last - first else None

    def _alone(self, payloads: pa.BinaryArray, odd: dict[int, Readings], bad: list[int], first: int) -> list[Any]:
        """The events that are as expected, one by one; the others go to `odd`, by their indexes from `first` on."""
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
        claimed, *values = self._event.values(events)
        for column, of_name in zip(columns, values, strict=True):
            column.add(of_name)
        return list(claimed)


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
