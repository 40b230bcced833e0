"""Files that are each in the order of device and time, joined to one such sequence in bounded memory. No I/O of its own."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from headrace_sink_lake import columns
from headrace_sink_lake.ordering import ordered

#: Rows that are read at a time, of all inputs together; twice as many may be held: 200 to 400 MB.
ROWS_HELD = 1 << 18


def batch_rows(inputs: int) -> int:
    """How many rows of each of so many inputs may be read at a time."""
    return max(256, ROWS_HELD // max(inputs, 1))


def merged(inputs: Sequence[Iterator[pa.RecordBatch]], schema: pa.Schema) -> Iterator[pa.Table]:
    """All rows of the inputs as tables of `schema`, in the order of device, time, and then the inputs.

    Each input is in the order of device and time, and its types are parts of the schema's.
    """
    sources = [_Source(rows, schema, batch_rows(len(inputs))) for rows in inputs]
    while sources := [source for source in sources if source.fill()]:
        # Whatever an input has still to give comes behind the last row that it has given.
        bound = min((source.last_key() for source in sources if not source.ended), default=None)
        taken = [source.take_upto(bound) for source in sources]
        rows = pa.concat_batches([batch for batch in taken if batch.num_rows])
        order, _ = ordered(rows, np.zeros(rows.num_rows, dtype=np.int64))
        yield pa.Table.from_batches([rows.take(pa.array(order))])


def mixed(positions: Any) -> Any:
    """Positions (uint64) scattered over 64 bits, so that sums over different sets of them differ (the finalizer of splitmix64)."""
    with np.errstate(over="ignore"):
        mixed = positions + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


class _Source:
    def __init__(self, rows: Iterator[pa.RecordBatch], schema: pa.Schema, wanted: int) -> None:
        self._rows, self._schema, self._wanted = rows, schema, wanted
        self._held: pa.RecordBatch | None = None
        self._following: pa.RecordBatch | None = self._read()
        self.ended = False

    def fill(self) -> bool:
        """Hold as many rows as are wanted; False when there are no more.

        With fewer, all inputs would wait for the one whose rows end first: a hundred inputs took ten times as long.
        """
        while self._following is not None and (self._held is None or self._held.num_rows < self._wanted):
            rest = [self._held] if self._held is not None and self._held.num_rows else []
            self._held = pa.concat_batches([*rest, self._following]) if rest else self._following
            self._following = self._read()
        self.ended = self._following is None
        return self._held is not None and self._held.num_rows > 0

    def _read(self) -> pa.RecordBatch | None:
        batch = next((batch for batch in self._rows if batch.num_rows), None)
        return None if batch is None else columns.aligned(batch, self._schema)

    def last_key(self) -> tuple[str, int]:
        assert self._held is not None
        return self._key(self._held.num_rows - 1)

    def _key(self, row: int) -> tuple[str, int]:
        assert self._held is not None
        return self._held.column(0)[row].as_py(), self._held.column(1)[row].value

    def take_upto(self, bound: tuple[str, int] | None) -> pa.RecordBatch:
        assert self._held is not None
        count = self._held.num_rows if bound is None else bisect_right(range(self._held.num_rows), bound, key=self._key)
        taken, self._held = self._held.slice(0, count), self._held.slice(count)
        return taken
