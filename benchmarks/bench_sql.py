"""Rows per second into PostgreSQL: sink_sql beside plain psycopg COPY into a table with the same columns and the same key.

Three writers take turns on one server of this run's own, `--runs` times each, into a fresh table:

- `plain, csv`: COPY of text that was rendered before the clock ran. Nothing in Python could be faster.
- `plain, rows`: `copy.write_row` with Python tuples that were made before the clock ran: how COPY is usually used.
- `sink_sql`: event batches as the host hands them over; rendering, the check of each value, the position in the same transaction.

All commit every `--flush-rows` rows. Afterwards each table must have every row once.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import machine
import psycopg
import pyarrow as pa
from pyarrow import csv

from headrace import RangeKey
from headrace.config import Secret
from headrace.testing import event_batch, fake_context
from headrace.testing.context import living
from headrace.testing.postgres import PostgresServer, find_programs
from headrace_sink_sql import SinkSql, SqlConfig
from headrace_sink_sql.layout import wanted
from headrace_sink_sql.rendering import render

BATCH_ROWS = 16_384
QUEUE_ID = "5f0c7e4a-0000-4000-8000-00000000beef"
BATCHES = list[pa.RecordBatch]


def batches(rows: int) -> BATCHES:
    """Events of a small sensor: three numbers, a boolean and a text, with a context of four fields."""
    made = []
    for first in range(1, rows + 1, BATCH_ROWS):
        count = min(BATCH_ROWS, rows + 1 - first)
        numbers = range(first, first + count)
        readings = {
            "temperature": [20 + number % 977 / 100 for number in numbers],
            "humidity": [40 + number % 313 / 10 for number in numbers],
            "battery": [3.0 + number % 97 / 100 for number in numbers],
            "open": [number % 7 == 0 for number in numbers],
            "state": [("idle", "heating", "off")[number % 3] for number in numbers],
        }
        context = {
            "class": ["thermostat"] * count,
            "site": [f"site-{number % 20}" for number in numbers],
            "latitude": [45.0 + number % 20 for number in numbers],
            "longitude": [-122.5] * count,
        }
        devices = [f"device-{number % 5000:05d}" for number in numbers]
        made.append(event_batch(count, first, devices=devices, readings=readings, context=context, origin=QUEUE_ID))
    return made


def create(server: PostgresServer, table: str) -> None:
    server.execute(
        f"drop table if exists {table}",
        f"create table {table} (device text not null, time timestamptz not null, received timestamptz not null, origin text not null, "
        "position bigint not null, readings jsonb, context jsonb, primary key (origin, position))",
        "checkpoint",
    )


def plain(
    server: PostgresServer, flush_rows: int, pieces: list[tuple[int, object]], copy_one: Callable[[psycopg.Copy, object], None], sql: str
) -> float:
    with psycopg.connect(server.url.replace("+psycopg", "")) as connection:
        started, since = time.perf_counter(), 0
        for rows, piece in pieces:
            with connection.cursor().copy(sql) as copy:
                copy_one(copy, piece)
            since += rows
            if since >= flush_rows:
                connection.commit()
                since = 0
        connection.commit()
        return time.perf_counter() - started


async def through_the_sink(server: PostgresServer, flush_rows: int, events: BATCHES, folder: Path) -> float:
    sink = SinkSql(SqlConfig(database=Secret(server.url), table="by_sink"), fake_context(folder))
    async with living(sink, "output") as hook:
        started, since = time.perf_counter(), 1
        for batch in events:
            positions = batch.column("position")
            key = RangeKey(QUEUE_ID, positions[0].as_py(), positions[-1].as_py())
            await hook.sink_write(batch=batch, key=key)
            if key.last - since + 1 >= flush_rows or batch is events[-1]:
                await hook.sink_flush(key=RangeKey(QUEUE_ID, since, key.last))
                since = key.last + 1
        return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--flush-rows", type=int, default=65_536)
    parser.add_argument("--out", type=Path, default=None, help="write the report there too")
    options = parser.parse_args()
    programs = find_programs()
    if programs is None:
        print("bench_sql: PostgreSQL is not installed", file=sys.stderr)
        return 2
    events = batches(options.rows)
    targets = wanted(SqlConfig()).targets
    rendered = [render(batch, targets) for batch in events]
    texts: list[tuple[int, object]] = []
    for batch in rendered:
        text = io.BytesIO()
        csv.write_csv(batch, text, csv.WriteOptions(include_header=False))
        texts.append((batch.num_rows, text.getvalue()))
    tuples: list[tuple[int, object]] = [
        (batch.num_rows, list(zip(*(column.to_pylist() for column in batch.columns), strict=True))) for batch in rendered
    ]

    def rows_one(copy: psycopg.Copy, piece: object) -> None:
        for row in piece:  # type: ignore[attr-defined]
            copy.write_row(row)

    server = PostgresServer.create(programs)
    figures: dict[str, list[float]] = {"plain, csv": [], "plain, rows": [], "sink_sql": []}
    try:
        server.start()
        for _ in range(options.runs):
            for name, seconds in figures.items():
                table = {"plain, csv": "by_csv", "plain, rows": "by_rows", "sink_sql": "by_sink"}[name]
                server.execute("drop table if exists headrace_positions")
                create(server, table)
                if name == "plain, csv":
                    took = plain(
                        server,
                        options.flush_rows,
                        texts,
                        lambda copy, piece: copy.write(piece),
                        f"copy {table} from stdin with (format csv)",
                    )  # type: ignore[arg-type]
                elif name == "plain, rows":
                    took = plain(server, options.flush_rows, tuples, rows_one, f"copy {table} from stdin")
                else:
                    with tempfile.TemporaryDirectory() as folder:
                        took = asyncio.run(through_the_sink(server, options.flush_rows, events, Path(folder)))
                seconds.append(options.rows / took)
                if server.execute(f"select count(*), count(distinct position) from {table}") != [(options.rows, options.rows)]:
                    print(f"bench_sql: {table} does not have every row once", file=sys.stderr)
                    return 1
    finally:
        server.remove()
    base = statistics.median(figures["plain, csv"])
    best = max(figures["plain, csv"])
    lines = ["| writer | rows/s (median) | runs | of plain csv, medians | of plain csv, best runs |", "|---|---|---|---|---|"]
    for name, each in figures.items():
        median = statistics.median(each)
        runs = ", ".join(f"{one:,.0f}" for one in sorted(each))
        lines.append(f"| {name} | {median:,.0f} | {runs} | {median / base:.2f} | {max(each) / best:.2f} |")
    report = "\n".join(
        [
            "# Rows into PostgreSQL\n",
            f"{options.rows:,} rows, committed every {options.flush_rows:,}; fsync = off, server and writer on the same cores.\n",
            *[f"- {name}: {value}" for name, value in machine.facts(Path(tempfile.gettempdir())).items()],
            "",
            *lines,
        ]
    )
    print(report)
    if options.out:
        options.out.write_text(report + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
