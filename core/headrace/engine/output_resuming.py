"""What outputs share whose far side can tell what it holds (`sink_resume`, `transport_resume`).

After a crash the output starts at that resume point, even below its cursor (DELIVERY 19). Because the process may have died
*by* the first range, that one is counted durably before it is tried, and halved when it keeps killing.
"""

from __future__ import annotations

from headrace.engine.outputs import CRASH, Output, OutputServices, StoreError, resume_floor
from headrace.engine.passing import told_id
from headrace.engine.supervisor import Supervised
from headrace.errors import HookError
from headrace.hookspecs import Plan


class ResumingOutput(Output):
    """An output that asks its far side where to go on."""

    def __init__(self, unit: Supervised, services: OutputServices) -> None:
        super().__init__(unit, services)
        self._counting = True
        self._crashed: Plan | None = None

    async def _begin(self) -> None:
        first_time = self.reader is None
        self.reader = await self._queue.queue_reader_open(reader=self.id, start=self.keys.start)
        await self._forget()
        self.flushed = self.attempted = await self._resume_point()
        if self.flushed > self.reader.cursor:
            await self._queue.queue_release(reader=self.id, upto=self.flushed)
            self._s.released()
        await self._load_dead()
        if first_time:
            await self._suspect(self.reader.plan)
            self.unit.log.info("output starts", position=self.flushed, cursor=self.reader.cursor)
            if self.flushed < self.reader.cursor and self.keys.hold == "always":  # a window lets go of what the store never had
                self.unit.log.warning(
                    "store holds less than it had reported safe: another one, or restored; what the queue still has is written again",
                    position=self.flushed,
                    cursor=self.reader.cursor,
                )

    async def _forget(self) -> None:
        """Nothing that was handed over, or is being read, counts any more."""
        raise NotImplementedError

    async def _resume_point(self) -> int:
        info = self._info()
        assert self.reader is not None
        position = resume_floor(info, self.reader)
        for span in info.spans:
            last = info.head if span.last is None else span.last
            if last <= position:
                continue
            held = await self._held(span.queue_id)
            if held is None:
                break
            # beyond the id's last entry means that all of the id is held (DELIVERY 2)
            position = max(position, min(held, last))
            if held < last:
                break
        return position

    async def _held(self, queue_id: str) -> int | None:
        """Up to which position (of the queue here) the far side holds the id."""
        known, shift = told_id(queue_id)
        held = await self._call("resume", queue_id=known)
        if held is not None and (not isinstance(held, int) or isinstance(held, bool)):
            wrong = HookError(self.unit.entry.use, f"{self.hooks}_resume must return a position or None, got {held!r}")
            raise StoreError("resume", wrong)
        return None if held is None else max(held - shift, 0)

    async def _suspect(self, plan: Plan | None) -> None:
        """A range that was begun and never ended: did it kill the process?"""
        if plan is None or plan.first != self.flushed + 1 or not plan.attempts:
            return  # the far side has got on since: it was not this range
        self._crashed = plan
        if plan.attempts < self._s.engine.attempts_max:
            if plan.last - plan.first + 1 < self._s.engine.read_rows_max:
                self._narrowing.again(plan.first, plan.last)
            return
        self.unit.log.error("range keeps killing the process", first=plan.first, last=plan.last, attempts=plan.attempts)
        if self._narrowing.failed(plan.first, plan.last):
            await self._set_aside(plan.first, f"bug: the process died {plan.attempts} times on it", CRASH)
            self._crashed = None

    async def _count_attempt(self, size: int) -> None:
        """Note durably that the first range behind the cursor is tried, before anything of it is touched."""
        first = self.flushed + 1
        crashed = self._crashed if self._crashed and self._crashed.first <= first <= self._crashed.last else None
        # a single event is condemned by its own crashes, not by those of the range that it came from
        attempts = crashed.attempts + 1 if crashed and (size > 1 or crashed.first == crashed.last) else 1
        await self._note(Plan(first, first + size - 1, attempts))
        self._s.faults.hit("engine.after_plan")

    async def _lived(self) -> None:
        self._crashed = None
        if self._noted is not None:
            await self._note(None)
