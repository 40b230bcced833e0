"""Rows of one origin that do not follow each other: which positions they are, and which names they had before. No I/O.

A link that carries only some of a queue's positions (those of its own devices) says so in bits, one for each position, so that ten thousand
scattered rows are one origin and not ten thousand. The packed form names positions absolutely: whoever cuts a range leaves it as it is.
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

import numpy as np

from headrace.schema import POSITION_MAX

#: version, flags, number of queue ids, first position, positions covered (with BITS) or rows.
_HEADER: Final = struct.Struct("<BBHQI")
_VERSION: Final = 1
_BITS: Final = 1
_NAMES: Final = 2
#: Rows that follow each other take no bytes: this many are believed.
ROWS_MAX: Final = 1 << 24

Array = np.ndarray[Any, Any]


class Names(NamedTuple):
    """The name of each row of a batch by the first durable queue that took it: position `numbers[n]` (uint64) of `ids[codes[n]]`."""

    ids: tuple[str, ...]
    codes: Array
    numbers: Array

    def part(self, rows: slice | Array) -> Names:
        """The names of some of the rows."""
        return Names(self.ids, self.codes[rows], self.numbers[rows])


class Scattered(NamedTuple):
    """Rows at `positions` (uint64, ascending) of an origin; names: None when they are named by that origin's queue."""

    positions: Array
    names: Names | None = None

    def rows(self, first: int, last: int) -> slice:
        """Which of the rows lie at first..last."""
        low, high = np.searchsorted(self.positions, np.array([first, last + 1], np.uint64))
        return slice(int(low), int(high))

    def part(self, rows: slice) -> Scattered:
        """Some of the rows."""
        return Scattered(self.positions[rows], self.names.part(rows) if self.names is not None else None)


def pack_rows(scattered: Scattered) -> bytes:
    """A few bytes for any number of rows that follow each other, else one bit for each position from the first to the last."""
    positions, names = scattered
    rows = len(positions)
    base = int(positions[0]) if rows else 0
    covered = int(positions[-1]) - base + 1 if rows else 0
    flags = (_BITS if covered != rows else 0) | (_NAMES if names is not None else 0)
    parts = [_HEADER.pack(_VERSION, flags, len(names.ids) if names else 0, base, covered)]
    if flags & _BITS:
        bits = np.zeros(covered, np.uint8)
        bits[(positions - np.uint64(base)).astype(np.int64)] = 1
        parts.append(np.packbits(bits, bitorder="little").tobytes())
    if names is not None:
        parts += [bytes([len(name.encode())]) + name.encode() for name in names.ids]
        if len(names.ids) > 1:
            parts.append(names.codes.astype("<u2").tobytes())
        parts.append(names.numbers.astype("<u8").tobytes())
    return b"".join(parts)


def unpack_rows(packed: bytes, rows_max: int = ROWS_MAX) -> Scattered:
    """What `pack_rows` packed. ValueError when it is not that, or more rows than there can be."""
    try:
        version, flags, ids, base, covered = _HEADER.unpack_from(packed)
        if version != _VERSION or base + covered > POSITION_MAX:
            raise ValueError(f"version {version}, from {base} on")
        if not flags & _BITS and covered > rows_max:
            raise ValueError(f"{covered} rows, expected {rows_max} at most")
        at = _HEADER.size
        positions = np.arange(base, base + (0 if flags & _BITS else covered), dtype=np.uint64)
        if flags & _BITS:
            size = -(-covered // 8)
            if (count := int.from_bytes(packed[at : at + size], "little").bit_count()) > rows_max:
                raise ValueError(f"{count} rows, expected {rows_max} at most")  # each would take 64 times what it took on its way
            bits = np.unpackbits(np.frombuffer(packed, np.uint8, size, at), count=covered, bitorder="little")
            positions = np.flatnonzero(bits).astype(np.uint64) + np.uint64(base)
            at += size
        names = None
        if flags & _NAMES:
            names, at = _unpack_names(packed, at, ids, len(positions))
        if at != len(packed):
            raise ValueError(f"{len(packed)} bytes, expected {at}")
    except (struct.error, IndexError, ValueError) as error:
        raise ValueError(f"scattered rows: {error}") from error
    return Scattered(positions, names)


def _unpack_names(packed: bytes, at: int, count: int, rows: int) -> tuple[Names, int]:
    ids = []
    for _ in range(count):
        size = packed[at]
        ids.append(packed[at + 1 : at + 1 + size].decode())
        at += 1 + size
    codes = np.zeros(rows, np.uint16)
    if count > 1:
        codes = np.frombuffer(packed, "<u2", rows, at).astype(np.uint16)
        at += 2 * rows
    numbers = np.frombuffer(packed, "<u8", rows, at).astype(np.uint64)
    if rows and (not count or int(codes.max()) >= count):
        raise ValueError(f"a name of {count} queues that is none of them")
    return Names(tuple(ids), codes, numbers), at + 8 * rows
