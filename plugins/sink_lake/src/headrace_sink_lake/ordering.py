"""The order of a file's rows: by device and time, so that readers of a device's history skip the rest. No I/O."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace_sink_lake.texts import coded


class Run(NamedTuple):
    """The rows of one partition: `order[start:stop]`."""

    partition: int
    start: int
    stop: int


def ordered(batch: pa.RecordBatch, partitions: Any) -> tuple[Any, list[Run]]:
    """The rows by partition number, device, time, and then as they came; and where each partition's lie."""
    device = coded(batch.column("device"))
    words = device.dictionary
    count = int(partitions.max(initial=0)) + 1
    # One key for partition and device; the time is no part of it, for a device's events mostly come in the order of their times.
    # As narrow as it goes: less memory to walk through.
    kind = np.min_scalar_type(count * len(words))
    kind = np.dtype(np.uint16) if kind.itemsize < 2 else kind
    rank = np.empty(len(words), dtype=kind)
    rank[pc.sort_indices(words).to_numpy()] = np.arange(len(words))
    codes = rank[device.indices.to_numpy()]
    if count > 1:
        codes += partitions.astype(kind) * kind.type(len(words))
    order = _stable_order(codes)
    codes = codes[order]
    order = _by_time(order, codes, batch.column("time").view(pa.int64()).to_numpy())
    bounds = np.searchsorted(codes, (np.arange(count + 1) * len(words)).astype(kind)).tolist()
    return order, [Run(number, *bound) for number, bound in enumerate(pairwise(bounds)) if bound[0] < bound[1]]


def _stable_order(codes: Any) -> Any:
    # numpy sorts 16 bits by radix, several times as fast as more.
    order = np.argsort(codes.astype(np.uint16), kind="stable")
    for shift in range(16, int(codes.max(initial=0)).bit_length(), 16):
        order = order[np.argsort((codes[order] >> shift).astype(np.uint16), kind="stable")]
    return order


def _by_time(order: Any, codes: Any, times: Any) -> Any:
    """The order with each device's rows by time; `codes` are those of the rows in the order given."""
    if not np.any(times[1:] < times[:-1]):
        return order
    times = times[order]
    if not np.any((times[1:] < times[:-1]) & (codes[1:] == codes[:-1])):
        return order
    first = int(times.min())
    span = int(times.max()) - first + 1
    if span * (int(codes[-1]) + 1) >= 1 << 63:
        return order[np.lexsort((times, codes))]
    # What came late is few runs in each device's rows, which numpy's stable sort joins: 12 ns a row, by two keys 50.
    return order[np.argsort(codes.astype(np.int64) * span + (times - first), kind="stable")]
