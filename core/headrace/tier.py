"""One tier: sources -> [queue] -> decode -> enrichers -> outputs.

Sources and the queue's appends live on the host's loop, which acks devices. Decoding, enrichment and outputs live on a
thread with a loop of its own (`headrace.engine.pipeline_thread`), so that storing never adds latency to a sending device.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from headrace import config
from headrace.config import passes
from headrace.engine.buffer import Buffer
from headrace.engine.pipeline_thread import PipelineThread
from headrace.engine.supervisor import OPEN_RETRY_BASE_MS, OPEN_RETRY_MS_MAX, Colleagues, Services, Supervised, call_plugin
from headrace.errors import ConfigError, QueueError, QueueFull
from headrace.hookspecs import LEVELS, Elsewhere, QueueInfo
from headrace.log import describe
from headrace.position import NO_ORIGINS, OriginMark
from headrace.register import QueueRegister, Registered
from headrace.retry import Backoff
from headrace.schema import check_batch

#: A source that met a full queue goes on when at most this share of it is taken.
ROOM_RATIO: Final = 0.9
#: It looks when a cursor moved, and by itself after a while: what was released right before the refusal is given back right behind it.
ROOM_POLL_S: Final = 0.01
ROOM_POLL_S_MAX: Final = 0.5


class TierDeliver:
    """`deliver` of one tier: into its queue, durable on return."""

    def __init__(
        self,
        hook: Any,
        failed: Callable[[Exception], None],
        colleagues: Colleagues | None = None,
        hurry: Callable[[], None] = lambda: None,
        far_levels: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        """far_levels: at which levels the far sides of the tier's outputs keep events, where they are known to be lower."""
        self._hook, self._failed, self._colleagues, self._hurry = hook, failed, colleagues, hurry
        self._far_levels = far_levels
        self._released = asyncio.Event()
        self.refusing = False
        #: why it refuses, for people
        self.why = ""

    async def __call__(self, batch: pa.RecordBatch, origins: pa.RecordBatch = NO_ORIGINS) -> tuple[int, int]:
        check_batch(batch)  # before it is stored: what no output can read would end the process at every start
        try:
            first, last = await self._hook.queue_append(batch=batch, origins=origins)
        except QueueFull as full:
            self.refusing, self.why = True, "the queue is full" + (f" ({full.reason})" if full.reason else "")
            raise
        except QueueError as error:
            # the queue is an engine part: without it nothing can be promised, and a restart recovers it
            self._failed(error)
            raise
        self.refusing = False
        return first, last

    async def room(self) -> None:
        wait_s = ROOM_POLL_S
        while self.refusing:
            try:
                async with asyncio.timeout(wait_s):
                    await self._released.wait()
                wait_s = ROOM_POLL_S
            except TimeoutError:
                wait_s = min(2 * wait_s, ROOM_POLL_S_MAX)
            info = self._hook.queue_info()
            if info.size_bytes <= ROOM_RATIO * info.size_bytes_max:
                self.refusing = False

    def released(self) -> None:
        """A cursor moved: whoever waits for room looks again."""
        self._released.set()
        self._released.clear()

    async def position(self, origin: str) -> int | None:
        position: int | None = await self._hook.queue_origin_position(origin=origin)
        return position

    async def mark(self, origin: str) -> OriginMark | None:
        mark: OriginMark | None = await self._hook.queue_origin_mark(origin=origin)
        return mark

    async def forget(self, origins: Sequence[str]) -> None:
        await self._hook.queue_origin_forget(origins=origins)

    @contextlib.asynccontextmanager
    async def taking(self, origin: str) -> AsyncIterator[Elsewhere]:
        if self._colleagues is None:
            yield Elsewhere(None, True)
            return
        async with self._colleagues.taking(origin) as elsewhere:
            yield elsewhere

    def hurry(self) -> None:
        self._hurry()

    def queue_info(self) -> QueueInfo | None:
        """As of the queue, but with the lowest level to which events are handed over: what is told has to hold there too (DELIVERY 14)."""
        info: QueueInfo = self._hook.queue_info()
        return info._replace(level=min([info.level, *self._far_levels()], key=LEVELS.index))


