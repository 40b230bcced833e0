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

from headrace import Clock
from headrace_ingest_ws.counters import Counters
from headrace_ingest_ws.half_close import HalfClosable, half_closable
from headrace_ingest_ws.places import Place
from headrace_ingest_ws.turnstile import allowed

#: Longest request header; a bearer token takes a few KB of it at most.
HEADER_BYTES_MAX: Final = 16_384

#: Requests handed to aiohttp in one turn of the loop, at least and at most. One costs 0.3 to 0.5 ms from there to its answer, whoever
#: asks; on a busy loop they get this share of its time.
BEGUN_PER_TURN: Final = 1
BEGUN_PER_TURN_MAX: Final = 8
BEGUN_S: Final = 0.0004
BEGUN_RATIO: Final = 0.25

#: Sockets closed in one turn of the loop: about 0.5 ms of work.
CLOSED_PER_TURN: Final = 16

#: A socket may wait for this share of its time before it has to make room: when thousands of slow but honest devices connect at
#: once, those who wait in the kernel have to wait on. Else all would be closed before their request, and come again.
EVICTED_AFTER_RATIO: Final = 1 / 4


class Waiting(asyncio.Protocol):
    """A socket of which no whole request header is there yet."""

    __slots__ = ("_asked", "_lobby", "_tls", "header", "opening", "place", "since", "transport")

    def __init__(self, lobby: Lobby, place: Place, now: float) -> None:
        self._lobby, self.place, self.since = lobby, place, now
        self.header = bytearray()
        self._asked = False  # the header is there, and what is behind it waits with it
        self.transport: asyncio.Transport | None = None
        self._tls: HalfClosable | None = None
        self.opening: asyncio.Task[Any] | None = None  # TLS may take its time

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self._tls = half_closable(transport)
        if self._tls is not None:
            self._tls.transport = self.transport

    def data_received(self, data: bytes) -> None:
        header = self.header
        searched = max(0, len(header) - 3)
        header += data
        if self._asked:
            return
        if not 65 <= header[0] <= 90:
            self._lobby.turn_away(self)  # no HTTP at all
        elif _complete(header, searched):
            self._asked = True
            self._lobby.request_came(self)
        elif len(header) > HEADER_BYTES_MAX:
            self._lobby.turn_out(self, "header_bytes")

    def client_ended(self) -> bool:
        """The client sends no more (over TLS; else nothing is read while it waits); False when it has not asked for anything."""
        return self._asked

    @property
    def at_end(self) -> bool:
        """True when the client has said over TLS that it sends no more."""
        return self._tls is not None and self._tls.at_end

    def connection_lost(self, exc: Exception | None) -> None:
        if self._tls is not None:
            self._tls.transport = None
        self._lobby.gone(self)

    def cut_off(self) -> None:
        """Close without an answer, wherever it is."""
        if self.transport is not None:
            self.transport.abort()
        elif self.opening is not None:
            self.opening.cancel()


def _complete(header: bytearray, searched: int) -> bool:
    """Does the header end behind `searched`?"""
    return header.find(b"\r\n\r\n", searched) >= 0 or header.find(b"\n\n", searched) >= 0


