"""One reading of the database: rows become columns, and what was wrong with single rows is counted."""

from __future__ import annotations

import datetime
import math
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headrace_enricher_context.cells import BadCell, BeyondPython, to_column
from headrace_enricher_context.config import Column, ContextConfig
from headrace_enricher_context.database import Database, Since, Source, Unavailable
from headrace_enricher_context.held import Held, read_schema

#: So many of the bad cells are named in the log; all are counted.
NAMED_MAX = 3


@dataclass
class Reading:
    """A context, how many rows had which problem, and the first of them in words.

    rows: how many were read. mark: the greatest value of `updated_column`, and no time after the one at which it was read.
    """

    held: Held
    problems: Counter[str] = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)
    rows: int = 0
    mark: Any = None


def read_context(
    database: Database,
    config: ContextConfig,
    fields: pa.Schema,
    stop: threading.Event,
    before: Reading | None = None,
    begun_s: float = math.inf,
) -> Reading:
    """Read all devices, or those that changed since the reading `before`, and what it holds of the others.

    begun_s: the wall time at which it began.

    Blocking. Raises `Unavailable`; `stop` ends it between two chunks.
    """
    reading = Reading(before.held if before else Held.empty(fields), mark=before.mark if before else None)
    table = pa.Table.from_batches(_chunks(database, config, fields, stop, reading, before is not None), read_schema(fields))
    try:
        held = before.held.with_rows(table) if before else Held(table, fields)
    except pa.ArrowException as error:  # a text column of more than 2 GiB
        raise Unavailable(f"{database.name}: {reading.rows} rows do not fit: {error}; read less by `query`") from error
    if len(held) > config.devices_max:
        raise _too_many(database, config)
    if before is None:
        reading.problems["duplicate"] += held.replaced
    reading.held, reading.mark = held, _believed(reading.mark, begun_s)
    return reading


def _chunks(
    database: Database, config: ContextConfig, fields: pa.Schema, stop: threading.Event, reading: Reading, changed: bool
) -> Iterator[pa.RecordBatch]:
    """The rows as batches of Arrow; `reading` is told of their number, mark and problems."""
    names = source_columns(config)
    since = Since(config.updated_column, _earlier(reading.mark, config.updated_overlap_s)) if changed else None
    schema = read_schema(fields)
    for values in database.rows(Source(config.table, config.query, config.key), names, stop, since):
        reading.rows += len(values[0])
        if reading.rows > config.devices_max:
            raise _too_many(database, config)
        if config.updated_column:
            reading.mark = _latest(reading.mark, values[-1], database, config)
        keys, bad_keys = to_column(values[0], "string")
        arrays = [keys]
        for (name, column), cells in zip(config.columns.items(), values[1:], strict=False):
            array, bad = to_column(cells, column.type)
            arrays.append(array)
            reading.problems["bad_cell"] += len(bad)
            reading.named += _words(bad, name, column, keys)[: NAMED_MAX - len(reading.named)]
        reading.problems["bad_cell"] += len(bad_keys)
        reading.problems["no_key"] += keys.null_count
        chunk = pa.RecordBatch.from_arrays(arrays, schema=schema)
        yield chunk.filter(pc.is_valid(keys)) if keys.null_count else chunk


def _too_many(database: Database, config: ContextConfig) -> Unavailable:
    return Unavailable(f"{database.name}: more than {config.devices_max} rows; raise `devices_max`, or read fewer by `query`")


def _latest(mark: Any, values: Sequence[Any], database: Database, config: ContextConfig) -> Any:
    """The greatest of `mark` and what stands in `updated_column`; times that Python does not know, such as infinity, do not count."""
    known = [value for value in values if value is not None and not isinstance(value, BeyondPython)]
    there = [value.decode(errors="replace") if isinstance(value, bytes) else value for value in known]
    try:
        return max(there if mark is None else [mark, *there], default=None)
    except TypeError:
        kinds = ", ".join(sorted({type(value).__name__ for value in there}))
        problem = f"expected values that can be compared in the updated_column {config.updated_column!r}, got {kinds}"
        raise Unavailable(f"{database.name}: {problem}") from None


def _believed(mark: Any, begun_s: float) -> Any:
    """The mark, or the time of the reading where a row bears a later one: behind a row of the year 9999 no change would be seen."""
    if not isinstance(mark, datetime.datetime) or math.isinf(begun_s):
        return mark
    begun = datetime.datetime.fromtimestamp(begun_s, datetime.UTC)
    if mark.tzinfo is not None:
        return min(mark, begun)
    # of a zone that is not known: from 12 hours behind UTC to 14 before it
    begun = begun.replace(tzinfo=None)
    return mark if mark <= begun + datetime.timedelta(hours=14) else begun - datetime.timedelta(hours=12)


def _earlier(mark: Any, overlap_s: float) -> Any:
    """From where to read: a change bears the time at which its transaction began, and may be seen only when that has ended."""
    return mark - datetime.timedelta(seconds=overlap_s) if isinstance(mark, datetime.datetime) else mark


def source_columns(config: ContextConfig) -> list[str]:
    """The columns to read: the key, then one per added field, then `updated_column`."""
    names = [config.key, *(column.source or name for name, column in config.columns.items())]
    return [*names, config.updated_column] if config.updated_column else names


def _words(bad: list[BadCell], name: str, column: Column, keys: pa.StringArray) -> list[str]:
    return [
        f"device {keys[cell.row].as_py()!r}, column {column.source or name!r}: expected {column.type}, got {cell.came}"
        for cell in bad[:NAMED_MAX]
    ]


def origin_of(config: ContextConfig) -> str:
    """How the fields are made, as a text that is equal for equal answers."""
    columns = (f"{name}={column.source or name}:{column.type}" for name, column in config.columns.items())
    return "\n".join([config.query or config.table, config.key, *columns])