class Tier:
    """A tier of the config, running."""

    def __init__(self, tier: config.Tier, services: Services, register: QueueRegister, failed: Callable[[BaseException], None]) -> None:
        self.name, self.config = tier.name, tier
        self._services, self._register, self._failed = services, register, failed
        self._log = services.log.bind(tier=tier.name)
        self.queue = Supervised(tier.queue, tier.name, services) if tier.queue else None
        self.queue_hook: Any = self.queue.hook if self.queue else self._buffer()
        self.sources = {entry.id: Supervised(entry, tier.name, services) for entry in tier.sources.values()}
        self.pipeline = PipelineThread(tier, services, self.queue_hook, failed)
        hurry = self.pipeline.hurry if self.queue is None else lambda: None
        self.deliver = TierDeliver(self.queue_hook, failed, services.colleagues, hurry, self._far_levels)
        self._serving: dict[str, list[asyncio.Task[None]]] = {}
        self._background: list[asyncio.Task[None]] = []
        #: the sources that were told to take in nothing more
        self._drained: set[Supervised] = set()
        self.open = False
        #: the queue's facts right before it was closed
        self.last_info: QueueInfo | None = None

    def _buffer(self) -> Buffer:
        """What stands in for the queue; where links lead to here, the store of the one holding output says what is safe."""
        holding = [entry for entry in self.config.outputs.values() if entry.holds]
        if not passes(self.config):
            return Buffer(self.name, self._services.clock, bool(holding))
        (store,) = holding

        def ask(queue_id: str) -> Awaitable[int | None]:
            return self.pipeline.stored(store.id, queue_id)

        return Buffer(self.name, self._services.clock, True, store.plugin.flush_level, ask)

    def _far_levels(self) -> list[str]:
        return [unit.far_level for unit in self.pipeline.units() if unit.far_level is not None]

    def units(self) -> list[Supervised]:
        """Every component of the tier that is in place now."""
        return [*([self.queue] if self.queue else []), *self.sources.values(), *self.pipeline.units()]

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Open queue, outputs and sources, in that order; the sources serve in `tasks` from then on."""
        if self.queue:
            self._register.add(self._registered(self.queue.entry))
            await self.queue.open()
            # whoever emptied it while we waited for its lock has struck it
            self._register.add(self._registered(self.queue.entry), again=False)
            self._background.append(tasks.create_task(self.queue.run(), name=f"{self.name}.queue"))
        loop = asyncio.get_running_loop()

        def released() -> None:
            if self.deliver.refusing:  # nobody else waits; who begins to right now looks again by itself, soon
                loop.call_soon_threadsafe(self.deliver.released)

        self.pipeline.start(released)
        for source in self.sources.values():
            await self.start_source(source, tasks)
        self.open = True

    async def start_source(self, source: Supervised, tasks: asyncio.TaskGroup) -> None:
        """Open one source and let it serve."""
        await source.open()
        name = f"{self.name}.{source.entry.id}"
        self._serving[source.entry.id] = [
            tasks.create_task(self._serve(source), name=name),
            tasks.create_task(source.run(), name=f"{name}.run"),
        ]

    async def _serve(self, source: Supervised) -> None:
        clock = self._services.clock
        backoff = Backoff(OPEN_RETRY_BASE_MS, OPEN_RETRY_MS_MAX, self._services.random)
        while True:
            since = clock.monotonic()
            try:
                await call_plugin(self._serve_hook(source), deliver=self.deliver)
                if source not in self._drained:
                    self._log.warning("source ended by itself", component=source.entry.id)
                    source.status("degraded", "it takes nothing any more: its hook returned, though nobody had told it to drain")
                return
            except Exception as error:
                source.failed("serve", error)
                self._log.exception("source failed", error, component=source.entry.id)
                if clock.monotonic() - since > OPEN_RETRY_MS_MAX / 1000:
                    backoff.reset()
                await clock.sleep(backoff.next_s())
                await source.restart(describe(error))

    def _serve_hook(self, source: Supervised) -> Any:
        # a class that can be several of them says by its config which one it is here
        name = next(name for name in ("ingest_serve", "transport_serve", "transport_subscribe") if source.plugins.has(name))
        return getattr(source.hook, name)

    async def reload_source(self, entry: config.Entry, tasks: asyncio.TaskGroup) -> None:
        """The source's table changed: let it take the new config, or restart it."""
        source = self.sources.get(entry.id)
        if source is not None and await source.reload(entry):
            return
        # a class that cannot be built is refused while the old one runs on
        unit = Supervised(entry, self.name, self._services, patient=True)
        if source is not None:
            await self.stop_source(entry.id)
        self.sources[entry.id] = unit
        await self.start_source(self.sources[entry.id], tasks)

    async def give_up(self, origin: str) -> OriginMark | None:
        """Another worker takes this origin over: the queue's mark, once the sources hold nothing of it."""
        for source in self.sources.values():
            if source.plugins.has("ingest_give_up"):
                await call_plugin(source.hook.ingest_give_up, origin=origin)
        return await self.deliver.mark(origin)

    async def stop_source(self, source_id: str) -> None:
        """Drain and close one source."""
        source = self.sources.pop(source_id)
        await self._drain(source, 5.0)
        for task in self._serving.pop(source_id):
            task.cancel()
        self._drained.discard(source)
        await source.close()
        self._services.statuses.forget(self.name, source_id)

    def lags(self) -> dict[str, int]:
        """Events that each output has yet to make safe, by its id."""
        info: QueueInfo = self.queue_hook.queue_info()
        return {reader.name: reader.lag_events for reader in info.readers if reader.name in self.config.outputs}

    async def drain_sources(self, deadline_s: float) -> None:
        """Take in nothing more; what is in flight is acked."""
        await asyncio.gather(*(self._drain(source, deadline_s) for source in self.sources.values()))

    async def _drain(self, unit: Supervised, deadline_s: float) -> None:
        self._drained.add(unit)
        try:
            async with asyncio.timeout(deadline_s + 1):
                await call_plugin(unit.component.drain, deadline_s=deadline_s)
        except Exception as error:
            self._log.exception("component failed to drain", error, component=unit.entry.id)

    async def close(self) -> None:
        """Close sources, outputs and queue, in that order; safe twice."""
        for task in [*itertools.chain.from_iterable(self._serving.values()), *self._background]:
            task.cancel()
        for source in self.sources.values():
            await source.close()
        await self.pipeline.close()
        if self.queue:
            left: int | None = None
            if self.open:
                await self._drain(self.queue, 5.0)  # what is being appended counts as left
                self.last_info = self.queue_hook.queue_info()
                left = self.last_info.size_events
            self.open = False  # nobody may ask it from here on
            if left == 0:  # while we hold its lock: the next one to open it enters it again
                self._strike(self._registered(self.queue.entry).path)
            await self.queue.close()
        self.open = False

    def _strike(self, path: str) -> None:
        try:
            self._register.drained(path)
        except OSError as error:  # it stays entered, as one that may hold events: the close goes on
            self._log.warning("register of queues cannot be written", error=describe(error))

    def _registered(self, entry: config.Entry) -> Registered:
        path = getattr(entry.config, "path", None)
        if path is None:
            raise ConfigError(str(entry.path), "path", "a queue plugin with an option `path`", "none")
        return Registered(self.name, entry.use, str(Path(path).absolute()))
