"""Which events were seen: one bit for each (origin, position). No I/O."""

from __future__ import annotations

from typing import Any

import numpy as np

CHUNK_BITS = 16
CHUNK = 1 << CHUNK_BITS
#: Bytes of memory that one bit for each event may take; larger lakes are gone through several times.
MEMORY_BYTES_MAX = 256 << 20


def passes_for(rows: int, memory_bytes: int = MEMORY_BYTES_MAX) -> int:
    """In how many passes so many events are looked at within the memory."""
    return max(1, -(-rows // (8 * memory_bytes)))


class Seen:
    """A set of events. Of `passes`, this one looks only at every such chunk of positions."""

    def __init__(self, passes: int = 1, number: int = 0) -> None:
        self._passes, self._number = passes, number
        self._chunks: dict[tuple[str, int], Any] = {}

    def add(self, origin: str, positions: Any) -> Any:
        """Take positions (uint64) of an origin; returns those that were there before, or come twice among them, ascending."""
        positions = np.sort(positions)
        if self._passes > 1:
            positions = positions[(positions >> np.uint64(CHUNK_BITS)) % np.uint64(self._passes) == np.uint64(self._number)]
        if not len(positions):
            return positions
        chunks = positions >> np.uint64(CHUNK_BITS)
        starts = np.flatnonzero(np.concatenate([[True], chunks[1:] != chunks[:-1]]))
        doubles = [positions[1:][positions[1:] == positions[:-1]]]
        for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(positions)], strict=True):
            doubles.append(self._add_chunk((origin, int(chunks[start])), positions[start:stop]))
        return np.unique(np.concatenate(doubles))

    def _add_chunk(self, key: tuple[str, int], positions: Any) -> Any:
        inner = (positions & np.uint64(CHUNK - 1)).astype(np.int64)
        new = np.zeros(CHUNK, dtype=np.uint8)
        new[inner] = 1
        bits = np.packbits(new, bitorder="little")
        known = self._chunks.get(key)
        if known is None:
            self._chunks[key] = bits
            return positions[:0]
        both = known & bits
        np.bitwise_or(known, bits, out=known)
        if not both.any():
            return positions[:0]
        return positions[np.unpackbits(both, bitorder="little")[inner] == 1]
