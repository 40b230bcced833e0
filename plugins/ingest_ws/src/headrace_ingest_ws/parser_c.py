"""The parser in C (wsframes.c) behind the interface of parser.py. Importing it fails where it was not built."""

from __future__ import annotations

import os
import select
from array import array
from importlib import import_module
from typing import Any

from headrace_ingest_ws.parser import BINARY, BUFFER_BYTES, ERROR, FULL, MORE, READ_BYTES, READS_PER_TURN, Found

_module: Any = import_module("headrace_ingest_ws._wsframes")
_ffi, _lib = _module.ffi, _module.lib
_new, _delete, _release, _parse, _read = _lib.ws_new, _lib.ws_delete, _lib.ws_release, _lib.ws_parse, _lib.ws_read


class CFrameBuffer:
    """The shared buffer, its address, and the place where C writes what it found."""

    __slots__ = ("_reads", "_reads_at", "address", "found", "view")

    def __init__(self) -> None:
        memory = bytearray(BUFFER_BYTES)
        self.view = memoryview(memory)
        self.address = _ffi.from_buffer("uint8_t[]", memory, require_writable=True)
        self.found = _ffi.new("ws_found *")
        # an event may amount to two finds: it takes bytes again, and it was read
        reads = array("i", bytes(2 * 3 * 4 * READS_PER_TURN))
        self._reads, self._reads_at = memoryview(reads), _ffi.from_buffer("int32_t[]", reads, require_writable=True)

    def read(self, epoll: select.epoll) -> list[int]:
        found = _read(epoll.fileno(), READS_PER_TURN, self.address, BUFFER_BYTES, READ_BYTES, self._reads_at)
        if found < 0:
            raise OSError(-found, os.strerror(-found))
        return self._reads[: 3 * found].tolist()

    def parser(self, message_bytes_max: int) -> CParser:
        return CParser(self, message_bytes_max)


class CParser:
    """One connection's parser; its memory goes with it."""

    __slots__ = ("_address", "_found", "_state", "_view")

    def __init__(self, buffer: CFrameBuffer, message_bytes_max: int) -> None:
        self._address, self._found, self._view = buffer.address, buffer.found, buffer.view
        state = _new(message_bytes_max)
        if state == _ffi.NULL:
            raise MemoryError
        self._state = _ffi.gc(state, _delete)

    @property
    def unfinished(self) -> bool:
        state = self._state
        return bool(state.head_size or state.in_payload or state.kind)

    def parse(self, start: int, end: int, messages_max: int) -> Found:
        if not 0 <= start <= end <= BUFFER_BYTES:
            raise ValueError(f"expected a range within {BUFFER_BYTES} bytes, got {start} to {end}")
        found = self._found
        event = _parse(self._state, self._address + start, end - start, messages_max, found)
        count = found.run_count
        run = self._view[start : start + found.run_bytes].tobytes() if count else b""
        if event == MORE:
            return event, end, run, count, b"", 0
        data, code = b"", 0
        if event == ERROR:
            code = found.code
        elif event != FULL:
            data = _ffi.buffer(found.data, found.size)[:] if found.size else b""
            if event <= BINARY and found.assembled:
                _release(self._state)
        return event, start + found.consumed, run, count, data, code
