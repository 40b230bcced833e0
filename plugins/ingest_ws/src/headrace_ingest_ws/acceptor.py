"""Accepting: each socket gets a place before a byte of it is read, and a rush of them does not starve those that are in."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import socket
import ssl
from typing import Final

import msgspec

from headrace import Clock
from headrace.log import Log
from headrace_ingest_ws.counters import Counters
from headrace_ingest_ws.lobby import Lobby, Waiting
from headrace_ingest_ws.places import Arrivals, Places
from headrace_ingest_ws.protocol import QUOTA, Refusal
from headrace_ingest_ws.turnstile import allowed

#: So many sockets wait in the kernel while the loop is busy, for example after a restart under thousands of devices.
BACKLOG: Final = 4096

#: Sockets accepted in one turn of the loop, at least and at most. One costs about 0.15 ms, and those that are in already wait for it;
#: on a busy loop they get this share of its time.
ACCEPTS_PER_TURN: Final = 2
ACCEPTS_PER_TURN_MAX: Final = 8
ACCEPT_S: Final = 0.000_15
ACCEPT_RATIO: Final = 0.1

#: Pause after the process or the machine ran out of files: accepting fails again at once before some are closed.
FILES_AGAIN_S: Final = 0.5

#: Pause while every place before the upgrade is taken by somebody who has not waited long.
ROOM_AGAIN_S: Final = 0.02

_NO_FILES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Acceptor:
    """Accepts from one listening socket until `close`."""

    def __init__(
        self,
        listening: socket.socket,
        tls: ssl.SSLContext | None,
        places: Places,
        arrivals: Arrivals | None,
        lobby: Lobby,
        counters: Counters,
        clock: Clock,
        log: Log,
        *,
        retry_after_s: int,
        handshake_timeout_s: float,
        close_timeout_s: float,
    ) -> None:
        self.tls = tls
        """For those who come from now on; those who are in keep theirs."""
        self._listening, self._places, self._arrivals, self._lobby = listening, places, arrivals, lobby
        self._counters, self._clock, self._log = counters, clock, log
        self._handshake_timeout_s, self._close_timeout_s = handshake_timeout_s, close_timeout_s
        self._retry_after_s = retry_after_s
        self._loop = asyncio.get_running_loop()
        self._again: asyncio.TimerHandle | None = None
        self._accepted_at = 0.0
        self._opening: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to accept."""
        self._listening.setblocking(False)
        self._loop.add_reader(self._listening, self._accept)

    def close(self) -> None:
        """Stop listening; what was accepted stays."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._listening.fileno() >= 0:
            self._loop.remove_reader(self._listening)
            self._listening.close()

    async def closed(self) -> None:
        """Return when no socket is half-way in; call `Lobby.close` before."""
        for opening in list(self._opening):
            opening.cancel()
        if self._opening:
            await asyncio.wait(self._opening)

    def _accept(self) -> None:
        now = self._clock.monotonic()
        most = allowed(now - self._accepted_at, ACCEPT_S, ACCEPT_RATIO, ACCEPTS_PER_TURN, ACCEPTS_PER_TURN_MAX)
        self._accepted_at = now
        if self._places.full and not self._lobby.make_room(now):
            self._pause(ROOM_AGAIN_S)
            return
        for _ in range(most):
            if self._places.full:
                return  # nobody makes room for a socket that may not be there
            try:
                sock, peer = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_FILES:
                    raise
                self._counters.connection_refused("files")
                self._log.error("no more open files, accepting paused", error=error.strerror, sockets=self._places.sockets)
                self._pause(FILES_AGAIN_S)
                return
            self._enter(sock, peer[0])

    def _pause(self, seconds: float) -> None:
        """Whoever comes waits in the kernel."""
        self._loop.remove_reader(self._listening)
        self._again = self._loop.call_later(seconds, self.start)

    def _enter(self, sock: socket.socket, host: str) -> None:
        now = self._clock.monotonic()
        if self._arrivals is not None and (wait_s := self._arrivals.wait_s(host, now)):
            self._refuse(sock, "address_rate", "this address opens connections faster than one may", math.ceil(wait_s))
            return
        place = self._places.take(host)
        if place is None:
            self._refuse(sock, "address", "this address has as many connections as one may have", self._retry_after_s)
            return
        sock.setblocking(False)
        waiting = self._lobby.enter(place, now)
        waiting.opening = opening = self._loop.create_task(self._open(sock, waiting))
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)

        def opened(opening: asyncio.Task[None]) -> None:
            waiting.opening = None
            if opening.cancelled():  # by `cut_off`, maybe before it began
                sock.close()

        opening.add_done_callback(opened)

    async def _open(self, sock: socket.socket, waiting: Waiting) -> None:
        """Give the socket to the loop; with TLS this takes until its handshake is done."""
        tls = self.tls
        try:
            await self._loop.connect_accepted_socket(
                lambda: waiting,
                sock,
                ssl=tls,
                # by default a handshake has a minute, and its end half a minute
                ssl_handshake_timeout=self._handshake_timeout_s if tls else None,
                ssl_shutdown_timeout=self._close_timeout_s if tls else None,
            )
        except OSError as error:
            sock.close()
            self._lobby.gone(waiting)
            self._counters.connection_refused("lost" if tls is None else "tls")
            self._log.debug("connection refused", error=str(error))

    def _refuse(self, sock: socket.socket, counted_as: str, problem: str, retry_after_s: int) -> None:
        """Answer without having read the request, and close: who is refused costs nothing more."""
        self._counters.connection_refused(counted_as)
        self._log.warning("connection refused", reason=problem)
        with sock, contextlib.suppress(OSError):
            if self.tls is None:
                sock.setblocking(False)
                # bytes left unread would make the close a reset, which could overtake the answer
                with contextlib.suppress(BlockingIOError):
                    sock.recv(65_536)
                sock.send(_answer(Refusal(QUOTA, problem, retry_ms=retry_after_s * 1000), retry_after_s))
                sock.shutdown(socket.SHUT_WR)


def _answer(refusal: Refusal, retry_after_s: int) -> bytes:
    body = msgspec.json.encode(refusal.fields())
    head = (
        f"HTTP/1.1 429 Too Many Requests\r\nConnection: close\r\nRetry-After: {retry_after_s}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
