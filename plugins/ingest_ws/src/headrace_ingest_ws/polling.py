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

from headrace_ingest_ws.parser import WRITABLE, FrameBuffer
from headrace_ingest_ws.websocket import UNREAD_BYTES_MAX, WebSocket


class Poller:
    """All plain connections of one server. Made, used and closed on its loop."""

    def __init__(self, buffer: FrameBuffer) -> None:
        self._buffer = buffer
        self._epoll = select.epoll()
        self._transports: dict[int, PolledTransport] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._epoll.fileno(), self._ready)

    def adopt(self, transport: asyncio.Transport, protocol: WebSocket) -> PolledTransport:
        """Take over the socket of a transport of the loop; reading is paused. OSError when no descriptor is left."""
        descriptor = os.dup(transport.get_extra_info("socket").fileno())
        transport.set_protocol(asyncio.Protocol())  # its end concerns nobody
        transport.abort()  # closes its own descriptor; the connection lives on in ours
        polled = PolledTransport(self, self._loop, self._epoll, descriptor, protocol)
        self._transports[descriptor] = polled
        return polled

    def forget(self, descriptor: int) -> None:
        """The connection is over; its descriptor may be closed."""
        del self._transports[descriptor]

    def close(self) -> None:
        """Watch nothing any more. Connections that are left are cut off."""
        for transport in list(self._transports.values()):
            transport.abort()
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()

    def _ready(self) -> None:
        transports = self._transports
        found = iter(self._buffer.read(self._epoll))
        for descriptor, start, size in zip(found, found, found, strict=True):
            transport = transports.get(descriptor)
            if transport is None:
                continue  # closed by what came before it in this turn
            if size > 0:
                transport.protocol.received(start, start + size)
            elif size == WRITABLE:
                transport.writable()
            elif size == 0:
                transport.ended()
            else:
                transport.failed(OSError(-size, os.strerror(-size)))


class PolledTransport(asyncio.Transport):
    """What `WebSocket` needs of a transport, on a descriptor of a Poller."""

    __slots__ = ("_closing", "_descriptor", "_eof", "_epoll", "_loop", "_mask", "_poller", "_stalled", "_unsent", "protocol")

    def __init__(self, poller: Poller, loop: asyncio.AbstractEventLoop, epoll: select.epoll, descriptor: int, protocol: WebSocket) -> None:
        self._poller, self._loop, self._epoll, self._descriptor, self.protocol = poller, loop, epoll, descriptor, protocol
        self._unsent = b""
        self._closing = False
        self._stalled = False  # the protocol was told to write no more
        self._eof = False  # nothing is written behind what is unsent
        self._mask = 0
        epoll.register(descriptor, 0)

    # --- reading -----------------------------------------------------------------------------------------------------

    def pause_reading(self) -> None:
        self._watch(self._mask & ~select.EPOLLIN)

    def resume_reading(self) -> None:
        self._watch(self._mask | select.EPOLLIN)

    def _watch(self, mask: int) -> None:
        if mask != self._mask and self._descriptor >= 0:
            self._mask = mask
            self._epoll.modify(self._descriptor, mask)

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
        if self._descriptor < 0 or self._eof:
            return
        if self._unsent:
            self._keep(self._unsent + data)
            return
        try:
            sent = os.write(self._descriptor, data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._end(error)
            return
        if sent < len(data):
            self._keep(bytes(data[sent:]))

    def _keep(self, unsent: bytes) -> None:
        self._unsent = unsent
        self._watch(self._mask | select.EPOLLOUT)
        if len(unsent) > UNREAD_BYTES_MAX and not self._stalled:
            self._stalled = True
            self.protocol.pause_writing()

    def writable(self) -> None:
        """The client has read: send what is left."""
        try:
            sent = os.write(self._descriptor, self._unsent)
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
            with socket.socket(fileno=os.dup(self._descriptor)) as borrowed:
                borrowed.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._end(error)

    # --- the end -----------------------------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        return self._closing or self._descriptor < 0

    def close(self) -> None:
        """Send what is unsent, then end."""
        if not self.is_closing():
            self._closing = True
            self.pause_reading()
            self.write_eof()

    def abort(self) -> None:
        self._end(None)

    def _end(self, error: OSError | None) -> None:
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        self._poller.forget(descriptor)
        self._epoll.unregister(descriptor)
        os.close(descriptor)
        self._unsent = b""
        self._loop.call_soon(self.protocol.connection_lost, error)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol
