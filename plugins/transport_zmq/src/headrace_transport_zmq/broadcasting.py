"""The publishing end of a fan-out by RADIO and DISH: whole topics in messages of one part, over TCP, or over UDP to many at once.

It does what `publishing` does but for one thing: RADIO does not tell who wants what, so everything is encoded. Draft API of libzmq.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

import pyarrow as pa
import zmq
import zmq.asyncio

from headrace import Context, TransientError
from headrace_transport_zmq.config import GROUP_BYTES_MAX, TransportConfig
from headrace_transport_zmq.counters import PublishingCounters
from headrace_transport_zmq.dish import keep_alive
from headrace_transport_zmq.fanout import HEADER, Numbering, message, pack, pieces
from headrace_transport_zmq.guard import Guard
from headrace_transport_zmq.publishing import SUBSCRIPTION_BYTES_MAX
from headrace_transport_zmq.wire import Buffer

#: The largest message that libzmq sends over UDP, with the topic and a byte for its length.
UDP_BYTES_MAX: Final = 8192


class Broadcasting:
    """One output's socket. It never waits, so any loop will do."""

    def __init__(self, config: TransportConfig, context: Context) -> None:
        """TransientError while the address is taken; KeysError when the keys cannot be read."""
        self._config, self._context = config, context
        self._count = PublishingCounters(context.metrics)
        self._numbering = Numbering(context.random.randbytes(16))
        assert config.publish is not None
        self._udp = config.publish.startswith("udp://")
        self._zmq = zmq.asyncio.Context()
        self._guard = Guard(config, context, self._zmq, mute=True)
        self._socket = zmq.Socket(self._zmq, zmq.RADIO)  # a plain one, whatever the context makes
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, config.queued_messages_max)
        self._socket.setsockopt(zmq.XPUB_NODROP, 1)
        try:
            self._begin(config.publish)
        except zmq.ZMQError as error:
            self.close()
            raise TransientError(f"cannot publish on {config.publish}: {error.strerror}; choose another address") from error

    def _begin(self, address: str) -> None:
        if self._udp:  # to an address, or a group of many, whoever is there
            self._socket.connect(address)
            self._context.log.info("publishing", url=address)
            return
        self._socket.setsockopt(zmq.MAXMSGSIZE, SUBSCRIPTION_BYTES_MAX)
        keep_alive(self._socket, self._config)
        self._guard.arm(self._socket)
        self._socket.bind(address)
        self._guard.bound(self._socket)

    async def run(self) -> None:
        """Look who comes; until cancelled."""
        await (asyncio.Event().wait() if self._udp else self._guard.run())

    def publish(self, batch: pa.RecordBatch, topic: str) -> None:
        """Put it on the wire, and forget it."""
        published_us = int(self._context.clock.wall() * 1_000_000)
        for piece in pieces(batch, self._config.message_bytes_max):
            for part, packed in datagrams(topic, piece) if self._udp else [(piece, pack(topic, piece))]:
                # a number for each, sent or not: subscribers count by them what they have not got
                header = self._numbering.next(topic, part.num_rows, published_us)
                if packed is None or not self._sent(message(packed[0], header, packed[1])):
                    self._count.oversize.inc(part.num_rows)
                    continue
                self._count.messages.inc()
                self._count.events.inc(part.num_rows)
                self._count.bytes.inc(len(packed[0]) + HEADER.size + len(packed[1]))

    def _sent(self, parts: list[Buffer]) -> bool:
        """Topic, header and events as one message of a group. False: the topic is too long for one."""
        topic, header, payload = parts
        if len(topic) > GROUP_BYTES_MAX:
            return False  # libzmq would cut it off without a word
        content, group = b"".join((header, payload)), topic.decode()
        # asked so, libzmq looks who has room again; by itself it does at most once a millisecond, and those that keep up would lose
        self._socket.get(zmq.EVENTS)
        try:
            self._socket.send(content, zmq.NOBLOCK, group=group)
        except zmq.Again:
            # who is behind loses it, all others get it
            self._count.slow.inc()
            self._socket.setsockopt(zmq.XPUB_NODROP, 0)
            self._socket.send(content, zmq.NOBLOCK, group=group)
            self._socket.setsockopt(zmq.XPUB_NODROP, 1)
        return True

    async def reread(self) -> None:
        """Look again at the files of keys."""
        await self._guard.reread()

    def close(self) -> None:
        """Safe twice."""
        self._guard.close()
        self._socket.close(linger=0)
        self._zmq.destroy(linger=0)


def datagrams(topic: str, batch: pa.RecordBatch) -> Iterator[tuple[pa.RecordBatch, tuple[bytes, Buffer] | None]]:
    """The batch in parts that fit into one UDP message each, with what is sent of them; None for one event that does not fit."""
    first, payload = pack(topic, batch)
    if 1 + len(first) + HEADER.size + len(payload) <= UDP_BYTES_MAX:
        yield batch, (first, payload)
    elif batch.num_rows < 2:
        yield batch, None
    else:
        half = batch.num_rows // 2
        yield from datagrams(topic, batch.slice(0, half))
        yield from datagrams(topic, batch.slice(half))
