"""An engine in one loop, without threads: the buffer as queue, outputs and enrichers from test classes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headrace import NO_ORIGINS, Component, RangeKey, hookimpl
from headrace.batching import RawBatchBuilder
from headrace.component import SystemClock
from headrace.config import Engine, Entry, EntryKeys, OutputKeys
from headrace.engine.buffer import Buffer
from headrace.engine.dead_letters import DeadLetters
from headrace.engine.decoder import Decoder
from headrace.engine.enrichment import Enricher
from headrace.engine.outputs import Output, OutputServices
from headrace.engine.pipeline import Pipeline
from headrace.engine.quarantine import Quarantine
from headrace.engine.reading import RawReading
from headrace.engine.replaying import RefusedAgain, Replaying, ReplayQueue, quiet_services
from headrace.engine.supervisor import Services, Statuses, Supervised
from headrace.engine.types_file import TypesFile
from headrace.faults import Faults
from headrace.log import Log
from headrace.metrics import Metrics
from headrace.plugins import SitePlugins
from headrace.retry import Backoff


class EngineBench:
    """One tier's engine; `append` puts numbered events in, `run` drives outputs until all of them are drained."""

    def __init__(self, folder: Path, engine: Engine | None = None) -> None:
        self.engine = engine or Engine(read_wait_ms_max=0, retry_base_ms=1, retry_max_ms=2)
        self.clock = SystemClock()
        self.metrics = Metrics()
        log = Log("test")
        statuses = Statuses(self.clock, self.metrics, log, lambda row: None)
        self.services = Services(
            self.metrics, self.clock, random.Random(1), Faults(), folder, statuses, SitePlugins(log, self.metrics), lambda fact, facts: None
        )
        self.buffer: Any = Buffer("t", self.clock, holding=True)
        self.raw = RawReading(self.buffer, self.engine)
        self.letters = DeadLetters(folder / "dead.db", 1 << 20)
        self.quarantined: list[tuple[str, str, RangeKey, int]] = []
        self.quarantine = Quarantine(
            self.letters, self.clock, self.backoff(), self.metrics, log, lambda *told: self.quarantined.append(told)
        )
        self.folder = folder
        self._count = 0

    def backoff(self) -> Backoff:
        return Backoff(self.engine.retry_base_ms, self.engine.retry_max_ms, random.Random(1))

    def unit(self, plugin: type[Component], role: str = "output", **keys: Any) -> Supervised:
        keys_type = OutputKeys if role == "output" else EntryKeys
        if role == "output":
            keys = {"flush_interval_s": 0.02, **keys}
        entry = Entry(
            id=plugin.__name__.lower(),
            role=role,  # type: ignore[arg-type]
            use=plugin.__name__,
            path=f"tiers.t.{role}s.{plugin.__name__.lower()}",
            keys=keys_type(use=plugin.__name__, **keys),
            options={},
            plugin=plugin,
            config=plugin.Config(),
        )
        return Supervised(entry, "t", self.services)

    def shared(self, pipeline: Pipeline) -> OutputServices:
        return OutputServices(
            self.buffer, pipeline, self.raw, self.engine, self.quarantine, self.metrics, self.clock, self.services.faults, self.backoff,
            lambda: None,
        )  # fmt: skip

    def outputs(self, pipeline: Pipeline, kinds: Sequence[tuple[type[Output], Supervised]]) -> list[Output]:
        return [kind(unit, self.shared(pipeline)) for kind, unit in kinds]

    def replaying(self) -> Replaying:
        """The tier's replays; a new one stands for a process that was started again."""

        def services(queue: ReplayQueue, refused: RefusedAgain) -> tuple[OutputServices, Pipeline, RawReading]:
            pipeline, raw = self.pipeline(queue=queue, quarantine=refused), RawReading(queue, self.engine)
            return quiet_services(self.shared(pipeline), queue, pipeline, raw, refused), pipeline, raw

        return Replaying(
            self.letters, self.quarantine, self.clock, self.backoff, self.metrics, Log("test"), services,
            lambda output, shared: type(output)(output.unit, shared),
        )  # fmt: skip

    def pipeline(
        self, enrichers: Sequence[Supervised] = (), decoders: Sequence[Supervised] = (), queue: Any = None, quarantine: Any = None
    ) -> Pipeline:
        wrapped = [Enricher(unit, self.engine, self.clock, self.backoff()) for unit in enrichers]
        decoding = [Decoder(unit, self.engine, self.clock, self.backoff()) for unit in decoders]
        types_file = TypesFile(self.folder / "readings.json", self.engine.readings_max)
        parts = (self.engine, types_file, quarantine or self.quarantine, self.metrics, Log("test"))
        pipeline = Pipeline(queue or self.buffer, decoding, wrapped, *parts)
        pipeline.ready.set()
        return pipeline

    def batch(self, count: int, payload: Callable[[int], bytes] | None = None) -> pa.RecordBatch:
        builder = RawBatchBuilder(1 << 20, 1 << 30)
        for _ in range(count):
            self._count += 1
            content = payload(self._count) if payload else b'{"n":%d}' % self._count
            builder.add(f"d{self._count % 3}", 1_794_000_000_000_000, 1, content)
        return builder.take()

    @asynccontextmanager
    async def running(self, pipeline: Pipeline) -> AsyncIterator[asyncio.TaskGroup]:
        async with asyncio.TaskGroup() as tasks:
            for reading in (pipeline, self.raw):
                reading.start(tasks)
            yield tasks
            for reading in (pipeline, self.raw):
                reading.stop()

    async def feed(self, tasks: asyncio.TaskGroup, sizes: Sequence[int], payload: Callable[[int], bytes] | None = None) -> None:
        """Append batches of these sizes, without waiting until they are safe."""
        for size in sizes:
            tasks.create_task(self.buffer.queue_append(self.batch(size, payload), NO_ORIGINS))
        await asyncio.sleep(0)

    async def drain(self, outputs: Sequence[Output]) -> None:
        """Run the outputs until everything appended is theirs."""
        running = [asyncio.ensure_future(output.run()) for output in outputs]
        await asyncio.sleep(0.01)
        for output in outputs:
            output.drain()
        async with asyncio.timeout(20):
            await asyncio.gather(*running)

    no_origins = NO_ORIGINS

    def counted(self, name: str, **labels: str) -> float:
        value = self.metrics.registry.get_sample_value(f"headrace_{name}", labels)
        return value or 0.0


