"""The parser in Python, with the behaviour of wsframes.c, for machines where that could not be built."""

from __future__ import annotations

import codecs
import errno
import os
import select
from typing import Final

from headrace_ingest_ws.parser import (
    BINARY,
    BUFFER_BYTES,
    CLOSE,
    ERROR,
    FULL,
    MORE,
    PING,
    PONG,
    READ_BYTES,
    READ_MIN_BYTES,
    READS_PER_TURN,
    RUN_BRACES_MAX,
    TEXT,
    UNBOUNDED_BYTES,
    WRITABLE,
    Find,
    Found,
)

_FIN, _RESERVED, _MASKED, _CONTROL = 0x80, 0x70, 0x80, 8
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10
_BROKEN, _NOT_TEXT, _TOO_BIG, _CROWDED = 1002, 1007, 1009, 1013
_EVENTS: Final = {_TEXT: TEXT, _BINARY: BINARY, _CLOSE: CLOSE, _PING: PING, _PONG: PONG}

_utf8 = codecs.getincrementaldecoder("utf-8")


class PythonFrameBuffer:
    """The shared buffer."""

    __slots__ = ("memory", "unfinished_bytes", "unfinished_bytes_max", "view")

    def __init__(self) -> None:
        self.unfinished_bytes, self.unfinished_bytes_max = 0, UNBOUNDED_BYTES
        self.memory = bytearray(BUFFER_BYTES)
        self.view = memoryview(self.memory)

    def bound(self, unfinished_bytes_max: int) -> None:
        self.unfinished_bytes_max = unfinished_bytes_max

    def read(self, epoll: select.epoll) -> list[Find]:
        finds: list[Find] = []
        start = 0
        ready = epoll.poll(0, READS_PER_TURN)
        # who has much to send leaves the others their share of the turn
        read_max = min(READ_BYTES, max(READ_MIN_BYTES, BUFFER_BYTES // max(1, len(ready))))
        for descriptor, event in ready:
            if event & select.EPOLLOUT:
                finds.append(Find(descriptor, 0, WRITABLE))
            if not event & ~select.EPOLLOUT:
                continue
            if BUFFER_BYTES - start < read_max:
                break  # what was not read is ready again in the next turn
            try:
                size = os.readv(descriptor, [self.view[start : start + read_max]])
            except BlockingIOError:
                continue
            except OSError as error:
                size = -(error.errno or errno.EIO)
            finds.append(Find(descriptor, start, size))
            start += max(size, 0)
        return finds

    def parser(self, message_bytes_max: int) -> PythonParser:
        return PythonParser(self, message_bytes_max)


class _Broken(Exception):
    """The client's bytes are refused with this close code."""

    def __init__(self, code: int) -> None:
        self.code = code


class PythonParser:
    """One connection's parser."""

    __slots__ = (
        "_buffer",
        "_control",
        "_decoder",
        "_first",
        "_head",
        "_in_payload",
        "_kind",
        "_left",
        "_mask",
        "_memory",
        "_message",
        "_message_max",
    )

    def __init__(self, buffer: PythonFrameBuffer, message_bytes_max: int) -> None:
        self._buffer = buffer
        self._memory, self._message_max = buffer.memory, message_bytes_max
        self._head = b""
        self._in_payload = False
        self._left = self._first = self._kind = 0
        self._mask = b""
        self._message: bytearray | None = None  # of the message under way, as far as it is there
        self._decoder: codecs.IncrementalDecoder | None = None  # of a text message under way
        self._control = b""

    @property
    def unfinished(self) -> bool:
        return bool(self._head or self._in_payload or self._kind)

    def release(self) -> None:
        self._buffer.unfinished_bytes -= len(self._message or b"")
        self._message = None

    def parse(self, start: int, end: int, messages_max: int) -> Found:
        at, event, data, code = start, MORE, b"", 0
        run: list[bytes] = []
        try:
            while at < end:
                if len(run) == messages_max:
                    event = FULL
                    break
                if not self._in_payload:
                    at = self._header(at, end)
                    if not self._in_payload:
                        break
                if self._left and at == end:
                    break
                take = min(self._left, end - at)
                piece = self._unmasked(at, take)
                at += take
                self._left -= take
                self._in_payload = self._left > 0
                kind, payload = self._payload(piece)
                if kind == TEXT and _is_plain(payload):
                    run.append(payload)
                elif kind != MORE:
                    event, data = kind, payload
                    break
        except _Broken as broken:
            event, code = ERROR, broken.code
        return event, at, b"\n".join(run), len(run), data, code

    def _header(self, at: int, end: int) -> int:
        """Take header bytes; `_in_payload` tells whether the header is complete. Where the bytes go on."""
        need, length_size = 2, 0
        while True:
            if len(self._head) >= 2:
                length_size = self._judge()
                need = 2 + length_size + 4
                if len(self._head) == need:
                    break
                if length_size and len(self._head) < 2 + length_size:
                    need -= 4  # judge the length before the mask is there
            more = bytes(self._memory[at : min(end, at + need - len(self._head))])
            at += len(more)
            self._head += more
            if len(self._head) < need:
                return at
        head, self._head = self._head, b""
        self._left = int.from_bytes(head[2:-4], "big") if length_size else head[1] & 127
        self._mask, self._first, self._in_payload = head[-4:], head[0], True
        if head[0] & _CONTROL:
            self._control = b""
        elif self._left > self._message_max - len(self._message or b""):
            raise _Broken(_TOO_BIG)
        elif head[0] & 15 != _CONTINUATION:
            self._kind = head[0] & 15
        return at

    def _judge(self) -> int:
        """Size of the extended length; _Broken when what is there of the header is not allowed."""
        head = self._head
        first, length = head[0], head[1] & 127
        opcode = first & 15
        if first & _RESERVED or not head[1] & _MASKED:
            raise _Broken(_BROKEN)
        if opcode & _CONTROL:
            if opcode > _PONG or not first & _FIN or length > 125:
                raise _Broken(_BROKEN)
        elif opcode > _BINARY or (opcode == _CONTINUATION) != (self._kind != 0):
            raise _Broken(_BROKEN)
        length_size = {126: 2, 127: 8}.get(length, 0)
        if length_size and len(head) >= 2 + length_size:
            length = int.from_bytes(head[2 : 2 + length_size], "big")
            if length >> 63 or length < (126 if length_size == 2 else 65_536):
                raise _Broken(_BROKEN)
        return length_size

    def _unmasked(self, at: int, size: int) -> bytes:
        if not size:
            return b""
        key = (self._mask * (size // 4 + 1))[:size]
        self._mask = (self._mask * 2)[size % 4 : size % 4 + 4]
        masked = self._memory[at : at + size]
        return (int.from_bytes(masked, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")

    def _payload(self, piece: bytes) -> tuple[int, bytes]:
        """The event that this piece of payload completes, or MORE."""
        fin = self._first & _FIN and not self._left
        if self._first & _CONTROL:
            self._control += piece
            return (_EVENTS[self._first & 15], self._control) if fin else (MORE, b"")
        if self._kind == _TEXT:
            self._check_text(piece, bool(fin))
        if not fin:
            if piece:
                self._keep(piece)
            return MORE, b""
        kind, message = self._kind, piece if self._message is None else bytes(self._message) + piece
        self._buffer.unfinished_bytes -= len(self._message or b"")
        self._kind, self._message, self._decoder = 0, None, None
        return _EVENTS[kind], message

    def _keep(self, piece: bytes) -> None:
        buffer = self._buffer
        if len(piece) > buffer.unfinished_bytes_max - buffer.unfinished_bytes:
            raise _Broken(_CROWDED)
        buffer.unfinished_bytes += len(piece)
        self._message = self._message or bytearray()
        self._message += piece

    def __del__(self) -> None:
        self.release()

    def _check_text(self, piece: bytes, last: bool) -> None:
        if self._decoder is None:
            if last and piece.isascii():
                return
            self._decoder = _utf8()
        try:
            self._decoder.decode(piece, last)
        except UnicodeDecodeError:
            raise _Broken(_NOT_TEXT) from None
        pending = self._decoder.getstate()[0]
        if pending[:1] == b"\xed" and pending[1:2] > b"\x9f":
            raise _Broken(_NOT_TEXT)  # half a surrogate, which the decoder would refuse only at its end


def _is_plain(text: bytes) -> bool:
    return text[:1] == b"{" and b"\n" not in text and text.count(b"{") + text.count(b"[") <= RUN_BRACES_MAX
