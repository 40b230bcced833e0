"""Leave out of a batch what is held already: positions are compared, never frames. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from headrace import NO_ORIGINS, Origin, PermanentError, origin_batch, origins_of
from headrace.position import ORIGIN_MISSING, ORIGIN_QUEUE, ORIGIN_ROWS, ORIGIN_SESSION, rows_of


class Trimmed(NamedTuple):
    """What is new of a batch, and how many rows were not."""

    batch: pa.RecordBatch
    origins: pa.RecordBatch
    dropped: int


def trim(batch: pa.RecordBatch, origins: pa.RecordBatch, held: Callable[[str], int | None]) -> Trimmed:
    """Drop the rows of queue origins at or below `held(id)`, and declared gaps that are known.

    Sessions are left alone: their numbers count messages, and the source trims them. PermanentError when an origin does not
    have as many rows as positions.
    """
    if only_sessions(origins) and _in_order(origins, batch.num_rows):  # thousands a commit, and nothing to compare: looked at as columns
        return Trimmed(batch, origins, 0)
    rows = origins_of(origins)
    ends = [row.row_offset for row in rows[1:]] + [batch.num_rows]
    marks: dict[str, int] = {}
    pieces: list[tuple[int, int]] = [(0, rows[0].row_offset)] if rows and rows[0].row_offset else []
    kept: list[Origin] = []
    count = rows[0].row_offset if rows else 0
    changed = False
    for row, end in zip(rows, ends, strict=True):
        positions = _check(row, end)
        start, first = row.row_offset, row.first
        if row.kind != ORIGIN_SESSION:
            mark = marks[row.id] if row.id in marks else held(row.id)
            marks[row.id] = row.last if mark is None else max(mark, row.last)
            if mark is not None and first <= mark:
                changed = True
                first = min(mark, row.last) + 1
                if row.kind == ORIGIN_QUEUE:
                    start += first - row.first
                elif row.kind == ORIGIN_ROWS:
                    start += int(np.searchsorted(positions, np.uint64(first)))
                if first > row.last:
                    if row.kind == ORIGIN_MISSING and end > start:
                        raise PermanentError(f"declared gap of {row.id!r} has {end - start} rows, expected none")
                    continue
        kept.append(row._replace(first=first, row_offset=count))
        pieces.append((start, end))
        count += end - start
    if not changed:
        return Trimmed(batch, origins, 0)
    batches = [batch.slice(start, end - start) for start, end in pieces if end > start]
    new = batches[0] if len(batches) == 1 else pa.concat_batches(batches) if batches else batch.slice(0, 0)
    return Trimmed(new, origin_batch(kept) if kept else NO_ORIGINS, batch.num_rows - count)


def only_sessions(origins: pa.RecordBatch) -> bool:
    """True when every row is of a device session."""
    return bool((origins.column("kind").to_numpy() == ORIGIN_SESSION).all())


def _in_order(origins: pa.RecordBatch, rows: int) -> bool:
    first, last, offsets = (origins.column(name).to_numpy() for name in ("first", "last", "row_offset"))
    return bool((first <= last).all() and (offsets[1:] >= offsets[:-1]).all() and offsets[-1] <= rows)


def _check(row: Origin, end: int) -> np.ndarray[Any, Any]:
    """PermanentError unless as many rows came as the origin says. Gives the positions of an origin whose rows are scattered."""
    rows, positions = end - row.row_offset, row.last - row.first + 1
    scattered = np.empty(0, np.uint64)
    if row.kind == ORIGIN_ROWS:
        try:
            scattered = rows_of(row).positions
        except ValueError as error:
            raise PermanentError(f"origin {row.id!r} names rows of {row.first}-{row.last} that are none: {error}") from error
    expected = {ORIGIN_QUEUE: positions, ORIGIN_SESSION: rows, ORIGIN_MISSING: 0, ORIGIN_ROWS: len(scattered)}.get(row.kind)
    if rows != expected or rows < 0 or positions < 1:
        hint = "; one that counts otherwise than by rows is of the kind ORIGIN_SESSION" if row.kind == ORIGIN_QUEUE else ""
        raise PermanentError(
            f"origin {row.id!r} of kind {row.kind} names positions {row.first}-{row.last}, but {rows} rows came with it{hint}"
        )
    return scattered
