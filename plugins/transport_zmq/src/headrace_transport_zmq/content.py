"""What is in DATA frames, on its way into the tier: looked at, and joined into one batch with its origins. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import pyarrow as pa

from headrace import Origin, origin_batch
from headrace.position import ORIGIN_MISSING, Named, pack_name, rows_origin
from headrace.scattered import Scattered
from headrace_transport_zmq import wire
from headrace_transport_zmq.receiver import Staged, Taken
from headrace_transport_zmq.wire import Frame


def take(frame: Frame) -> Taken:
    """What is in a DATA frame; MalformedError when it is not what a queue takes."""
    wire.check_range(frame)
    missing = wire.unpack_missing(frame)
    return Taken(wire.unpack_batch(frame), missing, wire.unpack_origins(frame), wire.unpack_rows(frame, missing))


def joined(group: Sequence[Staged]) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """One batch of all, and the origins that name each row's lane and position, with the gaps that were declared."""
    origins: list[Origin] = []
    row = 0
    for staged in group:
        if staged.taken.rows is not None:
            row += _scattered(origins, staged, row, staged.taken.rows)
            continue
        begin, position = row, staged.first
        names = deque(staged.taken.named)
        for hole in staged.taken.missing:
            row += _rows(origins, staged.peer.origin, position, hole.first - 1, row, names, begin)
            origins.append(Origin(staged.peer.origin, hole.first, hole.last, row, ORIGIN_MISSING, hole.reason.encode()))
            position = hole.last + 1
        row += _rows(origins, staged.peer.origin, position, staged.last, row, names, begin)
    batches = [staged.taken.batch for staged in group]
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches), origin_batch(origins)


def _scattered(origins: list[Origin], staged: Staged, row: int, rows: Scattered) -> int:
    """The same for rows that say themselves which positions they are: one origin for all of them between two gaps."""
    lane, begin, position = staged.peer.origin, row, staged.first
    for hole in (*staged.taken.missing, None):
        last = staged.last if hole is None else hole.first - 1
        if position <= last:
            part = rows.part(rows.rows(position, last))
            origins.append(rows_origin(lane, position, last, row, part))
            row += len(part.positions)
        if hole is not None:
            origins.append(Origin(lane, hole.first, hole.last, row, ORIGIN_MISSING, hole.reason.encode()))
            position = hole.last + 1
    return row - begin


def _rows(origins: list[Origin], lane: str, first: int, last: int, row: int, names: deque[Named], begin: int) -> int:
    """Positions first..last of a lane, which are rows `row`.. of the batch: an origin for each run of one name. `names` are those of
    the rows from `begin` on; what is used up is taken away. Gives how many rows they are."""
    end = row + last - first + 1
    at = row
    while at < end:
        while names and begin + names[0].row_offset + names[0].rows <= at:
            names.popleft()
        name = names[0] if names else None
        starts = begin + name.row_offset if name is not None else end
        stop = min(end, starts) if name is None or at < starts else min(end, starts + name.rows)
        position, note = first + at - row, None
        if name is not None and at >= starts:
            note = pack_name(name.queue_id, name.first + at - starts - position)
        origins.append(Origin(lane, position, position + stop - at - 1, at, note=note))
        at = stop
    return max(0, end - row)
