"""The publishing end of a fan-out: one XPUB socket. Lives on the loop of the tier's outputs.

XPUB is PUB that tells who wants what: what nobody wants is not even encoded.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, Final, cast

import pyarrow as pa
import zmq
import zmq.asyncio

from headrace import Context, TransientError
from headrace_transport_zmq.config import TransportConfig
from headrace_transport_zmq.counters import PublishingCounters
from headrace_transport_zmq.fanout import HEADER, Header, Numbering, message, pack, pieces
from headrace_transport_zmq.guard import Guard
from headrace_transport_zmq.wire import Buffer

#: A subscription is a prefix of topics; longer ones are cut off with their connection.
SUBSCRIPTION_BYTES_MAX: Final = 2048
#: Different prefixes that are kept apart; beyond, everything counts as wanted.
PREFIXES_MAX: Final = 4096


class Wanted:
    """Which topics somebody subscribed to. No I/O."""

    def __init__(self) -> None:
        self._prefixes: Counter[bytes] = Counter()
        self._answers: dict[str, bool] = {}
        self._all = False

    def __len__(self) -> int:
        return len(self._prefixes)

    def told(self, subscription: bytes) -> bool:
        """1 and a prefix subscribes, 0 and a prefix takes that back. False: it is neither."""
        if subscription[:1] not in (b"\0", b"\1"):
            return False
        prefix = subscription[1:]
        if subscription[0]:
            if len(self._prefixes) >= PREFIXES_MAX and prefix not in self._prefixes:
                self._all = True
            else:
                self._prefixes[prefix] += 1
        elif self._prefixes[prefix] <= 1:
            del self._prefixes[prefix]
            self._all = self._all and bool(self._prefixes)
        else:
            self._prefixes[prefix] -= 1
        self._answers.clear()
        return True

    def wants(self, topic: str) -> bool:
        """Whether anybody subscribed to a prefix of it."""
        if topic not in self._answers:
            if len(self._answers) >= PREFIXES_MAX:
                self._answers.clear()
            encoded = topic.encode()
            self._answers[topic] = self._all or any(encoded.startswith(prefix) for prefix in self._prefixes)
        return self._answers[topic]


class Publishing:
    """One output's socket."""

    def __init__(self, config: TransportConfig, context: Context) -> None:
        """TransientError while the address is taken; KeysError when the keys cannot be read."""
        self._config, self._context = config, context
        self._count = PublishingCounters(context.metrics)
        self._numbering = Numbering(context.random.randbytes(16))
        self._wanted = Wanted()
        #: what goes out at the loop's next turn
        self._outbox: list[tuple[bytes, Header, Buffer]] = []
        self._zmq = zmq.asyncio.Context()
        self._guard = Guard(config, context, self._zmq)
        self._socket = self._zmq.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, config.queued_messages_max)
        self._socket.setsockopt(zmq.MAXMSGSIZE, SUBSCRIPTION_BYTES_MAX)
        self._socket.setsockopt(zmq.XPUB_VERBOSER, 1)
        self._socket.setsockopt(zmq.XPUB_NODROP, 1)
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, int(config.heartbeat_s * 1000))
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(config.dead_after_s * 1000))
        self._guard.arm(self._socket)
        assert config.publish is not None
        try:
            self._socket.bind(config.publish)
        except zmq.ZMQError as error:
            self.close()
            raise TransientError(f"cannot listen on {config.publish}: {error.strerror}; choose another port or end what uses it") from error
        self._guard.bound(self._socket)

    async def run(self) -> None:
        """Follow who subscribes; until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._guard.run())
            while True:
                (part,) = await self._socket.recv_multipart(copy=False)
                if self._wanted.told(part.bytes):
                    self._guard.subscribed(part)
                    self._count.prefixes.set(len(self._wanted))
                else:
                    self._guard.nonsense(part)

    def publish(self, batch: pa.RecordBatch, topic: str) -> None:
        """Have it put on the wire for those who want it, together with what else is published in this turn of the loop: a subscriber
        that is woken by the first of several topics would take each of the others by itself."""
        if not self._wanted.wants(topic):
            return
        published_us = int(self._context.clock.wall() * 1_000_000)
        for piece in pieces(batch, self._config.message_bytes_max):
            first, payload = pack(topic, piece)
            if not self._outbox:
                asyncio.get_running_loop().call_soon(self._flush)
            self._outbox.append((first, self._numbering.next(topic, piece.num_rows, published_us), payload))
            self._count.messages.inc()
            self._count.events.inc(piece.num_rows)
            self._count.bytes.inc(len(first) + HEADER.size + len(payload))

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, []
        for left, (first, header, payload) in zip(range(len(outbox) - 1, -1, -1), outbox, strict=True):
            parts = message(first, header._replace(followed=left > 0), payload)
            if not self._sent(parts):
                # who is behind loses it, all others get it
                self._count.slow.inc()
                self._socket.setsockopt(zmq.XPUB_NODROP, 0)
                self._sent(parts)
                self._socket.setsockopt(zmq.XPUB_NODROP, 1)

    def _sent(self, parts: list[Any]) -> bool:
        sending = cast("asyncio.Future[Any]", self._socket.send_multipart(parts, flags=zmq.NOBLOCK))
        if not sending.done():  # the same, as pyzmq sees it: the socket is not writable
            sending.cancel()
            return False
        try:
            sending.result()
        except zmq.Again:
            return False
        return True

    async def reread(self) -> None:
        """Look again at the files of keys."""
        await self._guard.reread()

    def close(self) -> None:
        """Safe twice."""
        self._outbox.clear()
        self._guard.close()
        self._socket.close(linger=0)
        self._zmq.destroy(linger=0)
