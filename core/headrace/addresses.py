"""Addresses to listen on: read from options, probed, and held for several processes."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from typing import Any


def address_of(option: object) -> tuple[str, int] | None:
    """Host and port of an option `listen`, with or without `tcp://` before it; None when it is none."""
    match = re.fullmatch(r"(?:tcp://)?\[?([^/\]]*?)\]?:(\d{1,5})", option) if isinstance(option, str) else None
    return (match[1], int(match[2])) if match else None


def why_not(host: str, port: int) -> str:
    """Why that address cannot be listened on; empty when it can."""
    if port > 65_535:
        return "cannot be listened on: ports end at 65535"
    try:
        for family, kind, protocol, _, address in _found(host, port):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as error:
        return f"cannot be listened on: {error.strerror or error}"
    return ""


def hold(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen: it keeps the address (port 0: a free one) for several processes of this user, which
    listen with SO_REUSEPORT. OSError when somebody is there already, even one who would share."""
    for family, kind, protocol, _, address in _found(host, port):
        if port:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        held = socket.socket(family, kind, protocol)
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind(address)
        except OSError:
            held.close()
            raise
        return held
    raise OSError(f"{host} has no address")


def _found(host: str, port: int) -> Iterable[Any]:
    host = "127.0.0.1" if host == "localhost" else host  # as sources take it
    return socket.getaddrinfo(host if host != "*" else None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
