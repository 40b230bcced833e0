"""What waits for one client: a bounded backlog, what was left out, and the frames made of it. No I/O.

Two backlogs: `EveryEvent` keeps events in order and drops the oldest when the client does not keep up; `NewestPerDevice`
lets a newer event of a device take the place of an older one. Both count what they leave out.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from functools import cached_property
from typing import Final, Literal, NamedTuple

import msgspec

from headrace_live_ws.filters import Filter

Mode = Literal["all", "latest"]

#: A frame takes in waiting chunks up to this size, so that a client that caught up gets few frames.
FRAME_BYTES_MAX: Final = 1 << 20


#: Why events were left out, as clients and metrics are told.
SLOW_CLIENT: Final = "slow client"
RATE_LIMIT: Final = "rate limit"
SKIPPED: Final = "skipped"
CLOSED: Final = "closed"
FILTER_CHANGED: Final = "filter changed"


class Chunk:
    """Rendered events of one tick, shared by all clients of one filter. devices: whose event each is, for `latest`."""

    def __init__(self, events: list[bytes], devices: list[str]) -> None:
        self.events, self.devices = events, devices

    @cached_property
    def body(self) -> bytes:
        """The events as the inside of a JSON array."""
        return b",".join(self.events)


class Frame(NamedTuple):
    """A text frame, and how many events it carries."""

    text: bytes
    events: int


class EveryEvent:
    """The backlog of a client that wants all events: chunks in order, the oldest dropped first."""

    def __init__(self, events_max: int, bytes_max: int) -> None:
        self._events_max, self._bytes_max = events_max, bytes_max
        self._chunks: deque[Chunk] = deque()
        self.events = 0
        self.bytes = 0

    def add(self, chunk: Chunk) -> tuple[int, int]:
        """Take a chunk; return how many events were (conflated, dropped) for it."""
        self._chunks.append(chunk)
        self.events += len(chunk.events)
        self.bytes += len(chunk.body)
        dropped = 0
        while self.events > self._events_max or self.bytes > self._bytes_max:
            dropped += len(self._pop().events)
        return 0, dropped

    def take(self) -> Frame:
        """Remove the oldest events, about FRAME_BYTES_MAX of them, as the inside of a JSON array."""
        taken = [self._pop()]
        size_bytes = len(taken[0].body)
        while self._chunks and size_bytes + len(self._chunks[0].body) <= FRAME_BYTES_MAX:
            size_bytes += len(self._chunks[0].body)
            taken.append(self._pop())
        return Frame(b",".join(chunk.body for chunk in taken), sum(len(chunk.events) for chunk in taken))

    def clear(self) -> int:
        """Give up all events that wait; return how many."""
        events = self.events
        while self._chunks:
            self._pop()
        return events

    def _pop(self) -> Chunk:
        chunk = self._chunks.popleft()
        self.events -= len(chunk.events)
        self.bytes -= len(chunk.body)
        return chunk


class NewestPerDevice:
    """The backlog of a client that wants the newest state: one event per device, the longest waiting device first."""

    def __init__(self, events_max: int, bytes_max: int) -> None:
        self._events_max, self._bytes_max = events_max, bytes_max
        self._newest: dict[str, bytes] = {}
        self.bytes = 0

    @property
    def events(self) -> int:
        return len(self._newest)

    def add(self, chunk: Chunk) -> tuple[int, int]:
        """Take a chunk; return how many events were (conflated, dropped) for it."""
        conflated = dropped = 0
        for device, event in zip(chunk.devices, chunk.events, strict=True):
            before = self._newest.get(device)
            if before is not None:
                conflated += 1
                self.bytes -= len(before)
            self._newest[device] = event
            self.bytes += len(event)
        while self.events > self._events_max or self.bytes > self._bytes_max:
            self._pop()
            dropped += 1
        return conflated, dropped

    def take(self) -> Frame:
        """Remove the devices that wait longest, about FRAME_BYTES_MAX of them, as the inside of a JSON array."""
        taken = [self._pop()]
        size_bytes = len(taken[0])
        while self._newest and size_bytes < FRAME_BYTES_MAX:
            taken.append(self._pop())
            size_bytes += len(taken[-1])
        return Frame(b",".join(taken), len(taken))

    def clear(self) -> int:
        """Give up all events that wait; return how many."""
        events = self.events
        while self._newest:
            self._pop()
        return events

    def _pop(self) -> bytes:
        event = self._newest.pop(next(iter(self._newest)))
        self.bytes -= len(event)
        return event


class Client:
    """One subscription: what it wants, what waits for it, what it missed.

    start is the number of the first event (counted over all that were ever broadcast) that it gets; `ready` is set when
    there may be something to send, or when `closing` (a close code and reason) tells to end.
    """

    def __init__(self, wanted: Filter, mode: Mode, events_max: int, bytes_max: int) -> None:
        self.wanted, self.mode = wanted, mode
        self.start = 0
        self.backlog = EveryEvent(events_max, bytes_max) if mode == "all" else NewestPerDevice(events_max, bytes_max)
        self.ready = asyncio.Event()
        self.sending = asyncio.Lock()  # one frame after the other, and answers whole
        self.closing: tuple[int, str] | None = None
        self._gaps: dict[str, int] = {}
        self._conflated = 0

    def offer(self, chunk: Chunk) -> tuple[int, int]:
        """Take a chunk of events; return how many were (conflated, dropped) for it."""
        conflated, dropped = self.backlog.add(chunk)
        self._conflated += conflated
        if dropped:
            self.missed(dropped, SLOW_CLIENT)
        self.ready.set()
        return conflated, dropped

    def missed(self, events: int, reason: str) -> None:
        """Count events that the client will not get; it is told before the next events."""
        self._gaps[reason] = self._gaps.get(reason, 0) + events
        self.ready.set()

    def conflated(self, events: int) -> None:
        """Count events for which a newer one of the same device goes out."""
        self._conflated += events

    def frames(self) -> Iterable[Frame]:
        """Take out all that waits, frame by frame; stop early and the rest stays."""
        while self._gaps:
            reason, events = self._gaps.popitem()
            yield Frame(gap_frame(events, reason), 0)
        while self.backlog.events:
            body, events = self.backlog.take()
            conflated, self._conflated = self._conflated, 0
            tail = b"]}" if not conflated else b'],"conflated":%d}' % conflated
            yield Frame(b'{"events":[' + body + tail, events)

    def change(self, wanted: Filter, start: int) -> int:
        """Want something else from event `start` on; give up what waits, and return how many events that was."""
        self.wanted, self.start = wanted, start
        return self.backlog.clear()

    def close(self, code: int, reason: str) -> None:
        """End the subscription, after what waits was sent where the client reads."""
        self.closing = self.closing or (code, reason)
        self.ready.set()


def gap_frame(events: int, reason: str) -> bytes:
    """The notice that so many events were left out."""
    return msgspec.json.encode({"gap": {"events": events, "reason": reason}})
