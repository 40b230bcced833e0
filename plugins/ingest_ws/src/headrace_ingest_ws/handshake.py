"""The WebSocket handshake (RFC 6455 section 4.2): from aiohttp's request to a bare transport with a protocol of our own.

aiohttp parses the request, and is rid of the connection afterwards: its handler is told that the connection is lost, which
frees all that it holds (about 10 KB).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from typing import Final

from aiohttp import web

from headrace_ingest_ws.polling import Poller
from headrace_ingest_ws.websocket import WebSocket

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
VERSION: Final = "13"


def wants_upgrade(request: web.Request) -> bool:
    """Whether the header Connection, which a proxy may have made several of, says Upgrade."""
    return "upgrade" in (token.strip().lower() for token in ",".join(request.headers.getall("Connection", [])).split(","))


def handshake_problem(request: web.Request) -> str | None:
    """Why this request is no WebSocket handshake that we take, or None."""
    headers = request.headers
    if request.version < (1, 1):
        return "expected HTTP/1.1"
    if headers.get("Upgrade", "").strip().lower() != "websocket":
        return "expected the header Upgrade: websocket"
    if not wants_upgrade(request):
        return "expected the header Connection: Upgrade"
    if headers.get("Sec-WebSocket-Version", "").strip() != VERSION:
        return f"expected the header Sec-WebSocket-Version: {VERSION}"
    try:
        key = base64.b64decode(headers.get("Sec-WebSocket-Key", "").strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 16:
        return "expected the header Sec-WebSocket-Key: 16 bytes in base64"
    return None


def chosen_subprotocol(request: web.Request, known: str) -> str | None:
    """`known` when the client offers it, else None: then no subprotocol is spoken."""
    offers = ",".join(request.headers.getall("Sec-WebSocket-Protocol", []))
    return known if known in (offer.strip() for offer in offers.split(",")) else None


def switch_protocols(
    request: web.Request, protocol: WebSocket, subprotocol: str | None, poller: Poller | None
) -> tuple[asyncio.Transport, bytes] | None:
    """Answer 101 and hand the connection to `protocol`, with reading paused; its transport, and the bytes that came right
    behind the request. None when the client has left already. `handshake_problem` was asked before.

    A plain connection is read by `poller` (where there is one) from then on, one over TLS by the loop."""
    transport, handler = request.transport, request.protocol
    if transport is None or transport.is_closing():
        return None
    key = request.headers["Sec-WebSocket-Key"].strip().encode()
    accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
    chosen = b"Sec-WebSocket-Protocol: %s\r\n" % subprotocol.encode() if subprotocol else b""
    # uvloop chooses between its plain and its buffered read when reading starts, so it must not be under way here
    if transport.is_reading():
        transport.pause_reading()
    tail: bytes = handler._message_tail  # aiohttp keeps there what it read behind an upgrade request
    handler._message_tail = b""
    handler.transport = None  # else it would close what it loses
    handler.connection_lost(None)
    if poller is not None and transport.get_extra_info("sslcontext") is None:
        try:
            transport = poller.adopt(transport, protocol)
        except OSError:  # no descriptor is left
            transport.abort()
            return None
    else:
        transport.set_protocol(protocol)
    transport.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %s\r\n%s\r\n" % (accept, chosen)
    )
    return transport, tail
