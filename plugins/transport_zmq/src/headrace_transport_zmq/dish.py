"""The subscribing socket of a fan-out by RADIO and DISH, and the thread that reads it. Draft API of libzmq.

Sockets of these kinds may be used from any thread, and therefore have no descriptor that a loop could wait for.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

import zmq
import zmq.asyncio

from headrace import TransientError
from headrace_transport_zmq.config import TransportConfig
from headrace_transport_zmq.fanout import HEADER
from headrace_transport_zmq.sending import RECONNECT_BASE_MS
from headrace_transport_zmq.wire import Buffer

#: How long the reading thread takes to notice that it is to end.
NOTICE_MS: Final = 50


def keep_alive(socket: zmq.Socket[bytes], config: TransportConfig) -> None:
    """Notice that the other end is gone, by TCP's own means: a DISH takes the heartbeats of ZMTP for messages, and ends the connection."""
    pause_s = max(1, round(config.heartbeat_s))
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, pause_s)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, pause_s)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, max(1, round(config.dead_after_s / pause_s)))


class Dish:
    """The subscribing socket and its thread. What nobody fetches is bounded; beyond it, libzmq loses what comes."""

    def __init__(self, config: TransportConfig, context: zmq.asyncio.Context, arm: Callable[[zmq.Socket[bytes]], None]) -> None:
        """TransientError while the address is taken (over UDP it is this end that binds)."""
        assert config.subscribe is not None
        self.udp = config.subscribe.startswith("udp://")
        self._socket = zmq.Socket(context, zmq.DISH)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.SNDHWM, 0),  # what is joined is told by messages
            (zmq.RCVHWM, config.queued_messages_max),
            (zmq.MAXMSGSIZE, config.frame_bytes_max),
            (zmq.RCVTIMEO, NOTICE_MS),
        ):
            self._socket.setsockopt(option, value)
        for topic in config.topics:
            self._socket.join(topic)
        try:
            if self.udp:
                self._socket.bind(config.subscribe)
            else:
                keep_alive(self._socket, config)
                self._socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_BASE_MS)
                self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, config.reconnect_ms_max)
                arm(self._socket)
                self._socket.connect(config.subscribe)
        except zmq.ZMQError as error:
            self._socket.close(linger=0)
            raise TransientError(f"cannot listen on {config.subscribe}: {error.strerror}; choose another port") from error
        self._came: deque[zmq.Frame] = deque()
        self._room = threading.Semaphore(config.queued_messages_max)
        self._some = asyncio.Event()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    async def first(self) -> list[Buffer]:
        """The next message, as topic, header and events; waits for it."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._read, args=(asyncio.get_running_loop(),), name="headrace-dish", daemon=True)
            self._thread.start()
        while (parts := self.next()) is None:
            self._some.clear()
            await self._some.wait()
        return parts

    def next(self) -> list[Buffer] | None:
        """What has come already, or None."""
        if not self._came:
            return None
        frame = self._came.popleft()
        self._room.release()
        content = frame.buffer
        return [frame.group.encode(), content[: HEADER.size], content[HEADER.size :]]

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._ended.is_set():
            if not self._room.acquire(timeout=NOTICE_MS / 1000):
                continue
            try:
                self._came.append(self._socket.recv(copy=False))
            except zmq.Again:
                self._room.release()
                continue
            except zmq.ZMQError:  # closed
                return
            try:
                loop.call_soon_threadsafe(self._some.set)
            except RuntimeError:  # the loop has ended
                return

    def stop(self) -> None:
        """Nobody but the caller uses the socket on return. Safe twice."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """Safe twice."""
        self.stop()
        self._socket.close(linger=0)
