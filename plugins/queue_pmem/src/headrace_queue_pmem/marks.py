"""The highest position held per origin, with what is in flight on top, and the note that keeps it across releases. No I/O.

Queue origins and device sessions are separate tables: the mark of a live queue is never evicted, the sessions' oldest idle is.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import pyarrow as pa

from headrace import TransientError
from headrace.position import ORIGIN_MISSING, ORIGIN_QUEUE, ORIGIN_ROWS, ORIGIN_SESSION
from headrace_queue_pmem.layout import CELL_CRC, OWNER, OWNER_MAGIC, PLACE, PLACE_MAGIC, checksum

_MAGIC: Final = b"HRQMARK1"
_GIVEN_BACK: Final = struct.Struct("<Q")
_TAIL_BYTES: Final = OWNER.size + _GIVEN_BACK.size
_SCHEMA: Final = pa.schema(
    [
        pa.field("kind", pa.uint8(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("last", pa.uint64(), nullable=False),
        pa.field("note", pa.binary()),
    ]
)


class Mark(NamedTuple):
    """That everything up to `last` of an origin is held. kind is ORIGIN_QUEUE or ORIGIN_SESSION."""

    kind: int
    id: str
    last: int
    note: bytes | None = None


class Marks:
    """Marks whose frames are durable, plus those in flight. Called under the ring's lock."""

    def __init__(self, sessions_max: int, sessions_per_device_max: int, queues_max: int) -> None:
        self._sessions_max, self._per_device_max, self._queues_max = sessions_max, sessions_per_device_max, queues_max
        self._queues: dict[str, Mark] = {}
        self._sessions: OrderedDict[str, Mark] = OrderedDict()
        self._devices: dict[str, dict[str, None]] = {}
        self._in_flight: dict[int, tuple[Sequence[Mark], dict[str, int]]] = {}  # by the marks' own id: frames, the last staged last
        self.evicted = 0
        self.changed = False  # otherwise than by frames: a note of the marks is due though no frame came

    def __len__(self) -> int:
        return len(self._queues) + len(self._sessions)

    def position(self, origin: str) -> int | None:
        """The durable mark."""
        mark = self._queues.get(origin) or self._sessions.get(origin)
        return mark.last if mark else None

    def mark(self, origin: str) -> Mark | None:
        """The durable mark with its note."""
        return self._queues.get(origin) or self._sessions.get(origin)

    def staged(self, origin: str) -> int | None:
        """The mark with what is in flight."""
        for _, frame in reversed(self._in_flight.values()):
            if origin in frame:
                return frame[origin]
        return self.position(origin)

    def in_flight(self, origin: str) -> bool:
        return any(origin in frame for _, frame in self._in_flight.values())

    def stage(self, marks: Sequence[Mark]) -> None:
        """Marks of a frame that is about to be written, one for an origin. TransientError when the table of queues is full."""
        new: set[str] = set()
        if ORIGIN_QUEUE in {mark[0] for mark in marks}:
            new = {mark.id for mark in marks if mark.kind == ORIGIN_QUEUE and mark.id not in self._queues and not self.in_flight(mark.id)}
        if new and len(self._queues) + len(new) > self._queues_max:
            raise TransientError(
                f"origin {min(new)!r}: the table of {self._queues_max} queue origins is full; raise queue_origins_max", 60.0
            )
        self._in_flight[id(marks)] = marks, {name: last for _, name, last, _ in marks}

    def settle(self, marks: Sequence[Mark], durable: bool) -> None:
        """The frame of staged marks (the very same) is durable, or was given up: then the marks go back."""
        if not marks:
            return
        del self._in_flight[id(marks)]
        if not durable:
            return
        sessions, devices = self._sessions, self._devices
        for mark in marks:
            kind, name, last, _ = mark
            held = sessions.get(name) if kind == ORIGIN_SESSION else None
            if held is None or len(devices[name.rpartition("/")[0]]) > 1:
                self.put(mark)
                continue
            if last >= held[2]:  # thousands a commit: what `put` does of it
                sessions[name] = mark
            sessions.move_to_end(name)

    def put(self, mark: Mark) -> None:
        """Raise a durable mark; marks never go back. The last note stands."""
        if mark.kind == ORIGIN_QUEUE:
            held = self._queues.get(mark.id)
            if held is None or mark.last > held.last:
                self._queues[mark.id] = mark
            return
        held = self._sessions.get(mark.id)
        self._sessions[mark.id] = held if held is not None and held.last > mark.last else mark
        of_device = self._devices.setdefault(mark.id.rpartition("/")[0], {})
        if held is not None:
            self._sessions.move_to_end(mark.id)
            if len(of_device) > 1:  # oldest idle first
                del of_device[mark.id]
                of_device[mark.id] = None
            return
        of_device[mark.id] = None
        if len(of_device) > self._per_device_max:
            self._evict(next(iter(of_device)))
        elif len(self._sessions) > self._sessions_max:
            self._evict(next(iter(self._sessions)))

    def forget(self, origins: Iterable[str]) -> None:
        """Drop the durable marks of origins of which nothing will come any more."""
        for origin in origins:
            if self._queues.pop(origin, None) is not None:
                self.changed = True
            elif origin in self._sessions:
                self._drop_session(origin)
                self.changed = True

    def snapshot(self) -> list[Mark]:
        """All durable marks, oldest idle first."""
        return [*self._queues.values(), *self._sessions.values()]

    def _evict(self, session: str) -> None:
        self._drop_session(session)
        self.evicted += 1

    def _drop_session(self, session: str) -> None:
        del self._sessions[session]
        device = session.rpartition("/")[0]
        del self._devices[device][session]
        if not self._devices[device]:
            del self._devices[device]


