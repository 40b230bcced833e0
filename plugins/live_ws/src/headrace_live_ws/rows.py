"""Rows out of batches, and batches put together: the two moves that keep per-batch costs down. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from headrace_live_ws.filters import Rows

#: `join` leaves at most about so many batches of different schemas side by side, where their types allow it.
PIECES_MAX: Final = 32


def take(batches: Sequence[pa.RecordBatch], rows: Rows) -> list[pa.RecordBatch]:
    """Copies of the given rows (ascending, counted through all batches), as one batch for each batch that has some."""
    taken = []
    offset = 0
    for batch in batches:
        begin, end = np.searchsorted(rows, (offset, offset + batch.num_rows))
        if end > begin:
            taken.append(batch.take(pa.array(rows[begin:end] - offset)))
        offset += batch.num_rows
    return taken


def join(batches: Sequence[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """The same rows in fewer batches: neighbours of one schema always, others once there are too many pieces."""
    joined = _join_runs(batches, lambda one, other: one if one.equals(other) else None)
    return joined if len(joined) <= PIECES_MAX else _join_runs(joined, _unified)


def _join_runs(batches: Sequence[pa.RecordBatch], common: Callable[[pa.Schema, pa.Schema], pa.Schema | None]) -> list[pa.RecordBatch]:
    runs: list[list[pa.RecordBatch]] = []
    schema: pa.Schema | None = None
    for batch in batches:
        shared = common(schema, batch.schema) if schema is not None else None
        if shared is None:
            runs.append([])
        runs[-1].append(batch)
        schema = shared if shared is not None else batch.schema
    return [run[0] if len(run) == 1 else _concat(run) for run in runs]


def _unified(one: pa.Schema, other: pa.Schema) -> pa.Schema | None:
    try:
        return pa.unify_schemas([one, other], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return None  # a reading that is text here and a number there


def _concat(run: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    if all(batch.schema.equals(run[0].schema) for batch in run):
        table = pa.Table.from_batches(run)
    else:
        table = pa.concat_tables([pa.Table.from_batches([batch]) for batch in run], promote_options="permissive")
    return table.combine_chunks().to_batches()[0]
