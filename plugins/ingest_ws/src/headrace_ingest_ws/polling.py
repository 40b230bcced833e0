"""Plain connections read by one epoll and one call a turn of the loop, and written without a detour.

With one message a read, two thirds of what a message costs are the kernel's; most of the rest is what an event loop does
around each read and write. So a plain connection leaves the loop after its upgrade: a `Poller` has all of them in an epoll of
its own, which the loop watches as one descriptor, and reads those that are ready together (in C where the parser is in C).
Connections over TLS stay with the loop's transport.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final

from headrace_ingest_ws.intake import Intake
from headrace_ingest_ws.parser import WRITABLE, Find, FrameBuffer
from headrace_ingest_ws.websocket import UNREAD_BYTES_MAX, WebSocket

#: Connections that are found gone are looked after so many in a turn of the loop: about 0.5 ms of work.
ENDS_PER_TURN: Final = 16


class Poller:
    """All plain connections of one server. Made, used and closed on its loop.

    With an intake, nothing is read while that is full, and C gathers for it where the parser is in C.
    """

    def __init__(self, buffer: FrameBuffer, intake: Intake | None = None) -> None:
        self._buffer, self._intake = buffer, intake
        self.gatherer = intake.gatherer if intake is not None else None
        self._epoll = select.epoll()
        self._transports: dict[int, PolledTransport] = {}
        self._loop = asyncio.get_running_loop()
        self._leaving: dict[PolledTransport, int] = {}  # gone, with the size that said so; others are first in this turn
        self._left = 0  # in this turn
        self._waiting = False
        self._ending = False
        if intake is not None:
            intake.ack_begun = self.ack_begun
        self._loop.add_reader(self._epoll.fileno(), self._ready)

    def adopt(self, transport: asyncio.Transport, protocol: WebSocket) -> PolledTransport:
        """Take over the socket of a transport of the loop; reading is paused. OSError when no descriptor is left."""
        descriptor = os.dup(transport.get_extra_info("socket").fileno())
        transport.set_protocol(asyncio.Protocol())  # its end concerns nobody
        transport.abort()  # closes its own descriptor; the connection lives on in ours
        polled = PolledTransport(self, self._loop, self._epoll, descriptor, protocol)
        self._transports[descriptor] = polled
        return polled

    def forget(self, transport: PolledTransport) -> None:
        """The connection is over; its descriptor may be closed."""
        del self._transports[transport.descriptor]
        self._leaving.pop(transport, None)
        if self.gatherer is not None:
            self.gatherer.remove(transport.descriptor, transport.gathered)

    def restless(self, now: float) -> Iterator[list[WebSocket]]:
        """Of the connections that C gathers from, those that need to be looked after, a slice of all at a time."""
        if self.gatherer is not None:
            for descriptors in self.gatherer.restless(now):
                found = map(self._transports.get, descriptors)
                yield [transport.protocol for transport in found if transport is not None]

    def finish(self) -> None:
        """What is read from now on is not taken any more: read it even when the intake is full."""
        self._ending = True
        self.go_on()

    def close(self) -> None:
        """Watch nothing any more. Connections that are left are cut off."""
        for transport in list(self._transports.values()):
            transport.abort()
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()

    # --- reading -----------------------------------------------------------------------------------------------------

    def go_on(self) -> None:
        """The intake has room again."""
        if self._waiting and not self._epoll.closed:
            self._waiting = False
            self._loop.add_reader(self._epoll.fileno(), self._ready)

    def _ready(self) -> None:
        intake = self._intake
        if intake is None or self._ending:
            self._hand_over(self._buffer.read(self._epoll))
        elif not intake.full:
            self._hand_over(intake.read(self._buffer, self._epoll))
        if intake is not None and intake.full and not self._ending and not self._waiting:
            self._waiting = True
            self._loop.remove_reader(self._epoll.fileno())
            intake.call_when_room(self)

    def _hand_over(self, finds: Sequence[Find]) -> None:
        """What is left to Python of a read."""
        for descriptor, start, size, found in finds:
            transport = self._transports.get(descriptor)
            if transport is None:
                continue  # closed by what came before it in this turn
            if found is not None:
                transport.protocol.found(found, start + size)
            elif size > 0:
                transport.protocol.received(start, start + size)
            elif size == WRITABLE:
                transport.writable()
            elif transport not in self._leaving:
                self._leave(transport, size)

    def _leave(self, transport: PolledTransport, size: int) -> None:
        """A connection ended (size 0) or broke (-errno): look after it, in a later turn when thousands leave at once."""
        if self._left >= ENDS_PER_TURN:
            self._leaving[transport] = size
            transport.hush()
            return
        if not self._left:
            self._loop.call_soon(self._next_turn)
        self._left += 1
        transport.gone(size)

    def _next_turn(self) -> None:
        self._left = 0
        for transport in list(islice(self._leaving, ENDS_PER_TURN)):
            size = self._leaving.pop(transport)
            self._left += 1
            transport.gone(size)
        if self._left:
            self._loop.call_soon(self._next_turn)

    # --- acks --------------------------------------------------------------------------------------------------------

    def ack_begun(self, descriptor: int, sent: int) -> None:
        """An ack is left to the connection at this descriptor; `sent` bytes of its frame are out."""
        transport = self._transports.get(descriptor)
        if transport is not None:
            transport.protocol.ack_begun(sent)


class PolledTransport(asyncio.Transport):
    """What `WebSocket` needs of a transport, on a descriptor of a Poller."""

    __slots__ = (
        "_closing", "_eof", "_epoll", "_loop", "_mask", "_poller", "_stalled", "_unsent", "descriptor", "gathered", "protocol",
    )  # fmt: skip

    def __init__(self, poller: Poller, loop: asyncio.AbstractEventLoop, epoll: select.epoll, descriptor: int, protocol: WebSocket) -> None:
        self._poller, self._loop, self._epoll, self.descriptor, self.protocol = poller, loop, epoll, descriptor, protocol
        self.gathered: Any = None  # its ws_connection (gather.h), where it has one
        self._unsent = b""
        self._closing = False
        self._stalled = False  # the protocol was told to write no more
        self._eof = False  # nothing is written behind what is unsent
        self._mask = 0
        epoll.register(descriptor, 0)

    # --- reading -----------------------------------------------------------------------------------------------------

    def pause_reading(self) -> None:
        if self.gathered is not None:
            self.gathered.paused = True
        self._watch(self._mask & ~select.EPOLLIN)

    def resume_reading(self) -> None:
        if self.gathered is not None:
            self.gathered.paused = False
        self._watch(self._mask | select.EPOLLIN)

    def _watch(self, mask: int) -> None:
        if mask != self._mask and self.descriptor >= 0:
            self._mask = mask
            self._epoll.modify(self.descriptor, mask)

    def hush(self) -> None:
        """Nothing more is to be heard of it for now: not even, but once, that it is gone."""
        self._epoll.modify(self.descriptor, select.EPOLLIN | select.EPOLLONESHOT)

    def gone(self, size: int) -> None:
        """Reading came to an end: 0, or to an error: -errno."""
        if size == 0:
            self.ended()
        else:
            self.failed(OSError(-size, os.strerror(-size)))

    def ended(self) -> None:
        """The client sends no more."""
        self.pause_reading()
        if not self.protocol.eof_received():
            self.close()

    def failed(self, error: OSError) -> None:
        """Reading or writing is over."""
        self._end(error)

    # --- writing -----------------------------------------------------------------------------------------------------

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Fixed: UNREAD_BYTES_MAX, and a quarter of it."""

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def write(self, data: bytes | bytearray | memoryview[int]) -> None:
        if self.descriptor < 0 or self._eof:
            return
        if self._unsent:
            self._keep(self._unsent + data)
            return
        try:
            sent = os.write(self.descriptor, data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._end(error)
            return
        if sent < len(data):
            self._keep(bytes(data[sent:]))

    def _keep(self, unsent: bytes) -> None:
        self._unsent = unsent
        if self.gathered is not None:
            self.gathered.special = True  # an ack must not overtake it
        self._watch(self._mask | select.EPOLLOUT)
        if len(unsent) > UNREAD_BYTES_MAX and not self._stalled:
            self._stalled = True
            self.protocol.pause_writing()

    def writable(self) -> None:
        """The client has read: send what is left."""
        try:
            sent = os.write(self.descriptor, self._unsent)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error)
            return
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self._watch(self._mask & ~select.EPOLLOUT)
            if self._eof:
                self._shut_down()
        if self._stalled and len(self._unsent) <= UNREAD_BYTES_MAX // 4:
            self._stalled = False
            self.protocol.resume_writing()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._eof = True
        if not self._unsent:
            self._shut_down()

    def _shut_down(self) -> None:
        """Say that nothing more comes; with `close` before, end."""
        if self._closing:
            self._end(None)
            return
        try:
            with socket.socket(fileno=os.dup(self.descriptor)) as borrowed:
                borrowed.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._end(error)

    # --- the end -----------------------------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        return self._closing or self.descriptor < 0

    def close(self) -> None:
        """Send what is unsent, then end."""
        if not self.is_closing():
            self._closing = True
            self.pause_reading()
            self.write_eof()

    def abort(self) -> None:
        self._end(None)

    def _end(self, error: OSError | None) -> None:
        if self.descriptor < 0:
            return
        self._poller.forget(self)
        descriptor, self.descriptor = self.descriptor, -1
        self._epoll.unregister(descriptor)
        os.close(descriptor)
        self._unsent = b""
        self._loop.call_soon(self.protocol.connection_lost, error)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol
