"""Several far tiers for one output: new batches go to the first one that is there, each batch stays bound to the one that it was sent to.

Which positions belong to which far tier is in `assignments`, which of them is there in `choosing`; here they are put to work, each lane
over a link of its own. A batch whose far tier is away waits for it, while new ones go elsewhere.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

import pyarrow as pa

from headrace import Context, QueueInfo, RangeKey, TransientError
from headrace_transport_zmq import assignments, lanes
from headrace_transport_zmq.assignments import Assignments, Segment
from headrace_transport_zmq.choosing import Choice
from headrace_transport_zmq.counters import FleetCounters
from headrace_transport_zmq.cutting import cut

#: Positions that are assigned ahead of what is sent: one durable write for so many.
AHEAD: Final = 262_144
PROBE: Final = 0
RELEASE_S: Final = 1.0


class Link(Protocol):
    """One lane to one far tier, or (lane 0) only a look whether it is there."""

    def queue(self, queue: QueueInfo, secret: bytes, fresh: bool = True) -> None:
        """The batches come from this queue; fresh: as it is now."""

    async def resume(self, queue_id: str) -> int | None:
        """What the far tier holds of the lane; waits until it can be asked."""

    def post(self, batch: pa.RecordBatch, origins: pa.RecordBatch, key: RangeKey) -> asyncio.Future[None]:
        """Send; done when the far tier has it durable."""

    def abandon(self) -> None:
        """Nobody waits for what was posted."""

    def hurry(self) -> None:
        """Whoever sends waits for what is on its way."""

    async def run(self) -> None:
        """Keep the connection."""

    def close(self) -> None:
        """Safe twice."""


#: (peer, address, lane, told) -> its link; `told(there, reason)` is to be called whenever that is known.
Make = Callable[[str, str, int, Callable[[bool, str], None]], Link]


class Fleet:
    """The far tiers of one output. `addresses`: name -> address, the preferred one first."""

    def __init__(self, addresses: dict[str, str], resend_bound: bool, context: Context, make: Make, count: FleetCounters) -> None:
        self._addresses, self._resend_bound, self._context, self._make, self._count = addresses, resend_bound, context, make, count
        self._choice = Choice(list(addresses))
        self._links: dict[int, Link] = {}
        self._posted: dict[asyncio.Future[None], Segment] = {}
        self._running: dict[int, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._turn = asyncio.Lock()
        self._writing, self._closed = threading.Lock(), False
        self._changed = asyncio.Event()
        self._queue: QueueInfo | None = None
        self._secret = b""
        self._sent = 0
        self._said: dict[str, dict[int, str]] = {}
        self._why: dict[str, str] = {}
        kept = assignments.load(context.data_dir)
        self._kept = kept is not None
        self._assigned = kept or self._single(context.data_dir)
        for name in addresses:
            self._link(Segment(PROBE, name, addresses[name], 0, 0))

    def _single(self, folder: Path) -> Assignments:
        """Before there were several: what was sent may be with the one far tier that there was."""
        lane = lanes.load(folder)
        if lane is None:
            return Assignments()
        return Assignments([Segment(lane.number, lane.peer, "", 1, 1 << 62)], lane.number + 1)

    # --- the host's side ---------------------------------------------------------------------------------------------

    def queue(self, queue: QueueInfo, secret: bytes) -> None:
        """The batches come from this queue. The first time: nothing behind its head was ever sent."""
        if self._queue is None:
            self._assigned.cut(queue.head)
            self._sent = min(queue.head, self._assigned.upto)
        self._queue, self._secret = queue, secret or lanes.own_secret(self._context.data_dir)
        for link in self._links.values():
            link.queue(queue, secret)

    async def resume(self, queue_id: str) -> int | None:
        """Up to where the far tiers hold the queue id without a hole, as far as they can be asked: what is sent again of the rest is
        left out by those that hold it. None: nothing is known."""
        assert self._queue is not None
        span = next((span for span in self._queue.spans if span.queue_id == queue_id), None)
        if span is None or not self._assigned.segments:
            return None
        async with self._turn:
            await self._rebind()
        last = min(self._queue.head if span.last is None else span.last, self._assigned.upto)
        # segments are dropped when the cursor, which may have been forgotten in a crash, has passed them
        held = min(self._assigned.segments[0].first - 1, last)
        for segment in list(self._assigned.segments):
            if segment.upto < span.first or segment.first > last:
                continue
            mark = await self._ask(segment, queue_id)
            # of one that cannot be asked, or knows nothing, as much as it has acknowledged
            held = max(held, min(self._cursor() if mark is None else mark, segment.upto, last))
            if held < min(segment.upto, last):
                break
        return held if held >= span.first else None

    async def _ask(self, segment: Segment, queue_id: str) -> int | None:
        """The mark of a lane; None when there is none, or its far tier is away and another one is there."""
        asking = asyncio.ensure_future(self._link(segment).resume(queue_id))
        try:
            while not asking.done():
                if self._stuck(segment.peer):
                    return None
                await self._change(asking)
            return asking.result()
        finally:
            asking.cancel()

    async def send(self, batch: pa.RecordBatch, origins: pa.RecordBatch, key: RangeKey) -> None:
        """Returns when all of it is durable, wherever it belongs."""
        posted: list[asyncio.Future[None]] = []
        try:
            async with self._turn:  # in the order of the calls
                await self._assign(key.first, key.last)
                for part in self._assigned.parts(key.first, key.last):
                    link = self._link(part.segment)
                    future = link.post(*cut(batch, origins, key, part.first, part.last))
                    self._posted[future] = part.segment
                    posted.append(future)
                self._sent = max(self._sent, key.last)
            await asyncio.gather(*posted)
        except asyncio.CancelledError:
            # the host gives up all calls together, and goes on with `resume`
            for link in self._links.values():
                link.abandon()
            raise
        finally:
            for future in posted:
                self._posted.pop(future, None)
                future.cancel()

    def bound(self) -> int:
        """Calls that wait for a far tier that is away, while new ones can go elsewhere."""
        return sum(1 for future, segment in self._posted.items() if not future.done() and self._stuck(segment.peer))

    def hurry(self) -> None:
        """Whoever sends waits for what is on its way."""
        for link in self._links.values():
            link.hurry()

    async def run(self) -> None:
        """Keep the links; until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            for lane, link in self._links.items():
                self._start(lane, link)
            while True:
                await self._context.clock.sleep(RELEASE_S)
                self._count.bound.set(self.bound())
                self._changed.set()  # a better far tier may have been back for long enough

    def close(self) -> None:
        """Safe twice."""
        with self._writing:
            self._closed = True
        for link in self._links.values():
            link.close()
        self._links.clear()

    # --- whose is what -----------------------------------------------------------------------------------------------

    async def _assign(self, first: int, last: int) -> None:
        """See to it that all positions up to `last` have a lane, new ones that of the far tier of choice; durable on return."""
        while True:
            peer = self._choice.current(self._now())
            growing = self._assigned.last
            if last <= self._sent:
                return  # bound already
            if peer is None:
                await self._change()
                continue
            if growing is None or growing.peer != peer:
                self._assigned.cut(self._sent)
                begin = self._assigned.upto + 1 if self._assigned.segments else first
                opened = self._assigned.open(peer, self._addresses[peer], begin, last + AHEAD)
                self._count.lanes.inc()
                self._context.log.info("link opens a lane", peer=peer, lane=opened.lane, first=begin)
            elif last > self._assigned.upto:
                self._assigned.extend(last + AHEAD)
            elif self._kept:
                return
            self._release()
            await self._keep()

    async def _keep(self) -> None:
        await self._context.call_blocking(self._write, assignments.pack(self._assigned))
        self._kept = True

    def _write(self, packed: bytes) -> None:
        with self._writing:
            if not self._closed:  # else another instance has read them already
                assignments.keep(self._context.data_dir, packed)

    def _release(self) -> None:
        """Forget the segments that the cursor has passed."""
        assert self._queue is not None
        bound = {segment.lane for segment in self._posted.values()}
        oldest = min((segment.first for segment in self._posted.values()), default=self._assigned.upto + 1)
        for segment in self._assigned.release(min(oldest - 1, self._cursor())):
            if segment.lane not in bound:
                self._end(segment.lane)

    def _cursor(self) -> int:
        assert self._queue is not None
        return next((reader.cursor for reader in self._queue.readers if reader.name == self._context.id), 0)

    async def _rebind(self) -> None:
        """Where it is allowed, send what is bound to a far tier that is away, or left the config, to the one of choice."""
        peer = self._choice.current(self._now())
        gone = [segment for segment in self._assigned.segments if self._stuck(segment.peer) or not self._address(segment)]
        if not gone:
            return
        if not self._resend_bound:
            if lost := next((segment for segment in gone if not self._address(segment)), None):
                raise TransientError(
                    f"positions {lost.first}-{lost.upto} are bound to peer {lost.peer!r}, which is not in the config any more; put it back "
                    "until they are acknowledged, or set resend_bound = true to send them to another one, at the risk of doubles",
                    10.0,
                )
            return
        if peer is None:
            return
        for segment in gone:
            self._assigned.rebind(segment, peer, self._addresses[peer])
            self._count.resent.inc()
            self._context.log.warning("what a far tier may hold goes to another one", peer=peer, before=segment.peer, first=segment.first)
        await self._keep()

    def _address(self, segment: Segment) -> str:
        return self._addresses.get(segment.peer) or segment.connect

    def _stuck(self, peer: str) -> bool:
        """Whether what is bound to this far tier waits while there is another one to go on with."""
        current = self._choice.current(self._now())
        away = self._choice.is_away(peer) if peer in self._addresses else peer in self._why
        return away and current not in (None, peer)

    # --- links -------------------------------------------------------------------------------------------------------

    def _link(self, segment: Segment) -> Link:
        key = segment.lane if segment.lane != PROBE else -1 - list(self._addresses).index(segment.peer)
        link = self._links.get(key)
        if link is None:
            link = self._make(
                segment.peer, self._address(segment), segment.lane, lambda there, why: self._told(segment.peer, key, "" if there else why)
            )
            self._links[key] = link
            if self._queue is not None:
                link.queue(self._queue, self._secret, fresh=False)
            if self._tasks is not None:
                self._start(key, link)
        return link

    def _start(self, key: int, link: Link) -> None:
        assert self._tasks is not None
        self._running[key] = self._tasks.create_task(link.run())

    def _end(self, lane: int) -> None:
        if (task := self._running.pop(lane, None)) is not None:
            task.cancel()
        if (link := self._links.pop(lane, None)) is not None:
            link.close()
        for said in self._said.values():
            said.pop(lane, None)

    def _told(self, peer: str, key: int, why: str) -> None:
        """What one of the links to a far tier says; it counts as there when none of them complains."""
        if key not in self._links:
            return
        said = self._said.setdefault(peer, {})
        said[key] = why
        there = not any(said.values())
        if there:
            self._why.pop(peer, None)
        else:
            self._why[peer] = next(filter(None, said.values()))
        if peer in self._addresses:
            self._choice.told(peer, there, self._now())
        if self._resend_bound and self._stuck(peer):
            for future, segment in list(self._posted.items()):
                if segment.peer == peer and not future.done():
                    future.set_exception(TransientError(f"peer {peer!r} is away: what it may hold is sent to another one"))
        self._report()
        self._changed.set()

    def _report(self) -> None:
        current = self._choice.current(self._now())
        self._count.connected.set(current is not None)
        if current is None and len(self._why) >= len(self._addresses):
            self._context.status("degraded", "; ".join(self._why.values()))
            return
        stuck = [segment for segment in self._assigned.segments if self._stuck(segment.peer)]
        if stuck:
            peers = ", ".join(sorted({segment.peer for segment in stuck}))
            why = "; ".join(sorted({self._why[segment.peer] for segment in stuck}))
            self._context.status("degraded", f"what was sent to {peers} waits for it: {why}; resend_bound = true sends it elsewhere")
        elif current is not None:
            self._context.status("ok", "")

    async def _change(self, *others: asyncio.Future[Any]) -> None:
        """Until something is known that was not, or one of the others is done."""
        changed = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait({changed, *others}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()
        self._changed.clear()

    def _now(self) -> float:
        return self._context.clock.monotonic()
