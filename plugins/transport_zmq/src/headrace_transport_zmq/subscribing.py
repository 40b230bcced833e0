"""The subscribing end of a fan-out: one SUB socket, as a source. Best effort: what is lost on the way is counted."""

from __future__ import annotations

import asyncio
import itertools
from typing import Final

import pyarrow as pa
import zmq
import zmq.asyncio

from headrace import Context, Deliver, PermanentError, QueueFull, TransientError
from headrace.log import describe
from headrace_transport_zmq.config import TransportConfig
from headrace_transport_zmq.counters import SubscribingCounters
from headrace_transport_zmq.dish import Dish
from headrace_transport_zmq.door import Door
from headrace_transport_zmq.fanout import Tracking, unpack
from headrace_transport_zmq.sending import RECONNECT_BASE_MS, next_message
from headrace_transport_zmq.wire import Buffer, MalformedError

LOOK_S: Final = 0.5
#: So many messages, and about so many events, are handed over together.
BATCHES_MAX: Final = 64
ROWS_MAX: Final = 4096
#: What was published in one moment comes in one moment, topic by topic. Longer than this it is not waited for: it is lost.
FOLLOWS_MS: Final = 5


class Subscribing:
    """One source's socket."""

    def __init__(self, config: TransportConfig, context: Context) -> None:
        """KeysError when the keys cannot be read."""
        self._config, self._context = config, context
        self._count = SubscribingCounters(context.metrics)
        self._tracking = Tracking()
        self._zmq = zmq.asyncio.Context()
        self._door = Door(config, context, self._zmq)
        self._socket: zmq.asyncio.Socket | None = None
        self._dish: Dish | None = None
        if config.pattern == "radio":
            try:
                self._dish = Dish(config, self._zmq, self._door.arm)
            except TransientError:
                self._zmq.destroy(linger=0)
                raise
        else:
            self._socket = self._subscribed(config)

    def _subscribed(self, config: TransportConfig) -> zmq.asyncio.Socket:
        socket = self._zmq.socket(zmq.SUB)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, config.queued_messages_max)
        # subscriptions are messages, of which libzmq drops those beyond its mark (1,000); there are as many as `topics`
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, config.frame_bytes_max)
        socket.setsockopt(zmq.HEARTBEAT_IVL, int(config.heartbeat_s * 1000))
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(config.dead_after_s * 1000))
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_BASE_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, config.reconnect_ms_max)
        for topic in config.topics:
            socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
        self._door.arm(socket)
        assert config.subscribe is not None
        socket.connect(config.subscribe)
        return socket

    async def _first(self) -> list[Buffer]:
        """The parts of the next message; waits for it."""
        if self._dish is not None:
            return await self._dish.first()
        assert self._socket is not None
        return [part.buffer for part in await self._socket.recv_multipart(copy=False)]

    def _next(self) -> list[Buffer] | None:
        """Those of a message that has come already, or None."""
        if self._dish is not None:
            return self._dish.next()
        assert self._socket is not None
        message = next_message(self._socket, copy=False)
        return None if message is None else [part.buffer for part in message]

    async def serve(self, deliver: Deliver) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            if self._dish is None or not self._dish.udp:  # there is no connection to look at
                tasks.create_task(self._look())
            while True:
                came = await self._came(await self._first())
                for _, alike in itertools.groupby(came, key=lambda batch: batch.schema):
                    await self._hand_over([*alike], deliver)

    async def _came(self, parts: list[Buffer] | None) -> list[pa.RecordBatch]:
        """What this message brings, and those that wait behind it or are about to come."""
        batches: list[pa.RecordBatch] = []
        rows = 0
        while parts is not None:
            batch, followed = self._unpacked(parts)
            if batch is not None:
                batches.append(batch)
                rows += batch.num_rows
            if len(batches) >= BATCHES_MAX or rows >= ROWS_MAX:
                break
            parts = self._next()
            if parts is None and followed:
                parts = await self._following()
        return batches

    async def _following(self) -> list[Buffer] | None:
        """The message that was published together with the one before, when it comes soon: alone, each would cost the tier as much as
        all of them. None where it is not known to be wanted here."""
        if self._socket is None or "" not in self._config.topics or not await self._socket.poll(FOLLOWS_MS):
            return None
        return self._next()

    def _unpacked(self, parts: list[Buffer]) -> tuple[pa.RecordBatch | None, bool]:
        """What a message brings, None when it is none, and whether another one follows; its losses counted."""
        try:
            topic, header, batch = unpack(parts)
        except MalformedError as error:
            self._count.discarded("malformed")
            self._context.log.warning("publisher sent a message that is none", error=str(error))
            return None, False
        lost = self._tracking.came(topic, header)
        self._count.lost_messages.inc(lost.messages)
        self._count.lost_events.inc(lost.events)
        return batch, header.followed

    async def _hand_over(self, batches: list[pa.RecordBatch], deliver: Deliver) -> None:
        """Together, for each hand-over costs the tier what a hundred events do; one by one where they are not taken so."""
        batch = batches[0] if len(batches) == 1 else pa.concat_batches(batches)
        while True:
            try:
                await deliver(batch)
            except QueueFull:
                # meanwhile the publisher's end fills up, and loses what it has no room for: the next message tells how much
                await deliver.room()
            except (PermanentError, TransientError) as error:
                if len(batches) > 1:
                    for one in batches:
                        await self._hand_over([one], deliver)
                    return
                self._count.discarded("refused")
                self._context.log.warning("published events were not taken", error=describe(error), rows=batch.num_rows)
                return
            else:
                self._count.events.inc(batch.num_rows)
                return

    async def _look(self) -> None:
        """Whether there is a publisher."""
        missed_since: float | None = self._context.clock.monotonic()
        said: str | None = None  # the reason that was told last; it may be known only later
        while True:
            why = self._door.why()
            now = self._context.clock.monotonic()
            self._count.connected.set(self._door.connected)
            if self._door.connected:
                if said is not None:
                    self._context.status("ok", "")
                missed_since, said = None, None
            elif missed_since is None:
                missed_since = now
            elif why != said and now - missed_since >= self._config.dead_after_s:
                said = why
                self._context.status("degraded", f"no publisher at {self._config.subscribe}" + (f": {why}" if why else ""))
            await self._context.clock.sleep(LOOK_S)

    def close(self) -> None:
        """Safe twice."""
        if self._dish is not None:
            self._dish.stop()
        self._door.shut()
        if self._dish is not None:
            self._dish.close()
        if self._socket is not None:
            self._socket.close(linger=0)
        self._zmq.destroy(linger=0)