@pytest.fixture
def bench(tmp_path: Path) -> EngineBench:
    return EngineBench(tmp_path)


class MemoryStore(Component):
    """A store in memory that can tell what it holds; tests override `refuse` to make it fail. State lies in the class."""

    rows: list[float]
    held: dict[str, int]
    keys: list[str]
    built: int

    def __init_subclass__(cls) -> None:
        cls.rows, cls.held, cls.keys, cls.built = [], {}, [], 0

    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        type(self).built += 1
        self._taken: list[float] = []

    def refuse(self, stage: str, numbers: list[float], key: RangeKey) -> None:
        """Raise to fail."""

    @hookimpl
    async def sink_write(self, batch: pa.RecordBatch, key: RangeKey) -> None:
        numbers = [row["n"] for row in batch.column("readings").to_pylist()] if batch.num_rows else []
        self.refuse("write", numbers, key)
        self._taken += numbers

    @hookimpl
    async def sink_flush(self, key: RangeKey) -> None:
        self.refuse("flush", self._taken, key)
        cls = type(self)
        cls.rows += self._taken
        cls.held[key.queue_id] = key.last
        cls.keys.append(f"{key.first}-{key.last}")
        self._taken = []

    @hookimpl
    async def sink_reset(self) -> None:
        self._taken = []


class ResumingStore(MemoryStore):
    @hookimpl
    async def sink_resume(self, queue_id: str) -> int | None:
        return type(self).held.get(queue_id)


@pytest.fixture
def stores() -> tuple[type[MemoryStore], type[ResumingStore]]:
    """Base classes for the stores of one test: subclass them, so that each test has its own state."""
    return MemoryStore, ResumingStore


@pytest.fixture
def engine_bench() -> type[EngineBench]:
    return EngineBench
