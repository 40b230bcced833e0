"""What bench_storage.py measures in this process: the pipeline with its context, and the lake."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace import NO_ORIGINS, RangeKey
from headrace.config import Engine
from headrace.engine.enrichment import merge_context
from headrace.engine.pipeline import Pipeline
from headrace.engine.types_file import TypesFile
from headrace.hookspecs import QueueRead
from headrace.log import Log
from headrace.metrics import Metrics
from headrace.schema import RAW_SCHEMA
from headrace.testing import fake_context
from headrace_enricher_context import EnricherContext
from headrace_enricher_context.config import ContextConfig, default_columns
from headrace_enricher_context.held import KEY, Held
from headrace_sink_lake import LakeConfig, SinkLake
from headrace_sink_lake.encoding import leaves, parquet_options

BATCH_ROWS = 10_000
ROLL_ROWS = 500_000
#: Of a batch in which each device has sent 16 events at once.
DEVICES_REPEATED = 625
QUEUE_ID = "5f0c7e4a-0000-4000-8000-00000000feed"
START_S = 1_795_435_200


@dataclass
class PipelineFigures:
    """ns of the processor an event, of each round: decoded and enriched, the join alone (of 10,000 devices, and of 625),
    and other batches by name."""

    whole: list[float] = field(default_factory=list)
    join: list[float] = field(default_factory=list)
    join_repeated: list[float] = field(default_factory=list)
    others: dict[str, list[float]] = field(default_factory=dict)
    bytes_per_device: float = 0.0


@dataclass
class LakeFigures:
    """ns/event of each round, of the processor and by the clock, and the size of what was written; `parquet_ns`: pyarrow's
    writer alone, that puts the rows of these files, ready as they are, into memory with the same options."""

    ns: list[float] = field(default_factory=list)
    wall_ns: list[float] = field(default_factory=list)
    parquet_ns: list[float] = field(default_factory=list)
    bytes_per_event: float = 0.0


class Joined:
    """The place of the engine's Enricher: the component, without supervision."""

    id = "context"

    def __init__(self, component: EnricherContext) -> None:
        self.component = component

    async def add_context(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, dict[int, str]]:
        return merge_context(batch, self.component.enrich(batch)), {}


def readings(number: int) -> dict[str, Any]:
    """One event, about 130 bytes of JSON."""
    return {
        "ts": START_S + number / 100, "temperature": 21.5 + number % 7, "humidity": 40.25, "pressure": 1013.2, "battery": 3.71,
        "seq": number, "status": "ok", "door": False,
    }  # fmt: skip


def device_of(number: int) -> int:
    """Which of the lake's 5,000 devices sent the event: each two in a batch."""
    batch, row = divmod(number, BATCH_ROWS)
    return (row * 7 + batch) % 5000


def drifting(number: int) -> dict[str, Any]:
    """The same as a sensor sends it: it drifts through the day and is noisy in its last digits. The same number, the same event."""
    day = 2 * math.pi * number / 100 / 86_400
    noise = random.Random(number).gauss
    return {
        "ts": START_S + number / 100 + round(noise(0, 0.002), 3),
        "temperature": round(21.5 + device_of(number) / 500 + 4 * math.sin(day) + noise(0, 0.05), 2),
        "humidity": round(40.25 - 9 * math.sin(day) + noise(0, 0.3), 2),
        "pressure": round(1013.2 + 6 * math.sin(day / 3) + noise(0, 0.08), 1),
        "battery": round(3.71 - number * 1e-9 + noise(0, 0.005), 3),
        "seq": number, "status": "ok" if noise(0, 1) < 2.5 else "calibrating", "door": noise(0, 1) > 2,
    }  # fmt: skip


def nested(number: int) -> dict[str, Any]:
    """The same with a position below a name of its own."""
    return {**readings(number), "gps": {"lat": 52.1, "lon": 4.3 + number % 5}}


