"""A part of a batch with its key and origins. No I/O."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from headrace import NO_ORIGINS, RangeKey
from headrace.position import row_positions, slice_origins


def cut(
    batch: pa.RecordBatch, origins: pa.RecordBatch, key: RangeKey, first: int, last: int
) -> tuple[pa.RecordBatch, pa.RecordBatch, RangeKey]:
    """Positions first..last of a batch whose rows are those of `key` that are neither missing nor dead."""
    if (first, last) == (key.first, key.last):
        return batch, origins, key
    positions = row_positions(key.first, key.last, key.missing)
    positions = positions[~np.isin(positions, np.array(key.dead, np.uint64))]
    low, high = (int(at) for at in np.searchsorted(positions, np.array([first, last + 1], np.uint64)))
    missing = tuple(
        hole._replace(first=max(hole.first, first), last=min(hole.last, last))
        for hole in key.missing
        if hole.first <= last and hole.last >= first
    )
    dead = tuple(position for position in key.dead if first <= position <= last)
    part = RangeKey(key.queue_id, first, last, missing, dead)
    return batch.slice(low, high - low), slice_origins(origins, low, high - low) if origins.num_rows else NO_ORIGINS, part
