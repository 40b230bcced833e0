"""What a ring holds in memory, and what follows from it: positions, segments, queue ids, sizes. No I/O.

Locks, in the order in which they may be taken: `commit_lock` (one commit at a time), `head_lock` (writes to the head),
`lock` (the state in memory; held for microseconds, never over I/O).
"""

from __future__ import annotations

import threading
import time
import uuid
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from headrace import QueueFull, QueueSpan, ReaderInfo
from headrace_queue_pmem.area import Area
from headrace_queue_pmem.head import Head, Reader, Span
from headrace_queue_pmem.layout import LINE, SEGMENT_DATA_AT
from headrace_queue_pmem.marks import Marks
from headrace_queue_pmem.medium import Medium
from headrace_queue_pmem.segment import Segment, data_end

#: Kept free in each segment for the frame that names a new queue id.
SPAN_FRAME_BYTES: Final = 4 * LINE
NIL: Final = uuid.UUID(int=0)


class Options(NamedTuple):
    """Bounds of a ring."""

    segment_bytes: int
    size_bytes_max: int
    view_bytes_max: int = 64 << 20

    @property
    def segments_max(self) -> int:
        # Two at least: the one that is appended to is never given back.
        return max(self.size_bytes_max // self.segment_bytes, 2)


@dataclass
class Damage:
    """What is set aside: bytes of a segment, and the positions that went with them."""

    segment: str
    offset: int
    length: int
    first: int
    last: int
    reason: str
    content: bytes | None = None


@dataclass(eq=False)
class Place:
    """Where a reader stands: behind position `last`, the next frame is at `offset` of `segment`."""

    last: int
    segment: Segment
    offset: int
    time_us: int = 0


@dataclass(eq=False)
class Track:
    """What the ring remembers of a reader beside its durable state: the places behind its latest reads."""

    places: deque[Place] = field(default_factory=lambda: deque(maxlen=64))
    cursor_place: Place | None = None


def no_fault(_name: str) -> None:
    """Tests put something in its place."""


class RingState:
    """One queue in memory. All sizes in bytes, positions inclusive."""

    def __init__(
        self, name: str, path: str, medium: Medium, head: Head, options: Options, marks: Marks, fault: Callable[[str], None] = no_fault
    ) -> None:
        self.name, self.path, self.medium, self.head, self.options, self.marks, self.fault = name, path, medium, head, options, marks, fault
        self.lock = threading.Lock()
        self.commit_lock = threading.Lock()
        self.head_lock = threading.Lock()
        self.spare_lock = threading.Lock()  # held while a segment file is made; taken before `lock`
        self.hurry = False  # whether a commit waits for a segment file
        self.segments: list[Segment] = []
        self.spares: list[tuple[str, Area]] = []  # segment files that are of nobody's use yet
        self.leftovers: set[str] = set()  # files of nobody's use whose removal failed
        self.tracks: dict[str, Track] = {}
        self.upto = 0  # the last committed position
        self.next = 1  # the position of the next row
        self.span: Span | None = None  # the queue id of this open, from its first append on
        self.checkpoint_upto = 0  # the durable marks speak for frames up to here
        self.given_back = 0  # every reader has passed this position; what is missing above it is lost
        self.damages: list[Damage] = []
        self.on_damage: Callable[[Damage], None] = lambda _damage: None
        self._write_at = SEGMENT_DATA_AT  # where the next frame of the active segment goes
        self._planned_segments = 0
        self._planned_room = 0
        self.closed = False
        self._refused = False  # whether the last append met a full queue
        self.starved = False  # whether the last segment that was wanted found no room on the disk
        self._span_named = False  # whether the log holds the frame that names `span`
        self._capacity = data_end(medium.usable(options.segment_bytes)) - SEGMENT_DATA_AT - SPAN_FRAME_BYTES
        self._file_number = 0
        self._segment_number = 0
        self.view_bytes = 0
        self.views_freed: deque[int] = deque()

    @property
    def refused(self) -> bool:
        """Whether the last append met a full queue, or a full disk."""
        return self._refused or self.starved

    @property
    def tail(self) -> int:
        """The oldest position that is still here; upto + 1 when there is none."""
        return self.segments[0].base if self.segments else self.upto + 1

    @property
    def oldest(self) -> int:
        """Where a reader stands that begins at the oldest position: what was lost is declared to it too."""
        return min(self.given_back, self.tail - 1)

    def slowest(self) -> int:
        """The lowest cursor: what lies above is held. Without readers everything is."""
        return min((reader.cursor for reader in self.head.readers.values()), default=self.tail - 1)

    def sizes(self) -> tuple[int, int, float | None]:
        """Events and bytes that the slowest reader has yet to release, and when the oldest of them came. Under the lock."""
        cursor = self.slowest()
        events = self.upto - cursor
        # Space is given back by segments. While appends are refused for that, bytes that are released but not given back
        # count too, so that "is there room again?" has one answer.
        taken = self._taken() if self._refused else 0
        if events <= 0:
            return 0, taken, None
        tracks = [self.tracks[name] for name, reader in self.head.readers.items() if reader.cursor == cursor and name in self.tracks]
        place = next((track.cursor_place for track in tracks if track.cursor_place), None)
        return events, max(self._bytes_behind(cursor, place), taken), self._oldest_s(cursor, place)

    def reader_infos(self) -> tuple[ReaderInfo, ...]:
        """All readers. Under the lock."""
        return tuple(self._reader_info(reader) for reader in sorted(self.head.readers.values(), key=lambda one: one.name))

    def span_infos(self) -> tuple[QueueSpan, ...]:
        """The queue ids that still have positions here, oldest first. Under the lock."""
        tail, newest = self.tail, self.head.spans[-1] if self.head.spans else None
        infos = []
        for span in self.head.spans:
            last = span.last
            if last is None and span is not newest:
                last = self.upto
            if last is None and self.span is None:
                last = self.upto
            if last is None or last >= max(tail, span.first):
                infos.append(QueueSpan(str(span.id), span.first, last))
        return tuple(infos)

    def span_of(self, position: int) -> tuple[str, int]:
        """The queue id of a committed position, and the last position that it has so far. Under the lock."""
        spans = self.head.spans
        place = bisect_right(spans, position, key=lambda span: span.first) - 1
        if place < 0:
            return str(NIL), min(spans[0].first - 1 if spans else self.upto, self.upto)
        span = spans[place]
        end = span.last if span.last is not None else self.upto
        if position > end:
            # The id is gone from a damaged table: never put one id's name on another's positions.
            return str(NIL), min(spans[place + 1].first - 1 if place + 1 < len(spans) else self.upto, self.upto)
        return str(span.id), min(end, self.upto)

    def segment_of(self, position: int) -> int | None:
        """The index of the segment in which `position` lies or would lie. Under the lock."""
        place = bisect_right(self.segments, position, key=lambda segment: segment.base) - 1
        # An empty segment shares its base with nobody, but a discarded one may: the last with that base counts.
        return place if place >= 0 else (0 if self.segments else None)

    def _reader_info(self, reader: Reader) -> ReaderInfo:
        track = self.tracks.get(reader.name)
        place = track.cursor_place if track else None
        lag_events, lag_bytes = max(self.upto - reader.cursor, 0), self._bytes_behind(reader.cursor, place)
        oldest_s = self._oldest_s(reader.cursor, place) if lag_events else None
        return ReaderInfo(reader.name, reader.start, reader.cursor, reader.plan, lag_events, lag_bytes, oldest_s)

    def _oldest_s(self, cursor: int, place: Place | None) -> float | None:
        """When the first event behind a cursor came, rather too early than too late."""
        at = self.segment_of(cursor + 1)
        time_us = place.time_us if place and place.time_us else self.segments[at].time_of(cursor + 1) if at is not None else None
        return time_us / 1e6 if time_us else None

    def _bytes_behind(self, position: int, place: Place | None) -> int:
        if position >= self.upto:
            return 0
        if place is not None and place.segment in self.segments:
            at = self.segments.index(place.segment)
            held = place.segment.end - place.offset
        else:
            found = self.segment_of(position)
            if found is None:
                return 0
            at = found
            held = self.segments[at].bytes_behind(position)
        return held + sum(segment.end - SEGMENT_DATA_AT for segment in self.segments[at + 1 :])

    def full(self, reason: str) -> QueueFull:
        """The error of a queue without room. Takes the lock."""
        with self.lock:
            return self._full(reason)

    def _full(self, reason: str) -> QueueFull:
        return QueueFull(self.name, self._taken(), self.bytes_max, reason)

    @property
    def bytes_max(self) -> int:
        """Bytes that frames can take in all segments together."""
        return self.options.segments_max * self._capacity

    def _taken(self) -> int:
        """Bytes that cannot take frames: all of the full segments, the used part of the one that is appended to."""
        if not self.segments:
            return 0
        return (len(self.segments) - 1) * self._capacity + min(self._write_at - SEGMENT_DATA_AT, self._capacity)


def damage_of(segment: Segment, area: Area, offset: int, length: int, first: int, last: int, reason: str) -> Damage:
    """Damage with its bytes (at most 1 MiB of them)."""
    return Damage(segment.name, offset, length, first, last, reason, bytes(area.view[offset : offset + min(length, 1 << 20)]))


def now_us() -> int:
    return time.time_ns() // 1000
