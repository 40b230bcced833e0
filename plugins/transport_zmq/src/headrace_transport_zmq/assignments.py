"""Which positions of a queue belong to which of several far tiers (DELIVERY 13): a list of segments, durable before the first send.

A segment is a contiguous range on a lane of its own, bound to one far tier: its marks speak for nothing else. The last segment grows; it is
assigned some way ahead of what was sent, so that not every batch costs a write.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from headrace.locked import replace_durably

FILE: Final = "assignments.json"


class Segment(NamedTuple):
    """Positions first..upto belong to `lane`, which leads to the far tier `peer`, at the address `connect` when it was assigned."""

    lane: int
    peer: str
    connect: str
    first: int
    upto: int


class Part(NamedTuple):
    """Positions first..last, and whose they are."""

    segment: Segment
    first: int
    last: int


class Assignments:
    """The segments, oldest first, each beginning right behind the one before. No I/O."""

    def __init__(self, segments: Sequence[Segment] = (), next_lane: int = 1) -> None:
        self.segments, self.next_lane = list(segments), next_lane

    @property
    def last(self) -> Segment | None:
        """The segment that grows."""
        return self.segments[-1] if self.segments else None

    @property
    def upto(self) -> int:
        """The last position that is assigned; 0 when none is."""
        return self.segments[-1].upto if self.segments else 0

    def parts(self, first: int, last: int) -> list[Part]:
        """Whose positions first..last are. All of them are assigned, and none is from before the first segment."""
        found = [
            Part(segment, max(first, segment.first), min(last, segment.upto))
            for segment in self.segments
            if segment.first <= last and segment.upto >= first
        ]
        assert found, f"{first}-{last} is not assigned"
        assert (found[0].first, found[-1].last) == (first, last), f"{first}-{last} is not assigned, only {found}"
        return found

    def open(self, peer: str, connect: str, first: int, upto: int) -> Segment:
        """A new segment behind the last one, on a new lane."""
        assert not self.segments or first == self.upto + 1, f"a segment from {first} on behind {self.upto}"
        segment = Segment(self.next_lane, peer, connect, first, upto)
        self.segments.append(segment)
        self.next_lane += 1
        return segment

    def extend(self, upto: int) -> None:
        """The last segment goes on."""
        self.segments[-1] = self.segments[-1]._replace(upto=upto)

    def cut(self, sent: int) -> None:
        """Nothing behind `sent` was sent on the last segment: it ends there, or goes when nothing of it was."""
        if not self.segments or self.upto <= sent:
            return
        last = self.segments.pop()
        if last.first <= sent:
            self.segments.append(last._replace(upto=sent))

    def rebind(self, segment: Segment, peer: str, connect: str) -> None:
        """Send what may be held by one far tier to another one: under a new lane."""
        self.segments[self.segments.index(segment)] = segment._replace(lane=self.next_lane, peer=peer, connect=connect)
        self.next_lane += 1

    def release(self, cursor: int) -> list[Segment]:
        """Everything up to `cursor` is safe: the segments that are over. The last one stays."""
        over = [segment for segment in self.segments[:-1] if segment.upto <= cursor]
        self.segments = self.segments[len(over) :]
        return over


def load(folder: Path) -> Assignments | None:
    """What was kept; None when nothing was. ValueError when it cannot be read: nobody knows then who holds what."""
    file = folder / FILE
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_bytes())
        return Assignments([Segment(**segment) for segment in content["segments"]], int(content["next_lane"]))
    except (KeyError, TypeError, ValueError) as error:
        remedy = "restore it, or remove it, at the risk of doubles"
        raise ValueError(f"{file} cannot be read, and says which far tier holds what ({error}): {remedy}") from error


def pack(assignments: Assignments) -> bytes:
    """What is kept of them."""
    content = {"next_lane": assignments.next_lane, "segments": [segment._asdict() for segment in assignments.segments]}
    return json.dumps(content).encode()


def keep(folder: Path, packed: bytes) -> None:
    """Durable on return; blocks."""
    replace_durably(folder / FILE, packed)
