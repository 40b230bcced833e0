"""The sending end: one DEALER socket, around the logic of `sender`. Lives on the loop of the tier's outputs."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final, cast

import pyarrow as pa
import zmq
import zmq.asyncio

from headrace import Context, Missing, PermanentError, QueueInfo, RangeKey, TransientError
from headrace.position import is_scattered
from headrace.retry import Backoff
from headrace_transport_zmq import identities, lanes, wire
from headrace_transport_zmq.config import TransportConfig
from headrace_transport_zmq.counters import SendingCounters
from headrace_transport_zmq.door import Door
from headrace_transport_zmq.sender import (
    Alive,
    Broken,
    Dead,
    Done,
    Effect,
    Emit,
    Flight,
    Options,
    Refused,
    Rewound,
    Sender,
    Unwelcome,
    Welcomed,
)
from headrace_transport_zmq.spoken import Ledger, Spoken

BEFORE_HELLO: Final = "transport_zmq.before_hello"
BEFORE_SEND: Final = "transport_zmq.before_send"
AFTER_SEND: Final = "transport_zmq.after_send"
ACKNOWLEDGED: Final = "transport_zmq.acknowledged"
FAULT_POINTS: Final = (BEFORE_HELLO, BEFORE_SEND, AFTER_SEND, ACKNOWLEDGED)

RECONNECT_BASE_MS: Final = 50
#: What a closing link may take to say goodbye.
LINGER_MS: Final = 50


class Sending:
    """One output's link: `resume` and `send` wait for answers, `run` keeps the connection."""

    def __init__(self, config: TransportConfig, context: Context, lane: int | None = None, count: SendingCounters | None = None) -> None:
        """lane: where others than this link know which lane belongs to which far tier; it carries only a part of the queue then."""
        self._config, self._context, self._part = config, context, lane is not None
        self._count = count or SendingCounters(context.metrics)
        self._backoff = Backoff(RECONNECT_BASE_MS, config.reconnect_ms_max, context.random)
        self._zmq = zmq.asyncio.Context()
        self._door = Door(config, context, self._zmq)
        self._socket: zmq.asyncio.Socket | None = None
        self._outbox: deque[list[wire.Buffer]] = deque()
        #: set when there is something to wait for that `run` does not know of
        self._wake = asyncio.Event()
        self._ended = ""
        #: whether the far side was there since the last end
        self._was_up = False
        self._asked: dict[str, asyncio.Future[int | None]] = {}
        self._sent: dict[Flight, asyncio.Future[None]] = {}
        self._queue: QueueInfo | None = None
        self._proof = ""
        self._bound = ""
        if config.allow_lower_level and (level := lanes.load_level(context.data_dir)) is not None:
            context.far_level(level)  # devices come before the far side does
        number = self._lane().number if lane is None else lane
        self._number = number
        self._ledger: Ledger | None = None
        self._over: list[Spoken] = []
        options = Options(config.window_events, config.window_bytes, config.heartbeat_s, config.dead_after_s, config.allow_lower_level)
        self._sender = Sender(options, self._hello, number, lambda: context.random.randbytes(16))

    def _lane(self) -> lanes.Lane:
        """The lane of this life. A changed peer is another far tier: it may not take what the old one may hold (DELIVERY 13)."""
        folder, peer = self._context.data_dir, self._config.peer or self._config.connect or ""
        lane = lanes.load(folder)
        if lane is not None and lane.peer == peer:
            return lane
        if lane is not None and not self._config.resend_bound:
            self._bound = (
                f"what is under way is bound to peer {lane.peer!r}; set peer = {lane.peer!r} when it is the same tier at another "
                "address, or resend_bound = true to send it to the new one, at the risk of doubles"
            )
            return lane
        if lane is not None:
            self._count.bound.inc()
            self._context.log.warning("link goes to another peer", peer=peer, before=lane.peer)
        lane = lanes.Lane(lane.number + 1 if lane else 1, peer)
        lanes.keep(folder, lane)
        return lane

    # --- the host's side ---------------------------------------------------------------------------------------------

    def queue(self, queue: QueueInfo, secret: bytes, fresh: bool = True) -> None:
        """The batches come from this queue. fresh: so it is now, and what it has nothing of is over."""
        self._queue = queue
        self._proof = identities.proof(secret or lanes.own_secret(self._context.data_dir))
        self._ledger = Ledger(self._context.data_dir, self._proof)
        self._over = self._ledger.over({span.queue_id for span in queue.spans}) if fresh else []

    async def resume(self, queue_id: str) -> int | None:
        """What the far side holds of the queue id; waits until it can be asked."""
        if self._bound:
            raise TransientError(self._bound, 10.0)
        future: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._fail(TransientError("the far side is asked anew"))
        self._asked[queue_id] = future
        self._sender.ask(queue_id, self._now())
        self._act()
        self._wake.set()
        try:
            return await future
        finally:
            self._asked.pop(queue_id, None)

    async def send(self, batch: pa.RecordBatch, origins: pa.RecordBatch, key: RangeKey) -> None:
        """Returns when the far side has it durable."""
        if self._bound:
            raise TransientError(self._bound, 10.0)
        try:
            await self.post(batch, origins, key)
        except asyncio.CancelledError:
            # the host gives up all calls together, and goes on with `resume`
            self._sender.abandon()
            raise

    def post(self, batch: pa.RecordBatch, origins: pa.RecordBatch, key: RangeKey) -> asyncio.Future[None]:
        """Begin to send; done when the far side has it durable."""
        flight = flight_of(batch, origins, key)
        self._context.fault(BEFORE_SEND)
        future = self._sent[flight] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda _: self._sent.pop(flight, None))
        self._sender.send(flight, self._now())
        self._act()
        self._wake.set()
        self._context.fault(AFTER_SEND)
        return future

    def abandon(self) -> None:
        """Nobody waits for what was posted."""
        self._sender.abandon()

    def hurry(self) -> None:
        """Whoever sends waits for what is on its way."""
        self._sender.hurry(self._now())
        self._act()
        self._wake.set()

    def close(self) -> None:
        """End what is under way, say goodbye. Safe twice."""
        self._fail(TransientError("the link is closed"))
        if self._socket is not None and not self._outbox:
            self._sender.goodbye()
            self._act()
        self._close_socket(LINGER_MS)
        self._zmq.destroy(linger=LINGER_MS)

    def _fail(self, error: Exception) -> None:
        futures: list[asyncio.Future[Any]] = [*self._asked.values(), *self._sent.values()]
        for future in futures:
            if not future.done():
                future.set_exception(error)

    def _hello(self, queue_id: str) -> wire.Hello:
        self._context.fault(BEFORE_HELLO)
        level = self._queue.level if self._queue else "none"
        name = self._queue.name if self._queue else ""
        if self._ledger is not None:
            self._ledger.speaks(Spoken(queue_id, self._number))
        released = tuple(str(spoken) for spoken in self._over if spoken.queue_id != queue_id)
        proof = self._proof or identities.proof(b"")
        return wire.Hello(
            queue_id=queue_id, output=self._context.id, level=level, proof=proof, host=name, parts=self._part, released=released
        )

    # --- the connection ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Connect, talk, and again when the far side is dead or does not want us; until cancelled."""
        while True:
            self._open_socket()
            self._sender.connected(self._now())
            self._act()
            try:
                await self._converse()
            finally:
                self._count.connected.set(0)
                self._close_socket(0)
            await self._context.clock.sleep(self._backoff.next_s())

    async def _converse(self) -> None:
        reading: asyncio.Future[list[bytes]] | None = None
        writing: asyncio.Future[None] | None = None
        waking: asyncio.Future[object] | None = None
        socket = self._socket
        assert socket is not None
        try:
            while not self._ended:
                reading = reading or asyncio.ensure_future(socket.recv_multipart())
                waking = waking or asyncio.ensure_future(self._wake.wait())
                if writing is None and self._outbox:
                    writing = asyncio.ensure_future(_writable(socket))
                at = self._sender.next_at()
                timeout = None if at is None else max(0.0, at - self._now())
                waiting = {future for future in (reading, waking, writing) if future is not None}
                done, _ = await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                if reading in done:
                    self._received(reading.result())
                    reading = None
                    while not self._ended and (message := next_message(socket)) is not None:
                        self._received(message)
                if waking in done:
                    self._wake.clear()
                    waking = None
                if writing in done:
                    writing = None
                    self._flush()
                self._sender.tick(self._now())
                self._act()
        finally:
            for future in (reading, waking, writing):
                if future is not None:
                    future.cancel()

    def _open_socket(self) -> None:
        self._outbox.clear()
        self._wake.clear()
        self._ended = ""
        socket = self._zmq.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        # nothing waits in a pipe for a connection that is not there: after a reconnect it would only be skipped or refused
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_BASE_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, self._config.reconnect_ms_max)
        assert self._config.connect is not None
        self._door.arm(socket)
        socket.connect(self._config.connect)
        self._socket = socket

    def _close_socket(self, linger_ms: int) -> None:
        self._door.shut()
        if self._socket is not None:
            self._socket.close(linger=linger_ms)
            self._socket = None

    def _received(self, message: list[bytes]) -> None:
        try:
            self._sender.received(wire.decode(message), self._now())
        except wire.MalformedError as error:
            self._context.log.warning("link got a frame that is none", error=str(error))
        self._act()

    def _flush(self) -> None:
        """Put on the wire what there is room for."""
        while self._outbox and self._socket is not None:
            sent = cast("asyncio.Future[Any]", self._socket.send_multipart(self._outbox[0], flags=zmq.NOBLOCK))
            if not sent.done():  # the socket waits to be writable already: whoever waits for that flushes again
                sent.cancel()
                return
            try:
                sent.result()
            except zmq.Again:
                return
            self._outbox.popleft()

    # --- what the logic wants ----------------------------------------------------------------------------------------

    def _act(self) -> None:
        """Do what the logic asks for."""
        for effect in self._sender.effects():
            self._do(effect)
        self._flush()
        self._count.in_flight.set(self._sender.flying_events)

    def _do(self, effect: Effect) -> None:
        match effect:
            case Emit(message):
                self._outbox.append(message)
                if len(message) == 1 + wire.PARTS[wire.DATA]:
                    self._count.batches.inc()
                    self._count.bytes.inc(sum(len(part) for part in message))
            case Alive():
                self._was_up = True
                self._backoff.reset()
                self._count.connected.set(1)
                self._context.status("ok", "")
            case Done(flight):
                self._context.fault(ACKNOWLEDGED)
                self._settle(flight, None)
            case Welcomed(queue_id, mark, host, level, noted):
                if noted and self._ledger is not None:
                    self._ledger.noted([spoken for spoken in self._over if spoken.queue_id != queue_id])
                    self._over = []
                if self._config.allow_lower_level:
                    lanes.keep_level(self._context.data_dir, level)
                    self._context.far_level(level)
                self._door.why()  # what went before is over
                self._was_up = True
                self._count.sessions.inc()
                self._count.connected.set(1)
                self._backoff.reset()
                self._context.status("ok", "")
                self._context.log.info("link begins a session", queue_id=queue_id, mark=mark, far_side=host)
                if (asked := self._asked.get(queue_id)) is not None and not asked.done():
                    asked.set_result(mark)
            case Rewound(reason):
                self._count.rewinds.inc()
                self._context.log.info("link goes back", reason=reason)
            case Broken(reason):
                self._context.log.error("link: the far side went back in time", reason=reason)
                self._fail(TransientError(reason))
            case Refused(flight, reason):
                self._settle(flight, PermanentError(f"the far side refused it: {reason}"))
            case Unwelcome(code, reason):
                self._end(f"the far side refuses this link ({code}): {reason}")
            case Dead(reason):
                self._end(f"no far side at {self._config.connect}: {reason}")

    def _settle(self, flight: Flight, error: Exception | None) -> None:
        future = self._sent.get(flight)
        if future is None or future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    def _end(self, reason: str) -> None:
        if why := self._door.why():
            reason = f"{reason}: {why}"
        self._ended = reason
        # a far side that is away for a night is told of once, not at each attempt to reach it
        tell = self._context.log.warning if self._was_up else self._context.log.debug
        self._was_up = False
        tell("link ends its connection", reason=reason)
        self._context.status("degraded", reason)

    def _now(self) -> float:
        return self._context.clock.monotonic()


async def _writable(socket: Any) -> None:
    await socket.poll(None, zmq.POLLOUT)


def next_message(socket: zmq.asyncio.Socket, copy: bool = True) -> list[Any] | None:
    """What has arrived already, or None."""
    try:
        return cast("asyncio.Future[list[Any]]", socket.recv_multipart(flags=zmq.NOBLOCK, copy=copy)).result()
    except zmq.Again:
        return None


def flight_of(batch: pa.RecordBatch, origins: pa.RecordBatch, key: RangeKey) -> Flight:
    """A batch as it goes over the wire: what is dead here is missing over there."""
    holes = [*key.missing, *(Missing(position, position, "dead_letter") for position in key.dead)]
    payload, flags = wire.pack_batch(batch)
    if key.share is not None or is_scattered(origins):
        flags, names = flags | wire.ROWS, wire.pack_rows(origins, key)
    else:
        names = wire.pack_origins(origins)
    spread = batch.num_rows + sum(hole.size for hole in holes) < key.size
    return Flight(key.queue_id, key.first, key.last, batch.num_rows, tuple(sorted(holes)), names, payload, flags, spread)
