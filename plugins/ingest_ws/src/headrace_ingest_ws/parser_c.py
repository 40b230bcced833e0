"""The parser in C (wsframes.c) behind the interface of parser.py. Importing it fails where it was not built."""

from __future__ import annotations

import os
import select
from array import array
from importlib import import_module
from typing import Any, Final

from headrace_ingest_ws.parser import BINARY, BUFFER_BYTES, ERROR, FULL, MORE, READ_BYTES, READS_PER_TURN, UNBOUNDED_BYTES, Find, Found

_module: Any = import_module("headrace_ingest_ws._wsframes")
_ffi, _lib = _module.ffi, _module.lib
_new, _delete, _release, _parse, _read = _lib.ws_new, _lib.ws_delete, _lib.ws_release, _lib.ws_parse, _lib.ws_read

#: Numbers in a ws_find.
FIND_NUMBERS: Final = 11


class CFrameBuffer:
    """The shared buffer, its address, and the place where C writes what it found."""

    __slots__ = ("_finds", "_finds_at", "address", "found", "memory", "view")

    def __init__(self) -> None:
        self.memory = _ffi.new("ws_memory *")
        self.memory.held_max = UNBOUNDED_BYTES
        memory = bytearray(BUFFER_BYTES)
        self.view = memoryview(memory)
        self.address = _ffi.from_buffer("uint8_t[]", memory, require_writable=True)
        self.found = _ffi.new("ws_found *")
        # an event may amount to two finds: it takes bytes again, and it was read
        finds = array("q", bytes(8 * FIND_NUMBERS * 2 * READS_PER_TURN))
        self._finds, self._finds_at = memoryview(finds), _ffi.from_buffer("ws_find[]", finds, require_writable=True)

    @property
    def unfinished_bytes(self) -> int:
        return int(self.memory.held)

    def bound(self, unfinished_bytes_max: int) -> None:
        self.memory.held_max = unfinished_bytes_max

    def read(self, epoll: select.epoll) -> list[Find]:
        return self.read_into(_ffi.NULL, epoll, 0, 0, 0, 0.0)

    def read_into(self, gatherer: Any, epoll: select.epoll, rows_max: int, bytes_max: int, received_us: int, now: float) -> list[Find]:
        """As `read`; what may be gathered goes to this ws_gatherer and is not among the finds."""
        count = _read(
            gatherer, epoll.fileno(), READS_PER_TURN, self.address, BUFFER_BYTES, READ_BYTES, rows_max, bytes_max, received_us, now,
            self._finds_at,
        )  # fmt: skip
        if count < 0:
            raise OSError(-count, os.strerror(-count))
        numbers = self._finds[: FIND_NUMBERS * count].tolist()
        return [self._find(numbers[at : at + FIND_NUMBERS]) for at in range(0, len(numbers), FIND_NUMBERS)]

    def _find(self, numbers: list[int]) -> Find:
        descriptor, start, size, event, run_bytes, run_count, consumed, code, data_at, data_size, _ = numbers
        if event < 0:
            return Find(descriptor, start, size)
        run = self.view[start : start + run_bytes].tobytes() if run_count else b""
        data = _ffi.buffer(_ffi.cast("uint8_t *", data_at), data_size)[:] if MORE < event < ERROR and event != FULL and data_size else b""
        return Find(descriptor, start, size, (event, start + consumed, run, run_count, data, code if event == ERROR else 0))

    def parser(self, message_bytes_max: int) -> CParser:
        return CParser(self, message_bytes_max)


class CParser:
    """One connection's parser; its memory goes with it."""

    __slots__ = ("_address", "_found", "_view", "state")

    def __init__(self, buffer: CFrameBuffer, message_bytes_max: int) -> None:
        self._address, self._found, self._view = buffer.address, buffer.found, buffer.view
        memory = buffer.memory
        state = _new(message_bytes_max, memory)
        if state == _ffi.NULL:
            raise MemoryError
        self.state = _ffi.gc(state, lambda state, _=memory: _delete(state))  # which counts in `memory` what it gives back

    @property
    def unfinished(self) -> bool:
        state = self.state
        return bool(state.head_size or state.in_payload or state.kind)

    def parse(self, start: int, end: int, messages_max: int) -> Found:
        if not 0 <= start <= end <= BUFFER_BYTES:
            raise ValueError(f"expected a range within {BUFFER_BYTES} bytes, got {start} to {end}")
        found = self._found
        event = _parse(self.state, self._address + start, end - start, messages_max, found)
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
                _release(self.state)
        return event, start + found.consumed, run, count, data, code

    def release(self) -> None:
        _release(self.state)
