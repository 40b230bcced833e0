"""Outputs whose store can tell what it holds (`sink_resume`): batches stream in, a flush makes them safe together."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from headrace.engine.output_resuming import ResumingOutput
from headrace.engine.outputs import OutputServices, rows_at
from headrace.engine.passing import told
from headrace.engine.reading import Events
from headrace.engine.supervisor import Supervised
from headrace.errors import PermanentError
from headrace.position import RangeKey, join_keys

#: Events are handed to the store when there are so many: at the head of the queue reads are small, for the sake of live feeds, and a
#: call costs a store about what a thousand events do. It need not be called before a flush is due.
WRITE_ROWS_MIN: Final = 2048
#: What a stopping output gives a flush that is under way.
FINISH_S: Final = 5.0


class StreamingOutput(ResumingOutput):
    """An output with `sink_resume`."""

    def __init__(self, unit: Supervised, services: OutputServices) -> None:
        super().__init__(unit, services)
        self._gathered: list[Events] = []  # taken, and not written yet
        self._pending: list[tuple[RangeKey, np.ndarray[Any, Any]]] = []  # written, and not flushed yet
        self._rows = self._bytes = 0
        self._since = 0.0
        self._reading: asyncio.Task[Events] | None = None
        self._calling = asyncio.Lock()
        self._hurry_to = 0

    async def stored(self, queue_id: str) -> int | None:
        """Up to where the store holds a queue id, asked between the other calls. StoreError when it cannot be asked."""
        try:
            return await self._held(queue_id)
        finally:
            self._doing("idle")  # no call is under way now, or the next one says so

    async def _call(self, stage: str, **arguments: Any) -> Any:
        async with self._calling:  # a link asks what is stored whenever it begins
            return await super()._call(stage, **arguments)

    def hurry(self) -> None:
        self._hurry_to = self._info().head
        if self.attempted >= self._hurry_to:
            self.nudge()

    async def _forget(self) -> None:
        self._forget_pending()

    async def _feed(self) -> None:
        while True:
            events = await self._skipped_range() or await self._next()
            if events is not None:
                if self._unsafe and self._queue_id != events.key.queue_id:
                    await self._to_its_end(self._flush())
                await self._take(events)
            if self._unsafe and self._due():
                await self._to_its_end(self._flush())
            self._nudged.clear()
            if self._drained():
                return

    @property
    def _unsafe(self) -> bool:
        """Whether something was taken that no flush has covered."""
        return bool(self._pending or self._gathered)

    @property
    def _queue_id(self) -> str:
        """Of what is unsafe."""
        return (self._pending[0][0] if self._pending else self._gathered[0].key).queue_id

    def _drained(self) -> bool:
        return self.draining and not self._unsafe and self.attempted >= self._info().head

    async def _next(self) -> Events | None:
        """The events behind the last ones, or None when it is time to look at the clock, or somebody nudged."""
        if self.draining and self.attempted >= self._info().head:
            return None
        if self._reading is None:
            rows = self._before_lethal(self.attempted, self._narrowing.limit or self._s.engine.read_rows_max)
            if not rows:
                return self._without_rows(self.attempted + 1, self.attempted + 1)
            if self._counting and not self._unsafe and self._info().head > self.flushed:
                await self._count_attempt(rows)
            self._reading = asyncio.ensure_future(self._reads.after(self.id, self.attempted, rows))
        nudged = asyncio.ensure_future(self._nudged.wait())
        self._doing("idle")
        try:
            timeout = max(0.0, self._since + self.keys.flush_interval_s - self._clock.monotonic()) if self._unsafe else None
            waiting = {self._reading} if self.draining else {self._reading, nudged}
            await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            nudged.cancel()
        self._doing("working")
        if not self._reading.done():
            return None
        reading, self._reading = self._reading, None
        return reading.result()

    async def _take(self, events: Events) -> None:
        """Gather the events, and write what has gathered once that is worth a call."""
        if told(events.key) is not events.key:  # sent again by whoever sent it before: what was refused then was not known here yet
            await self._load_dead_of(events.key.queue_id, events.key.first, events.key.last)
        events = events.without(self._dead)
        if self._gathered and not events.batch.schema.equals(self._gathered[0].batch.schema):
            await self._write()
        self.attempted = events.key.last
        if not self._unsafe:
            self._since = self._clock.monotonic()
        self._gathered.append(events)
        self._rows += events.batch.num_rows
        self._bytes += events.batch.nbytes
        # raw events are views into the queue: kept, they would keep its space from being used again (DELIVERY 11)
        if self._reads is self._s.raw or sum(one.batch.num_rows for one in self._gathered) >= WRITE_ROWS_MIN:
            await self._write()

    async def _write(self) -> None:
        """Hand over what has gathered."""
        if not self._gathered:
            return
        events = joined(self._gathered)
        self._gathered = []
        self._pending.append((events.key, events.positions))
        await self._call("write", batch=self._given(events), key=told(events.key))
        self._s.faults.hit("engine.after_write")

    def _due(self) -> bool:
        if self._counting or self._narrowing.active or self._rows >= self.keys.flush_rows or self._bytes >= self.keys.flush_bytes:
            return True
        if self.draining and self.attempted >= self._info().head:
            return True
        if self.flushed < self._hurry_to <= self.attempted:
            return True
        return self._nudged.is_set() or self._clock.monotonic() - self._since >= self.keys.flush_interval_s

    async def _flush(self) -> None:
        await self._write()
        key, rows = join_keys([key for key, _ in self._pending]), self._rows
        self._s.faults.hit("engine.before_flush")
        with self._flush_seconds.time():
            await self._call("flush", key=told(key))
        self._forget_pending()
        await self._flushed(key, rows)
        if self._counting and not self._narrowing.active:
            self._counting = False
            await self._lived()

    async def _to_its_end(self, flush: Coroutine[Any, Any, None]) -> None:
        """A flush is not given up half-way when the output is stopped: the cursor passes what the store has by then, so that another output
        may go on exactly there (`start = "after:..."`). Unless the store hangs."""
        task = asyncio.ensure_future(flush)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task], timeout=FINISH_S)
            if not task.cancel() and not task.cancelled():
                task.exception()  # it is given up anyway: the same comes again after the next start
            raise

    def _forget_pending(self) -> None:
        self._gathered, self._pending = [], []
        self._rows = self._bytes = 0
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    async def _skipped_range(self) -> Events | None:
        """What fell out of the window goes to the store as missing, so that its ranges stay without a hole."""
        if self.skip_to <= self.attempted:
            return None
        if self._unsafe:
            await self._call("reset")
            self._forget_pending()
            self._writer, self.attempted = None, self.flushed
        self.unit.log.error(
            "output fell out of its window: rebuild this range from another store", first=self.attempted + 1, last=self.skip_to
        )
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        return self._without_rows(self.attempted + 1, self.skip_to, "window")

    def _named(self, error: PermanentError) -> list[int]:
        by_key = {str(told(key)): positions for key, positions in self._pending}
        return list(
            itertools.chain.from_iterable(
                rows_at(by_key[key], rows, self.unit.entry.use) for key, rows in error.rows.items() if key in by_key
            )
        )


def joined(gathered: Sequence[Events]) -> Events:
    """Events that follow each other, of one schema, as one range."""
    if len(gathered) == 1:
        return gathered[0]
    positions = np.concatenate([events.positions for events in gathered])
    return Events(join_keys([events.key for events in gathered]), pa.concat_batches([events.batch for events in gathered]), positions)
