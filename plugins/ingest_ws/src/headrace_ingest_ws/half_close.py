"""Clients over TLS that say they send no more, and are still told what they are owed.

A loop's TLS takes the client's end (close_notify) for the end of the connection: nothing can be written behind it, so that acks
which wait for their commit would be lost. The protocol allows more (RFC 8446 section 6.1): each side ends by itself.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Protocol, cast


class Ending(Protocol):
    """A protocol whose client may end its side first."""

    def client_ended(self) -> bool:
        """The client sends no more; False when it is owed nothing, so that the transport may be closed."""


class HalfClosable(ssl.SSLObject):
    """The TLS of a connection, by its context's `sslobject_class`: at the client's end the protocol says what becomes of the rest.

    `transport` is set as soon as there is one, all its protocols are an `Ending`, and the last of them takes it away again.
    """

    transport: asyncio.Transport | None = None
    at_end = False
    """The client has said that it sends no more."""

    def read(self, size: int = 1024, buffer: bytearray | None = None) -> int | bytes:  # type: ignore[override]
        got = super().read(size, buffer)
        if got or not size or self.at_end or self.transport is None:
            return got
        self.at_end = True
        # what came before it in the same read reaches the protocol only when this call is over
        asyncio.get_running_loop().call_soon(self._ended)
        raise ssl.SSLWantReadError

    def _ended(self) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        # pauses the reading of the socket: the end of TCP, which often follows, would be taken for a lost connection
        transport.set_read_buffer_limits(high=0)  # type: ignore[attr-defined]
        if not cast(Ending, transport.get_protocol()).client_ended():
            transport.close()


def half_closable(transport: asyncio.BaseTransport) -> HalfClosable | None:
    """The TLS of an open transport; None when it is plain."""
    if cast(asyncio.Transport, transport).can_write_eof():
        return None
    tls = transport.get_extra_info("ssl_object")
    return tls if isinstance(tls, HalfClosable) else None
