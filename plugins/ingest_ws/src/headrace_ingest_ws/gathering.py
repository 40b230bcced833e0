"""Batches gathered in C (gather.c): from sockets to Arrow buffers, and acks back, without Python per message or connection.

Only there with the C parser. What C may not take (anything but JSON objects in whole text frames) comes to Python as ever, and
the rows that Python adds to a batch follow those of C: a connection of which Python added something is left to it until the
next batch, so that its rows stay in their order.
"""

from __future__ import annotations

import select
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from headrace import ENCODING_JSON, NO_ORIGINS, RAW_SCHEMA
from headrace.position import ORIGIN_SCHEMA, ORIGIN_SESSION
from headrace_ingest_ws.intake import CHUNK_BYTES, Member
from headrace_ingest_ws.parser import Find, Parser
from headrace_ingest_ws.parser_c import CFrameBuffer, CParser
from headrace_ingest_ws.rates import Levels, Limit

_module: Any = import_module("headrace_ingest_ws._wsframes")
_ffi, _lib = _module.ffi, _module.lib

#: ws_chunk in gather.h.
CHUNK: Final = np.dtype(
    [("serial", "u8"), ("last", "u8"), ("descriptor", "i4"), ("row", "u4"), ("member", "i4"), ("unused", "i4")]
)  # fmt: skip

#: Descriptors looked at in one go when all connections are looked after: about 0.2 ms of work, most of it waiting for memory.
RESTLESS_AT_ONCE: Final = 512

assert CHUNK.itemsize == CHUNK_BYTES == _ffi.sizeof("ws_chunk"), "gather.h and gathering.py differ"


class SessionPeer(Protocol):
    """A connection with a device session: its messages join a batch with an origin."""

    @property
    def member(self) -> Member:
        """Its session."""

    def join_at(self, row: int) -> None:
        """They are in the batch that is taken now, from this row on."""

    def settled(self, last: int) -> None:
        """As `intake.Peer`."""


class Gone(NamedTuple):
    """A connection with a device session that is closed, and its last message that C took."""

    peer: SessionPeer
    gathered: int


@dataclass(slots=True)
class Gathered:
    """One raw batch, who is to be acknowledged once it is durable, and the sessions in it.

    origins: of the sessions, but for those in `members`, which have to be asked for theirs; both in the order of their rows.
    """

    batch: pa.RecordBatch
    chunks: bytes
    origins: pa.RecordBatch
    members: list[Member]


