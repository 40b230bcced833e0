"""The sending half of a transport: batches as the queue holds them, several on their way at once.

Nothing is decoded for it. The calls of `transport_send` start in the order of the positions and may end in any; the cursor
moves by what is safe from the first one on without a hole.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from headrace.component import Component
from headrace.engine.output_resuming import ResumingOutput
from headrace.engine.outputs import CRASH, Activity, OutputServices, StoreError, resume_floor, rows_at
from headrace.engine.pacing import Pace
from headrace.engine.reading import Events, Reading
from headrace.engine.supervisor import Supervised
from headrace.errors import PermanentError, TransientError
from headrace.position import RangeKey, join_keys

#: A larger read goes out in several batches: what is lost on the way is sent again, and the far side's loop takes one at a time.
SEND_BYTES: Final = 1 << 20
#: Batches whose answer is there but waits for that of an earlier one, and those that wait themselves.
FLIGHTS_MAX: Final = 65_536
BOUND_POLL_S: Final = 0.5


@dataclass(slots=True, eq=False)
class Flight:
    """One call of `transport_send`. Its events are let go once it is answered: many may wait behind one that is not."""

    key: RangeKey
    rows: int
    events: Events | None
    task: asyncio.Task[None]

    @property
    def safe(self) -> bool:
        """Whether the far side has it."""
        return self.task.done() and not self.task.cancelled() and self.task.exception() is None


class SendingOutput(ResumingOutput):
    """An output with `transport_send` and `transport_resume`."""

    hooks = "transport"

    def __init__(self, unit: Supervised, services: OutputServices) -> None:
        super().__init__(unit, services)
        self._reads: Reading = services.raw
        self._flights: deque[Flight] = deque()
        self._unanswered: set[Flight] = set()
        self._broken: list[Flight] = []
        self._told: Component | None = None  # the instance that knows whose batches it sends
        self._rest: Events | None = None
        self._reading: asyncio.Task[Events] | None = None
        self._failed: Events | None = None
        self._hurried: Flight | None = None
        self._share = services.shares.get(self.id)
        self._behind: list[str] = []
        self._pace = Pace(services.waits)
        self._count_paused = self._metrics.counter(
            "output_paused_seconds_total", "Seconds that a backlog gave way to the devices that send."
        )

    def _doing(self, activity: Activity) -> None:
        # a link waits for its far side by nature: that alone must not make the process look stuck
        super()._doing("waiting" if activity == "working" else activity)

    async def _begin(self) -> None:
        if self.unit.plugins.has("transport_queue"):
            await self._call("queue", queue=self._info(), secret=self._queue.queue_secret() or b"")
        await super()._begin()

    async def _call(self, stage: str, **arguments: Any) -> Any:
        await self.unit.is_open()
        if stage == "queue":
            self._told = self.unit.component
        elif self._told not in (None, self.unit.component):
            # its own loop failed meanwhile: a new instance that speaks before it is told for whom would speak for nobody
            raise StoreError(stage, TransientError("restarted: it has to be told its queue first"))
        return await super()._call(stage, **arguments)

    async def _resume_point(self) -> int:
        """As for a store, but what the cursor has passed is never sent again to a far side that knows nothing of the queue id:
        another one took it, and may have passed it on (DELIVERY 13)."""
        info = self._info()
        assert self.reader is not None
        position = resume_floor(info, self.reader)
        for span in info.spans:
            last = info.head if span.last is None else span.last
            if last <= position:
                continue
            held = await self._held(span.queue_id)
            if held is None and last > self.reader.cursor:
                return max(position, self.reader.cursor)
            position = last if held is None else max(position, min(held, last))
            if held is not None and held < last:
                break
        return position

    async def _feed(self) -> None:
        try:
            while True:
                await self._settle()
                if self._drained():
                    return
                events = await self._next()
                if events is not None:
                    self._start(events)
                    await self._give_way(events.batch.num_rows)
        except asyncio.CancelledError:
            self._abandon()
            raise

    async def _give_way(self, rows: int) -> None:
        """After a batch of a backlog, while devices wait for acks. What the queue holds for a window only must not wait."""
        if self.draining or self.keys.hold != "always" or not (pause_s := self._pace.pause_s(rows, self._info(), self.attempted)):
            return
        self._count_paused.inc(pause_s)
        self._doing("waiting")
        await asyncio.sleep(pause_s)

    def _drained(self) -> bool:
        return self.draining and not self._flights and self._rest is None and self.attempted >= self._info().head

    # --- what goes out -----------------------------------------------------------------------------------------------

    async def _next(self) -> Events | None:
        """The next batch, or None when something ended meanwhile, or somebody nudged."""
        if self.skip_to > self.attempted:
            return await self._skipped_range()
        if self._room():
            if self._rest is None and self._reading is None:
                await self._begin_read()
            if self._rest is not None and not self._other_queue(self._rest):
                return self._part()
        await self._until_something()
        return None

    def _room(self) -> bool:
        # a range under suspicion travels alone
        if self._counting or self._narrowing.active:
            return not self._flights
        return len(self._unanswered) - self._bound() < self.keys.send_window and len(self._flights) < FLIGHTS_MAX

    def _bound(self) -> int:
        """Calls that wait for a far tier that is away while there is another: they are not in the way of new ones."""
        if not self.unit.plugins.has("transport_bound"):
            return 0
        try:
            return int(self.unit.hook.transport_bound())
        except Exception as error:
            raise StoreError("bound", error) from error

    def _other_queue(self, events: Events) -> bool:
        """Whether the batch must wait: the ranges of two queue ids are never on their way together."""
        other = bool(self._flights) and self._flights[-1].key.queue_id != events.key.queue_id
        return other and len(self._unanswered) > self._bound()

    async def _begin_read(self) -> None:
        """Begin to read behind what was handed over; an event that killed the process is not even read."""
        if self.draining and self.attempted >= self._info().head:
            return
        rows = self._before_lethal(self.attempted, self._narrowing.limit or self._s.engine.read_rows_max)
        if self._share is not None:
            behind = self._share.waits_for(self.attempted, self._info())
            if behind != self._behind:
                self._behind = behind
                self.unit.log.info("output waits for those that shared events with it before", outputs=behind)
            if behind:
                return
            rows = self._share.rows(self.attempted, rows)
        if not rows:
            self._rest = self._without_rows(self.attempted + 1, self.attempted + 1)
            return
        if self._counting and self._info().head > self.flushed:
            await self._count_attempt(rows)
        self._reading = asyncio.ensure_future(self._reads.after(self.id, self.attempted, rows))

    def _part(self) -> Events:
        """As much of what was read as goes out in one batch."""
        events, self._rest = self._rest, None
        assert events is not None
        rows, size = events.batch.num_rows, events.batch.nbytes
        if size <= SEND_BYTES or rows < 2:
            return events
        last = int(events.positions[max(1, rows * SEND_BYTES // size)]) - 1
        self._rest = events.part(last + 1, events.key.last)
        return events.part(events.key.first, last)

    async def _hurry_far_side(self) -> None:
        """Nothing more goes out before something comes back: the far side is not to wait for more. Once for each first flight."""
        if self._flights and self._hurried is not self._flights[0] and self.unit.plugins.has("transport_hurry"):
            self._hurried = self._flights[0]
            await self._call("hurry")

    async def _until_something(self) -> None:
        if not self._room() or (self.draining and self.attempted >= self._info().head):
            await self._hurry_far_side()
        nudged = asyncio.ensure_future(self._nudged.wait())
        self._doing("waiting" if self._flights else "idle")
        under_way = {flight.task for flight in self._unanswered} | ({self._reading} if self._reading else set())
        bound = self._bound()
        if self._counting and bound and bound >= len(self._flights):
            # it waits for a far tier that is away, and has not killed anybody
            self._counting = False
            await self._lived()
            nudged.cancel()
            return
        # nobody tells when a far tier goes away, or when another output has got on
        polls = bool(self._behind) or (self.unit.plugins.has("transport_bound") and bool(self._flights))
        timeout = BOUND_POLL_S if polls else None
        try:
            await asyncio.wait({*under_way, nudged}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            nudged.cancel()
        if self._nudged.is_set():
            await self._hurry_far_side()
        self._nudged.clear()
        if self._reading is not None and self._reading.done():
            self._rest, self._reading = self._own(self._reading.result()), None

    def _own(self, events: Events) -> Events:
        """What is this output's, where several share the events."""
        return events if self._share is None else self._share.only(events)

    def _start(self, events: Events) -> None:
        events = events.without(self._dead)
        self.attempted = events.key.last
        call = self._call("send", batch=events.batch, origins=events.origins, key=events.key)
        flight = Flight(events.key, events.batch.num_rows, events, asyncio.ensure_future(call))
        self._flights.append(flight)
        self._unanswered.add(flight)
        flight.task.add_done_callback(lambda _: self._answered(flight))
        self._s.faults.hit("engine.after_write")

    # --- what came of it ---------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Release what is safe without a hole; raise what a call raised."""
        safe: list[Flight] = []
        while self._flights and self._flights[0].safe:
            safe.append(self._flights.popleft())
        if safe:
            attempted = self.attempted
            for _, group in itertools.groupby(safe, key=lambda flight: flight.key.queue_id):
                same = list(group)
                await self._flushed(join_keys([flight.key for flight in same]), sum(flight.rows for flight in same))
            self.attempted = attempted
            if self._counting and not self._narrowing.active:
                self._counting = False
                await self._lived()
        if self._broken:
            # a refusal is about this range, not about those behind it
            flight = min(self._broken, key=lambda flight: flight.key.first)
            self._failed, self.attempted = flight.events, flight.key.last
            error = flight.task.exception()
            assert error is not None
            raise error

    def _answered(self, flight: Flight) -> None:
        if flight not in self._unanswered:
            return  # given up
        self._unanswered.discard(flight)
        if flight.safe:
            flight.events = None
        else:
            self._broken.append(flight)

    async def _reset(self) -> None:
        await self._forget()

    async def _forget(self) -> None:
        flights = [flight.task for flight in (*self._unanswered, *self._broken)]
        self._abandon()
        if flights:
            await asyncio.wait(flights)
            for task in flights:
                if not task.cancelled() and isinstance(error := task.exception(), Exception) and not isinstance(error, StoreError):
                    raise error

    def _abandon(self) -> None:
        """Give up what is under way: it goes out again from the far side's resume point."""
        for flight in self._unanswered:
            flight.task.cancel()
        self._flights.clear()
        self._unanswered.clear()
        self._broken.clear()
        self._rest = None
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    async def _skipped_range(self) -> Events | None:
        """What fell out of the window goes to the far side as missing, so that its ranges stay without a hole."""
        await self._settle()
        await self._forget()
        self.attempted = self.flushed
        if self.skip_to <= self.flushed:
            return None
        first = self.flushed + 1
        self.unit.log.error("output fell out of its window: rebuild this range from another store", first=first, last=self.skip_to)
        return self._without_rows(first, self.skip_to, "window")

    async def _set_aside(self, position: int, reason: str, stage: str) -> None:
        if self._share is not None and stage != CRASH:
            read = await self._reads.raw(self.id, position, position)
            if not self._own(await self._reads.events(read)).batch.num_rows:
                self._dead.add(position)  # another output's event, which this one has not sent, cannot be at fault
                return
        await super()._set_aside(position, reason, stage)

    def _named(self, error: PermanentError) -> list[int]:
        if self._failed is None:
            return []
        return rows_at(self._failed.positions, error.rows.get(str(self._failed.key), []), self.unit.entry.use)
