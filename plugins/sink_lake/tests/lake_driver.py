"""Helpers of the tests, and a small host: `main`, with the arguments LAKE QUEUE_ID TOTAL ROLL SEED [FAULT [NTH]].

As a process of its own it writes events 1..TOTAL of one queue id from the lake's resume point on, in rolls of about ROLL events, and
kills itself at the NTH time that FAULT is reached. It prints `done` at the end.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from headrace import Context, Missing, RangeKey, TransientError, event_schema
from headrace.component import SystemClock
from headrace.log import Log
from headrace.metrics import Metrics
from headrace.position import join_keys, row_positions
from headrace.schema import ORIGIN_TYPE
from headrace_sink_lake import CommitRecord, LakeConfig, SinkLake

START_US = 1_790_000_000_000_000
CLASSES = ("thermostat", "meter", "door", None)


def make_context(folder: Path, fault: Callable[[str], None] = lambda name: None) -> Context:
    folder.mkdir(parents=True, exist_ok=True)
    statuses: list[tuple[str, str]] = []
    context = Context(
        id="lake",
        tier="site",
        plugin="sink_lake",
        log=Log("test"),
        metrics=Metrics(component="lake"),
        clock=SystemClock(),
        random=random.Random(1),
        data_dir=folder,
        fault=fault,
        status=lambda status, reason: statuses.append((status, reason)),
    )
    context.statuses = statuses  # type: ignore[attr-defined]
    return context


def make_lake(path: Path | str, fault: Callable[[str], None] = lambda name: None, data: Path | None = None, **options: Any) -> SinkLake:
    """A lake at `path`; its component's own folder is `data`, or beside it."""
    return SinkLake(LakeConfig(path=str(path), **options), make_context(data or Path(f"{path}-data"), fault))


def events(
    key: RangeKey,
    readings: dict[str, Any] | None = None,
    context: dict[str, Any] | None = None,
    times: Any = None,
) -> pa.RecordBatch:
    """A batch for `key`: one event a position, an hour apart, of the classes in turn; or with the given struct children."""
    positions = row_positions(key.first, key.last, key.missing)
    positions = positions[~np.isin(positions, np.array(key.dead, dtype=np.uint64))]
    count = len(positions)
    when = pa.array(START_US + positions.astype(np.int64) * 600_000_000 if times is None else times, pa.timestamp("us", "UTC"))
    if readings is None:
        readings = {"n": positions.astype(np.float64)}
    if context is None:
        context = {"class": [CLASSES[int(p) % len(CLASSES)] for p in positions], "site": ["s1"] * count}
    structs = [_struct(children, count) for children in (readings, context)]
    return pa.RecordBatch.from_arrays(
        [
            pa.array([f"dev-{int(p) % 7}" for p in positions], pa.string()),
            when,
            when,
            *structs,
            pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([key.queue_id])).cast(ORIGIN_TYPE),
            pa.array(positions),
        ],
        schema=event_schema(structs[0].type, structs[1].type),
    )


def _struct(children: dict[str, Any], count: int) -> pa.StructArray:
    arrays = [value if isinstance(value, pa.Array) else pa.array(value) for value in children.values()]
    if not arrays:
        return pa.array([{}] * count, pa.struct([]))
    return pa.StructArray.from_arrays(arrays, list(children))


async def store(lake: SinkLake, key: RangeKey, *batches: tuple[RangeKey, pa.RecordBatch]) -> None:
    """Write and flush one roll."""
    for part, batch in batches or ((key, events(key)),):
        await lake.sink_write(batch, part)
    await lake.sink_flush(key)


def read(path: Path | str, sql: str = "select * from lake order by position") -> list[tuple[Any, ...]]:
    """What DuckDB sees in the lake."""
    import duckdb

    if not any(Path(path).glob("**/*.parquet")):
        return []
    with duckdb.connect() as database:
        lake = f"read_parquet('{path}/**/*.parquet', hive_partitioning=true, union_by_name=true)"
        return database.sql(f"with lake as (select * from {lake}) {sql}").fetchall()


def positions(path: Path | str) -> list[int]:
    return [row[0] for row in read(path, "select position from lake order by 1")]


def held(path: Path | str, queue_id: str) -> tuple[list[int], list[int]]:
    """The positions of that queue id that DuckDB finds, and those that the commit records declare missing or dead."""
    found = [row[0] for row in read(path, f"select position from lake where origin = '{queue_id}' order by 1")]
    absent: list[int] = []
    for file in sorted(Path(path).glob(f"_commits/{queue_id}/0*.json")):
        record = msgspec.json.decode(file.read_bytes(), type=CommitRecord)
        spans = [(hole.first, hole.last) for hole in record.missing] + list(record.dead)
        absent += [position for first, last in spans for position in range(first, last + 1)]
        assert record.rows + sum(last - first + 1 for first, last in spans) == record.last - record.first + 1
    return found, sorted(absent)


async def drive(lake: SinkLake, queue_id: str, total: int, roll: int, seed: int, pause_s: float = 0.0) -> None:
    """What the host does: from the resume point on, write some batches, flush them; after an error reset and resume."""
    chance = random.Random(seed)
    await until_well(lake.open)
    position = await until_well(lambda: lake.sink_resume(queue_id)) or 0
    while position < total:
        end = min(total, position + chance.randint(1, 2 * roll))
        keys: list[RangeKey] = []
        for last in sorted({end, *(chance.randint(position + 1, end) for _ in range(2))}):
            first = keys[-1].last + 1 if keys else position + 1
            # The queue says what is missing: the same positions at every reading.
            gone = [Missing(p, p, "corrupt") for p in range(first, last + 1) if p % 11 == 0]
            keys.append(RangeKey(queue_id, first, last, tuple(gone), tuple(p for p in range(first, last + 1) if p % 13 == 1 and p % 11)))
        try:
            for key in keys:
                await lake.sink_write(events(key), key)
            await lake.sink_flush(join_keys(keys))
            position = end
            print("safe", position, flush=True)
            await asyncio.sleep(pause_s)
        except TransientError:
            await lake.sink_reset()
            position = await until_well(lambda: lake.sink_resume(queue_id)) or 0
    await lake.close()


async def until_well(call: Callable[[], Awaitable[Any]]) -> Any:
    """What the call returns, tried again for as long as it raises TransientError."""
    while True:
        try:
            return await call()
        except TransientError:
            await asyncio.sleep(0.1)


def main() -> None:
    path, queue_id, total, roll, seed, *rest = sys.argv[1:]
    left = int(rest[1]) if len(rest) > 1 else 1

    def fault(name: str) -> None:
        nonlocal left
        if rest and name == rest[0]:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    with tempfile.TemporaryDirectory() as data:
        lake = make_lake(path, fault, Path(data), partitions_max=100)
        asyncio.run(drive(lake, queue_id, int(total), int(roll), int(seed)))
    lake.context.close()
    print("done", flush=True)