_AS_MARK: Final = partial(tuple.__new__, Mark)


def marks_of(origins: pa.RecordBatch) -> tuple[Mark, ...]:
    """The marks that a frame's origins amount to: one per origin, the highest."""
    if origins.num_rows == 0:
        return ()
    # thousands a commit, and Arrow's own lists take ten times as long
    kinds, names, lasts, notes = (
        origins.column(name).to_numpy(zero_copy_only=False).tolist() for name in ("kind", "id", "last", "note")
    )  # fmt: skip
    rows = zip(kinds, names, lasts, notes, strict=True)
    if kinds.count(ORIGIN_SESSION) == len(set(names)) == len(names):
        return tuple(map(_AS_MARK, rows))
    marks: dict[str, Mark] = {}
    for kind, name, last, note in rows:
        if kind != ORIGIN_SESSION:
            # A declared gap, or what went elsewhere, says as much as rows do: nothing up to `last` will come any more.
            kind, note = (ORIGIN_QUEUE if kind in (ORIGIN_MISSING, ORIGIN_ROWS) else kind), None
        held = marks.get(name)
        if held is None or held.last <= last:
            marks[name] = Mark(kind, name, last, note)
    return tuple(marks.values())


class Note(NamedTuple):
    """What a note of the marks holds.

    The marks of all frames up to position `upto`; whose it is (empty in notes of earlier programs); the last position
    whose space was given back, None where the note does not tell; and where it was written, empty likewise.
    """

    marks: list[Mark]
    upto: int
    owner: bytes = b""
    given_back: int | None = None
    place: bytes = b""


def pack(note: Note) -> bytes:
    """A note as bytes."""
    columns: list[Sequence[Any]] = list(zip(*note.marks, strict=True)) if note.marks else [[]] * 4
    batch = pa.RecordBatch.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)], schema=_SCHEMA
    )
    body = note.upto.to_bytes(8, "little") + bytes(batch.serialize())
    if note.owner and note.given_back is not None:
        body += PLACE.pack(PLACE_MAGIC, note.place) if note.place else b""
        body += OWNER.pack(OWNER_MAGIC, note.owner) + _GIVEN_BACK.pack(note.given_back)
    return _MAGIC + CELL_CRC.pack(checksum(body)) + body


def unpack(content: bytes | None) -> Note | None:
    """A note, or None when it is not intact."""
    if content is None or content[:8] != _MAGIC or len(content) < 20:
        return None
    body = content[12:]
    if checksum(body) != CELL_CRC.unpack_from(content, 8)[0]:
        return None
    batch = pa.ipc.read_record_batch(pa.py_buffer(body[8:]), _SCHEMA)
    marks = [Mark(*row) for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)]
    upto, tail = int.from_bytes(body[:8], "little"), body[-_TAIL_BYTES:]
    if len(tail) < _TAIL_BYTES or not tail.startswith(OWNER_MAGIC):
        return Note(marks, upto)
    before = body[-_TAIL_BYTES - PLACE.size : -_TAIL_BYTES]
    place = PLACE.unpack(before)[1] if before.startswith(PLACE_MAGIC) else b""
    return Note(marks, upto, OWNER.unpack_from(tail)[1], _GIVEN_BACK.unpack_from(tail, OWNER.size)[0], place)
