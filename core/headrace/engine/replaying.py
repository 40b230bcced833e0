"""Letters that go through again: to the output that refused them, by the same driver as the queue's events.

The dead letters' file is a small queue then: `ReplayQueue` has the hooks of one, with positions and a queue id of its own, so
that the output's resume point (or its plan) says after a crash what it has, exactly as for events (DELIVERY 21). A letter counts
as replayed only when the output reported it safe; one that is refused again stays, and waits for a person again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import pyarrow as pa

from headrace.batching import RawBatchBuilder
from headrace.component import Clock, Health
from headrace.engine.dead_letter_health import LettersHealth
from headrace.engine.dead_letter_replays import Queued, Reader, Replays
from headrace.engine.dead_letters import DeadLetters, Stored
from headrace.engine.outputs import Activity, Output, OutputServices
from headrace.engine.pipeline import Pipeline
from headrace.engine.quarantine import ENCODING_EVENT, Holding, Quarantine, Refused
from headrace.engine.reading import RawReading
from headrace.hookspecs import Plan, QueueInfo, QueueRead, ReaderInfo
from headrace.log import Log
from headrace.metrics import Metrics
from headrace.position import NO_ORIGINS, Missing, origins_of_rows
from headrace.retry import Backoff

#: Letters that are read at once, and the most bytes of them that one batch has.
ROWS_MAX: Final = 1000


class ReplayQueue:
    """One output's replays, as the queue that its driver reads. On the pipeline's loop; SQLite works in the quarantine's thread."""

    def __init__(self, replays: Replays, quarantine: Quarantine, output: str, released: Callable[[int], None]) -> None:
        self._replays, self._quarantine, self._output, self._released = replays, quarantine, output, released
        self._reader = Reader(0, 0, None, ())
        self._grown = asyncio.Event()

    async def load(self) -> None:
        """See what was queued meanwhile."""
        self._reader = await self._quarantine.patiently(lambda: self._replays.reader(self._output))
        self._grown.set()
        self._grown.clear()

    def stop_behind(self, position: int) -> None:
        """Give out nothing more behind that position."""
        self._reader = self._reader._replace(head=max(self._reader.cursor, min(self._reader.head, position)))

    @property
    def left(self) -> bool:
        """Whether something has yet to be settled."""
        return self._reader.head > self._reader.cursor

    def queue_info(self) -> QueueInfo:
        reader = self._reader
        lag = reader.head - reader.cursor
        info = ReaderInfo(self._output, 0, reader.cursor, reader.plan, lag, 0)
        return QueueInfo(
            "dead letters", reader.spans[-1].queue_id if reader.spans else None, "power", "", "sqlite",
            reader.head, reader.cursor + 1, lag, 0, 1 << 62, None, (info,), reader.spans,
        )  # fmt: skip

    async def queue_reader_open(self, reader: str, start: str) -> ReaderInfo:
        return self.queue_info().readers[0]

    async def queue_read(self, reader: str, after: int, rows_max: int, bytes_max: int) -> QueueRead:
        while after >= self._reader.head:
            await self._grown.wait()
        rows = await self._quarantine.patiently(lambda: self._replays.read(self._output, after, self._reader.head, min(rows_max, ROWS_MAX)))
        return read_of(after + 1, rows, bytes_max)

    async def queue_plan(self, reader: str, plan: Plan | None) -> None:
        await self._quarantine.patiently(lambda: self._replays.plan(self._output, plan))
        self._reader = self._reader._replace(plan=plan)

    async def queue_release(self, reader: str, upto: int) -> None:
        stored = await self._quarantine.patiently(lambda: self._replays.release(self._output, upto))
        self._reader = self._reader._replace(cursor=max(self._reader.cursor, upto))
        self._released(stored)


