"""What a supervisor and its workers say to each other: a JSON object a line, over the socket pair that a worker is born with.

The supervisor holds the other end for as long as it lives: a worker whose channel ends has lost it, drains and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Callable
from typing import Final, Generic, TypeVar

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
    linked: int = 0


class Take(msgspec.Struct, frozen=True, tag=True):
    """From a worker: the origin's sender is here now, let nobody else take it; answered by `Found`, ended by `Taken`."""

    number: int
    origin: str


class Found(msgspec.Struct, frozen=True, tag=True):
    """To a worker, for its `Take`: what the others hold. known and busy as in `Takeovers.serve`."""

    number: int
    last: int | None
    note: bytes | None
    known: bool
    busy: bool


class Taken(msgspec.Struct, frozen=True, tag=True):
    """From a worker: it holds the origin, or has given up asking; the next one may take it."""

    number: int


class GiveUp(msgspec.Struct, frozen=True, tag=True):
    """To a worker: another one takes this origin over; it answers `GivenUp`."""

    number: int
    origin: str


class GivenUp(msgspec.Struct, frozen=True, tag=True):
    """From a worker: it takes nothing more of the origin, nothing of it is in flight, and this is its queue's mark. known: False when it
    cannot tell."""

    number: int
    last: int | None
    note: bytes | None
    known: bool


Message = Start | Reload | Stop | Started | Reloaded | Ended | Take | Found | Taken | GiveUp | GivenUp

_decoder: Final = msgspec.json.Decoder(Message)
_encoder: Final = msgspec.json.Encoder()


A = TypeVar("A")


class Questions(Generic[A]):
    """Questions that wait for their answers, which may come in any order. No answer is None."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[A | None]] = {}

    async def ask(self, say: Callable[[int], None], wait_s: float | None = None) -> A | None:
        """`say` sends the question under a number; its answer."""
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        say(number)
        try:
            return await asyncio.wait_for(answer, wait_s)
        except TimeoutError:
            return None
        finally:
            self._waiting.pop(number, None)

    def answer(self, number: int, answer: A) -> None:
        """The answer to a question; one that came too late is nothing."""
        waiting = self._waiting.get(number)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    def nobody_answers(self) -> None:
        """The other end is gone."""
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_result(None)


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
        try:
            message: Message = _decoder.decode(line)
        except msgspec.MsgspecError:  # cut off by its end, or nothing of ours
            return None
        return message

    async def close(self) -> None:
        """Say what is still to be said, and hang up."""
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
