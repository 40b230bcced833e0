"""The stream of events that the crash tests store: what stands at a position follows from the position alone.

So a range that is read again after a crash has the same rows, as in a queue. Some positions are missing or dead-lettered, the
queue's id changes now and then, and the fields of `readings` come and go.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa

from headrace.hookspecs import QueueSpan
from headrace.position import Missing, RangeKey
from headrace.testing.batches import event_batch

#: Positions per queue id.
SPAN: Final = 300


def queue_id(position: int) -> str:
    """The id of the queue that names this position."""
    return f"5f0c7e4a-0000-4000-8000-{(position - 1) // SPAN:012x}"


def span_end(position: int) -> int:
    """The last position of the same queue id."""
    return ((position - 1) // SPAN + 1) * SPAN


def is_missing(position: int) -> bool:
    """Whether the queue has lost it: five in a row, now and then."""
    return position % 53 in range(20, 25)


def is_dead(position: int) -> bool:
    """Whether it lies in the dead letters."""
    return position % 29 == 7 and not is_missing(position)


def stored_positions(last: int) -> list[int]:
    """The positions up to `last` that a store must hold."""
    return [position for position in range(1, last + 1) if not is_missing(position) and not is_dead(position)]


def events(first: int, last: int) -> tuple[pa.RecordBatch, RangeKey]:
    """The batch and the key of a range, which must lie in one span."""
    positions = range(first, last + 1)
    kept = [position for position in positions if not is_missing(position) and not is_dead(position)]
    dead = tuple(position for position in positions if is_dead(position))
    key = RangeKey(queue_id(first), first, last, tuple(_holes(first, last)), dead)
    readings: dict[str, list[Any]] = {"n": [float(position) for position in kept]}
    if first // 40 % 3:
        readings["temperature"] = [None if position % 5 == 0 else position / 4 for position in kept]
    if first // 40 % 2:
        readings["state"] = [f"ok {position}" for position in kept]
    return event_batch(len(kept), origin=queue_id(first), positions=kept, readings=readings), key


def spans(cursor: int, head: int) -> list[QueueSpan]:
    """What a queue with this cursor may still hold: the id of the next position, and the one before."""
    first = max(1, span_end(cursor + 1) - 2 * SPAN + 1)
    found = []
    while first <= head:
        last = span_end(first)
        found.append(QueueSpan(queue_id(first), first, last if last < head else None))
        first = last + 1
    return found


def _holes(first: int, last: int) -> Iterator[Missing]:
    start = None
    for position in range(first, last + 2):
        missing = position <= last and is_missing(position)
        if missing and start is None:
            start = position
        elif not missing and start is not None:
            yield Missing(start, position - 1, "corrupt")
            start = None
