"""Outputs that rely on idempotence by key: each range is planned durably, written as one batch, and repeated identically.

Bounds are not stable across a crash by themselves, so a key-idempotent store would double. The plan (first, last, positions
left out) is durable beside the cursor before the first attempt; whatever happens, exactly that range comes again under the
same key, until it is safe or definitely refused (DELIVERY 18).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from headrace.engine.outputs import Output
from headrace.engine.pipeline import Events
from headrace.errors import PermanentError
from headrace.hookspecs import Plan

#: How often a waiting range looks whether enough rows have come.
POLL_S: Final = 0.05


class PlannedOutput(Output):
    """An output with `idempotence = "key"` or `"event"` and no `sink_resume`."""

    _plan: Plan | None = None
    _events: Events | None = None

    async def _begin(self) -> None:
        self.reader = await self._queue.queue_reader_open(reader=self.id, start=self.keys.start)
        self.flushed = self.attempted = self.reader.cursor
        await self._load_dead()
        plan = self.reader.plan
        self._plan = plan if plan is not None and plan.first == self.flushed + 1 else None
        self.unit.log.info("output starts", position=self.flushed, planned=self._plan.last if self._plan else None)
        if self._plan and self._plan.attempts >= self._s.engine.attempts_max and self._may_halve():
            suspect, self._plan = self._plan, None
            if self._narrowing.failed(suspect.first, suspect.last):
                await self._set_aside(suspect.first, f"bug: the process died {suspect.attempts} times on it")

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
        plan = self._plan._replace(attempts=self._plan.attempts + 1)
        await self._keep(plan)
        events = await self._exactly(plan.first, plan.last)
        return events.without(self._dead | set(plan.excluded))

    async def _next(self) -> Events | None:
        """A fresh range, planned; None when drained."""
        if not await self._wait_for_events():
            return None
        info, first = self._info(), self.flushed + 1
        size = self._narrowing.limit or self.keys.flush_rows
        last = min(info.head, first + size - 1)
        events = (await self._s.pipeline.exactly(self.id, first, last, self.keys.flush_bytes)).without(self._dead)
        await self._keep(Plan(first, events.key.last, 1, events.key.dead))
        return events

    async def _exactly(self, first: int, last: int) -> Events:
        events = await self._s.pipeline.exactly(self.id, first, last, 2**62)
        if events.key.last != last:
            raise AssertionError(f"planned {first}-{last}, the queue gave {events.key}")
        return events

    async def _keep(self, plan: Plan) -> None:
        await self._queue.queue_plan(reader=self.id, plan=plan)
        self._plan = plan
        self._s.faults.hit("engine.after_plan")

    async def _wait_for_events(self) -> bool:
        """True once a range is worth writing: enough rows, enough time, or a nudge. False: drained."""
        while self._info().head <= self.flushed:
            if self.draining:
                return False
            await self._wait_until(self._s.pipeline.after(self.id, self.flushed), None)
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
        await self._call("write", self.unit.hook.sink_write(batch=events.batch, key=events.key))
        self._s.faults.hit("engine.after_write")
        self._s.faults.hit("engine.before_flush")
        with self._flush_seconds.time():
            await self._call("flush", self.unit.hook.sink_flush(key=events.key))
        self._plan = self._events = None
        await self._flushed(events.key, events.batch.num_rows)

    async def _after_refusal(self, error: PermanentError) -> None:
        await super()._after_refusal(error)
        # nothing of it was taken: the next plan may have other bounds
        self._plan = None
        await self._queue.queue_plan(reader=self.id, plan=None)

    async def _skip(self) -> None:
        if self.skip_to > self.flushed:
            self._plan = None
            await self._skipped()

    def _named(self, error: PermanentError) -> list[int]:
        rows = error.rows.get(str(self._events.key), []) if self._events else []
        return [int(position) for position in self._events.positions[rows]] if self._events and rows else []
