"""What all connections gather, its commits, and who is told afterwards.

Messages of all connections gather in one buffer. One commit takes what is there; while it is under way, the next gathers.
Nothing here is made per message: a commit knows each peer by the number of its last message, because acks are cumulative.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import pyarrow as pa

from headrace import NO_ORIGINS, Clock, Deliver, Origin, QueueFull, TransientError, origin_batch
from headrace.batching import RawBatchBuilder
from headrace.log import Log
from headrace_ingest_ws.counters import Counters
from headrace_ingest_ws.lane import Lane, Waiter
from headrace_ingest_ws.parser import Find, FrameBuffer

if TYPE_CHECKING:  # not there without the C parser
    from headrace_ingest_ws.gathering import Gathered, Gatherer

#: Acks are written to so many peers before the loop gets a turn: about 0.5 ms of work.
PEERS_PER_TURN: Final = 256

#: Behind a commit of fewer rows than REST_ROWS nothing is read for REST_RATIO of the time that it took. Without that, commits of
#: two or three messages would follow each other at any rate, with the core always busy.
REST_ROWS: Final = 64
REST_RATIO: Final = 1.2
REST_S_MAX: Final = 0.000_4

#: While more connections are ready than one read looks at, so long a commit waits for what they send.
COMPANY_S_MAX: Final = 0.002

#: Size of a ws_chunk (gather.h).
CHUNK_BYTES: Final = 32

#: A queue that says it has room and then has none again is asked at this pace, doubling up to a second.
REFUSED_AGAIN_S: Final = 0.01

BEFORE_DELIVER: Final = "ingest_ws.before_deliver"
AFTER_DELIVER: Final = "ingest_ws.after_deliver"
AFTER_ACK: Final = "ingest_ws.after_ack"


class Peer(Protocol):
    """Who sent messages: a connection, or a POST."""

    def settled(self, last: int) -> None:
        """All of your messages up to `last` are durable or were refused: acknowledge. Must not raise, and not wait."""


class Member(Protocol):
    """A device session that has messages in the batch that gathers."""

    @property
    def origin_bytes(self) -> int:
        """About what `origin` takes in a commit."""

    def origin(self) -> Origin | None:
        """What the batch that is handed over now holds of it; None for nothing."""


@dataclass(slots=True)
class Commit:
    """What one `deliver` carries, and the last message of each peer in it.

    batch is None when there is nothing to store: all messages were refused, none of them in a session.
    """

    batch: pa.RecordBatch | None
    origins: pa.RecordBatch
    rows: int
    peers: dict[Peer, int]
    chunks: bytes  # of what C gathered: who is in it
    since: float
    done: asyncio.Event = field(default_factory=asyncio.Event)
    error: BaseException | None = None
    refused: int = 0  # times that the queue was full


class Intake:
    """The gatherer and committer that all connections share.

    `run(deliver)` commits until `stop`. It raises the first error of `deliver` other than QueueFull, with nothing of that
    commit or of a later one acknowledged.
    """

    def __init__(
        self,
        *,
        rows_max: int,
        bytes_max: int,
        wait_us_max: int,
        commits_in_flight: int,
        clock: Clock,
        counters: Counters,
        log: Log,
        fault: Callable[[str], None],
        gatherer: Gatherer | None = None,
    ) -> None:
        self._builder = RawBatchBuilder(rows_max, bytes_max)
        self.gatherer = gatherer
        self._peers: dict[Peer, int] = {}
        self._members: list[Member] = []
        self._since = 0.0
        self._wait_s = wait_us_max / 1e6
        self._clock, self._counters, self._log, self._fault = clock, counters, log, fault
        self._slots = asyncio.Semaphore(commits_in_flight)
        self._commits: asyncio.Queue[Commit] = asyncio.Queue()  # as long as there are slots
        self._unsettled = 0
        self._work, self._room, self._quiet, self._stop = asyncio.Event(), asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.lane = Lane(lambda call: asyncio.get_running_loop().call_soon(call))
        self._waiters: dict[Waiter, None] = {}  # in the order in which they stopped
        self._go = asyncio.Event()  # cleared while paused: no later batch may overtake one that the queue refused
        self._room.set()
        self._quiet.set()
        self._go.set()
        self._rests_until = 0.0  # nothing is read before
        self._prompt = False  # whether the queue, as far as is known, commits without making anybody wait
        self.paused = False
        self.stopped = False
        #: who hears of acks that C left; the poller puts itself here
        self.ack_begun: Callable[[int, int], None] = lambda _descriptor, _sent: None

    # --- for connections ---------------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """True while nobody should read: the queue is full, or a whole batch waits for its turn."""
        builder, gatherer = self._builder, self.gatherer
        if self.paused or builder.full or gatherer is None:
            return self.paused or builder.full
        return builder.rows + gatherer.rows >= builder.rows_max or builder.bytes + gatherer.size >= builder.bytes_max

    @property
    def rows_left(self) -> int:
        """So many events may be added now; 0 when nobody should read."""
        gathered = self.gatherer.rows if self.gatherer is not None else 0
        return 0 if self.full else self._builder.rows_max - self._builder.rows - gathered

    @property
    def batch_number(self) -> int:
        """Of the batch that gathers, where C does."""
        return self.gatherer.number if self.gatherer is not None else 0

    def now(self) -> float:
        """Monotonic seconds."""
        return self._clock.monotonic()

    def call_when_room(self, waiter: Waiter) -> None:
        """Call `go_on` when reading may go on, or when the intake has stopped."""
        self._waiters[waiter] = None

    async def room(self) -> None:
        """Return when reading may go on, or when the intake has stopped."""
        while self.full and not self.stopped:
            await self._room.wait()

    def add(
        self, peer: Peer, number: int, device: str, encoding: int, events: Sequence[bytes], devices: Sequence[str] | None = None
    ) -> None:
        """Gather the messages of `peer` up to `number`; a refused one has no events, and is settled in its turn.

        The events of one call always share a commit. devices: one for each event, where they are not all of `device`.
        """
        received_us = int(self._clock.wall() * 1e6)
        if devices is None:
            self._builder.extend(device, received_us, encoding, events)
        else:
            self._builder.extend_for(devices, received_us, encoding, events)
        self._begun()
        self._peers[peer] = number
        if self.full:
            self._room.clear()

    def read(self, buffer: FrameBuffer, epoll: select.epoll) -> list[Find]:
        """Read the connections that are ready. What can be gathered in C is; what is left to Python is returned."""
        gatherer, builder = self.gatherer, self._builder
        if gatherer is None:
            return buffer.read(epoll)
        now = self._clock.monotonic()
        if (rest_s := self._rests_until - now) > 0:
            gatherer.rest(min(rest_s, REST_S_MAX))
        rows, size = gatherer.rows, gatherer.payload_bytes
        rows_max, bytes_max = builder.rows_max - builder.rows, builder.bytes_max - builder.bytes
        left = gatherer.read(epoll, rows_max, bytes_max, int(self._clock.wall() * 1e6), now)
        if gatherer.rows > rows:
            self._counters.took(gatherer.rows - rows, gatherer.payload_bytes - size)
            self._begun()
            if self.full:
                self._room.clear()
        return left

    def _begun(self) -> None:
        if not self._work.is_set():
            self._since = self._clock.monotonic()
            self._work.set()
            self._quiet.clear()

    def wall(self) -> float:
        """Unix time, as it will stand in `received`."""
        return self._clock.wall()

    def join(self, member: Member) -> int:
        """A session's messages come into the batch that gathers: its origin goes with them. The row at which they begin.

        To be called again for the next batch, once `origin` was asked for.
        """
        self._members.append(member)
        builder = self._builder
        builder.bytes += member.origin_bytes
        return builder.rows

    def weigh(self, size: int) -> None:
        """So many bytes beside the events will be in the commit too."""
        self._builder.bytes += size

    async def quiet(self) -> None:
        """Return when everything gathered is settled and its acks are written."""
        await self._quiet.wait()

    def stop(self) -> None:
        """End `run`. What is not settled stays unacknowledged."""
        self._stop.set()

    # --- commits -----------------------------------------------------------------------------------------------------

    async def run(self, deliver: Deliver) -> None:
        """Commit and acknowledge until `stop`."""
        try:
            async with asyncio.TaskGroup() as tasks:
                loops = [tasks.create_task(self._commit(deliver, tasks)), tasks.create_task(self._acknowledge(deliver))]
                await self._stop.wait()
                for loop in loops:
                    loop.cancel()
        except BaseExceptionGroup as group:
            # the first error ended the others; a group would only hide its type from the host
            raise group.exceptions[0] from None
        finally:
            self.stopped = True
            self._let_in()

    async def _commit(self, deliver: Deliver, tasks: asyncio.TaskGroup) -> None:
        while True:
            await self._work.wait()
            if self._wait_s and not self.full:
                await self._clock.sleep(self._wait_s)
            await self._slots.acquire()
            await self._go.wait()
            while self._more_comes:  # noqa: ASYNC110  what it waits for is that the loop turns
                await asyncio.sleep(0)
            taken = self._clock.monotonic()
            commit = self._take()
            if commit.batch is None:
                commit.done.set()
            elif self._prompt and self._unsettled == 1:
                # the queue commits within the call: what takes tasks and wake-ups otherwise is done here and now
                self._prompt = not await self._deliver(deliver, commit)
                if commit.error is None:
                    await self._settle(commit)
                    self._rest(commit.rows, taken)
                    continue
            else:
                tasks.create_task(self._deliver_apart(deliver, commit))
            self._commits.put_nowait(commit)
            # QueueFull comes at once, before anything waits: after the first step of the task we are paused, or not
            await asyncio.sleep(0)

    @property
    def _more_comes(self) -> bool:
        """Others are ready to be read now, and a commit with what they sent costs little more than one without."""
        if self.gatherer is None or not self.gatherer.more or self.full:
            return False
        return self._clock.monotonic() - self._since < COMPANY_S_MAX

    def _rest(self, rows: int, taken: float) -> None:
        """Read nothing for a moment behind a small commit: its cost is one of commits, and so few of them leave the core half free."""
        if rows < REST_ROWS:
            now = self._clock.monotonic()
            self._rests_until = now + min(REST_S_MAX, REST_RATIO * (now - taken))

    def _take(self) -> Commit:
        gathered = self.gatherer.take() if self.gatherer is not None and self.gatherer.rows else None
        before = gathered.batch.num_rows if gathered is not None else 0
        rows = before + self._builder.rows
        origins = self._origins(gathered)
        # refused messages of a session make a commit of their own: their device must not send them again after a reconnect
        batch = self._batch(gathered) if rows or origins.num_rows else None
        chunks = gathered.chunks if gathered is not None else b""
        peers, self._peers = self._peers, {}
        commit = Commit(batch, origins, rows, peers, chunks, self._since)
        self._unsettled += 1
        self._work.clear()
        if not self.paused:
            self._let_in()
        return commit

    def _batch(self, gathered: Gathered | None) -> pa.RecordBatch:
        """The rows that C gathered, then those of Python."""
        if gathered is None:
            return self._builder.take()
        return pa.concat_batches([gathered.batch, self._builder.take()]) if self._builder.rows else gathered.batch

    def _origins(self, gathered: Gathered | None) -> pa.RecordBatch:
        """Of the sessions in the batch, in the order of their first rows; those of Python stand behind what C gathered."""
        members, self._members = self._members, []
        in_c = gathered.origins if gathered is not None else NO_ORIGINS
        if not members and (gathered is None or not gathered.members):
            return in_c
        rows_before = gathered.batch.num_rows if gathered is not None else 0
        origins = [origin for member in gathered.members if (origin := member.origin()) is not None] if gathered is not None else []
        for member in members:
            if (origin := member.origin()) is not None:
                origins.append(origin._replace(row_offset=origin.row_offset + rows_before))
        in_python = origin_batch(origins)
        if not in_c.num_rows:
            return in_python
        both = pa.concat_batches([in_c, in_python])
        return both.take(pa.array(np.argsort(both.column("row_offset").to_numpy(), kind="stable")))

    def _let_in(self) -> None:
        self._room.set()
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            waiter.go_on()

    def _pause(self, error: QueueFull) -> None:
        if not self.paused:
            self.paused = True
            self._room.clear()
            self._go.clear()
            self._counters.paused.set(1)
            self._log.warning("queue full, reading paused", queue=error.queue, bytes=error.size_bytes, bytes_max=error.size_bytes_max)

    def _resume(self) -> None:
        self.paused = False
        self._go.set()
        self._counters.paused.set(0)
        if not self._builder.full:
            self._let_in()
        self._log.info("reading resumed")

    async def _deliver_apart(self, deliver: Deliver, commit: Commit) -> None:
        self._prompt = not await self._deliver(deliver, commit)

    async def _deliver(self, deliver: Deliver, commit: Commit) -> bool:
        """One attempt; how it ended stands in the commit. True when it had to wait for something."""
        commit.error = None
        delivery = _Watched(deliver, commit)
        try:
            self._fault(BEFORE_DELIVER)
            await delivery
        except QueueFull as error:
            commit.error = error
            self._pause(error)
        except Exception as error:
            commit.error = error
            self._go.clear()  # nothing may follow what was lost: a session's mark would cover it
        except asyncio.CancelledError as error:
            # nobody knows whether it is durable, so nobody is told that it is
            commit.error = error
            self._go.clear()
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
        finally:
            commit.done.set()
        return delivery.waited

    async def _acknowledge(self, deliver: Deliver) -> None:
        """Settle commits in their order, whatever the order in which they end: acks are cumulative."""
        while True:
            commit = await self._commits.get()
            await commit.done.wait()
            while isinstance(commit.error, QueueFull):
                await self._retry(deliver, commit)
            if isinstance(commit.error, Exception):
                raise commit.error
            if commit.error is not None:
                raise TransientError("deliver was cancelled under a commit of ingest_ws; its outcome is unknown, nothing of it was acked")
            await self._settle(commit)

    async def _settle(self, commit: Commit) -> None:
        """The batch is durable: only now may anybody be told."""
        self._slots.release()
        self._fault(AFTER_DELIVER)
        self._counters.acked.inc(commit.rows)
        for turn, (peer, last) in enumerate(commit.peers.items(), start=1):
            peer.settled(last)
            if turn % PEERS_PER_TURN == 0:
                await asyncio.sleep(0)
        await self._acknowledge_gathered(commit.chunks)
        self._counters.ack_duration.observe(self._clock.monotonic() - commit.since)
        self._fault(AFTER_ACK)
        self._unsettled -= 1
        if not self._unsettled:
            self._all_settled()

    async def _acknowledge_gathered(self, chunks: bytes) -> None:
        if not chunks or self.gatherer is None:
            return
        for begin in range(0, len(chunks) // CHUNK_BYTES, PEERS_PER_TURN):
            if begin:
                await asyncio.sleep(0)
            rest = iter(self.gatherer.acknowledge(chunks, begin, begin + PEERS_PER_TURN))
            for descriptor, sent in zip(rest, rest, strict=True):
                self.ack_begun(descriptor, sent)

    async def _retry(self, deliver: Deliver, commit: Commit) -> None:
        """The queue took nothing: wait for room and try again, while everything behind this commit waits."""
        if commit.refused:
            await self._clock.sleep(min(1.0, REFUSED_AGAIN_S * 2.0 ** min(commit.refused, 10)))
        commit.refused += 1
        await deliver.room()
        await self._deliver(deliver, commit)

    def _all_settled(self) -> None:
        if self.paused:
            self._resume()
        if not self._work.is_set():
            self._quiet.set()


class _Watched:
    """A delivery to await, which tells whether it waited."""

    __slots__ = ("_commit", "_deliver", "waited")

    def __init__(self, deliver: Deliver, commit: Commit) -> None:
        self._deliver, self._commit = deliver, commit
        self.waited = False

    def __await__(self) -> Generator[Any, Any, None]:
        steps = self._deliver(self._commit.batch, self._commit.origins).__await__()
        try:
            step = next(steps)
            self.waited = True
            while True:
                try:
                    sent = yield step
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(sent)
        except StopIteration:
            return
