"""Positions, ranges and origins: how an event is named once it is durable. No I/O.

A position is a uint64 that counts events in one queue and is never reused. A queue takes a new id (a UUID) at the first
append after every open, so (queue id, position) names one event for good.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from headrace.scattered import Names, Scattered, pack_rows, unpack_rows
from headrace.schema import ORIGIN_TYPE

#: Where a part of a batch came from. kind: one of the ORIGIN_* numbers. id: queue id (of a link: `<queue id>/<lane>`) or
#: device session. first, last: positions in the origin, inclusive (for a session: message numbers). row_offset: the batch's
#: row at which this origin's rows begin; they end where the next origin's begin. note: for `missing` the reason, for a
#: session the refused message numbers with their codes (opaque to the queue), for a queue that did not take the rows first the
#: name that they have by the one that did (`pack_name`), for `rows` which of first..last are rows, and their names (`pack_rows`).
ORIGIN_SCHEMA: Final = pa.schema(
    [
        pa.field("kind", pa.uint8(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("first", pa.uint64(), nullable=False),
        pa.field("last", pa.uint64(), nullable=False),
        pa.field("row_offset", pa.uint32(), nullable=False),
        pa.field("note", pa.binary()),
    ]
)
ORIGIN_QUEUE: Final = 0
ORIGIN_SESSION: Final = 1
ORIGIN_MISSING: Final = 2
#: Some positions of a queue's first..last: the others are not missing, they are on other lanes. Holds for any part of first..last.
ORIGIN_ROWS: Final = 3


class Origin(NamedTuple):
    """Where some rows of a batch came from: one row of ORIGIN_SCHEMA.

    id: which origin. first, last: positions in it, inclusive. row_offset: the batch's row at which its rows begin; they end where those
    of the next origin do. kind: `ORIGIN_QUEUE` (another queue: one row for each position, those at or below the mark are dropped),
    `ORIGIN_SESSION` (a sender that counts as it likes, such as a device its messages: nothing is dropped), `ORIGIN_MISSING` (a
    declared gap of another queue: no rows). note: kept with the mark; of a session it is the source's own, of a gap its reason.
    """

    id: str
    first: int
    last: int
    row_offset: int = 0
    kind: int = ORIGIN_QUEUE
    note: bytes | None = None


class OriginMark(NamedTuple):
    """Everything of an origin up to `last` is held (of a session: or was refused); note: the bytes that came with `last`."""

    last: int
    note: bytes | None = None


def origin_batch(origins: Iterable[Origin]) -> pa.RecordBatch:
    """Origins as an Arrow batch of ORIGIN_SCHEMA, the form in which they cross hooks."""
    rows = list(origins)
    columns = [
        [row.kind for row in rows],
        [row.id for row in rows],
        [row.first for row in rows],
        [row.last for row in rows],
        [row.row_offset for row in rows],
        [row.note for row in rows],
    ]
    return pa.RecordBatch.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, ORIGIN_SCHEMA, strict=True)], schema=ORIGIN_SCHEMA
    )


NO_ORIGINS: Final = origin_batch(())


def origins_of(batch: pa.RecordBatch) -> list[Origin]:
    """The rows of an ORIGIN_SCHEMA batch, for code that looks at few of them."""
    return [Origin(row["id"], row["first"], row["last"], row["row_offset"], row["kind"], row["note"]) for row in batch.to_pylist()]


class Missing(NamedTuple):
    """Positions that a queue cannot give any more, both ends inclusive, and why (`corrupt`, `released`, `skipped`, ...)."""

    first: int
    last: int
    reason: str

    @property
    def size(self) -> int:
        """How many positions."""
        return self.last - self.first + 1


class RangeKey(NamedTuple):
    """A contiguous range of one queue's positions, both ends inclusive: what `key` means in the hooks of outputs.

    `str(key)` is `<queue id>/<first>-<last>`: the same range has the same text, whatever happened in between. Every
    position of it is a row of the batches that came with it, or lies in `missing`, or is in `dead` (dead-lettered). Where
    events are spread over several outputs, `share` (`pack_rows`, also of a larger range) says which of them may be rows here.
    """

    queue_id: str
    first: int
    last: int
    missing: tuple[Missing, ...] = ()
    dead: tuple[int, ...] = ()
    share: bytes | None = None

    def __str__(self) -> str:
        return f"{self.queue_id}/{self.first}-{self.last}"

    @property
    def size(self) -> int:
        """How many positions, rows or not."""
        return self.last - self.first + 1

    def positions(self) -> np.ndarray:
        """The positions (uint64) of the rows that came with it."""
        if self.share is None:
            found = row_positions(self.first, self.last, self.missing)
        else:
            shared = unpack_rows(self.share)
            found = without(shared.positions[shared.rows(self.first, self.last)], self.missing)
        return found[~np.isin(found, np.array(self.dead, np.uint64))] if self.dead else found

    def part(self, first: int, last: int) -> RangeKey:
        """The part between two positions, inclusive."""
        first, last = max(first, self.first), min(last, self.last)
        missing = tuple(
            hole._replace(first=max(hole.first, first), last=min(hole.last, last))
            for hole in self.missing
            if hole.first <= last and hole.last >= first
        )
        return RangeKey(self.queue_id, first, last, missing, tuple(p for p in self.dead if first <= p <= last), self.share)


def join_keys(keys: Sequence[RangeKey]) -> RangeKey:
    """One key over keys that follow each other in one queue without a hole. Which rows are whose is not said of the whole."""
    for before, after in itertools.pairwise(keys):
        if before.queue_id != after.queue_id or after.first != before.last + 1:
            raise ValueError(f"keys do not follow each other: {before} then {after}")
    missing = tuple(hole for key in keys for hole in key.missing)
    dead = tuple(position for key in keys for position in key.dead)
    return RangeKey(keys[0].queue_id, keys[0].first, keys[-1].last, missing, dead)


def slice_origins(origins: pa.RecordBatch, first: int, count: int) -> pa.RecordBatch:
    """The origins of rows first..first+count of a batch, with offsets that count from `first`."""
    listed = origins_of(origins)
    # what belongs to no row (a session's refusals, a gap) goes with the rows behind it
    ends = [origin.row_offset for origin in listed[1:]] + [first + count]
    kept = []
    for origin, end in zip(listed, ends, strict=True):
        low, high = max(origin.row_offset, first), min(end, first + count)
        if origin.kind in (ORIGIN_QUEUE, ORIGIN_ROWS):
            if low >= high:
                continue
            origin = _cut(origin, low - origin.row_offset, high - origin.row_offset)
        elif origin.row_offset < first or origin.row_offset >= first + count:
            continue
        kept.append(origin._replace(row_offset=low - first))
    return origin_batch(kept)


def _cut(origin: Origin, low: int, high: int) -> Origin:
    """Rows low..high of those of a queue origin."""
    if origin.kind == ORIGIN_QUEUE:
        return origin._replace(first=origin.first + low, last=origin.first + high - 1)
    scattered = rows_of(origin)
    return origin._replace(first=int(scattered.positions[low]), last=int(scattered.positions[high - 1]))


def rows_of(origin: Origin) -> Scattered:
    """The rows of an origin of kind `rows`. ValueError when its note is none."""
    scattered = unpack_rows(origin.note or b"")
    return scattered.part(scattered.rows(origin.first, origin.last))


def rows_origin(name: str, first: int, last: int, row_offset: int, scattered: Scattered) -> Origin:
    """Rows row_offset.. of a batch are these of first..last of an origin."""
    return Origin(name, first, last, row_offset, ORIGIN_ROWS, pack_rows(scattered))


def origins_of_rows(ids: Iterable[tuple[str, int]]) -> pa.RecordBatch:
    """The origins of a batch whose rows each have a global id (queue id, position) of their own."""
    return origin_batch(Origin(queue_id, position, position, row) for row, (queue_id, position) in enumerate(ids))


def drop_rows(origins: pa.RecordBatch, drop: Sequence[int], rows: int) -> pa.RecordBatch:
    """The origins of a batch of `rows` rows after the rows `drop` (ascending) were left out."""
    kept: list[Origin] = []
    begin = left = 0
    for end in (*drop, rows):
        if end > begin:
            part = origins_of(slice_origins(origins, begin, end - begin))
            kept += [origin._replace(row_offset=origin.row_offset + left) for origin in part]
            left += end - begin
        begin = end + 1
    return origin_batch(kept)


def row_positions(first: int, last: int, missing: Sequence[Missing]) -> np.ndarray:
    """The positions (uint64) of the rows of a read: first..last without the missing ones."""
    return without(np.arange(first, last + 1, dtype=np.uint64), missing)


def without(positions: np.ndarray, missing: Sequence[Missing]) -> np.ndarray:
    """The positions that are not missing."""
    for hole in missing:
        positions = positions[(positions < hole.first) | (positions > hole.last)]
    return positions


class Named(NamedTuple):
    """Rows row_offset.. of a batch, `rows` of them: they are positions first.. of `queue_id`, the first durable queue that took them."""

    row_offset: int
    rows: int
    queue_id: str
    first: int


def pack_name(queue_id: str, shift: int) -> bytes:
    """The note of a queue origin whose rows another queue had named before: position p of the origin is p + shift of `queue_id`.

    It holds for any part of the origin's rows, so that whoever cuts them leaves it alone.
    """
    return f"{queue_id}|{shift}".encode()


def _name_of(origin: Origin) -> tuple[str, int]:
    """Under which queue id the rows of a queue origin are named, and by how much their numbers differ from the origin's."""
    try:
        queue_id, _, shift = (origin.note or b"").decode().rpartition("|")
        return queue_id, int(shift)
    except ValueError:  # no name: a link's origin is `<queue id>/<lane>`, and the event is named by that queue
        return origin.id.partition("/")[0], 0