def of_classes(number: int) -> dict[str, Any]:
    """Of 20 classes of devices, each with readings of its own."""
    kind = number % 20
    return {"ts": START_S + number // 100, "seq": number, **{f"c{kind}.{index}": number * 0.5 for index in range(5)}}


def clashing(number: int) -> dict[str, Any]:
    """One event in a hundred has a text where the others have a number."""
    return {**readings(number), **({"humidity": "n/a"} if number % 100 == 7 else {})}


def raw(event: Callable[[int], dict[str, Any]], devices: list[str], first: int = 0) -> pa.RecordBatch:
    """One read of the queue: the events from number `first` on, received when they say that they were."""
    numbers = range(first, first + BATCH_ROWS)
    received = pa.array(np.array(numbers) * 10_000 + START_S * 1_000_000, pa.int64()).cast(pa.timestamp("us", "UTC"))
    payloads = pa.array([json.dumps(event(number)).encode() for number in numbers], pa.binary())
    return pa.RecordBatch.from_arrays([pa.array(devices), received, pa.array([1] * BATCH_ROWS, pa.uint8()), payloads], schema=RAW_SCHEMA)


def context_of(folder: Path, count: int) -> EnricherContext:
    """A component that holds so many devices."""
    component = EnricherContext(ContextConfig(), fake_context(folder, id="context", plugin="enricher_context"))
    numbers = np.arange(count)
    kinds, sites = np.array(["thermometer", "pump", "meter", "gateway"]), np.array([f"site-{number}" for number in range(200)])
    columns = {
        "class": kinds[numbers % 4], "type": np.char.add(kinds[numbers % 4], "-3"), "site": sites[numbers % 200],
        "latitude": 45 + numbers % 90 / 10, "longitude": 8 + numbers % 70 / 10,
    }  # fmt: skip
    table = pa.table([pa.array([f"sensor-{number:08}" for number in range(count)]), *map(pa.array, columns.values())], [KEY, *columns])
    component._held = Held(table, component.enrich_fields())
    assert list(columns) == list(default_columns())
    return component


def make_pipeline(folder: Path, component: EnricherContext) -> Pipeline:
    """What lies between a tier's queue and its outputs."""
    engine = Engine()
    enrichers: Any = [Joined(component)]
    types_file = TypesFile(folder / "readings.json", engine.readings_max)
    made = Pipeline(None, [], enrichers, engine, types_file, _Nowhere(), Metrics(), Log("bench"))
    made.ready.set()
    return made


class _Nowhere:
    """Nothing is refused here."""

    async def add(self, *refused: Any) -> None:
        raise AssertionError(refused)


def read_of(batch: pa.RecordBatch, first: int = 1) -> QueueRead:
    return QueueRead(QUEUE_ID, first, first + batch.num_rows - 1, batch, NO_ORIGINS, ())


def pipeline(folder: Path, rounds: int, devices: int) -> PipelineFigures:
    """Measure decoding and enriching."""
    component = context_of(folder / "context", devices)
    chosen = np.random.default_rng(1).choice(devices, BATCH_ROWS, replace=devices < BATCH_ROWS)
    names = [f"sensor-{number:08}" for number in chosen.tolist()]
    figures = PipelineFigures(bytes_per_device=component._held.nbytes / devices)
    reads = {name: read_of(raw(event, names)) for name, event in _BATCHES.items()}
    joins = (
        (pa.array(names), figures.join),
        (pa.array(names[:DEVICES_REPEATED] * (BATCH_ROWS // DEVICES_REPEATED)), figures.join_repeated),
    )

    async def measure() -> None:
        # each of a tier of its own: what a pipeline expects follows from what came before
        tiers = {name: make_pipeline(new_folder(folder, name), component) for name in reads}
        for name, event_read in reads.items():
            for _ in range(2):  # names of readings are new once
                await tiers[name].events(event_read)
        for _ in range(rounds):
            for name, event_read in reads.items():
                into = figures.whole if name == _PLAIN else figures.others.setdefault(name, [])
                started = time.process_time_ns()
                await tiers[name].events(event_read)
                into.append((time.process_time_ns() - started) / BATCH_ROWS)
            for ids, taken in joins:
                started = time.process_time_ns()
                component._held.join(ids)
                taken.append((time.process_time_ns() - started) / BATCH_ROWS)

    asyncio.run(measure())
    return figures


def new_folder(parent: Path, name: str) -> Path:
    """A folder of that name, made."""
    made = parent / name
    made.mkdir()
    return made


_PLAIN = "plain"
_BATCHES: dict[str, Callable[[int], dict[str, Any]]] = {
    _PLAIN: readings,
    "nested objects": nested,
    "20 classes in turn": of_classes,
    "a clash in 100": clashing,
}


def lake(folder: Path, rounds: int, event: Callable[[int], dict[str, Any]] = drifting) -> LakeFigures:
    """Measure the lake: batches of 10,000 decoded and enriched events, until they are in committed files."""
    component = context_of(folder / "context", 100_000)
    made = make_pipeline(folder, component)
    count = ROLL_ROWS // BATCH_ROWS
    batches = []

    async def prepare() -> None:
        for number in range(count):
            names = [f"sensor-{device_of(number * BATCH_ROWS + row):08}" for row in range(BATCH_ROWS)]
            batch = raw(event, names, number * BATCH_ROWS)
            events = await made.events(read_of(batch, number * BATCH_ROWS + 1))
            batches.append(events.batch)

    asyncio.run(prepare())
    figures = LakeFigures()
    for number in range(rounds):
        path = folder / f"lake{number}"

        async def write(path: Path = path) -> tuple[float, float]:
            sink = SinkLake(LakeConfig(path=str(path)), fake_context(folder / f"{path.name}-data", id="lake", plugin="sink_lake"))
            await sink.open()
            started, cpu = time.perf_counter_ns(), time.process_time_ns()
            for index, batch in enumerate(batches):
                await sink.sink_write(batch, RangeKey(QUEUE_ID, index * BATCH_ROWS + 1, (index + 1) * BATCH_ROWS))
            await sink.sink_flush(RangeKey(QUEUE_ID, 1, ROLL_ROWS))
            took = time.process_time_ns() - cpu, time.perf_counter_ns() - started
            await sink.close()
            return took[0] / ROLL_ROWS, took[1] / ROLL_ROWS

        cpu, wall = asyncio.run(write())
        figures.ns.append(cpu)
        figures.wall_ns.append(wall)
        files = list(path.glob("class=*/**/*.parquet"))
        rows = sum(pq.read_metadata(file).num_rows for file in files)
        if rows != ROLL_ROWS:
            raise AssertionError(f"expected {ROLL_ROWS} rows in the lake, got {rows}")
        figures.bytes_per_event = sum(file.stat().st_size for file in files) / ROLL_ROWS
        figures.parquet_ns.append(_parquet_alone(files))
    return figures


def _parquet_alone(files: list[Path]) -> float:
    """ns/event of pyarrow's writer for the rows of these files: below it no sink comes that writes with it."""
    defaults = LakeConfig()
    taken = 0
    for file in files:
        texts = [leaf for leaf in leaves(pq.read_schema(file)) if leaf in _TEXTS]
        rows = pq.read_table(file, partitioning=None, read_dictionary=texts).combine_chunks()
        started = time.process_time_ns()
        options = parquet_options(rows, defaults.compression_level)
        with pq.ParquetWriter(pa.BufferOutputStream(), rows.schema, store_schema=False, **options) as writer:
            writer.write_table(rows, row_group_size=defaults.row_group_rows)
        taken += time.process_time_ns() - started
    return taken / ROLL_ROWS


_TEXTS = {"device", "readings.status", "context.class", "context.type", "context.site"}
