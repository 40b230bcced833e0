"""Which connection holds a device session, how a newer one takes it over, and where the session goes on.

The order that keeps the promise: the older connection takes no more messages, what it took is durable or was refused, the
queue is asked for the session's mark, and only then the newer connection gets its hello. A mark that was asked for earlier
could be passed by messages that the device then sends again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Literal, NamedTuple, Protocol

from headrace import Deliver, OriginMark
from headrace_ingest_ws.protocol import SessionClaim
from headrace_ingest_ws.refusals import RefusedMessage, decode

UNKNOWN: Final = "unknown"
#: A session's mark; None when no queue asked has one; UNKNOWN when nobody can tell whether there is one.
Found = OriginMark | None | Literal["unknown"]


class Holder(Protocol):
    """A connection of a session."""

    async def hand_over(self) -> None:
        """Take no more messages, and close with 4409 once the acks are out.

        Returns when everything taken is durable or was refused; that need not wait for the close.
        """


class SessionDirectory(Protocol):
    """Who holds which session. Sites with several queues on one host extend it over all of them."""

    async def take(self, session: str, holder: Holder) -> Found:
        """Make `holder` the one that holds the session (`<device>/<session>`); its mark, once nothing of it is in flight.

        Whoever held it before has handed over then. Cancelled, or an error: nothing is held by `holder`.
        """

    def leave(self, session: str, holder: Holder) -> None:
        """`holder` is gone, and all that it took is settled. Fine when it holds the session no more."""


class LocalSessions:
    """The sessions of this process's connections and of its one queue."""

    def __init__(self, deliver: Deliver, taken_over: Callable[[], None]) -> None:
        self._deliver, self._taken_over = deliver, taken_over
        self._places: dict[str, _Place] = {}

    async def take(self, session: str, holder: Holder) -> Found:
        place = self._places.setdefault(session, _Place())
        place.waiting += 1
        try:
            async with place.turn:
                found = await self._fence(session, place)
                place.holder = holder
                return found
        finally:
            place.waiting -= 1
            self._tidy(session, place)

    async def give_up(self, session: str) -> Found:
        """The session goes to another process: whoever holds it here hands over; the mark of this process's queue."""
        place = self._places.setdefault(session, _Place())
        place.waiting += 1
        try:
            async with place.turn:
                return await self._fence(session, place)
        finally:
            place.waiting -= 1
            self._tidy(session, place)

    def leave(self, session: str, holder: Holder) -> None:
        place = self._places.get(session)
        if place is not None and place.holder is holder:
            place.holder = None
            self._tidy(session, place)

    async def _fence(self, session: str, place: _Place) -> Found:
        if place.holder is not None:
            self._taken_over()
            await place.holder.hand_over()
            place.holder = None
        info = self._deliver.queue_info()
        if info is None or info.level == "none":
            return UNKNOWN
        return await self._deliver.mark(session)

    def _tidy(self, session: str, place: _Place) -> None:
        if place.holder is None and not place.waiting:
            del self._places[session]


class HostSessions:
    """The sessions of all workers of this tier: whoever held one elsewhere has given it up before it is taken here."""

    def __init__(self, deliver: Deliver, here: LocalSessions) -> None:
        self._deliver, self._here = deliver, here

    async def take(self, session: str, holder: Holder) -> Found:
        async with self._deliver.taking(session) as elsewhere:
            here = await self._here.take(session, holder)
        if here == UNKNOWN or not elsewhere.known:
            return UNKNOWN
        # numbers only grow: the queue that took the session last has the highest
        marks = [mark for mark in (here, elsewhere.mark) if mark is not None]
        return max(marks, key=lambda mark: mark.last, default=None)

    async def give_up(self, session: str) -> None:
        """Another worker takes it."""
        await self._here.give_up(session)

    def leave(self, session: str, holder: Holder) -> None:
        self._here.leave(session, holder)


class _Place:
    """One session: its holder, and the turn of those who want to hold it, in the order in which they came."""

    __slots__ = ("holder", "turn", "waiting")

    def __init__(self) -> None:
        self.holder: Holder | None = None
        self.turn = asyncio.Lock()
        self.waiting = 0


class Standing(NamedTuple):
    """Where a session goes on: the next message is `start` + 1. known: False when what lies behind `acked` may be held already."""

    start: int
    known: bool
    refused: tuple[RefusedMessage, ...] = ()


def standing(claim: SessionClaim, found: Found) -> Standing:
    """What a connection that claims a session is told.

    A mark below `acked`, or none, means that somebody else acked the client, or that this mark was evicted or lost. Without a
    note that can be read, nobody knows what was refused.
    """
    if found == UNKNOWN:
        return Standing(claim.acked, False)
    last = 0 if found is None else found.last
    if last < claim.acked:
        return Standing(claim.acked, False)
    try:
        refused = decode(found.note) if found else []
    except ValueError:
        return Standing(claim.acked, False)
    return Standing(last, True, tuple(message for message in refused if message.number > claim.acked))
