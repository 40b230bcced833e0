"""Drives a sink as the engine does: from its resume point, or by plans that are repeated under the identical key."""

from __future__ import annotations

import asyncio
import random
from typing import Any, Final, Literal

from headrace.component import Component
from headrace.errors import TransientError
from headrace.hookcheck import implemented
from headrace.position import RangeKey, join_keys
from headrace.testing import plan
from headrace.testing.context import living
from headrace.testing.journal import Journal

Way = Literal["resume", "plan", "none"]

ROWS_MAX: Final = 40
WRITES_MAX: Final = 4
RETRIES_MAX: Final = 50
RETRY_S: Final = 0.02


def way_of(component: type[Component]) -> Way:
    """How the engine would keep a sink of this class effectively once."""
    if "sink_resume" in implemented(component):
        return "resume"
    return "none" if component.idempotence == "none" else "plan"


class SinkDriver:
    """One life of a sink in the crash tests; what it did stands in the journal, which plays the queue's cursor and plan."""

    def __init__(self, component: Component, journal: Journal, seed: int) -> None:
        self._component, self._journal, self._random = component, journal, random.Random(seed)
        self._way = way_of(type(component))
        notes = journal.notes()
        self.cursor = max((note.last for note in notes if note.kind == "done"), default=0)
        self._begun = max((note.last for note in notes if note.kind in ("write", "flush")), default=0)
        plans = [note for note in notes if note.kind == "plan"]
        self._plan = (plans[-1].first, plans[-1].last) if plans and plans[-1].last > self.cursor else None

    async def run(self, goal: int) -> None:
        """Store the stream up to position `goal`."""
        async with living(self._component, "output") as hook:
            position = await self._begin(hook)
            self._journal.note("start", position)
            failures = 0
            while position < goal:
                try:
                    position = await self._one_flush(hook, position)
                    failures = 0
                except TransientError as error:
                    failures += 1
                    if failures > RETRIES_MAX:
                        raise
                    await asyncio.sleep(min(error.retry_after_s or RETRY_S, 1.0))
                    await hook.sink_reset()

    async def _begin(self, hook: Any) -> int:
        if self._way != "resume":
            return self.cursor
        head = max(self._begun, self.cursor) + plan.SPAN
        position = 0
        for span in plan.spans(self.cursor, head):
            position = max(position, span.first - 1)
            last = head if span.last is None else span.last
            held = await hook.sink_resume(queue_id=span.queue_id)
            if held is None:
                break
            position = max(position, min(held, last))
            if held < last:
                break
        assert position >= self.cursor, (
            f"lost: sink_flush returned for everything up to {self.cursor}, after the crash sink_resume says {position}"
        )
        assert position <= self._begun, f"invented: nothing beyond {self._begun} was ever written, sink_resume says {position}"
        return position

    async def _one_flush(self, hook: Any, position: int) -> int:
        keys: list[RangeKey] = []
        for first, last in self._bounds(position):
            batch, key = plan.events(first, last)
            self._journal.note("write", first, last)
            await hook.sink_write(batch=batch, key=key)
            keys.append(key)
        if self._random.random() < 0.1:
            # as after an error in another part of the engine: what is unflushed comes again, in new bounds
            await hook.sink_reset()
            return position
        self._journal.note("flush", keys[0].first, keys[-1].last)
        await hook.sink_flush(key=join_keys(keys))
        self._journal.note("done", keys[0].first, keys[-1].last)
        self._plan = None
        return keys[-1].last

    def _bounds(self, position: int) -> list[tuple[int, int]]:
        """The ranges of the writes up to the next flush; none crosses into another queue id."""
        if self._way == "plan":
            if self._plan is None or self._plan[0] != position + 1:
                first = position + 1
                self._plan = (first, min(position + self._random.randint(1, ROWS_MAX * 2), plan.span_end(first)))
                self._journal.note("plan", *self._plan)
            return [self._plan]
        bounds, end = [], plan.span_end(position + 1)
        for _ in range(self._random.randint(1, WRITES_MAX)):
            if position < end:
                last = min(position + self._random.randint(1, ROWS_MAX), end)
                bounds.append((position + 1, last))
                position = last
        return bounds
