"""What a supervisor and its workers say to each other: a JSON object a line, over the socket pair that a worker is born with.

The supervisor holds the other end for as long as it lives: a worker whose channel ends has lost it, drains and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Final

import msgspec

#: A site's file travels in one line.
LINE_BYTES_MAX: Final = 16 << 20


class Start(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """To a worker, first of all: what to run. The file's text travels, so that all workers run the same, whatever stands there."""

    file: str
    text: str
    overrides: tuple[str, ...]
    name: str
    tiers: tuple[str, ...]
    worker: int
    workers: int
    former: bool
    first: bool


class Reload(msgspec.Struct, frozen=True, tag=True):
    """To a worker: take this text; it answers `Reloaded`."""

    text: str
    overrides: tuple[str, ...]


class Stop(msgspec.Struct, frozen=True, tag=True):
    """To a worker: drain in this time; a second one: stop at once."""

    deadline_s: float


class Started(msgspec.Struct, frozen=True, tag=True):
    """From a worker: every tier runs."""


class Reloaded(msgspec.Struct, frozen=True, tag=True):
    """From a worker: the text was taken, or why not."""

    problem: str


class Ended(msgspec.Struct, frozen=True, tag=True):
    """From a worker that has drained: what it did, in events."""

    received: int
    acked: int
    stored: dict[str, int]
    queued: int


Message = Start | Reload | Stop | Started | Reloaded | Ended

_decoder: Final = msgspec.json.Decoder(Message)
_encoder: Final = msgspec.json.Encoder()


class Channel:
    """One end of the socket pair."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def over(cls, end: socket.socket) -> Channel:
        """The channel over this end, which it owns from now on."""
        end.setblocking(False)
        return cls(*await asyncio.open_connection(sock=end, limit=LINE_BYTES_MAX))

    def send(self, message: Message) -> None:
        """Say it; whether the other end still listens, `receive` tells."""
        if not self._writer.is_closing():
            self._writer.write(_encoder.encode(message) + b"\n")

    async def receive(self) -> Message | None:
        """The next message; None when the other end is gone."""
        try:
            line = await self._reader.readline()
        except (ConnectionError, ValueError):
            return None
        if not line.endswith(b"\n"):
            return None
        message: Message = _decoder.decode(line)
        return message

    async def close(self) -> None:
        """Say what is still to be said, and hang up."""
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
