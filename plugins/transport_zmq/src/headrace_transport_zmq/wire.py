"""The frames of a link, byte by byte: PROTOCOL.md explains them. No I/O.

A frame is one ZeroMQ message of several parts: a header of 64 bytes, then what its type brings. Two CRC32C cover all of it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Final, NamedTuple, TypeVar

import msgspec
import pyarrow as pa
from crc32c import crc32c
from msgspec import Meta

from headrace import ORIGIN_SCHEMA, RAW_SCHEMA, Missing, Origin, RangeKey, origin_batch, scattered
from headrace.position import ORIGIN_SESSION, Named, named_rows, row_names, without
from headrace.scattered import Scattered
from headrace.schema import POSITION_MAX, check_batch
from headrace_transport_zmq.arrow_messages import read_batch, read_stream

VERSION: Final = 1
MAGIC: Final = b"HRLK"
#: magic, version, type, flags, crc of the header (this field as zero), crc of the other parts, session, prev, first, last,
#: rows, lane.
HEADER: Final = struct.Struct("<4sBBHII16sQQQII")
CRC_AT: Final = 8
assert HEADER.size == 64

HELLO: Final = 1
WELCOME: Final = 2
DATA: Final = 3
ACK: Final = 4
RESUME: Final = 5
HEARTBEAT: Final = 6
REFUSE: Final = 7
BYE: Final = 8

#: DATA: nothing of this queue id goes before it on this lane. Taken where nothing is held; else as any other frame.
START: Final = 1
#: `last` holds a position. Without it: nothing is held (from a receiver), or nothing was sent (from a sender).
MARKED: Final = 2
#: DATA: the payload is an Arrow IPC stream of an event batch, not a bare message of RAW_SCHEMA.
EVENTS: Final = 4

#: DATA: the part of origins says which positions are rows here, and under which names they came (`headrace.scattered`).
ROWS: Final = 16

#: HEARTBEAT: the sender sends nothing more before it has an answer, or soon will not.
HURRY: Final = 8

#: The parts behind the header, by type.
PARTS: Final = {HELLO: 1, WELCOME: 1, DATA: 3, ACK: 0, RESUME: 0, HEARTBEAT: 0, REFUSE: 1, BYE: 0}
NO_SESSION: Final = bytes(16)
#: A hello or an answer to it is no larger than this.
TEXT_BYTES_MAX: Final = 64 << 10

_COUNT: Final = struct.Struct("<I")
_HOLE: Final = struct.Struct("<QQB")

Buffer = Any  # bytes, memoryview or pa.Buffer
T = TypeVar("T", bound=msgspec.Struct)


class MalformedError(Exception):
    """Not a frame, or one that was damaged on its way."""


class VersionError(MalformedError):
    """A frame of a version that this program does not speak."""

    def __init__(self, version: int, session: bytes) -> None:
        self.version, self.session = version, session
        super().__init__(f"version {version}, expected {VERSION}")


class Frame(NamedTuple):
    """A frame that is intact: its CRCs fit. `parts` are those behind the header; what is in them is not looked at yet."""

    type: int
    session: bytes = NO_SESSION
    flags: int = 0
    prev: int = 0
    first: int = 0
    last: int = 0
    rows: int = 0
    lane: int = 0
    parts: tuple[Buffer, ...] = ()

    @property
    def mark(self) -> int | None:
        """`last`, where the flags say that it counts."""
        return self.last if self.flags & MARKED else None

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return HEADER.size + sum(len(part) for part in self.parts)


_QUEUE_ID: Final = re.compile("[0-9a-f-]{36}")
_Id = Annotated[str, Meta(pattern="^[0-9a-f-]{36}$")]
_Name = Annotated[str, Meta(max_length=200)]


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """What a sender says first: for which queue and lane it speaks, and how it proves that."""

    queue_id: _Id
    output: Annotated[str, Meta(pattern="^[a-z0-9_-]{1,100}$")]
    level: Annotated[str, Meta(pattern="^(none|process|power)$")]
    proof: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    host: _Name = ""
    #: the lane carries only a part of the queue's positions
    parts: bool = False
    #: `<queue id>/<lane>` of which this queue has nothing any more: nothing of them will come again
    released: Annotated[tuple[Annotated[str, Meta(pattern="^[0-9a-f-]{36}/[0-9]{1,9}$")], ...], Meta(max_length=1000)] = ()


class Welcome(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a hello. The mark stands in the header."""

    level: Annotated[str, Meta(pattern="^(none|process|power)$")]
    window_bytes: Annotated[int, Meta(ge=1)]
    window_events: Annotated[int, Meta(ge=1)]
    frame_bytes: Annotated[int, Meta(ge=1)]
    host: _Name = ""
    #: batches wait there for a flush (a tier without a queue): `HURRY` means something
    by_flush: bool = False
    #: it takes frames with `ROWS` that bring names; and those whose other positions are on other lanes
    names: bool = False
    spread: bool = False
    #: what the hello said to be released need not be said again
    noted: bool = False


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a hello or one batch is not taken. Codes are in PROTOCOL.md."""

    code: _Name
    reason: Annotated[str, Meta(max_length=2000)] = ""


def encode(frame: Frame, body_crc: int | None = None) -> list[Buffer]:
    """The parts of the message; `body_crc` spares the sum over parts that were sent before."""
    if body_crc is None:
        body_crc = body_sum(frame.parts)
    fields = (frame.session, frame.prev, frame.first, frame.last, frame.rows, frame.lane)
    header = bytearray(HEADER.pack(MAGIC, VERSION, frame.type, frame.flags, 0, body_crc, *fields))
    struct.pack_into("<I", header, CRC_AT, crc32c(bytes(header)))
    return [bytes(header), *frame.parts]


def decode(message: Sequence[Buffer]) -> Frame:
    """The frame in a message. MalformedError when it is damaged, VersionError when it is of another version."""
    if not message or len(message[0]) < 6 or bytes(message[0][:4]) != MAGIC:
        raise MalformedError("no header")
    header = bytearray(message[0])
    if header[4] != VERSION:
        raise VersionError(header[4], bytes(header[16:32]).ljust(16, b"\0"))
    if len(header) != HEADER.size:
        raise MalformedError(f"a header of {len(header)} bytes")
    _, _, kind, flags, crc, body_crc, session, prev, first, last, rows, lane = HEADER.unpack(header)
    struct.pack_into("<I", header, CRC_AT, 0)
    if crc32c(bytes(header)) != crc:
        raise MalformedError("the header's checksum does not fit")
    parts = tuple(message[1:])
    if PARTS.get(kind) != len(parts):
        raise MalformedError(f"type {kind} with {len(parts)} parts")
    if body_sum(parts) != body_crc:
        raise MalformedError("the checksum does not fit")
    return Frame(kind, session, flags, prev, first, last, rows, lane, parts)


def body_sum(parts: Sequence[Buffer]) -> int:
    """CRC32C over the parts behind the header, one after the other."""
    value = 0
    for part in parts:
        value = crc32c(part, value)
    return value


# --- what is in the parts --------------------------------------------------------------------------------------------


def pack_text(content: msgspec.Struct) -> bytes:
    """The one part of HELLO, WELCOME and REFUSE."""
    return msgspec.json.encode(content)


def unpack_text(frame: Frame, kind: type[T]) -> T:
    """What a sender or receiver said. MalformedError when it is not that."""
    if len(frame.parts[0]) > TEXT_BYTES_MAX:
        raise MalformedError(f"a text of {len(frame.parts[0])} bytes")
    try:
        return msgspec.json.decode(bytes(frame.parts[0]), type=kind)
    except msgspec.DecodeError as error:
        raise MalformedError(str(error)) from error


def check_range(frame: Frame) -> None:
    """The positions of a DATA frame are ones that there can be, and nothing is left out before them. MalformedError when they are not: what
    nobody declared missing would be lost in silence."""
    if not 0 < frame.first <= frame.last <= POSITION_MAX:
        raise MalformedError(f"positions {frame.first}-{frame.last}, expected ascending ones from 1 to {POSITION_MAX}")
    if frame.prev != frame.first - 1:
        raise MalformedError(f"prev {frame.prev} before {frame.first}: what lies between is neither a row nor missing")


def pack_missing(missing: Sequence[Missing]) -> bytes:
    """The ranges without rows, with their reasons."""
    packed = [_COUNT.pack(len(missing))]
    for hole in missing:
        reason = hole.reason.encode()[:255]
        packed.append(_HOLE.pack(hole.first, hole.last, len(reason)) + reason)
    return b"".join(packed)


def unpack_missing(frame: Frame) -> tuple[Missing, ...]:
    """The declared gaps of a DATA frame: ascending, within its range, and together with its rows the whole of it."""
    part = bytes(frame.parts[0])
    holes: list[Missing] = []
    try:
        (count,), at = _COUNT.unpack_from(part), _COUNT.size
        for _ in range(count):
            first, last, length = _HOLE.unpack_from(part, at)
            at += _HOLE.size + length
            holes.append(Missing(first, last, part[at - length : at].decode()))
    except (struct.error, UnicodeDecodeError) as error:
        raise MalformedError(f"missing ranges: {error}") from error
    behind = frame.first
    for hole in holes:
        if not behind <= hole.first <= hole.last <= frame.last:
            raise MalformedError(f"missing {hole.first}-{hole.last} does not fit {frame.first}-{frame.last}")
        behind = hole.last + 1
    known = frame.rows + sum(hole.size for hole in holes)
    if at != len(part) or not (known == frame.last - frame.first + 1 or (frame.flags & ROWS and known < frame.last - frame.first + 1)):
        raise MalformedError(f"{frame.first}-{frame.last} is not {frame.rows} rows and what is missing")
    return tuple(holes)


def pack_origins(origins: pa.RecordBatch) -> Buffer:
    """Under which names the rows came to the sender's queue: one origin for each run of them; empty when that queue named all.

    Device sessions are left out: they belong to the queue that took them.
    """
    named = named_rows(origins)
    if not named:
        return b""
    return origin_batch(Origin(run.queue_id, run.first, run.first + run.rows - 1, run.row_offset) for run in named).serialize()


def unpack_origins(frame: Frame) -> tuple[Named, ...]:
    """The names that rows of a DATA frame have already: ascending runs of its rows. MalformedError when they are none."""
    if not len(frame.parts[1]) or frame.flags & ROWS:
        return ()
    try:
        origins = read_batch(frame.parts[1], ORIGIN_SCHEMA)
        origins.validate(full=True)
        named = named_rows(origins)
    except (pa.ArrowException, OSError, EOFError, ValueError) as error:
        raise MalformedError(f"origins: {error}") from error
    row = 0
    for run in named:
        if not _QUEUE_ID.fullmatch(run.queue_id) or not 0 < run.first <= POSITION_MAX - run.rows:
            raise MalformedError(f"origins: {run.rows} rows from {run.queue_id[:100]!r}/{run.first} on")
        if run.rows < 1 or not row <= run.row_offset <= frame.rows - run.rows:
            raise MalformedError(f"origins: {run.rows} rows from row {run.row_offset} on, of {frame.rows}")
        row = run.row_offset + run.rows
    return tuple(named)


def pack_rows(origins: pa.RecordBatch, key: RangeKey) -> bytes:
    """Which positions of the range are rows, and their names where they came from other queues."""
    positions = key.positions()
    named = bool(origins.num_rows) and bool((origins.column("kind").to_numpy() != ORIGIN_SESSION).any())
    return scattered.pack_rows(Scattered(positions, row_names(key.queue_id, positions, origins) if named else None))


def unpack_rows(frame: Frame, missing: Sequence[Missing]) -> Scattered | None:
    """What `pack_rows` packed; None without `ROWS`. MalformedError when it does not fit the frame."""
    if not frame.flags & ROWS:
        return None
    try:
        rows = scattered.unpack_rows(bytes(frame.parts[1]), frame.rows)
    except ValueError as error:
        raise MalformedError(str(error)) from error
    positions, names = rows
    inside = len(positions) == frame.rows and (not frame.rows or (frame.first <= int(positions[0]) and int(positions[-1]) <= frame.last))
    if not inside or len(without(positions, missing)) != frame.rows:
        raise MalformedError(f"{len(positions)} scattered rows do not fit {frame.rows} of {frame.first}-{frame.last}")
    if names is not None and frame.rows:
        foreign = [name for name in names.ids if not _QUEUE_ID.fullmatch(name)]
        if foreign or not 0 < int(names.numbers.min()) <= int(names.numbers.max()) <= POSITION_MAX:
            raise MalformedError(f"names of scattered rows: {foreign[:1]}, or a position that is none")
    return rows


def pack_batch(batch: pa.RecordBatch) -> tuple[Buffer, int]:
    """A batch as the last part of a DATA frame, and its flag."""
    if batch.schema.equals(RAW_SCHEMA):
        return batch.serialize(), 0
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue(), EVENTS


def unpack_batch(frame: Frame) -> pa.RecordBatch:
    """The batch of a DATA frame, checked to be one that a queue takes. A view into the message where that can be."""
    try:
        batch = read_stream(frame.parts[2]) if frame.flags & EVENTS else read_batch(frame.parts[2], RAW_SCHEMA)
        batch.validate(full=True)
        check_batch(batch)
    except (pa.ArrowException, OSError, EOFError, StopIteration, ValueError) as error:
        raise MalformedError(f"batch: {error}") from error
    if batch.num_rows != frame.rows:
        raise MalformedError(f"{batch.num_rows} rows, the header says {frame.rows}")
    return batch
