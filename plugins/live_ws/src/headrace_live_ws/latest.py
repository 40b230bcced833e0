"""The newest event of each device, for a page's first paint. No I/O.

Batches are only put aside as they come; `compact` thins them out now and then. It works on whole columns, costs about
0.1 us per event, and is a plain function of its arguments, so that it can run in another thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from headrace_live_ws.filters import Facets
from headrace_live_ws.rows import PIECES_MAX, join, take

#: Put so much aside before thinning out. Many small batches cost per batch, so their number counts too.
PENDING_ROWS_MAX: Final = 16_384
PENDING_BATCHES_MAX: Final = 256


class Latest:
    """Holds the newest event of up to `devices_max` devices, in at most `bytes_max` bytes of Arrow data."""

    def __init__(self, devices_max: int, bytes_max: int) -> None:
        self._devices_max, self._bytes_max = devices_max, bytes_max
        self._batches: list[pa.RecordBatch] = []
        self._pending_rows = self._pending_bytes = self._pending_batches = 0
        self._thinning = asyncio.Lock()

    def add(self, batch: pa.RecordBatch) -> bool:
        """Put a batch aside; true when it is time to `thin`."""
        self._batches.append(batch)
        self._pending_rows += batch.num_rows
        self._pending_bytes += batch.get_total_buffer_size()  # what it keeps in memory, and 20 times cheaper than nbytes
        self._pending_batches += 1
        return (
            self._pending_rows >= PENDING_ROWS_MAX or self._pending_batches >= PENDING_BATCHES_MAX or self._pending_bytes >= self._bytes_max
        )

    async def thin(self, call_blocking: Callable[..., Awaitable[Compacted]]) -> Compacted:
        """Forget all but the newest event of each device, in a thread, and return what there is now."""
        async with self._thinning:
            before = list(self._batches)
            self._pending_rows = self._pending_bytes = self._pending_batches = 0
            compacted = await call_blocking(compact, before, self._devices_max, self._bytes_max)
            self._batches[: len(before)] = compacted.pieces
            return compacted


class Compacted(NamedTuple):
    """pieces: batches that together hold one event per device, oldest first. evicted: devices forgotten for a bound."""

    pieces: list[pa.RecordBatch]
    evicted: int


def compact(batches: Sequence[pa.RecordBatch], devices_max: int, bytes_max: int) -> Compacted:
    """Keep the last event of each device; where there are more devices or bytes than allowed, forget the oldest."""
    if len(batches) > PIECES_MAX:
        batches = join(batches)  # copies every row, but once for all columns is less than many small takes
    facets = Facets(batches)
    newest = facets.newest_per_device(np.arange(facets.rows, dtype=np.int64))
    pieces = join([plain(piece) for piece in take(batches, newest[-devices_max:])])[-2 * PIECES_MAX :]
    while (size_bytes := sum(piece.nbytes for piece in pieces)) > bytes_max:
        rows = sum(piece.num_rows for piece in pieces)
        pieces = take(pieces, np.arange(rows - rows * bytes_max // size_bytes, rows, dtype=np.int64))
    return Compacted(pieces, len(newest) - sum(piece.num_rows for piece in pieces))


def plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with its origins as plain strings, so that a dictionary does not keep every origin ever seen."""
    index = batch.schema.get_field_index("origin")
    return batch.set_column(index, "origin", batch.column(index).cast(pa.string()))
