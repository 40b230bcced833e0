"""Sockets that are no WebSocket connection yet: bounded in number, in bytes and in time until their request is there.

aiohttp gets a connection when its request header is complete. Until then a socket costs one small object here: aiohttp would
make a handler and a task of 10 KB at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from headrace_ingest_ws.counters import Counters
from headrace_ingest_ws.places import Place

#: Longest request header; a bearer token takes a few KB of it at most.
HEADER_BYTES_MAX: Final = 16_384

#: A socket may wait for this share of its time before it has to make room: when thousands of slow but honest devices connect at
#: once, those who wait in the kernel have to wait on. Else all would be closed before their request, and come again.
EVICTED_AFTER_RATIO: Final = 1 / 4


class Waiting(asyncio.Protocol):
    """A socket of which no whole request header is there yet."""

    __slots__ = ("_header", "_lobby", "opening", "place", "since", "transport")

    def __init__(self, lobby: Lobby, place: Place, now: float) -> None:
        self._lobby, self.place, self.since = lobby, place, now
        self._header = bytearray()
        self.transport: asyncio.Transport | None = None
        self.opening: asyncio.Task[Any] | None = None  # TLS may take its time

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        header = self._header
        searched = max(0, len(header) - 3)
        header += data
        if _complete(header, searched):
            self._lobby.request_begins(self, bytes(header))
        elif len(header) > HEADER_BYTES_MAX:
            self._lobby.turn_out(self, "header_bytes")

    def connection_lost(self, exc: Exception | None) -> None:
        self._lobby.gone(self)

    def cut_off(self) -> None:
        """Close without an answer, wherever it is."""
        if self.transport is not None:
            self.transport.abort()
        elif self.opening is not None:
            self.opening.cancel()


def _complete(header: bytearray, searched: int) -> bool:
    """Does the header end behind `searched`? What is no HTTP at all needs no end: aiohttp refuses it at once."""
    return header.find(b"\r\n\r\n", searched) >= 0 or not 65 <= header[0] <= 90 or header.find(b"\n\n", searched) >= 0


class Handler(RequestHandler):
    """aiohttp's handler of a connection, which knows its place and counts what aiohttp refuses by itself."""

    __slots__ = ("_refuse", "place", "unread_since")

    def __init__(self, server: web.Server, loop: asyncio.AbstractEventLoop, place: Place, refuse: Callable[[int], web.Response]) -> None:
        super().__init__(server, loop=loop, **server._kwargs)
        self.place: Place | None = place
        self._refuse = refuse
        self.unread_since: float | None = None  # the client leaves an answer unread

    @property
    def idle(self) -> bool:
        """True while it waits for a request."""
        return self._waiter is not None and not self._waiter.done()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        place, self.place = self.place, None
        if place is not None:  # a WebSocket connection has taken it along otherwise
            place.give_back()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        if status != 400:
            return super().handle_error(request, status, exc, message)
        answer = self._refuse(status)  # no HTTP, which aiohttp would log with a traceback each time
        answer.force_close()
        return answer


class Lobby:
    """All sockets without a WebSocket, the one that has waited longest first."""

    def __init__(
        self, server: web.Server, counters: Counters, header_timeout_s: float, write_timeout_s: float, refuse: Callable[[int], web.Response]
    ) -> None:
        self._server, self._counters, self._refuse = server, counters, refuse
        self._header_timeout_s, self._write_timeout_s = header_timeout_s, write_timeout_s
        self._waiting: dict[Waiting, None] = {}
        self._loop = asyncio.get_running_loop()

    def enter(self, place: Place, now: float) -> Waiting:
        """A protocol for a socket that was accepted just now."""
        waiting = Waiting(self, place, now)
        self._waiting[waiting] = None
        return waiting

    def request_begins(self, waiting: Waiting, received: bytes) -> None:
        """The header is there: aiohttp takes the connection."""
        self._waiting.pop(waiting, None)
        transport = waiting.transport
        assert transport is not None
        handler = Handler(self._server, self._loop, waiting.place, self._refuse)
        transport.set_protocol(handler)
        handler.connection_made(transport)
        handler.data_received(received)

    def turn_out(self, waiting: Waiting, reason: str) -> None:
        """Close a socket that still waits."""
        self._counters.connection_refused(reason)
        waiting.cut_off()
        self.gone(waiting)

    def gone(self, waiting: Waiting) -> None:
        """A socket was closed before its request."""
        if waiting in self._waiting:
            del self._waiting[waiting]
            waiting.place.give_back()

    def make_room(self, now: float) -> bool:
        """Close the socket that has waited longest for its request, if that was long; False when all have to be let alone."""
        if self._waiting and now - (first := next(iter(self._waiting))).since > self._header_timeout_s * EVICTED_AFTER_RATIO:
            self.turn_out(first, "evicted")
            return True
        for handler in self._handlers():
            if handler.idle:
                self._counters.connection_refused("evicted")
                handler.force_close()
                if (place := handler.place) is not None:
                    place.give_back()
                return True
        return False

    def sweep(self, now: float) -> None:
        """Close what takes too long: to send its header, or to read its answer."""
        while self._waiting and now - (first := next(iter(self._waiting))).since > self._header_timeout_s:
            self.turn_out(first, "header_timeout")
        for handler in self._handlers():
            transport = handler.transport
            if transport is None or not transport.get_write_buffer_size():
                handler.unread_since = None
            elif handler.unread_since is None:
                handler.unread_since = now
            elif now - handler.unread_since > self._write_timeout_s:
                self._counters.connection_refused("unread")
                transport.abort()

    def close(self) -> None:
        """Close all that still waits for its request."""
        for waiting in list(self._waiting):
            waiting.cut_off()
            self.gone(waiting)

    def _handlers(self) -> list[Handler]:
        return [handler for handler in self._server.connections if isinstance(handler, Handler)]
