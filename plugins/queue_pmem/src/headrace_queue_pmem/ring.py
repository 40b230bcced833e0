"""The ring: positions, segments, cursors and marks of one queue. Synchronous and thread-safe; no asyncio.

Locks, in the order in which they may be taken: `commit_lock` (one commit at a time), `head_lock` (writes to the head),
`lock` (the state in memory; held for microseconds, never over I/O).
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import threading
import time
import uuid
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from headrace import PermanentError, Plan, QueueError, QueueFull, QueueSpan, ReaderInfo, TransientError
from headrace_queue_pmem.frame import Entry, read_header
from headrace_queue_pmem.head import Head, Reader, Span
from headrace_queue_pmem.layout import BEGINS_COMMIT, KIND_SPAN, LINE, SEGMENT_DATA_AT, SPAN, align
from headrace_queue_pmem.marks import Marks
from headrace_queue_pmem.medium import Area, Medium
from headrace_queue_pmem.segment import Segment, begin, data_end, prepare

SEGMENT_PREFIX: Final = "segment-"
#: Kept free in each segment for the frame that names a new queue id.
SPAN_FRAME_BYTES: Final = 4 * LINE
DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
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
class _Touched:
    """The part of a segment that a commit writes (`parts`: offset and bytes) and has to make durable."""

    segment: Segment
    start: int
    end: int
    parts: list[tuple[int, Any]] = field(default_factory=list)


@dataclass(eq=False)
class Track:
    """What the ring remembers of a reader beside its durable state: the places behind its latest reads."""

    places: deque[Place] = field(default_factory=lambda: deque(maxlen=64))
    cursor_place: Place | None = None


def _no_fault(_name: str) -> None:
    """Tests put something in its place."""


class Ring:
    """One queue, opened by `recovery.recover`. All sizes in bytes, positions inclusive."""

    def __init__(
        self, name: str, medium: Medium, head: Head, options: Options, marks: Marks, fault: Callable[[str], None] = _no_fault
    ) -> None:
        self.name, self.medium, self.head, self.options, self.marks, self.fault = name, medium, head, options, marks, fault
        self.lock = threading.Lock()
        self.commit_lock = threading.Lock()
        self.head_lock = threading.Lock()
        self.segments: list[Segment] = []
        self.spare: tuple[str, Area] | None = None
        self.tracks: dict[str, Track] = {}
        self.upto = 0  # the last committed position
        self.next = 1  # the position of the next row
        self.span: Span | None = None  # the queue id of this open, from its first append on
        self.checkpoint_upto = 0  # the durable marks speak for frames up to here
        self.damages: list[Damage] = []
        self.on_damage: Callable[[Damage], None] = lambda _damage: None
        self.on_durable: Callable[[], None] = lambda: None  # called between a commit's sync and its being seen by anybody
        self._write_at = SEGMENT_DATA_AT  # where the next frame of the active segment goes
        self._planned_segments = 0
        self._planned_room = 0
        self.closed = False
        self._refused = False  # whether the last append met a full queue
        self._span_named = False  # whether the log holds the frame that names `span`
        self._capacity = data_end(medium.usable(options.segment_bytes)) - SEGMENT_DATA_AT - SPAN_FRAME_BYTES
        self._file_number = 0
        self._segment_number = 0
        self.view_bytes = 0
        self.views_freed: deque[int] = deque()

    def take_segments(self, segments: list[Segment], upto: int, file_number: int, segment_number: int) -> None:
        """Start from what recovery found."""
        self.segments, self.upto, self.next, self._file_number = segments, upto, upto + 1, file_number
        self._segment_number = segment_number
        if segments:
            self._write_at = segments[-1].end
        self._replan(())

    def close(self) -> None:
        """Let go of all maps; those of segments live on while a batch refers to them."""
        with self.head_lock, self.lock:
            self.closed = True
            self.head.area.close()
            for segment in self.segments:
                segment.unmap()
            self.spare = None

    # --- append ------------------------------------------------------------------------------------------------------

    def reserve(self, entry: Entry) -> None:
        """Give an entry its positions, in the order of the calls. QueueFull at once when there is no room for it."""
        with self.lock:
            capacity = self._capacity
            if entry.size > capacity:
                raise PermanentError(
                    f"a batch of {entry.count} rows takes {entry.size} bytes in queue {self.name!r}, a segment holds {capacity}: "
                    "send smaller batches or raise segment_bytes"
                )
            if self.span is None and not self.head.span_slot_free(self.tail):
                raise self._full("the table of queue ids is full: 4096 opens with appends are still held by a reader")
            room, segments = self._planned_room - entry.size, self._planned_segments
            if room < 0:
                room, segments = capacity - entry.size, segments + 1
                if segments > self.options.segments_max:
                    self._refused = True
                    raise self._full("")
            self._refused = False
            if entry.marks:
                self.marks.stage(entry.marks)
            self._planned_room, self._planned_segments = room, segments
            entry.first = self.next
            self.next += entry.count

    def commit(self, entries: Sequence[Entry]) -> None:
        """Write reserved entries and make them durable together; readers see them from then on.

        When the medium refuses, they go once more to a new segment, because after a failed sync nothing tells what an
        older one holds. QueueFull or TransientError: nothing was taken; the caller must `give_up` all entries that it has
        reserved, these and those behind them.
        """
        with self.commit_lock:
            try:
                self._commit(entries)
            except OSError as error:
                raise TransientError(f"queue {self.name!r} cannot write to its medium: {error}", 1.0) from error

    def give_up(self, entries: Sequence[Entry]) -> None:
        """Take reserved entries back: all that are not committed. Their marks go back too."""
        with self.commit_lock, self.lock:
            for entry in entries:
                self.marks.settle(entry.marks, durable=False)
            self.next = self.upto + 1
            self._replan(())

    def _commit(self, entries: Sequence[Entry]) -> None:
        try:
            self._write(entries)
        except OSError:
            self._rewind(failed_sync=True)
            try:
                self._write(entries)
            except Exception as error:
                self._rewind(failed_sync=isinstance(error, OSError))
                raise
        except Exception:
            self._rewind(failed_sync=False)
            raise

    def _rewind(self, failed_sync: bool) -> None:
        """Forget what was placed and not committed. After a failed sync the segment takes no more frames: a repeated msync may lie."""
        with self.lock:
            kept = list(self.segments)
            while kept and kept[-1].frames == 0:
                kept.pop()
            dropped, self.segments = self.segments[len(kept) :], kept
            active = kept[-1] if kept else None
            if active is not None and failed_sync:
                active.writable = False
            self._write_at = active.end if active else SEGMENT_DATA_AT
        for segment in dropped:
            # Its base may be a position that is given to somebody else now: it must not be found again. Where the device
            # refuses even this, recovery prefers the segment that was begun later.
            with contextlib.suppress(OSError):
                if segment.writer is not None:
                    prepare(segment.writer)
            segment.unmap()
            self.medium.remove(segment.name)

    def _write(self, entries: Sequence[Entry]) -> None:
        placed: list[tuple[Entry, Segment, int]] = []
        touched: list[_Touched] = []
        if self.span is None:
            self._begin_span(entries[0].first)
        self.fault("queue_pmem.before_write")
        if not self._span_named and self.span is not None:
            placed.append(self._place(span_entry(self.span, entries[0].first), touched))
        for entry in entries:
            placed.append(self._place(entry, touched))
        for part in touched:
            self._writer(part.segment).gather(part.parts)
        self.fault("queue_pmem.after_write")
        self._make_durable(touched)
        self.on_durable()
        # Durable from here on: only now may readers, marks and acknowledgements speak of it.
        self.fault("queue_pmem.after_persist")
        with self.lock:
            self._span_named = True
            self._publish(placed)

    def _make_durable(self, touched: list[_Touched]) -> None:
        for part in touched:
            self._writer(part.segment).persist(part.start, part.end - part.start)

    def _publish(self, placed: list[tuple[Entry, Segment, int]]) -> None:
        entry, segment, offset = placed[0]
        for reader in self.head.readers.values():
            if reader.cursor >= self.upto:
                self._track(reader.name).cursor_place = Place(reader.cursor, segment, offset, entry.time_us)
        for entry, segment, offset in placed:
            segment.note(entry.first, offset, entry.last, offset + entry.size, entry.time_us)
            if entry.kind != KIND_SPAN:
                self.upto = entry.last
                if entry.marks:
                    self.marks.settle(entry.marks, durable=True)

    def _place(self, entry: Entry, touched: list[_Touched]) -> tuple[Entry, Segment, int]:
        segment = self.segments[-1] if self.segments else None
        start = self._write_at
        if segment is None or not segment.writable or self._write_at + entry.size > segment.header.data_end:
            segment, start = self._advance(entry.first), 0
        offset = self._write_at
        assert self.span is not None
        header = entry.header(segment.header.nonce, self.span.generation, self.upto, 0 if touched else BEGINS_COMMIT)
        if not touched or touched[-1].segment is not segment:
            touched.append(_Touched(segment, start, offset))
        part = touched[-1]
        part.parts.append((offset, header))
        body = offset + LINE
        if len(entry.origins):
            part.parts.append((body, entry.origins))
            body += align(len(entry.origins))
        part.parts.append((body, entry.payload))
        part.end = self._write_at = offset + entry.size
        return entry, segment, offset

    def _advance(self, base: int) -> Segment:
        """Begin the next segment: the spare one, or one made on the spot. QueueFull when the disk has no room for it."""
        name, area = self._take_spare()
        # Never the number of one that was dropped: its file may come back after a power loss.
        self._segment_number += 1
        number = self._segment_number
        assert self.span is not None
        header = begin(area, number, secrets.randbits(64), base, self.span.generation, self.span.id, _now_us())
        segment = Segment(name, header, SEGMENT_DATA_AT, base - 1, writer=area)
        with self.lock:
            self.segments = [*self.segments, segment]
            self._write_at = SEGMENT_DATA_AT
        self.fault("queue_pmem.segment_added")
        return segment

    def _take_spare(self) -> tuple[str, Area]:
        with self.lock:
            spare, self.spare = self.spare, None
        return spare or self.make_spare()

    def make_spare(self) -> tuple[str, Area]:
        """A fresh segment file that is of nobody's use yet. QueueFull when the disk is full; OSError when it fails otherwise."""
        with self.lock:
            self._file_number += 1
            name = f"{SEGMENT_PREFIX}{self._file_number:08d}"
        try:
            area = self.medium.create(name, self.options.segment_bytes)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise self.full(f"no room on the disk for a further segment of {self.options.segment_bytes} bytes: {error}") from error
        try:
            prepare(area)
        except OSError:
            area.close()
            self.medium.remove(name)
            raise
        return name, area

    def _begin_span(self, first: int) -> None:
        """A new queue id for this open. Durable, with its predecessor's end, before the first frame is written."""
        with self.head_lock:
            if self.head.spans:
                before = self.head.spans[-1]
                self.head.store_span(Span(before.generation, before.first, first - 1, before.id))
            span = Span(self.head.generation + 1, first, None, uuid.uuid4())
            self.head.store_span(span)
        self.fault("queue_pmem.span_begun")
        self.span = span

    def _writer(self, segment: Segment) -> Area:
        if segment.writer is None:
            segment.writer = self.medium.open(segment.name)
        return segment.writer

    def fits(self, entry: Entry) -> bool:
        """Whether an entry can be written without making a segment file first."""
        if self.spare is not None:
            return True
        active = self.segments[-1] if self.segments else None
        return active is not None and active.writable and self._write_at + entry.size + SPAN_FRAME_BYTES <= active.header.data_end

    # --- readers -----------------------------------------------------------------------------------------------------

    def open_reader(self, name: str, start: str) -> ReaderInfo:
        """Open a reader, creating it where it is new; durable on return."""
        with self.head_lock:
            self._check_open()
            with self.lock:
                known = name in self.head.readers
                cursor = 0 if known else self._start(name, start)
            if not known:
                self.head.add_reader(name, cursor, cursor)
        with self.lock:
            return self._reader_info(self.head.readers[name])

    def drop_reader(self, name: str) -> None:
        """Forget a reader; nothing is held for it from now on."""
        with self.head_lock:
            self._check_open()
            if name in self.head.readers:
                self.head.drop_reader(name)
        with self.lock:
            self.tracks.pop(name, None)

    def plan(self, name: str, plan: Plan | None) -> None:
        """Keep a reader's plan; durable on return."""
        with self.head_lock:
            self._check_open()
            reader = self._reader(name)
            if reader.plan != plan:
                self.head.store_plan(reader, plan)

    def release(self, name: str, upto: int) -> bool:
        """Move a cursor; True when a whole segment may be given back now. `upkeep` makes it durable."""
        with self.lock:
            reader = self._reader(name)
            if upto <= reader.cursor:
                return False
            if upto > self.upto:
                raise QueueError(f"reader {name!r} releases position {upto}, but only {self.upto} are committed in queue {self.name!r}")
            reader.cursor = upto
            track = self._track(name)
            track.cursor_place = next((self._timed(place) for place in track.places if place.last == upto), None)
            return len(self.segments) > 1 and self.slowest() >= self.segments[0].last

    def remember(self, name: str, place: Place) -> None:
        """Where a reader stands after a read, so that its next one need not look for it."""
        with self.lock:
            self._track(name).places.append(place)

    def slowest(self) -> int:
        """The lowest cursor: what lies above is held. Without readers everything is."""
        return min((reader.cursor for reader in self.head.readers.values()), default=self.tail - 1)

    def _check_open(self) -> None:
        if self.closed:
            raise QueueError(f"queue {self.name!r} is closed")

    def _reader(self, name: str) -> Reader:
        try:
            return self.head.readers[name]
        except KeyError:
            have = ", ".join(sorted(self.head.readers)) or "none"
            raise QueueError(f"queue {self.name!r} has no reader {name!r}; open it first; readers: {have}") from None

    def _start(self, name: str, start: str) -> int:
        if start == "oldest":
            return self.tail - 1
        if start == "head":
            return self.upto
        kind, _, other = start.partition(":")
        if kind != "after" or not other:
            raise QueueError(f"reader {name!r}: expected start oldest, head or after:READER, got {start!r}")
        return self._reader(other).cursor

    def _timed(self, place: Place) -> Place:
        """A place with the time of the frame there, so that the age of the oldest event is exact."""
        segment = place.segment
        area = segment.writer or segment.area
        if not place.time_us and area is not None and place.offset < segment.end:
            header = read_header(area.view, place.offset, segment.header.nonce)
            place.time_us = header.time_us if header else 0
        return place

    def _track(self, name: str) -> Track:
        track = self.tracks.get(name)
        if track is None:
            track = self.tracks[name] = Track()
        return track

    # --- facts -------------------------------------------------------------------------------------------------------

    @property
    def tail(self) -> int:
        """The oldest position that is still here; upto + 1 when there is none."""
        return self.segments[0].base if self.segments else self.upto + 1

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
        at = self.segment_of(cursor + 1)
        time_us = place.time_us if place and place.time_us else self.segments[at].time_of(cursor + 1) if at is not None else None
        return events, max(self._bytes_behind(cursor, place), taken), time_us / 1e6 if time_us else None

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
        lag_bytes = self._bytes_behind(reader.cursor, track.cursor_place if track else None)
        return ReaderInfo(reader.name, reader.start, reader.cursor, reader.plan, max(self.upto - reader.cursor, 0), lag_bytes)

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

    def _replan(self, pending: Iterable[Entry]) -> None:
        """Count again what reserved entries will take, from what is really there."""
        active = self.segments[-1] if self.segments else None
        self._planned_segments = len(self.segments)
        self._planned_room = 0
        if active is not None and active.writable and not active.sealed:
            self._planned_room = max(active.header.data_end - active.end - SPAN_FRAME_BYTES, 0)
        for entry in pending:
            if entry.size > self._planned_room:
                self._planned_segments += 1
                self._planned_room = self._capacity
            self._planned_room -= entry.size

    def forget_segments(self, count: int) -> list[Segment]:
        """Take the oldest segments off the list. Under the lock."""
        gone, self.segments = self.segments[:count], self.segments[count:]
        self._planned_segments -= count
        return gone


def damage_of(segment: Segment, area: Area, offset: int, length: int, first: int, last: int, reason: str) -> Damage:
    """Damage with its bytes (at most 1 MiB of them)."""
    return Damage(segment.name, offset, length, first, last, reason, bytes(area.view[offset : offset + min(length, 1 << 20)]))


def span_entry(span: Span, first: int) -> Entry:
    """The frame that names a queue id in the log itself, so that a lost head can be made again."""
    last = 0 if span.last is None else span.last
    entry = Entry(KIND_SPAN, 0, b"", SPAN.pack(span.generation, span.first, last, span.id.bytes), _now_us())
    entry.first = first
    return entry


def _now_us() -> int:
    return time.time_ns() // 1000