class Gatherer:
    """The batch that gathers, and the connections that it gathers from."""

    def __init__(self, buffer: CFrameBuffer) -> None:
        self._buffer = buffer
        self._c = _ffi.gc(_lib.ws_gatherer_new(), _lib.ws_gatherer_delete)
        if self._c == _ffi.NULL:
            raise MemoryError
        self._serial = 0
        self._peers: dict[int, SessionPeer] = {}
        self._gone: dict[int, Gone] = {}  # until what C took of them is settled
        self._rest = _ffi.new("int32_t[]", 2 * 1024)
        self._restless = _ffi.new("int32_t[]", RESTLESS_AT_ONCE)
        self._columns = _ffi.new("struct ArrowArray *")  # what C fills, and Arrow takes over
        self._columns_at = int(_ffi.cast("uintptr_t", self._columns))

    @property
    def number(self) -> int:
        """Of the batch that gathers."""
        number: int = self._c.number
        return number

    @property
    def rows(self) -> int:
        """In the batch so far."""
        rows: int = self._c.rows
        return rows

    @property
    def payload_bytes(self) -> int:
        """Of the messages in the batch so far."""
        size: int = self._c.payload_size
        return size

    @property
    def more(self) -> bool:
        """More connections may be ready than the last read looked at."""
        return bool(self._c.more)

    @property
    def size(self) -> int:
        """About what the batch takes so far, sessions included."""
        size: int = self._c.payload_size + self._c.origin_size
        return size

    # --- connections -------------------------------------------------------------------------------------------------

    def connection(self, device: str, session: str, parser: Parser | None, window: int, start: int) -> Any:
        """A ws_connection (gather.h) whose messages count from `start` + 1; nothing is gathered of it before `gathers` is set.

        session: `<device>/<session>`, or empty.
        """
        assert isinstance(parser, CParser)
        name, device_size = (session or device).encode(), len(device.encode())
        made = _ffi.gc(_lib.ws_connection_new(name, len(name), device_size, parser.state, window, start), _lib.ws_connection_delete)
        if made == _ffi.NULL:
            raise MemoryError
        self._serial += 1
        made.serial = self._serial
        made.paused = 1
        return made

    def calm(self, connection: Any, now: float) -> bool:
        """Whether a connection may be left alone when all are looked after."""
        return bool(_lib.ws_calm(connection, now))

    def restless(self, now: float) -> Iterator[list[int]]:
        """The descriptors of the connections that may not be left alone when all are looked after, a slice of all at a time."""
        found, begin = self._restless, 0
        while begin < self._c.table_size:
            end = begin + RESTLESS_AT_ONCE
            count = _lib.ws_restless(self._c, begin, end, now, found)
            yield _ffi.unpack(found, count) if count else []
            begin = end

    def levels(self, limit: Limit) -> Levels:
        """Levels that C takes from as well (ws_rate in gather.h)."""
        made: Levels = _ffi.new("ws_rate *", {name: getattr(limit, name) for name in Limit._fields})
        return made

    def place(self, descriptor: int, connection: Any, peer: SessionPeer | None) -> None:
        """The connection is at this descriptor from now on."""
        if not _lib.ws_place(self._c, descriptor, connection):
            raise MemoryError
        if peer is not None:
            self._peers[connection.serial] = peer

    def remove(self, descriptor: int, connection: Any) -> None:
        """The descriptor is closed."""
        _lib.ws_place(self._c, descriptor, _ffi.NULL)
        if connection is None or (peer := self._peers.pop(connection.serial, None)) is None:
            return
        if connection.gathered > connection.settled:
            self._gone[connection.serial] = Gone(peer, connection.gathered)

    # --- batches -----------------------------------------------------------------------------------------------------

    def read(self, epoll: select.epoll, rows_max: int, bytes_max: int, received_us: int, now: float) -> list[Find]:
        """Read what is ready, and gather what may be; the rest is for Python."""
        return self._buffer.read_into(self._c, epoll, rows_max, bytes_max, received_us, now)

    def rest(self, seconds: float) -> None:
        """Let messages gather for so long, a few hundred microseconds; other threads run meanwhile."""
        _lib.ws_rest(int(seconds * 1e9))

    def take(self) -> Gathered:
        """What was gathered; the next batch begins."""
        c = self._c
        if not _lib.ws_columns(c, ENCODING_JSON, self._columns):
            raise MemoryError
        batch = pa.RecordBatch._import_from_c(self._columns_at, RAW_SCHEMA)
        chunks = bytes(_ffi.buffer(c.chunks, CHUNK.itemsize * c.chunk_count)) if c.chunk_count else b""
        origins, members = self._origins(chunks) if c.member_count else (NO_ORIGINS, [])
        _lib.ws_next_batch(c)
        return Gathered(batch, chunks, origins, members)

    def _origins(self, chunks: bytes) -> tuple[pa.RecordBatch, list[Member]]:
        room = self._c.member_count
        offsets, names = np.empty(room + 1, np.int32), np.empty(self._c.member_size, np.uint8)
        first, last, rows, rest = np.empty(room, np.uint64), np.empty(room, np.uint64), np.empty(room, np.uint32), np.empty(room, np.int32)
        count = _lib.ws_origins(
            self._c,
            _ffi.from_buffer("int32_t[]", offsets),
            _ffi.from_buffer("uint8_t[]", names),
            _ffi.from_buffer("uint64_t[]", first),
            _ffi.from_buffer("uint64_t[]", last),
            _ffi.from_buffer("uint32_t[]", rows),
            _ffi.from_buffer("int32_t[]", rest),
        )
        ids = pa.Array.from_buffers(pa.string(), count, [None, pa.py_buffer(offsets), pa.py_buffer(names)])
        kinds = pa.array(np.full(count, ORIGIN_SESSION, np.uint8))
        columns = [kinds, ids, *map(pa.array, (first[:count], last[:count], rows[:count])), pa.nulls(count, pa.binary())]
        members = []
        if count < room:
            found = np.frombuffer(chunks, CHUNK)
            for serial, row in found[["serial", "row"]][rest[: room - count]].tolist():
                peer = self._peers[serial] if serial in self._peers else self._gone[serial].peer
                peer.join_at(row)
                members.append(peer.member)
        return pa.RecordBatch.from_arrays(columns, schema=ORIGIN_SCHEMA), members

    def acknowledge(self, chunks: bytes, begin: int, end: int) -> list[int]:
        """Chunks `begin` to `end` are durable: write their acks.

        Descriptor and bytes sent of the ack, again and again, for the connections whose ack is left to Python.
        """
        count = min(end, len(chunks) // CHUNK.itemsize) - begin
        at = _ffi.cast("ws_chunk *", _ffi.from_buffer(chunks)) + begin
        left = _lib.ws_acknowledge(self._c, at, count, self._rest)
        if not left:
            return []
        rest, acks = iter(_ffi.unpack(self._rest, 2 * left)), []
        for descriptor, value in zip(rest, rest, strict=True):
            if descriptor >= 0:
                acks += [descriptor, value]
            else:
                self._settle_gone(at[value].serial, at[value].last)
        return acks

    def _settle_gone(self, serial: int, last: int) -> None:
        gone = self._gone.get(serial)
        if gone is None:
            return
        if last >= gone.gathered:
            del self._gone[serial]
        gone.peer.settled(last)
