"""A tier without a queue that links lead to: what keeps their positions from being lost on the way through. No I/O.

Such a tier numbers nothing durably itself. Its store keeps the positions of the *sending* queue, and what the store says about a
queue id is what the sender is told. The engine counts in positions of the buffer, as in every tier; wherever a range
leaves it, to the sink or to the dead letters, it is *told* in the names of the queue that sent it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pyarrow as pa

from headrace.errors import PermanentError, TransientError
from headrace.position import NO_ORIGINS, ORIGIN_MISSING, ORIGIN_QUEUE, ORIGIN_ROWS, Missing, Origin, RangeKey, origin_batch, origins_of

_MARK = "@"
_PASSED = (ORIGIN_QUEUE, ORIGIN_MISSING, ORIGIN_ROWS)


def passed_id(queue_id: str, shift: int) -> str:
    """The id under which the buffer holds a stretch: position p of the buffer is p + shift of `queue_id`."""
    return f"{queue_id}{_MARK}{shift}"


def told_id(queue_id: str) -> tuple[str, int]:
    """The queue id by which others know it, and what is to be added to a position. Of a queue of this tier's own: itself, and 0."""
    name, mark, shift = queue_id.partition(_MARK)
    return name, int(shift) if mark else 0


def told(key: RangeKey) -> RangeKey:
    """A range as the store and the dead letters know it."""
    queue_id, shift = told_id(key.queue_id)
    if queue_id == key.queue_id:
        return key
    missing = tuple(Missing(hole.first + shift, hole.last + shift, hole.reason) for hole in key.missing)
    return RangeKey(queue_id, key.first + shift, key.last + shift, missing, tuple(position + shift for position in key.dead))


class Stretch(NamedTuple):
    """Positions first..last of a sending queue: each a row of `batch` or in `missing`. origins (ORIGIN_SCHEMA) name the rows."""

    queue_id: str
    first: int
    last: int
    batch: pa.RecordBatch | None
    origins: pa.RecordBatch
    missing: tuple[Missing, ...]


def is_passed(origins: pa.RecordBatch) -> bool:
    """Whether a batch came over links: its rows have positions already."""
    return bool(origins.num_rows) and any(kind in _PASSED for kind in origins.column("kind").to_pylist())


def stretches(batch: pa.RecordBatch, origins: pa.RecordBatch, held: Callable[[str], int | None]) -> Iterator[Stretch]:
    """What is new of a batch, one stretch for each queue that it came from, without what lies at or below `held(queue id)`.

    TransientError for a gap that nobody declared (the link is to begin anew), PermanentError for origins that do not fit the rows.
    """
    by_queue: dict[str, list[tuple[Origin, int]]] = {}
    rows = origins_of(origins)
    ends = [row.row_offset for row in rows[1:]] + [batch.num_rows]
    if rows and rows[0].row_offset:
        raise PermanentError(f"{rows[0].row_offset} rows without a position came with others that have one")
    for row, end in zip(rows, ends, strict=True):
        # of kind `rows` it has names of its own for them; positions on other lanes cannot be told from lost ones here
        count = row.last - row.first + 1 if row.kind in (ORIGIN_QUEUE, ORIGIN_ROWS) else 0
        if row.kind not in _PASSED or row.last < row.first or end - row.row_offset != count:
            got = f"{end - row.row_offset} rows of kind {row.kind}"
            raise PermanentError(f"expected as many rows of {row.id!r} as positions {row.first}-{row.last}, got {got}")
        by_queue.setdefault(row.id.partition("/")[0], []).append((row, end))
    for queue_id, parts in by_queue.items():
        yield from _stretch(queue_id, parts, batch, held(queue_id))


def _stretch(queue_id: str, parts: list[tuple[Origin, int]], batch: pa.RecordBatch, held: int | None) -> Iterator[Stretch]:
    batches: list[pa.RecordBatch] = []
    names: list[Origin] = []
    holes: list[Missing] = []
    first, row = 0, 0
    for part, _ in parts:
        if held is not None and part.first > held + 1:
            raise TransientError(f"positions {held + 1}-{part.first - 1} of queue {queue_id} neither came nor were declared missing")
        begin = part.first if held is None else max(part.first, held + 1)
        held = part.last if held is None else max(held, part.last)
        if begin > part.last:
            continue
        first = first or begin
        if part.kind == ORIGIN_MISSING:
            holes.append(Missing(begin, part.last, (part.note or b"").decode(errors="replace")))
            continue
        size = part.last - begin + 1
        batches.append(batch.slice(part.row_offset + begin - part.first, size))
        names.append(part._replace(first=begin, row_offset=row))
        row += size
    if not first:
        return
    assert held is not None
    rows = batches[0] if len(batches) == 1 else pa.concat_batches(batches) if batches else None
    yield Stretch(queue_id, first, held, rows, origin_batch(names) if names else NO_ORIGINS, tuple(holes))
