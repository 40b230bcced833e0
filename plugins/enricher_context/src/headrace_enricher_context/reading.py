"""One reading of the database: rows become columns, and what was wrong with single rows is counted."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from headrace_enricher_context.cells import BadCell, to_column
from headrace_enricher_context.config import Column, ContextConfig
from headrace_enricher_context.database import Database, Source, Unavailable
from headrace_enricher_context.held import Held, read_schema

#: So many of the bad cells are named in the log; all are counted.
NAMED_MAX = 3


@dataclass
class Reading:
    """A new context, how many rows had which problem, and the first of them in words."""

    held: Held
    problems: Counter[str] = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)


def read_context(database: Database, config: ContextConfig, fields: pa.Schema, stop: threading.Event) -> Reading:
    """Read all devices. Blocking. Raises `Unavailable`; `stop` ends it between two chunks."""
    problems: Counter[str] = Counter()
    named: list[str] = []
    schema = read_schema(fields)
    chunks = []
    count = 0
    for values in database.rows(Source(config.table, config.query, config.key), source_columns(config), stop):
        count += len(values[0])
        if count > config.devices_max:
            raise Unavailable(f"{database.name}: more than {config.devices_max} rows; raise `devices_max`, or read fewer by `query`")
        keys, bad_keys = to_column(values[0], "string")
        arrays = [keys]
        for (name, column), cells in zip(config.columns.items(), values[1:], strict=True):
            array, bad = to_column(cells, column.type)
            arrays.append(array)
            problems["bad_cell"] += len(bad)
            named += _words(bad, name, column, keys)[: NAMED_MAX - len(named)]
        problems["bad_cell"] += len(bad_keys)
        problems["no_key"] += keys.null_count
        chunk = pa.RecordBatch.from_arrays(arrays, schema=schema)
        chunks.append(chunk.filter(pc.is_valid(keys)) if keys.null_count else chunk)
    try:
        held = Held(pa.Table.from_batches(chunks, schema), fields)
    except pa.ArrowException as error:  # a text column of more than 2 GiB
        raise Unavailable(f"{database.name}: {count} rows do not fit: {error}; read less by `query`") from error
    problems["duplicate"] += held.replaced
    return Reading(held, problems, named)


def source_columns(config: ContextConfig) -> list[str]:
    """The columns to read: the key, then one per added field."""
    return [config.key, *(column.source or name for name, column in config.columns.items())]


def _words(bad: list[BadCell], name: str, column: Column, keys: pa.StringArray) -> list[str]:
    return [
        f"device {keys[cell.row].as_py()!r}, column {column.source or name!r}: expected {column.type}, got {cell.came}"
        for cell in bad[:NAMED_MAX]
    ]


def origin_of(config: ContextConfig) -> str:
    """How the fields are made, as a text that is equal for equal answers."""
    columns = (f"{name}={column.source or name}:{column.type}" for name, column in config.columns.items())
    return "\n".join([config.query or config.table, config.key, *columns])
