"""What a read has found, as one batch: a view into the segment where it is one frame, a copy where frames are joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import numpy as np
import pyarrow as pa

from headrace import NO_ORIGINS, ORIGIN_SCHEMA, RAW_SCHEMA
from headrace.position import ORIGIN_ROWS, ORIGIN_SESSION
from headrace_queue_pmem.area import Area
from headrace_queue_pmem.frame import FrameHeader, decode_batch, decode_origins, shift_origins
from headrace_queue_pmem.layout import KIND_RAW, LINE, align
from headrace_queue_pmem.messages import Ints, joined
from headrace_queue_pmem.ring import Ring
from headrace_queue_pmem.runs import Run

#: Fewer frames are cheaper to decode one by one: gathering their columns costs what decoding so many does.
TOGETHER_MIN: Final = 32


class Pin:
    """What a zero-copy buffer refers to: keeps the segment mapped, and counts the bytes until the last view is gone."""

    __slots__ = ("_area", "_freed", "_size")

    def __init__(self, area: Area, size: int, ring: Ring) -> None:
        self._area, self._size, self._freed = area, size, ring.views_freed

    def __del__(self) -> None:
        # Any thread may drop the last view, even one that holds the ring's lock: a deque takes no lock.
        self._freed.append(self._size)


@dataclass(slots=True)
class Part:
    """A frame of a read: its rows from `skip` on."""

    area: Area
    offset: int
    header: FrameHeader
    skip: int

    @property
    def kind(self) -> int:
        return self.header.kind

    @property
    def rows(self) -> int:
        return self.header.rows - self.skip

    @property
    def origins_at(self) -> int:
        return self.offset + LINE

    @property
    def payload_at(self) -> int:
        return self.offset + LINE + align(self.header.origins_bytes)


def join(ring: Ring, parts: Sequence[Part | Run]) -> tuple[pa.RecordBatch | None, Part | None]:
    """One batch of all parts, and the first part that has no place in it because its schema differs from theirs."""
    parts = [part for part in parts if part.rows]
    if not parts:
        return None, None
    first = parts[0]
    if len(parts) == 1 and isinstance(first, Part):
        return _rows(first, _single(ring, first)), None
    if isinstance(first, Run) or first.kind == KIND_RAW:
        skip = first.skip if isinstance(first, Part) else 0
        batches = [batch for area, these in groupby(parts, key=lambda part: part.area) for batch in _raw(area, list(these))]
        return (batches[0] if len(batches) == 1 else pa.concat_batches(batches)).slice(skip), None
    return _join_events(ring, [part for part in parts if isinstance(part, Part)])


def _raw(area: Area, parts: list[Part | Run]) -> list[pa.RecordBatch]:
    """Raw frames of one area, all their rows."""
    starts = np.concatenate([part.payload_at if isinstance(part, Run) else [part.payload_at] for part in parts])
    sizes = np.concatenate([part.payload_bytes if isinstance(part, Run) else [part.header.payload_bytes] for part in parts])
    found = joined(area, starts, sizes, RAW_SCHEMA) if len(starts) >= TOGETHER_MIN else None
    if found is not None:
        return [found[0]]
    return [decode_batch(KIND_RAW, _payload(area, start, size, area)) for start, size in zip(starts.tolist(), sizes.tolist(), strict=True)]


def _join_events(ring: Ring, parts: list[Part]) -> tuple[pa.RecordBatch, Part | None]:
    batches: list[pa.RecordBatch] = []
    for part in parts:
        batch = _rows(part, decode_batch(part.kind, _payload(part.area, part.payload_at, part.header.payload_bytes, part.area)))
        if batches and not batch.schema.equals(batches[0].schema):
            return (_rows(parts[0], _single(ring, parts[0])) if len(batches) == 1 else pa.concat_batches(batches)), part
        batches.append(batch)
    return pa.concat_batches(batches), None


def _single(ring: Ring, part: Part) -> pa.RecordBatch:
    """One frame's batch: a view into the segment while the budget lasts, a copy beyond it."""
    size = part.header.payload_bytes
    with ring.lock:
        while ring.views_freed:
            ring.view_bytes -= ring.views_freed.popleft()
        as_view = ring.view_bytes + size <= ring.options.view_bytes_max
        if as_view:
            ring.view_bytes += size
    if as_view:
        return decode_batch(part.kind, _payload(part.area, part.payload_at, size, Pin(part.area, size, ring)))
    return decode_batch(part.kind, pa.py_buffer(_payload(part.area, part.payload_at, size, part.area).to_pybytes()))


def _payload(area: Area, start: int, size: int, base: Any) -> pa.Buffer:
    return pa.foreign_buffer(area.address + start, size, base)


def _rows(part: Part, batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.slice(part.skip) if part.skip else batch


# --- origins -------------------------------------------------------------------------------------------------------------


def join_origins(parts: Sequence[Part | Run]) -> pa.RecordBatch:
    """The origins of all parts, with offsets into the joined batch.

    Frames of device sessions alone are passed over: a reader has no use for message numbers, and there are thousands.
    """
    pieces: list[pa.RecordBatch] = []
    offset = 0
    for part in parts:
        if isinstance(part, Run):
            pieces += _run_origins(part, offset)
        elif part.header.origins_bytes:
            pieces += _frame_origins(part.area, part.origins_at, part.header.origins_bytes, part.skip, part.rows, offset)
        offset += part.rows
    if not pieces:
        return NO_ORIGINS
    return pieces[0] if len(pieces) == 1 else pa.concat_batches(pieces)


def _frame_origins(area: Area, start: int, size: int, skip: int, rows: int, offset: int) -> list[pa.RecordBatch]:
    origins = decode_origins(bytes(area.view[start : start + size]))
    kinds = origins.column("kind").to_numpy()
    if (kinds == ORIGIN_SESSION).all():
        return []
    if not skip and not (kinds == ORIGIN_ROWS).any():  # all of the frame, as most are read
        return [_shifted(origins, np.full(len(kinds), offset)) if offset else origins]
    return [pa.RecordBatch.from_pylist(shift_origins(origins, skip, rows, offset), schema=ORIGIN_SCHEMA)]


def _run_origins(run: Run, offset: int) -> list[pa.RecordBatch]:
    has = np.flatnonzero(run.origins_bytes)
    if not len(has):
        return []
    starts, sizes, befores = run.origins_at[has], run.origins_bytes[has], (np.cumsum(run.rows_each) - run.rows_each + offset)[has]
    found = joined(run.area, starts, sizes, ORIGIN_SCHEMA)
    if found is None:
        frames = zip(starts.tolist(), sizes.tolist(), run.rows_each[has].tolist(), befores.tolist(), strict=True)
        return [piece for start, size, rows, before in frames for piece in _frame_origins(run.area, start, size, 0, rows, before)]
    origins, counts = found
    other = origins.column("kind").to_numpy() != ORIGIN_SESSION
    wanted = np.logical_or.reduceat(other, np.cumsum(counts) - counts)
    if not wanted.any():
        return []
    return [_shifted(origins, np.repeat(befores, counts)).filter(pa.array(np.repeat(wanted, counts)))]


def _shifted(origins: pa.RecordBatch, by: Ints) -> pa.RecordBatch:
    index = ORIGIN_SCHEMA.get_field_index("row_offset")
    offsets = origins.column(index).to_numpy() + by
    return origins.set_column(index, ORIGIN_SCHEMA.field(index), pa.array(offsets, pa.uint32()))
