"""Reads of a queue, cut and joined. No I/O.

A queue gives at least one entry, however few rows were asked for; suspicion and plans need exactly the positions they named.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from headrace.hookspecs import QueueRead
from headrace.position import NO_ORIGINS, Missing, slice_origins


def cut_read(read: QueueRead, first: int, last: int) -> QueueRead:
    """The part of a read between two positions, inclusive."""
    if first <= read.first and last >= read.last:
        return read
    first, last = max(first, read.first), min(last, read.last)
    begin = first - read.first - _lost(read, read.first, first - 1)
    rows = last - first + 1 - _lost(read, first, last)
    missing = tuple(Missing(max(hole.first, first), min(hole.last, last), hole.reason) for hole in _holes(read, first, last))
    batch = read.batch.slice(begin, rows) if read.batch is not None and rows else None
    origins = slice_origins(read.origins, begin, rows) if rows and read.origins.num_rows else NO_ORIGINS
    return QueueRead(read.queue_id, first, last, batch, origins, missing)


def _holes(read: QueueRead, first: int, last: int) -> list[Missing]:
    return [hole for hole in read.missing if hole.first <= last and hole.last >= first]


def _lost(read: QueueRead, first: int, last: int) -> int:
    """How many of the positions have no row."""
    return sum(min(hole.last, last) - max(hole.first, first) + 1 for hole in _holes(read, first, last))


def alike(reads: list[QueueRead], read: QueueRead) -> bool:
    """Whether a read can join the others: one queue id, one schema."""
    if reads and read.queue_id != reads[0].queue_id:
        return False
    batch = next((held.batch for held in reads if held.batch is not None), None)  # the others have been compared with it
    return batch is None or read.batch is None or bool(read.batch.schema.equals(batch.schema))


def joined(reads: list[QueueRead]) -> QueueRead:
    """Reads that follow each other as one."""
    if len(reads) == 1:
        return reads[0]
    batches = [read.batch for read in reads if read.batch is not None]
    origins, offset = [], 0
    for read in reads:
        shifted = pc.add(read.origins.column("row_offset"), pa.scalar(offset, pa.uint32()))
        origins.append(read.origins.set_column(4, read.origins.schema.field("row_offset"), shifted))
        offset += read.batch.num_rows if read.batch is not None else 0
    return QueueRead(
        reads[0].queue_id,
        reads[0].first,
        reads[-1].last,
        pa.concat_batches(batches) if batches else None,
        pa.concat_batches(origins) if origins else NO_ORIGINS,
        tuple(hole for read in reads for hole in read.missing),
    )
