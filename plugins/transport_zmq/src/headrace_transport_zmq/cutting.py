"""A part of a batch with its key and origins. No I/O."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from headrace import NO_ORIGINS, RangeKey
from headrace.position import slice_origins


def cut(
    batch: pa.RecordBatch, origins: pa.RecordBatch, key: RangeKey, first: int, last: int
) -> tuple[pa.RecordBatch, pa.RecordBatch, RangeKey]:
    """Positions first..last of a batch whose rows are those of `key`."""
    if (first, last) == (key.first, key.last):
        return batch, origins, key
    low, high = (int(at) for at in np.searchsorted(key.positions(), np.array([first, last + 1], np.uint64)))
    part = batch.slice(low, high - low)
    return part, slice_origins(origins, low, high - low) if origins.num_rows else NO_ORIGINS, key.part(first, last)
