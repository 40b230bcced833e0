"""The thread on which one tier decodes, enriches and stores; everything here but the bridge methods runs on its loop."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import Callable, Container, Coroutine
from typing import Any, Final, TypeVar

import uvloop

from headrace import config
from headrace.component import Health
from headrace.config import Entry
from headrace.declared import field_metadata, kinds
from headrace.engine import spreading
from headrace.engine.dead_letters import DeadLetters
from headrace.engine.decoder import Decoder, check_encodings
from headrace.engine.enrichment import Enricher, check_fields
from headrace.engine.output_loose import LooseOutput
from headrace.engine.output_planned import PlannedOutput
from headrace.engine.output_publishing import PublishingOutput
from headrace.engine.output_sending import SendingOutput
from headrace.engine.output_streaming import StreamingOutput
from headrace.engine.outputs import Activity, Output, OutputServices, StoreError
from headrace.engine.pacing import CoreWaits, Waits
from headrace.engine.pipeline import Pipeline
from headrace.engine.quarantine import Quarantine
from headrace.engine.reading import RawReading
from headrace.engine.replaying import RefusedAgain, Replaying, ReplayQueue, quiet_services
from headrace.engine.spreading import Share
from headrace.engine.supervisor import Services, Supervised, call_plugin
from headrace.engine.types_file import TypesFile
from headrace.engine.window import AgeWindow
from headrace.errors import ConfigError, HookError
from headrace.hookspecs import QueueInfo, ReaderInfo
from headrace.log import describe
from headrace.metrics import Metrics
from headrace.position import RangeKey
from headrace.retry import Backoff
from headrace.scheduling import give_way

T = TypeVar("T")

WATCH_S: Final = 0.25
#: How often the dead letters are looked at: for what a command asked for, and how much there is.
LETTERS_S: Final = 1.0
#: The reader that releases where no output holds anything; no output can have this name.
NOBODY: Final = "(nobody)"
#: How much later than it should a drain or close may end, before the thread counts as held up by a plugin.
LATE_S: Final = 5.0
#: The queue's fill at which holding outputs flush, whatever their `flush_*` say (DELIVERY 11).
FLUSH_RATIO: Final = 0.5


class PipelineThread:
    """One tier's decoders, enrichers and outputs. `start`, `drain`, `reload` and `close` are called on the host's loop."""

    def __init__(self, tier: config.Tier, services: Services, queue_hook: Any, failed: Callable[[BaseException], None]) -> None:
        self._tier, self._services, self._queue, self._failed = tier, services, queue_hook, failed
        self._log = services.log.bind(tier=tier.name)
        self._metrics = services.metrics.labelled(tier=tier.name)
        self.decoders = [Supervised(entry, tier.name, services) for entry in tier.decoders]
        self.enrichers = [Supervised(entry, tier.name, services) for entry in tier.enrichers]
        self.outputs: dict[str, Output] = {}
        self._units = {entry.id: Supervised(entry, tier.name, services) for entry in tier.outputs.values()}
        self._driving: dict[str, asyncio.Task[None]] = {}
        self._windows: dict[str, AgeWindow] = {}
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._up = threading.Event()
        #: when the thread's loop last turned (monotonic)
        self.turned = services.clock.monotonic()
        self._released: Callable[[], None] = lambda: None
        self._health_of_decoding: Callable[[], Health] = lambda: Health("starting")
        self._replaying: Replaying | None = None
        self._waits: Callable[[], Waits | None] = lambda: None
        self._shares: dict[str, Share] = {}
        self._gone: list[str] = []
        for unit in self._units.values():
            check_driven(unit)
        self._check_added()

    def _check_added(self) -> None:
        if complaint := check_encodings({unit.entry.id: unit.hook.decode_encodings() for unit in self.decoders}):
            raise HookError(self.decoders[-1].entry.use, complaint)
        if complaint := check_fields({unit.entry.id: unit.hook.enrich_fields() for unit in self.enrichers}):
            raise HookError(self.enrichers[-1].entry.use, complaint)

    # --- bridge ------------------------------------------------------------------------------------------------------

    def start(self, released: Callable[[], None]) -> None:
        """Start the thread; `released` is called (on that thread) whenever a cursor moved. ConfigError: outputs cannot share so."""
        self._released = released
        self._waits = CoreWaits()
        self._spread()
        self._thread = threading.Thread(target=self._run, name=f"{self._tier.name}.pipeline", daemon=True)
        self._thread.start()
        self._up.wait()

    def runs_on(self) -> tuple[asyncio.AbstractEventLoop, int] | None:
        """Its loop, and the id of its thread; None when it does not run."""
        ident = self._thread.ident if self._thread else None
        return None if self._loop is None or ident is None else (self._loop, ident)

    def _spread(self) -> None:
        """Who takes what from the head on: durable before anything of it is read."""
        folder, info = self._services.folder(self._tier.name), self._queue.queue_info()
        outputs = {entry.id: entry.output for entry in self._tier.outputs.values()}
        if not any(keys.spread for keys in outputs.values()) and not (folder / spreading.FILE).exists():
            return
        queue = hashlib.sha256(self._queue.queue_secret() or b"").hexdigest()
        known = spreading.load(folder, queue)
        groups = spreading.regroup(known, outputs, info, f"tiers.{self._tier.name}.outputs")
        if groups != known:
            spreading.keep(folder, queue, groups)
            for group, stages in groups.items():
                self._log.info("outputs share events", spread=group, first=stages[-1].first, outputs=stages[-1].outputs)
        self._shares, self._gone = spreading.shares(groups, outputs), spreading.gone(known, outputs, info)

    async def drain(self, deadline_s: float) -> bool:
        """Make safe what is queued, at most for `deadline_s`. True when nothing is left."""
        if self._loop is None:
            return True
        try:
            async with asyncio.timeout(deadline_s + LATE_S):
                return await self._call(self._drain(deadline_s))
        except TimeoutError:
            return False

    async def stored(self, output_id: str, queue_id: str) -> int | None:
        """Up to where the output's store holds a queue id; waits for as long as it cannot be asked."""
        return await self._call(self._stored(output_id, queue_id))

    def hurry(self) -> None:
        """Whoever sent what was handed over waits for it: flush it as soon as it is written. Returns at once."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop ended
                self._loop.call_soon_threadsafe(self._hurry)

    async def reread(self, unchanged: Container[str]) -> None:
        """Let the components of these paths look again at their files."""
        await self._call(self._reread(unchanged))

    async def reload(self, entry: Entry | None, entry_id: str) -> None:
        """An output's or enricher's table changed, came, or went (None)."""
        await self._call(self._reload(entry, entry_id))

    async def close(self) -> None:
        """Stop at once and close the components; unflushed work is done again after the next start.

        A thread whose loop a plugin holds up is left behind: what it may still do is what a process that is killed had done.
        """
        if self._thread is None or self._loop is None:
            return
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop ended in between
                self._loop.call_soon_threadsafe(self._stop.set)
        while self._thread.is_alive():
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join, LATE_S)
            if not await self._turns():
                self._log.error("a plugin holds up the pipeline's loop; the thread is left behind", busy=self._busy())
                return

    async def _turns(self) -> bool:
        """Whether the loop turns, or has ended."""
        assert self._thread is not None
        assert self._loop is not None
        turned, here = asyncio.Event(), asyncio.get_running_loop()
        with contextlib.suppress(RuntimeError):  # it ended
            self._loop.call_soon_threadsafe(here.call_soon_threadsafe, turned.set)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LATE_S if self._thread.is_alive() else 0):
                await turned.wait()
        return turned.is_set() or not self._thread.is_alive()

    def _busy(self) -> list[str]:
        """The outputs that are in a call."""
        return [output_id for output_id, (activity, _) in self.activities().items() if activity == "working"]

    def units(self) -> list[Supervised]:
        """Every component of the thread that is in place now."""
        return [*self.decoders, *self.enrichers, *(output.unit for output in list(self.outputs.values()))]

    def activities(self) -> dict[str, tuple[Activity, float]]:
        """What each output does and since when (monotonic)."""
        found = {output_id: output.activity for output_id, output in list(self.outputs.items())}
        for output_id, activity in self._replaying.activities().items() if self._replaying else ():
            if activity[0] == "working":  # the output itself waits for its turn
                found[output_id] = activity
        return found

    def decoding(self) -> Health:
        """Whether the tier decodes, or waits for what it needs for that."""
        return self._health_of_decoding()

    def dead_letters(self) -> Health:
        """How the dead letters fare."""
        return self._replaying.health() if self._replaying else Health("starting")

    async def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))

    # --- on the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        give_way()
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._main())
        except BaseException as error:
            self._failed(error)
        finally:
            self._up.set()

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        engine, services = self._tier.engine, self._services
        letters = DeadLetters(services.folder(self._tier.name) / "dead_letters.db", engine.dead_letters_bytes_max)
        quarantine = Quarantine(
            letters, services.clock, self._backoff(), services.metrics.labelled(tier=self._tier.name), self._log, self._told
        )
        decoders = [Decoder(unit, engine, services.clock, self._backoff()) for unit in self.decoders]
        enrichers = [Enricher(unit, engine, services.clock, self._backoff()) for unit in self.enrichers]
        # one for all workers: no two of them may give a name different types
        types_file = TypesFile(services.data_dir / self._tier.name / "readings.json", engine.readings_max, kinds(self._tier.declared))
        metadata = field_metadata(self._tier.declared)
        self._pipeline = Pipeline(self._queue, decoders, enrichers, engine, types_file, quarantine, self._metrics, self._log, metadata)

        self._health_of_decoding = lambda: self._pipeline.health

        def replay_services(queue: ReplayQueue, refused: RefusedAgain) -> tuple[OutputServices, Pipeline, RawReading]:
            pipeline, raw = (
                Pipeline(queue, decoders, enrichers, engine, types_file, refused, Metrics(), self._log, metadata),
                RawReading(queue, engine),
            )
            pipeline.ready = self._pipeline.ready
            return quiet_services(self._output_services, queue, pipeline, raw, refused), pipeline, raw

        self._replaying = Replaying(
            letters,
            quarantine,
            services.clock,
            self._backoff,
            services.metrics.labelled(tier=self._tier.name),
            self._log,
            replay_services,
            lambda output, shared: _kind_of(output.unit)(output.unit, shared),
        )
        self._raw = RawReading(self._queue, engine)
        self._output_services = OutputServices(
            self._queue,
            self._pipeline,
            self._raw,
            engine,
            quarantine,
            services.metrics,
            services.clock,
            services.faults,
            self._backoff,
            self._released,
            self._shares,
            self._waits,
        )
        try:
            await self._serve()
        finally:
            for unit in [*(output.unit for output in self.outputs.values()), *self.enrichers, *self.decoders]:
                await unit.close()
            quarantine.close()

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._pipeline.start(tasks)
            self._raw.start(tasks)
            await self._open_shared()
            background = [tasks.create_task(work) for work in (self._open_enrichers(), self._watch(), self._watch_letters())]
            for unit in self._units.values():
                self._start_output(unit)
            self._up.set()
            await self._stop.wait()
            self._pipeline.stop()
            self._raw.stop()
            assert self._replaying is not None
            await self._replaying.stop()
            for task in [*background, *self._driving.values()]:
                task.cancel()

    async def _open_shared(self) -> None:
        """The cursors of outputs that share events, before there are any more: what is one's own is held even if it never opens."""
        for output_id in self._shares:
            await self._queue.queue_reader_open(reader=output_id, start=self._units[output_id].entry.output.start)
        for reader in self._gone:
            self._log.info("output that shared events is gone, and has sent all of its own", reader=reader)
            await self._queue.queue_reader_drop(reader=reader)

    def _backoff(self) -> Backoff:
        engine = self._tier.engine
        return Backoff(engine.retry_base_ms, engine.retry_max_ms, self._services.random)

    def _told(self, component: str, reason: str, key: RangeKey, count: int) -> None:
        facts = {"tier": self._tier.name, "component": component, "reason": reason, "key": key, "count": count}
        self._services.tell("batch_quarantined", facts)

    async def _open_enrichers(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for unit in [*self.decoders, *self.enrichers]:
                await unit.open()
                tasks.create_task(unit.run())
            self._pipeline.ready.set()

    def _start_output(self, unit: Supervised) -> None:
        output = self.outputs[unit.entry.id] = _kind_of(unit)(unit, self._output_services)
        self._driving[unit.entry.id] = self._tasks.create_task(self._drive(output), name=f"{unit.tier}.{unit.entry.id}")

    async def _drive(self, output: Output) -> None:
        running = asyncio.ensure_future(output.unit.run())
        try:
            await output.run()
        finally:
            running.cancel()

    async def _drain(self, deadline_s: float) -> bool:
        for output in self.outputs.values():
            output.drain()
        assert self._replaying is not None
        await self._replaying.drain(deadline_s)
        _, late = await asyncio.wait(self._driving.values(), timeout=deadline_s) if self._driving else (set(), set())
        for output in self.outputs.values():
            try:
                async with asyncio.timeout(deadline_s + 1):
                    await call_plugin(output.unit.component.drain, deadline_s=deadline_s)
            except Exception as error:
                self._log.exception("component failed to drain", error, component=output.id)
        return not late

    async def _stored(self, output_id: str, queue_id: str) -> int | None:
        backoff = self._backoff()
        while True:
            output = self.outputs.get(output_id)
            try:
                if isinstance(output, StreamingOutput):
                    return await output.stored(queue_id)
            except StoreError as error:
                # the output meets the same error and answers it; a link only waits
                self._log.warning("store cannot be asked what it holds", component=output_id, queue_id=queue_id, error=describe(error))
            await self._services.clock.sleep(backoff.next_s())

    def _hurry(self) -> None:
        for output in self.outputs.values():
            output.hurry()

    async def _reread(self, unchanged: Container[str]) -> None:
        for unit in self.units():
            if unit.entry.path in unchanged:
                await unit.reread()

    async def _reload(self, entry: Entry | None, entry_id: str) -> None:
        for unit in self.enrichers:
            if entry is not None and unit.entry.id == entry_id:
                unit.reconfigured(entry)
                await unit.restart("config changed")
                return
        output = self.outputs.get(entry_id)
        same = output is not None and entry is not None and entry.keys == output.unit.entry.keys
        if output is not None and entry is not None and same and await output.unit.reload(entry):
            return
        # a class that cannot be built is refused while the old one runs on
        fresh = Supervised(entry, self._tier.name, self._services, patient=True) if entry is not None else None
        if fresh is not None:
            check_driven(fresh)
        if output is not None:
            await self._stop_output(output)
        if fresh is not None:
            self._units[entry_id] = fresh
            self._start_output(fresh)

    async def _stop_output(self, output: Output) -> None:
        # what is unflushed is written again from the cursor, as after a crash
        assert self._replaying is not None
        task = self._driving.pop(output.id)
        output.draining = True  # no replay begins any more
        await self._replaying.stop(output.id)
        task.cancel()
        await asyncio.wait([task])
        await output.unit.close()
        del self.outputs[output.id]
        self._windows.pop(output.id, None)
        self._units.pop(output.id, None)
        self._services.statuses.forget(self._tier.name, output.id)

    # --- watching ----------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Flush before full, windows, and the cursors of outputs that left the config."""
        self._report_orphans()
        passed = 0
        while True:
            self.turned = self._services.clock.monotonic()
            await self._services.clock.sleep(WATCH_S)
            info = self._queue.queue_info()
            await self._release_for_nobody(info, passed)
            passed = info.head
            for output in list(self.outputs.values()):
                await output.acquit()
            if info.size_bytes > FLUSH_RATIO * info.size_bytes_max:
                for output in self.outputs.values():
                    output.nudge()
            for reader in info.readers:
                if reader.name in self.outputs:
                    await self._bound_window(self.outputs[reader.name], reader, info.head)
                elif reader.name != NOBODY and reader.lag_bytes > self._tier.engine.orphan_hold_ratio * info.size_bytes_max:
                    await self._drop_orphan(reader)

    async def _watch_letters(self) -> None:
        """Replays that a command asked for, and how much there is. Apart from the rest: it waits where the file fails."""
        assert self._replaying is not None
        while True:
            await self._replaying.look(self.outputs, self._queue.queue_info())
            await self._services.clock.sleep(LETTERS_S)

    async def _release_for_nobody(self, info: QueueInfo, passed: int) -> None:
        """A queue whose outputs hold nothing would keep everything: release it, a look behind the live ones."""
        present = any(reader.name == NOBODY for reader in info.readers)
        if any(output.unit.entry.holds for output in self.outputs.values()):
            if present:
                await self._queue.queue_reader_drop(reader=NOBODY)
            return
        if not present:
            await self._queue.queue_reader_open(reader=NOBODY, start="oldest")
        await self._queue.queue_release(reader=NOBODY, upto=passed)
        self._released()

    def _report_orphans(self) -> None:
        for reader in self._queue.queue_info().readers:
            if reader.name not in self._units and reader.name != NOBODY:
                self._log.warning("reader has no output in the config", reader=reader.name, lag_events=reader.lag_events)

    async def _bound_window(self, output: Output, reader: ReaderInfo, head: int) -> None:
        keys, oldest_kept = output.keys, reader.cursor
        if keys.hold != "window":
            return
        if keys.hold_window_bytes is not None and reader.lag_bytes > keys.hold_window_bytes:
            # events are taken to be of one size: the queue knows bytes per segment, not per position
            oldest_kept = reader.cursor + int(reader.lag_events * (1 - keys.hold_window_bytes / reader.lag_bytes))
        if keys.hold_window_s is not None:
            window = self._windows.setdefault(reader.name, AgeWindow(keys.hold_window_s))
            oldest_kept = max(oldest_kept, window.passed(self._services.clock.monotonic(), head))
        if oldest_kept > reader.cursor:
            output.skip_to = oldest_kept
            output.nudge()
            # at once: the output may hang in a call to its store
            await self._queue.queue_release(reader=reader.name, upto=oldest_kept)
            self._released()

    async def _drop_orphan(self, reader: ReaderInfo) -> None:
        self._log.error("reader without an output dropped: it held too much", reader=reader.name, lag_events=reader.lag_events)
        counter = self._metrics.counter(
            "queue_discarded_events_total", "Events given up for a reader.", reason="orphan", reader=reader.name
        )
        counter.inc(reader.lag_events)
        await self._queue.queue_reader_drop(reader=reader.name)
        self._released()


def check_driven(unit: Supervised) -> None:
    """ConfigError for an output that nothing here drives."""
    entry = unit.entry
    if unit.plugins.has("transport_send") and not unit.plugins.has("sink_write") and not entry.holds:
        raise ConfigError("", f"{entry.path}.hold", '"always" or "window" for a link', '"none"', "a link resumes, and loses nothing")


def _kind_of(unit: Supervised) -> type[Output]:
    if not unit.entry.holds:
        return LooseOutput if unit.plugins.has("sink_write") else PublishingOutput
    if unit.plugins.has("transport_send"):
        return SendingOutput
    return StreamingOutput if unit.plugins.has("sink_resume") else PlannedOutput