class Handler(RequestHandler):
    """aiohttp's handler of a connection, which knows its place and counts what aiohttp refuses by itself."""

    __slots__ = ("_refuse", "_tls", "place", "unread_since")

    def __init__(self, server: web.Server, loop: asyncio.AbstractEventLoop, place: Place, refuse: Callable[[int], web.Response]) -> None:
        super().__init__(server, loop=loop, **server._kwargs)
        self.place: Place | None = place
        self._refuse = refuse
        self._tls: HalfClosable | None = None
        self.unread_since: float | None = None  # the client leaves an answer unread

    @property
    def idle(self) -> bool:
        """True while it waits for a request."""
        return self._waiter is not None and not self._waiter.done()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._tls = half_closable(transport)

    def eof_received(self) -> bool:  # type: ignore[override]
        """As `client_ended`; over TLS the loop calls this only where nothing can be kept half open."""
        return self.client_ended() and self.transport is not None and self.transport.can_write_eof()

    def client_ended(self) -> bool:
        """The client sends no more; True keeps the transport open for the answers to what it has sent whole."""
        if self.idle or self._request_in_progress or self._messages:
            return self._owes()
        self._loop.call_soon(self._look_again)  # it takes a request, which it shows from its next turn on, or has answered its last
        return True

    def _look_again(self) -> None:
        if self.transport is not None and not self._owes():
            self.transport.close()

    def _owes(self) -> bool:
        """Is an answer due, and the request for it whole?"""
        bodies = [body for _, body in self._messages]
        if self._current_request is not None:
            bodies.append(self._current_request.content)
        if not (bodies or self._request_in_progress) or not all(body.is_eof() for body in bodies):
            return False
        if len(self._messages) + self._request_in_progress == 1:
            self.close()  # behind this answer; where more are due, `keepalive_timeout` ends it
        return True

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._tls is not None:
            self._tls.transport = None  # a WebSocket that takes over sets it again
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
    """All sockets without a WebSocket, the one that has waited longest first.

    refuse: counts a request that is none, and makes the answer for aiohttp to write.
    """

    def __init__(
        self,
        server: web.Server,
        counters: Counters,
        clock: Clock,
        header_timeout_s: float,
        write_timeout_s: float,
        refuse: Callable[[int], web.Response],
    ) -> None:
        self._server, self._counters, self._clock, self._refuse = server, counters, clock, refuse
        self._header_timeout_s, self._write_timeout_s = header_timeout_s, write_timeout_s
        self._waiting: dict[Waiting, None] = {}
        self._asked: dict[Waiting, None] = {}  # their header is there, but others are first in this turn
        self._left = BEGUN_PER_TURN  # so many may begin in this turn
        self._turning = False
        self._turned_at = 0.0
        self._loop = asyncio.get_running_loop()

    def enter(self, place: Place, now: float) -> Waiting:
        """A protocol for a socket that was accepted just now."""
        waiting = Waiting(self, place, now)
        self._waiting[waiting] = None
        return waiting

    def request_came(self, waiting: Waiting) -> None:
        """The header is there: aiohttp takes the connection, now or in a later turn of the loop."""
        self._waiting.pop(waiting, None)
        if not self._turning:
            self._turning = True
            self._turned_at = self._clock.monotonic()
            self._loop.call_soon(self._next_turn)
        if self._left and not self._asked:
            self._begin(waiting)
        else:
            assert waiting.transport is not None
            waiting.transport.pause_reading()
            self._asked[waiting] = None

    def _begin(self, waiting: Waiting) -> None:
        self._left -= 1
        transport = waiting.transport
        assert transport is not None
        handler = Handler(self._server, self._loop, waiting.place, self._refuse)
        transport.set_protocol(handler)
        handler.connection_made(transport)
        handler.data_received(bytes(waiting.header))
        if waiting.at_end and not handler.client_ended():
            transport.close()

    def _next_turn(self) -> None:
        now = self._clock.monotonic()
        self._left = allowed(now - self._turned_at, BEGUN_S, BEGUN_RATIO, BEGUN_PER_TURN, BEGUN_PER_TURN_MAX)
        self._turned_at, self._turning = now, bool(self._asked)
        if not self._turning:
            self._left = BEGUN_PER_TURN
            return
        self._loop.call_soon(self._next_turn)
        while self._asked and self._left:
            waiting = next(iter(self._asked))
            del self._asked[waiting]
            self._begin(waiting)
            if not waiting.at_end:
                assert waiting.transport is not None
                waiting.transport.resume_reading()

    def turn_away(self, waiting: Waiting) -> None:
        """What came is no HTTP: answer without aiohttp, and close."""
        transport = waiting.transport
        assert transport is not None
        answer = self._refuse(400)
        assert isinstance(answer.body, bytes)
        head = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        transport.write(head % len(answer.body) + answer.body)
        transport.close()
        self.gone(waiting)

    def turn_out(self, waiting: Waiting, reason: str) -> None:
        """Close a socket that still waits."""
        self._counters.connection_refused(reason)
        waiting.cut_off()
        self.gone(waiting)

    def gone(self, waiting: Waiting) -> None:
        """A socket was closed before its request."""
        self._waiting.pop(waiting, None)
        self._asked.pop(waiting, None)
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

    def sweep(self, now: float) -> bool:
        """Close what takes too long: to send its header, or to read its answer. True: there is more to close, in another turn."""
        for _ in range(CLOSED_PER_TURN):
            if not self._waiting or now - (first := next(iter(self._waiting))).since <= self._header_timeout_s:
                break
            self.turn_out(first, "header_timeout")
        else:
            return True
        for handler in self._handlers():
            transport = handler.transport
            if transport is None or not transport.get_write_buffer_size():
                handler.unread_since = None
            elif handler.unread_since is None:
                handler.unread_since = now
            elif now - handler.unread_since > self._write_timeout_s:
                self._counters.connection_refused("unread")
                transport.abort()
        return False

    def close(self) -> None:
        """Close all that still waits for its request."""
        for waiting in [*self._waiting, *self._asked]:
            waiting.cut_off()
            self.gone(waiting)

    def _handlers(self) -> list[Handler]:
        return [handler for handler in self._server.connections if isinstance(handler, Handler)]
