"""A gzip body (RFC 1952), inflated piece by piece and never beyond a bound: what a few kilobytes may become is not taken on trust.

No I/O.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final

#: One step inflates so much: about 0.1 ms of work.
STEP_BYTES: Final = 65_536

_GZIP: Final = 31


class TooLong(Exception):
    """The body is longer than it may be."""


class Gunzip:
    """Inflates one body of at most `bytes_max` bytes; ValueError when it is no gzip."""

    def __init__(self, bytes_max: int) -> None:
        self._left = bytes_max
        self._member = zlib.decompressobj(_GZIP)
        self._began = False

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """What a piece of the body inflates to, in steps of at most STEP_BYTES; raises TooLong before it goes over the bound."""
        while piece:
            if self._member.eof:  # gzip may be several members, one behind the other
                self._member = zlib.decompressobj(_GZIP)
            self._began = True
            yield self._step(piece)
            piece = self._member.unconsumed_tail or self._member.unused_data

    def end(self) -> Iterator[bytes]:
        """What was still held back; ValueError when the body ends too early."""
        while self._began and not self._member.eof:
            inflated = self._step(b"")
            if not inflated and not self._member.eof:
                raise ValueError("expected a whole gzip body, it ends too early")
            yield inflated

    def _step(self, piece: bytes) -> bytes:
        try:
            inflated = self._member.decompress(piece, min(STEP_BYTES, self._left + 1))
        except zlib.error as error:
            raise ValueError(f"expected a gzip body: {error}") from None
        self._left -= len(inflated)
        if self._left < 0:
            raise TooLong
        return inflated