def read_of(first: int, rows: Sequence[Queued], bytes_max: int) -> QueueRead:
    """The positions from `first` on as one read: raw events, or one event that had no payload any more; at least one position."""
    queue_id, last, size = rows[0].queue_id, first - 1, 0
    missing: list[Missing] = []
    ids: list[tuple[str, int]] = []
    builder = RawBatchBuilder(len(rows) + 1, 1 << 40)
    batch: pa.RecordBatch | None = None
    for row in rows:
        if row.number > last + 1:
            missing.append(Missing(last + 1, row.number - 1, "released"))
        letter = row.letter
        if letter is None:
            missing.append(Missing(row.number, row.number, "released"))
        elif letter.encoding == ENCODING_EVENT:
            if ids:
                break  # its columns are its own
            with pa.ipc.open_stream(letter.payload) as stream:
                batch = stream.read_next_batch()
        else:
            if ids and size + len(letter.payload) > bytes_max:
                break
            builder.add(letter.device, letter.received_us, letter.encoding, letter.payload)
            ids.append((letter.origin or letter.queue_id, letter.origin_position or letter.position))
            size += len(letter.payload)
        last = row.number
        if batch is not None:
            break
    if batch is None and ids:
        batch = builder.take()
    return QueueRead(queue_id, first, last, batch, origins_of_rows(ids) if ids else NO_ORIGINS, tuple(missing))


class RefusedAgain:
    """What an output's driver has in the place of the quarantine: the letter is there already, and only hears of it."""

    def __init__(self, replays: Replays, quarantine: Quarantine, output: str, clock: Clock, metrics: Metrics, log: Log) -> None:
        self._replays, self._quarantine, self._output, self._clock, self._log = replays, quarantine, output, clock, log
        self._count = metrics.counter("dead_letter_refused_again_total", "Letters that were replayed and refused again.", component=output)

    async def positions(self, queue_id: str, first: int, last: int, output: str, stage: str = "%") -> set[int]:
        return await self._quarantine.patiently(lambda: self._replays.refused(self._output, queue_id, first, last, stage))

    async def add(self, refused: Refused, holding: Holding) -> None:
        _, positions, _, _, stage, component, reason, _ = refused
        refused_us = int(self._clock.wall() * 1e6)
        new = await self._quarantine.patiently(
            lambda: self._replays.refuse(self._output, positions, stage, component, reason, refused_us), holding
        )
        self._count.inc(new)
        self._log.warning("dead letters refused again", output=self._output, component=component, stage=stage, reason=reason, letters=new)


#: What a tier gives each replay: its services for these parts, and a pipeline that decodes and enriches for it alone.
MakeServices = Callable[[ReplayQueue, RefusedAgain], tuple[OutputServices, Pipeline, RawReading]]
#: How an output is driven.
MakeDriver = Callable[[Output, OutputServices], Output]


