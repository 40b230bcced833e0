"""What the tests of enricher_context share: components over a database, batches, waiting."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from headrace import Clock
from headrace.config import Secret
from headrace.engine.enrichment import check_added
from headrace.testing import FakeClock, FakeContext, event_batch, fake_context
from headrace_enricher_context import EnricherContext
from headrace_enricher_context.cells import ARROW_TYPES
from headrace_enricher_context.config import ContextConfig, default_columns
from headrace_enricher_context.held import KEY, Held

FIELDS = pa.schema([pa.field(name, ARROW_TYPES[column.type]) for name, column in default_columns().items()])
DEVICES_SQL = "CREATE TABLE devices (device TEXT PRIMARY KEY, class TEXT, type TEXT, site TEXT, latitude REAL, longitude REAL)"

Row = tuple[Any, ...]


def sqlite_url(path: Path) -> str:
    return f"sqlite:///{path}"


def sql(path: Path, *statements: str) -> None:
    """Run statements in one transaction of a SQLite file."""
    with sqlite3.connect(path, isolation_level=None, timeout=30) as connection:
        connection.execute("BEGIN IMMEDIATE")
        for statement in statements:
            connection.execute(statement)
        connection.execute("COMMIT")
    connection.close()


def devices(path: Path, rows: Iterable[Row]) -> None:
    """A SQLite file with the table of the defaults and these rows."""
    with sqlite3.connect(path) as connection:
        connection.execute(DEVICES_SQL)
        connection.executemany("INSERT INTO devices VALUES (?, ?, ?, ?, ?, ?)", rows)
    connection.close()


def row(device: str, **values: Any) -> Row:
    known = {"class": "meter", "type": "t", "site": "hall", "latitude": 1.5, "longitude": 2.5, **values}
    return (device, *(known[name] for name in FIELDS.names))


def enricher(
    url: str, folder: Path, *, clock: Clock | None = None, faults: str = "", **options: Any
) -> tuple[EnricherContext, FakeContext]:
    """A component, not open, over `url`, whose private directory is `folder`; and its context."""
    context = fake_context(folder, clock=clock, faults=faults, id="context", plugin="enricher_context")
    return EnricherContext(ContextConfig(database=Secret(url), **options), context), context


def added(component: EnricherContext, *names: str) -> list[dict[str, Any]]:
    """What one event of each device gets."""
    batch = component.enrich(batch_of(names))
    check_added("enricher_context", batch, batch, component.enrich_fields())
    rows: list[dict[str, Any]] = batch.to_pylist()
    return rows


def classes(component: EnricherContext, *names: str) -> list[Any]:
    return [one["class"] for one in added(component, *names)]


def batch_of(names: Sequence[str]) -> pa.RecordBatch:
    """An event batch with one event per name, in this order."""
    return event_batch(len(names), 0, devices=names) if names else event_batch(0)


def held_of(keys: Sequence[str], **columns: Sequence[Any]) -> Held:
    """A context of these devices; the fields are the columns' inferred types."""
    arrays = {name: pa.array(values) for name, values in columns.items()}
    fields = pa.schema([pa.field(name, array.type) for name, array in arrays.items()])
    return Held(pa.table([pa.array(keys, pa.string()), *arrays.values()], [KEY, *arrays]), fields)


async def until(condition: Callable[[], bool], clock: FakeClock | None = None, timeout_s: float = 20.0) -> None:
    """Wait for what another thread brings about, with `clock` running; TimeoutError when it does not."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the condition did not come true")
        if clock is not None:
            await clock.advance(1)
        await asyncio.sleep(0.005)


def readings(context: FakeContext) -> float:
    """How many readings have ended, well or not."""
    return (context.metric("enrich_refresh_total") or 0) + (context.metric("enrich_refresh_failures_total") or 0)


async def next_reading(clock: FakeClock, context: FakeContext, seconds: float) -> None:
    """Move the clock on, and wait for the end of the reading that this brings about."""
    before = readings(context)
    await clock.advance(seconds)
    await until(lambda: readings(context) > before)
