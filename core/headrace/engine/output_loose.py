"""Outputs with `hold = "none"`: no cursor, from the head, best effort. What they miss is counted, and nobody waits for them."""

from __future__ import annotations

import asyncio
from typing import Final

from headrace.engine.outputs import Output, StoreError
from headrace.engine.passing import told
from headrace.engine.reading import Events
from headrace.errors import PermanentError, TransientError
from headrace.log import describe

#: An output further behind than this many reads goes to the head: live feeds are about now.
READS_BEHIND_MAX: Final = 4


class LooseOutput(Output):
    """A live feed."""

    async def run(self) -> None:
        await self.unit.open()
        position = self._info().head
        events: Events | None = None
        since = self._clock.monotonic()
        rows = 0
        while not self.draining:
            taken = await self._next(position)
            if taken is None:
                continue
            events = taken
            for hole in events.key.missing:
                self._count_missing(hole)
            position = await self._catch_up(events.key.last)
            rows += events.batch.num_rows
            try:
                await self._put(events)
                if self._clock.monotonic() - since >= self.keys.flush_interval_s:
                    await self._finish(events)
                    self._succeeded(rows)
                    rows, since = 0, self._clock.monotonic()
            except StoreError as error:
                await self._lose(error, rows)
                rows, since = 0, self._clock.monotonic()
        if rows and events is not None:
            try:
                await self._finish(events)
                self._succeeded(rows)
            except StoreError as error:
                await self._lose(error, rows)

    async def _put(self, events: Events) -> None:
        await self._call("write", batch=self._given(events), key=told(events.key))

    async def _finish(self, events: Events) -> None:
        await self._call("flush", key=told(events.key))

    async def _forget(self) -> None:
        await self._call("reset")

    async def _lived(self) -> None:
        """Nothing is counted: a live feed never goes back to what killed it."""

    def _succeeded(self, rows: int) -> None:
        self._writer = None
        self._count_written.inc(rows)
        self._last_success.set(self._clock.wall())
        self._backoff.reset()

    async def _next(self, position: int) -> Events | None:
        reading = asyncio.ensure_future(self._reads.after(self.id, position))
        nudged = asyncio.ensure_future(self._nudged.wait())
        self._doing("idle")
        try:
            await asyncio.wait({reading, nudged}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            nudged.cancel()
        self._doing("working")
        if not reading.done():
            reading.cancel()
            self._nudged.clear()
            return None
        return reading.result()

    async def _catch_up(self, position: int) -> int:
        head = self._info().head
        if head - position <= READS_BEHIND_MAX * self._s.engine.read_rows_max:
            return position
        self._metrics.counter("output_missing_events_total", "Positions that the queue could not give.", reason="behind").inc(
            head - position
        )
        self.unit.log.warning("live output was behind and goes on at the head", skipped=head - position)
        return head

    async def _lose(self, failure: StoreError, events: int) -> None:
        error = failure.cause
        self.unit.failed(failure.stage, error)
        self._metrics.counter("output_missing_events_total", "Positions that the queue could not give.", reason="failed").inc(events)
        try:
            await self._forget()
        except StoreError as reset:
            self.unit.log.exception("output failed to reset", reset.cause)
            await self._restart(describe(reset.cause))
        self._writer = None
        if isinstance(error, PermanentError):
            return
        if not isinstance(error, TransientError):
            self.unit.log.exception("output failed", error, stage=failure.stage)
            await self._restart(describe(error))
        await self._wait(describe(error))
        self.unit.status("ok")