def named_rows(origins: pa.RecordBatch) -> list[Named]:
    """The rows that came from other queues, under their global names; ascending, those that follow each other as one."""
    found: list[Named] = []
    for origin in origins_of(origins) if origins.num_rows else ():
        if origin.kind != ORIGIN_QUEUE:
            continue
        queue_id, shift = _name_of(origin)
        rows, first = origin.last - origin.first + 1, origin.first + shift
        if found:
            last = found[-1]
            if (last.queue_id, last.first + last.rows, last.row_offset + last.rows) == (queue_id, first, origin.row_offset):
                found[-1] = last._replace(rows=last.rows + rows)
                continue
        found.append(Named(origin.row_offset, rows, queue_id, first))
    return found


def is_scattered(origins: pa.RecordBatch) -> bool:
    """Whether rows came by a link that carries only some of a queue's positions."""
    return bool(origins.num_rows) and bool((origins.column("kind").to_numpy() == ORIGIN_ROWS).any())


def row_names(queue_id: str, positions: np.ndarray, origins: pa.RecordBatch) -> Names:
    """The global ids of rows that lie at `positions` of queue `queue_id`.

    Rows that another durable queue numbered first keep that number; all others are named by this queue.
    """
    numbers = positions.copy()
    codes = np.zeros(len(positions), dtype=np.int32)
    names = {queue_id: 0}
    for named in named_rows(origins):
        rows = slice(named.row_offset, min(named.row_offset + named.rows, len(numbers)))
        codes[rows] = names.setdefault(named.queue_id, len(names))
        numbers[rows] = np.arange(named.first, named.first + len(numbers[rows]), dtype=np.uint64)
    if is_scattered(origins):
        for origin in origins_of(origins):
            if origin.kind == ORIGIN_ROWS:
                scattered = rows_of(origin)
                count = len(scattered.positions)
                found = scattered.names or Names((origin.id.partition("/")[0],), np.zeros(count, np.uint16), scattered.positions)
                rows = slice(origin.row_offset, min(origin.row_offset + count, len(numbers)))
                known = np.array([names.setdefault(name, len(names)) for name in found.ids], np.int32)
                codes[rows] = known[found.codes[: len(codes[rows])]]
                numbers[rows] = found.numbers[: len(numbers[rows])]
    return Names(tuple(names), codes, numbers)


def global_ids(queue_id: str, positions: np.ndarray, origins: pa.RecordBatch) -> tuple[pa.Array, pa.Array]:
    """The `origin` and `position` columns of rows that lie at `positions` of queue `queue_id`, see `row_names`."""
    names = row_names(queue_id, positions, origins)
    codes = pa.array(names.codes, ORIGIN_TYPE.index_type)
    return pa.DictionaryArray.from_arrays(codes, pa.array(names.ids, ORIGIN_TYPE.value_type)), pa.array(names.numbers)