class Replaying:
    """All replays of one tier. `look` is called now and then, on the pipeline's loop."""

    def __init__(
        self,
        letters: DeadLetters,
        quarantine: Quarantine,
        clock: Clock,
        backoff: Callable[[], Backoff],
        metrics: Metrics,
        log: Log,
        services: MakeServices,
        driver: MakeDriver,
    ) -> None:
        self._letters, self._quarantine, self._clock, self._backoff = letters, quarantine, clock, backoff
        self._metrics, self._log, self._services, self._driver = metrics, log, services, driver
        self._replays = Replays(letters)
        self._under_way: dict[str, tuple[asyncio.Task[None], ReplayQueue, list[Output]]] = {}
        self._gauges = {
            "letters": metrics.gauge("dead_letters_stored", "Letters that wait for a person, or are to be replayed."),
            "bytes": metrics.gauge("dead_letters_stored_bytes", "Bytes that the dead letters take."),
            "bytes_max": metrics.gauge("dead_letters_max_bytes", "Bytes at which they are full."),
        }
        self._health = LettersHealth(letters.path)
        self._dirty = True
        self._seen = -1, -1

    async def look(self, outputs: Mapping[str, Output], info: QueueInfo) -> None:
        """Take what a command asked for, start what waits, and see how much there is."""
        changed = await self._quarantine.patiently(self._replays.changed)
        if changed or self._dirty or (self._letters.count, info.tail) != self._seen:
            self._dirty = False
            await self._quarantine.patiently(lambda: self._letters.forget(info.spans, info.tail))
            await self._assign(outputs)
            self._seen = self._letters.count, info.tail
            self._note(await self._quarantine.patiently(self._letters.stored))
        for output_id in await self._quarantine.patiently(self._replays.outputs_with_queued):
            output = outputs.get(output_id)
            if output is not None and can_replay(output) and output_id not in self._under_way and not output.draining:
                self._start(output)

    def _note(self, stored: Stored) -> None:
        self._health.note(self._clock.monotonic(), stored)
        for name, gauge in self._gauges.items():
            gauge.set(getattr(stored, name))

    async def _assign(self, outputs: Mapping[str, Output]) -> None:
        able = {output.id: output.unit.entry.plugin.takes == "events" for output in outputs.values() if can_replay(output)}
        while True:
            assigned = await self._quarantine.patiently(lambda: self._replays.assign(able))
            for output, letters in assigned.nowhere.items():
                self._log.error(
                    "dead letters cannot be replayed: no such output takes replays here", output=output or "(all)", letters=letters
                )
            if assigned.queued:
                self._log.info("dead letters queued for replay", letters=assigned.queued)
            else:
                return

    def _start(self, output: Output) -> None:
        count = self._metrics.counter(
            "dead_letter_replayed_events_total", "Letters that an output took at last, and reported safe.", component=output.id
        )

        def released(letters: int) -> None:
            count.inc(letters)
            self._dirty = True

        queue = ReplayQueue(self._replays, self._quarantine, output.id, released)
        drivers: list[Output] = []
        task = asyncio.ensure_future(self._replay(output, queue, drivers))
        self._under_way[output.id] = task, queue, drivers
        task.add_done_callback(lambda _: self._under_way.pop(output.id, None))

    async def _replay(self, output: Output, queue: ReplayQueue, drivers: list[Output]) -> None:
        refused = RefusedAgain(self._replays, self._quarantine, output.id, self._clock, self._metrics, self._log)
        backoff = self._backoff()
        while True:
            await output.unit.is_open()
            await queue.load()
            if not queue.left:
                break
            output.nudge()  # what it holds unflushed stands before the letters
            services, pipeline, raw = self._services(queue, refused)
            driver = self._driver(output, services)
            drivers[:] = [driver]
            driver.drain()
            try:
                async with asyncio.TaskGroup() as tasks:
                    pipeline.start(tasks)
                    raw.start(tasks)
                    await driver.drive()
                    pipeline.stop()
                    raw.stop()
            except Exception as error:  # must not end the process: the letters stay queued
                self._log.exception("replay of dead letters failed", error, output=output.id)
                await driver.abandon()
                await self._clock.sleep(backoff.next_s())
            if output.draining:
                break
        self._dirty = True
        self._log.info("dead letters replayed", output=output.id)

    def health(self) -> Health:
        """What `/components` says of the tier's dead letters."""
        return self._health.health(self._clock.monotonic())

    def activities(self) -> dict[str, tuple[Activity, float]]:
        """What the drivers of replays do and since when (monotonic), by output."""
        return {driver.id: driver.activity for _, _, drivers in list(self._under_way.values()) for driver in drivers}

    async def drain(self, deadline_s: float) -> None:
        """Let the ranges under way end, and begin no others."""
        for _, queue, drivers in self._under_way.values():
            for driver in drivers:
                queue.stop_behind(driver.attempted)
        if tasks := [task for task, _, _ in self._under_way.values()]:
            await asyncio.wait(tasks, timeout=deadline_s)

    async def stop(self, output_id: str | None = None) -> None:
        """Give up what is under way (of that output): it goes on after the next start."""
        tasks = [task for name, (task, _, _) in self._under_way.items() if output_id in (None, name)]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def can_replay(output: Output) -> bool:
    """Outputs that hold and are no links: a link's far side knows the queue's ids only."""
    return output.unit.entry.holds and output.hooks == "sink"


def quiet_services(
    shared: OutputServices, queue: ReplayQueue, pipeline: Pipeline, raw: RawReading, refused: RefusedAgain
) -> OutputServices:
    """What a replay's driver gets: the tier's services, but for the queue, and for metrics that count the queue's events."""
    return replace(shared, queue=queue, pipeline=pipeline, raw=raw, quarantine=refused, metrics=Metrics(), released=lambda: None, shares={})
