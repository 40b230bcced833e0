"""The receiving end: one ROUTER socket, around the logic of `receiver`. Lives on the loop that acknowledges devices.

The socket is always read, whatever the queue does, so that links know that we live. What came meanwhile from all links goes
into the queue as one append, and is acknowledged when that returns.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Coroutine, Sequence
from typing import Any, Final

import zmq
import zmq.asyncio

from headrace import BY_FLUSH, Context, Deliver, PermanentError, QueueFull, TransientError
from headrace.log import describe
from headrace_transport_zmq import wire
from headrace_transport_zmq.config import TransportConfig
from headrace_transport_zmq.content import joined, take
from headrace_transport_zmq.counters import ReceivingCounters
from headrace_transport_zmq.guard import Guard
from headrace_transport_zmq.identities import Identities
from headrace_transport_zmq.passing import Answers, Passing
from headrace_transport_zmq.receiver import Answer, Options, Receiver, Staged
from headrace_transport_zmq.sending import next_message
from headrace_transport_zmq.wire import Frame

AFTER_WELCOME: Final = "transport_zmq.after_welcome"
BEFORE_COMMIT: Final = "transport_zmq.before_commit"
AFTER_COMMIT: Final = "transport_zmq.after_commit"
AFTER_ACK: Final = "transport_zmq.after_ack"
FAULT_POINTS: Final = (AFTER_WELCOME, BEFORE_COMMIT, AFTER_COMMIT, AFTER_ACK)

#: Messages read before the loop's other tasks get their turn.
DRAIN_MAX: Final = 256
#: Rest after a drain of the socket. A frame that comes alone does not wait for it: its rest has been over for long.
GATHER_S: Final = 0.002
TICK_S: Final = 1.0
#: After a failed append, before the next is tried.
RETRY_S: Final = 0.5


class Receiving:
    """One source's end of all links to it."""

    def __init__(self, config: TransportConfig, context: Context) -> None:
        self._config, self._context = config, context
        self._count = ReceivingCounters(context.metrics)
        self._receiver = Receiver(Options(config.staged_bytes_max, config.peers_max, config.dead_after_s), take, self._count.discarded)
        self._staged = asyncio.Event()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._draining = False
        #: the tier has no queue: a batch is safe when its output has flushed it
        self._passing = False
        self._greeting: dict[bytes, tuple[bytes, asyncio.Task[None]]] = {}
        self._troubled = False
        self._zmq = zmq.asyncio.Context()
        self._guard = Guard(config, context, self._zmq)
        self._identities = self._open_identities()
        self._socket = self._zmq.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, config.frame_bytes_max)
        self._guard.arm(self._socket)
        assert config.listen is not None
        try:
            self._socket.bind(config.listen)
        except zmq.ZMQError as error:
            self.close()
            raise TransientError(f"cannot listen on {config.listen}: {error.strerror}; choose another port or end what uses it") from error
        self._guard.bound(self._socket)

    def _open_identities(self) -> Identities:
        file = self._context.data_dir / "identities.db"
        try:
            return Identities(file)
        except sqlite3.DatabaseError as error:
            aside = file.replace(file.with_suffix(".corrupt"))
            self._context.log.error(
                "identities of links are unreadable: set aside, they are learned anew", path=str(aside), error=str(error)
            )
            return Identities(file)

    async def serve(self, deliver: Deliver) -> None:
        """Until cancelled, or an append failed for good."""
        info = deliver.queue_info()
        self._passing = info is not None and info.method == BY_FLUSH
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._passed_on(deliver) if self._passing else self._commit(deliver))
            tasks.create_task(self._tick())
            tasks.create_task(self._guard.run())
            await self._read(deliver)

    async def drain(self, deadline_s: float) -> None:
        """Take nothing more; what was taken is committed and acknowledged."""
        self._draining = self._receiver.hurried = True
        self._staged.set()
        try:
            async with asyncio.timeout(deadline_s):
                await self._quiet.wait()
        except TimeoutError:
            self._context.log.warning("not everything that links sent was committed before the drain's deadline", deadline_s=deadline_s)

    async def reread(self) -> None:
        """Look again at the files of keys."""
        await self._guard.reread()

    def close(self) -> None:
        """Safe twice."""
        self._guard.close()
        self._socket.close(linger=0)
        self._zmq.destroy(linger=0)
        self._identities.close()

    # --- reading -----------------------------------------------------------------------------------------------------

    async def _read(self, deliver: Deliver) -> None:
        while True:
            message: list[zmq.Frame] | None = await self._socket.recv_multipart(copy=False)
            self._receiver.drained()
            count = 0
            while message is not None:
                await self._handle(message, deliver)
                count += 1
                message = next_message(self._socket, copy=False) if count < DRAIN_MAX else None
            if self._receiver.waiting or self._receiver.hurried:
                self._quiet.clear()
                self._staged.set()
            if count < DRAIN_MAX:
                # What many links send gathers meanwhile: a wake-up and a commit cost what hundreds of events do.
                await asyncio.sleep(GATHER_S)

    async def _handle(self, message: Sequence[zmq.Frame], deliver: Deliver) -> None:
        routing = message[0].bytes
        try:
            frame = wire.decode([part.buffer for part in message[1:]])
            if frame.type == wire.HELLO:
                hello = wire.unpack_text(frame, wire.Hello)
                if self._passing:
                    self._greet_aside(message[1], routing, frame, hello, deliver)
                else:
                    await self._greet(message[1], routing, frame, hello, deliver)
            elif self._draining and frame.type == wire.DATA:
                self._count.discarded("draining")
            else:
                self._tell(self._receiver.received(routing, frame, self._now()))
        except wire.VersionError as error:
            self._refuse(routing, Frame(wire.HELLO, error.session), "version", str(error))
        except wire.MalformedError as error:
            self._count.discarded("malformed")
            self._guard.nonsense(message[-1])
            self._context.log.warning("link sent a frame that is none", error=str(error))

    def _greet_aside(self, part: zmq.Frame, routing: bytes, frame: Frame, hello: wire.Hello, deliver: Deliver) -> None:
        """The store is asked what it holds, which may take as long as it is away: the others are not to wait for that."""
        before = self._greeting.get(routing)
        if before is not None:
            if before[0] == frame.session:
                return  # it says the same hello again
            before[1].cancel()
        elif len(self._greeting) >= self._config.peers_max:
            self._refuse(routing, frame, "busy", f"{self._config.peers_max} links begin at once")
            return
        task = self._tasks.create_task(self._greet(part, routing, frame, hello, deliver))
        self._greeting[routing] = frame.session, task

        def over(task: asyncio.Task[None]) -> None:
            if routing in self._greeting and self._greeting[routing][1] is task:
                del self._greeting[routing]

        task.add_done_callback(over)

    async def _greet(self, part: zmq.Frame, routing: bytes, frame: Frame, hello: wire.Hello, deliver: Deliver) -> None:
        info = deliver.queue_info()
        text = wire.Welcome(
            level=info.level if info else "none",
            window_bytes=self._config.window_bytes,
            window_events=self._config.window_events,
            frame_bytes=self._config.frame_bytes_max,
            host=self._context.tier,
            by_flush=self._passing,
            names=True,
            spread=not self._passing,
            noted=not self._passing,
        )
        if (again := self._receiver.again(routing, frame, text)) is not None:
            self._tell([again])
            return
        if self._receiver.replayed(frame):
            self._refuse(routing, frame, "replayed", "this session was begun before, on another connection")
            return
        if self._draining or (self._receiver.full() and routing not in self._receiver.peers):
            self._refuse(routing, frame, "busy", "draining" if self._draining else f"{self._config.peers_max} links are here already")
            return
        if not await self._context.call_blocking(self._identities.proves, hello.queue_id, hello.proof):
            self._refuse(routing, frame, "not_authorized", f"another one spoke for queue {hello.queue_id} before, with another secret")
            return
        origin = f"{hello.queue_id}/{hello.output}.{frame.lane}"
        if not self._passing:
            await self._note_released(origin, hello, deliver)
        other = self._receiver.other_lane(origin)
        if self._passing and (hello.parts or other is not None):
            reason = "a tier without a queue takes one lane of a queue id, for its store cannot tell them apart: give it a queue"
            came = f"{other} is here" if other else "this one carries a part of it, for there are several far tiers"
            self._refuse(routing, frame, "lane", f"{reason}; {came}")
            return
        self._receiver.supersede(origin)
        mark = await deliver.position(origin)
        self._receiver.supersede(origin)  # another hello for it may have been answered meanwhile
        self._tell([self._receiver.welcome(routing, frame, origin, mark, text, self._now())])
        self._guard.spoke(part)
        self._count.peers.set(len(self._receiver.peers))
        self._context.fault(AFTER_WELCOME)
        self._context.log.info(
            "link welcome", key=self._guard.name_of(part), queue_id=hello.queue_id, output=hello.output, mark=mark, far_side=hello.host
        )

    async def _note_released(self, origin: str, hello: wire.Hello, deliver: Deliver) -> None:
        """Marks of which nothing will come again are the first to go (DELIVERY 2); the last ones stay: a copy of a queue may come back."""
        over = [(queue_id, f"{queue_id}/{hello.output}.{lane}") for queue_id, _, lane in (said.partition("/") for said in hello.released)]
        oldest = await self._context.call_blocking(self._identities.release, over, origin, hello.proof)
        if oldest:
            await deliver.forget(oldest)
            await self._context.call_blocking(self._identities.forgotten, oldest)

    def _refuse(self, routing: bytes, frame: Frame, code: str, reason: str) -> None:
        self._count.refused(code)
        self._context.log.warning("link refused", code=code, reason=reason)
        self._tell([self._receiver.refuse(routing, frame, code, reason)])

    def _tell(self, answers: Sequence[Answer]) -> None:
        for routing, message in answers:
            # a ROUTER drops what it cannot deliver; heartbeats say it again
            self._socket.send_multipart([routing, *message], flags=zmq.NOBLOCK)

    async def _tick(self) -> None:
        while True:
            await self._context.clock.sleep(TICK_S)
            self._receiver.tick(self._now())
            self._count.peers.set(len(self._receiver.peers))

    # --- into the queue ----------------------------------------------------------------------------------------------

    async def _commit(self, deliver: Deliver) -> None:
        while True:
            await self._staged.wait()
            self._staged.clear()
            self._receiver.hurried = False  # nothing waits here
            while group := self._receiver.next(self._config.commit_bytes_max):
                await self._store(group, deliver)
            self._quiet.set()

    def _passed_on(self, deliver: Deliver) -> Coroutine[Any, Any, None]:
        """Into a tier without a queue."""

        def full(reason: str) -> None:
            self._context.status("degraded" if reason else "ok", reason)

        answers = Answers(lambda: self._context.fault(BEFORE_COMMIT), self._committed, self._not_taken, full)
        return Passing(self._receiver, deliver, self._config.commit_bytes_max, answers, self._quiet).run(self._staged)

    def _committed(self, group: Sequence[Staged]) -> None:
        """The group is durable from here on."""
        self._context.fault(AFTER_COMMIT)
        self._tell(self._receiver.committed(group))
        self._context.fault(AFTER_ACK)
        if self._passing and self._troubled:
            self._troubled = False
            self._context.status("ok", "")
        self._count.commits.inc()
        self._count.events.inc(sum(staged.taken.batch.num_rows for staged in group))
        self._count.missing.inc(sum(hole.size for staged in group for hole in staged.taken.missing))

    async def _store(self, group: Sequence[Staged], deliver: Deliver) -> bool:
        """Append a group and answer its peers; False when it was not taken."""
        self._context.fault(BEFORE_COMMIT)
        try:
            await self._append(group, deliver)
        except (PermanentError, TransientError) as error:
            if len(group) > 1:
                await self._store_singly(group, deliver)
            else:
                await self._not_taken(group[0], error)
            return False
        self._committed(group)
        return True

    async def _not_taken(self, staged: Staged, error: PermanentError | TransientError) -> None:
        """The queue did not take a batch: its sender has to know, and begins anew."""
        peer, answers = staged.peer, self._receiver.failed([staged])
        if isinstance(error, PermanentError):
            self._context.log.error("link sent a batch that the queue does not take", error=describe(error))
            frame = Frame(wire.DATA, peer.session, first=staged.first, last=staged.last)
            self._tell([self._receiver.refuse(peer.routing, frame, "batch", str(error)), *answers])
            return
        self._context.log.warning("link's batch was not stored; it is sent again", error=describe(error))
        self._troubled = True
        self._context.status("degraded", describe(error))
        self._tell(answers)
        await self._context.clock.sleep(RETRY_S)

    async def _store_singly(self, group: Sequence[Staged], deliver: Deliver) -> None:
        """Some of them are not taken: one link's trouble is not the others'. But nothing that follows such a one on its lane
        may be taken, it would leave a hole."""
        lost: set[str] = set()
        for staged in group:
            if staged.peer.origin not in lost and not await self._store([staged], deliver):
                lost.add(staged.peer.origin)

    async def _append(self, group: Sequence[Staged], deliver: Deliver) -> None:
        batch, origins = joined(group)
        waited = False
        while True:
            try:
                await deliver(batch, origins)
                break
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                # not we were cancelled, the commit was: nobody knows what is durable of it, so nobody is told
                raise TransientError("the commit was cancelled") from error
            except QueueFull as full:
                if not waited:
                    self._context.status("degraded", str(full))
                waited = True
                await deliver.room()
        if waited or self._troubled:
            self._troubled = False
            self._context.status("ok", "")

    def _now(self) -> float:
        return self._context.clock.monotonic()
