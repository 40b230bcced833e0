"""Outputs that rely on idempotence by key: each range is planned durably, written as one batch, and repeated identically.

Bounds are not stable across a crash by themselves, so a key-idempotent store would double. The plan (first, last, positions
left out) is durable beside the cursor before the first attempt; whatever happens, exactly that range comes again under the
same key, until it is safe or definitely refused (DELIVERY 18).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from headrace.engine.outputs import CRASH, Output, rows_at
from headrace.engine.reading import Events
from headrace.errors import PermanentError
from headrace.hookspecs import Plan, QueueRead

#: How often a waiting range looks whether enough rows have come.
POLL_S: Final = 0.05


class PlannedOutput(Output):
    """An output with `idempotence = "key"` or `"event"` and no `sink_resume`."""

    _plan: Plan | None = None
    _events: Events | None = None

    async def _begin(self) -> None:
        self.reader = await self._queue.queue_reader_open(reader=self.id, start=self.keys.start)
        plan = self.reader.plan
        # a range is planned once all before it is safe, and the cursor becomes durable later than the plan
        self.flushed = self.attempted = max(self.reader.cursor, plan.first - 1 if plan else 0)
        if self.flushed > self.reader.cursor:
            await self._queue.queue_release(reader=self.id, upto=self.flushed)
        await self._load_dead()
        self._plan = self._noted = plan if plan is not None and plan.first == self.flushed + 1 else None
        if self._plan and self._plan.last > self._info().head:
            self.unit.log.error("the queue lost a part of the planned range", first=self._plan.first, last=self._plan.last)
            self._plan = None
        self.unit.log.info("output starts", position=self.flushed, planned=self._plan.last if self._plan else None)
        if self._plan and self._plan.attempts >= self._s.engine.attempts_max and self._may_halve():
            suspect, self._plan = self._plan, None
            if self._narrowing.failed(suspect.first, suspect.last):
                await self._set_aside(suspect.first, f"bug: the process died {suspect.attempts} times on it", CRASH)
            await self._note(None)

    def _may_halve(self) -> bool:
        # a store that is idempotent by key alone may hold the whole range: other bounds would double it
        return self.unit.entry.plugin.idempotence == "event"

    async def _feed(self) -> None:
        while True:
            await self._skip()
            events = await self._planned() if self._plan else await self._next()
            if events is None:
                return
            await self._write(events)

    async def _planned(self) -> Events:
        """The events of the outstanding plan, as they were the first time."""
        assert self._plan is not None
        await self._keep(self._plan._replace(attempts=self._plan.attempts + 1))
        read = await self._read(self._plan.first, self._plan.last, 2**62)
        if read.last != self._plan.last:
            self.unit.log.error("the queue lost a part of the planned range", first=read.first, last=self._plan.last, held=read.last)
        return await self._decoded(read)

    async def _next(self) -> Events | None:
        """A fresh range, planned; None when drained."""
        if not await self._wait_for_events():
            return None
        first = self.flushed + 1
        size = self._before_lethal(self.flushed, min(self._info().head - self.flushed, self._narrowing.limit or self.keys.flush_rows))
        if not size:
            return self._without_rows(first, first)
        read = await self._read(first, first + size - 1, self.keys.flush_bytes)
        # before it is decoded: it may be the decoding that kills
        await self._keep(Plan(first, read.last, 1))
        return await self._decoded(read)

    async def _read(self, first: int, last: int, bytes_max: int) -> QueueRead:
        return await self._reads.exactly(self.id, first, last, bytes_max)

    async def _decoded(self, read: QueueRead) -> Events:
        """The events of a planned read; what they leave out is part of the plan, as far as a plan has room for it."""
        assert self._plan is not None
        self._doing("waiting")  # the dead letters may be full, or an enricher down
        events = (await self._reads.events(read)).without(self._dead | set(self._plan.excluded))
        self._doing("working")
        while events.key.last != self._plan.last or not {*events.key.dead} <= {*self._plan.excluded}:
            try:
                await self._keep(Plan(events.key.first, events.key.last, self._plan.attempts, events.key.dead))
            except PermanentError:
                if len(events.key.dead) <= 1:
                    raise
                events = events.part(events.key.first, events.key.dead[len(events.key.dead) // 2] - 1)
        return events

    async def _keep(self, plan: Plan) -> None:
        await self._note(plan)
        self._plan = plan
        self._s.faults.hit("engine.after_plan")

    async def _wait_for_events(self) -> bool:
        """True once a range is worth writing: enough rows, enough time, or a nudge. False: drained."""
        while self._info().head <= self.flushed:
            if self.draining:
                return False
            await self._wait_until(self._reads.after(self.id, self.flushed), None)
            self._nudged.clear()
        until = self._clock.monotonic() + self.keys.flush_interval_s
        while not (self.draining or self._narrowing.active or self._nudged.is_set()):
            left = until - self._clock.monotonic()
            if left <= 0 or self._info().head - self.flushed >= self.keys.flush_rows:
                break
            await self._wait_until(asyncio.sleep(POLL_S), left)
        self._nudged.clear()
        return True

    async def _wait_until(self, event: Coroutine[Any, Any, object], timeout: float | None) -> None:
        """Wait for the event or a nudge, at most `timeout` seconds."""
        self._doing("idle")
        waiting = [asyncio.ensure_future(event), asyncio.ensure_future(self._nudged.wait())]
        try:
            done, _ = await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in waiting:
                task.cancel()
            self._doing("working")

    async def _write(self, events: Events) -> None:
        self._events, self.attempted = events, events.key.last
        await self._call("write", batch=self._given(events), key=events.key)
        self._s.faults.hit("engine.after_write")
        self._s.faults.hit("engine.before_flush")
        with self._flush_seconds.time():
            await self._call("flush", key=events.key)
        self._plan = self._events = None
        await self._flushed(events.key, events.batch.num_rows)

    async def _after_refusal(self, error: PermanentError) -> None:
        await super()._after_refusal(error)
        # nothing of it was taken: the next plan may have other bounds
        self._plan = None
        await self._note(None)

    async def _lived(self) -> None:
        if self._plan is not None and self._plan.attempts:
            await self._note(plan := self._plan._replace(attempts=0))
            self._plan = plan

    async def _skip(self) -> None:
        if self.skip_to > self.flushed:
            if self._plan is not None:
                # it may be there already: other bounds would double what is behind the window
                self.skip_to = max(self.skip_to, self._plan.last)
            self._plan = None
            await self._skipped()

    def _named(self, error: PermanentError) -> list[int]:
        if self._events is None:
            return []
        return rows_at(self._events.positions, error.rows.get(str(self._events.key), []), self.unit.entry.use)
