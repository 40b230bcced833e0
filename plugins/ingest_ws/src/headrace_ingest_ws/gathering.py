"""Batches gathered in C (gather.c): from sockets to Arrow buffers, and acks back, without Python per message or connection.

Only there with the C parser. What C may not take (anything but JSON objects in whole text frames) comes to Python as ever, and
the rows that Python adds to a batch follow those of C: a connection of which Python added something is left to it until the
next batch, so that its rows stay in their order.
"""

from __future__ import annotations

import select
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from headrace import ENCODING_JSON, RAW_SCHEMA
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


class Joined(NamedTuple):
    """A connection with a device session that has rows in a batch, and its last message there."""

    peer: SessionPeer
    last: int


@dataclass(slots=True)
class Gathered:
    """One batch: its columns, who is to be acknowledged once it is durable, and the sessions in it."""

    rows: int
    columns: list[pa.Array]
    chunks: bytes
    joined: list[Joined]


class Gatherer:
    """The batch that gathers, and the connections that it gathers from."""

    def __init__(self, buffer: CFrameBuffer) -> None:
        self._buffer = buffer
        self._c = _ffi.gc(_lib.ws_gatherer_new(), _lib.ws_gatherer_delete)
        if self._c == _ffi.NULL:
            raise MemoryError
        self._serial = 0
        self._peers: dict[int, SessionPeer] = {}
        self._left: list[int] = []  # sessions whose connection is gone; their rows may be in this batch
        self._rest = _ffi.new("int32_t[]", 2 * 1024)

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

    def connection(self, device: str, parser: Parser | None, window: int, start: int) -> Any:
        """A ws_connection (gather.h) whose messages count from `start` + 1; nothing is gathered of it before `gathers` is set."""
        assert isinstance(parser, CParser)
        name = device.encode()
        made = _ffi.gc(_lib.ws_connection_new(name, len(name), parser.state, window, start), _lib.ws_connection_delete)
        if made == _ffi.NULL:
            raise MemoryError
        self._serial += 1
        made.serial = self._serial
        made.paused = 1
        return made

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
        if connection is None or connection.serial not in self._peers:
            return
        if connection.chunk_batch == self._c.number:
            self._left.append(connection.serial)  # the batch that gathers has messages of it
        else:
            del self._peers[connection.serial]

    # --- batches -----------------------------------------------------------------------------------------------------

    def read(self, epoll: select.epoll, rows_max: int, bytes_max: int, received_us: int, now: float) -> list[Find]:
        """Read what is ready, and gather what may be; the rest is for Python."""
        return self._buffer.read_into(self._c, epoll, rows_max, bytes_max, received_us, now)

    def rest(self, seconds: float) -> None:
        """Let messages gather for so long, a few hundred microseconds; other threads run meanwhile."""
        _lib.ws_rest(int(seconds * 1e9))

    def take(self) -> Gathered:
        """What was gathered; the next batch begins."""
        c, rows = self._c, self._c.rows
        columns = [
            _texts(pa.string(), rows, c.device_offsets, c.device, c.device_size),
            pa.Array.from_buffers(RAW_SCHEMA.field("received").type, rows, [None, _copy(c.received, 8 * rows)]),
            pa.Array.from_buffers(pa.uint8(), rows, [None, pa.py_buffer(bytes((ENCODING_JSON,)) * rows)]),
            _texts(pa.binary(), rows, c.payload_offsets, c.payload, c.payload_size),
        ]
        chunks = bytes(_ffi.buffer(c.chunks, CHUNK.itemsize * c.chunk_count)) if c.chunk_count else b""
        _lib.ws_next_batch(c)
        return Gathered(rows, columns, chunks, self._joined(chunks) if self._peers else [])

    def _joined(self, chunks: bytes) -> list[Joined]:
        found = np.frombuffer(chunks, CHUNK)
        joined = []
        for serial, last, _, row, _, _ in found[found["member"] != 0].tolist():
            peer = self._peers[serial]
            peer.join_at(row)
            joined.append(Joined(peer, last))
        for serial in self._left:
            self._peers.pop(serial, None)
        self._left.clear()
        return joined

    def acknowledge(self, chunks: bytes, begin: int, end: int) -> list[int]:
        """Chunks `begin` to `end` are durable: write their acks.

        Descriptor and bytes sent of the ack, again and again, for the connections whose ack is left to Python.
        """
        count = min(end, len(chunks) // CHUNK.itemsize) - begin
        at = _ffi.cast("ws_chunk *", _ffi.from_buffer(chunks)) + begin
        left = _lib.ws_acknowledge(self._c, at, count, self._rest)
        return _ffi.unpack(self._rest, 2 * left) if left else []


def _copy(at: Any, size: int) -> pa.Buffer:
    return pa.py_buffer(bytes(_ffi.buffer(at, size)) if size else b"")


def _texts(kind: pa.DataType, rows: int, offsets: Any, data: Any, size: int) -> pa.Array:
    return pa.Array.from_buffers(kind, rows, [None, _copy(offsets, 4 * (rows + 1)), _copy(data, size)])
