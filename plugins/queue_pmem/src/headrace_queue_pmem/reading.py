"""Reading a ring: small frames joined into one batch, holes declared, damage set aside. Never a wrong event.

Every frame is checked at every read (2.6 us for 60 KiB), so damage that comes later than the last open is met here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from headrace import NO_ORIGINS, Missing, QueueRead
from headrace_queue_pmem.area import Area
from headrace_queue_pmem.failing import NOT_DAMAGE
from headrace_queue_pmem.frame import FrameHeader, body_intact, find_header, read_header
from headrace_queue_pmem.joining import Part, join, join_origins
from headrace_queue_pmem.layout import KIND_RAW, KIND_SPAN, LINE, SEGMENT_DATA_AT
from headrace_queue_pmem.ring import Ring
from headrace_queue_pmem.runs import Run, find_run
from headrace_queue_pmem.segment import Segment
from headrace_queue_pmem.state import Damage, Place, damage_of

#: A read ends after so many holes, so that a badly damaged queue is walked in bounded steps.
HOLES_MAX = 64
#: Looking in vain for a run costs as much as so many frames.
PATIENCE: Final = 16


_AGAIN: Final = QueueRead("", 0, 0, None, NO_ORIGINS, ())


@dataclass(slots=True)
class _Walk:
    """What a read has gathered so far."""

    position: int  # the next one that is wanted
    limit: int  # the last one that may be read
    parts: list[Part | Run] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    rows: int = 0
    kind: int = KIND_SPAN  # of the parts that have rows: raw or event
    bytes: int = 0
    damages: list[tuple[Segment, Damage]] = field(default_factory=list)
    cut: bool = False  # whether parts were left out after the walk
    patience: int = 0  # so many frames are looked at one by one before a run is looked for again

    def miss(self, last: int, reason: str) -> None:
        if last < self.position:
            return
        before = self.missing[-1] if self.missing else None
        if before and before.reason == reason and before.last + 1 == self.position:
            self.missing[-1] = before._replace(last=last)
        else:
            self.missing.append(Missing(self.position, last, reason))
        self.position = last + 1


def read(ring: Ring, reader: str, after: int, rows_max: int, bytes_max: int, rows: bool = True) -> QueueRead | None:
    """The next positions behind `after`, or None when there are none yet. OSError: the medium gives nothing now.

    Without `rows` frames are checked and not decoded: what is missing is told, what is there is not given.
    """
    while True:
        found = _try(ring, reader, after, rows_max, bytes_max, rows)
        if found is not _AGAIN:
            return found


def _try(ring: Ring, reader: str, after: int, rows_max: int, bytes_max: int, rows: bool) -> QueueRead | None:
    wanted = after + 1
    with ring.lock:
        if wanted > ring.upto:
            return None
        queue_id, limit = ring.span_of(wanted)
        tail, segments, given_back = ring.tail, ring.segments, ring.given_back
        at = ring.segment_of(wanted)
        ends = [segment.end for segment in segments[at:]] if at is not None else []
        segments = segments[at:] if at is not None else []
        places = ring.tracks[reader].places if reader in ring.tracks else ()
        place = next((place for place in places if place.last == after and segments and place.segment is segments[0]), None)
    walk = _Walk(wanted, limit)
    if wanted < tail:
        walk.miss(min(given_back, tail - 1, limit), "released")
        walk.miss(min(tail - 1, limit), "lost")
        return QueueRead(queue_id, wanted, walk.position - 1, None, NO_ORIGINS, tuple(walk.missing))
    try:
        stand = _walk(ring, walk, segments, ends, place, rows_max, bytes_max)
    except _GivenBack:
        return _AGAIN
    batch, other = join(ring, walk.parts) if rows else (None, None)
    if other is not None:
        _cut(walk, other)
    if walk.missing or walk.damages:
        with ring.lock:
            if segments[0] not in ring.segments:
                return _AGAIN  # its space was given back, and perhaps reused, while we read it
        _report(ring, walk)
    if stand is not None and not walk.cut:
        stand.last = walk.position - 1
        ring.remember(reader, stand)
    return QueueRead(queue_id, wanted, walk.position - 1, batch, join_origins(walk.parts) if rows else NO_ORIGINS, tuple(walk.missing))


def _report(ring: Ring, walk: _Walk) -> None:
    """Set damage aside, once."""
    for segment, damage in walk.damages:
        # With the last position: bytes over the end of a queue id are met once for each, by two reads.
        place = (damage.offset, damage.length, damage.last)
        if place not in segment.damaged:
            segment.damaged.add(place)
            ring.on_damage(damage)


def _walk(
    ring: Ring, walk: _Walk, segments: list[Segment], ends: list[int], place: Place | None, rows_max: int, bytes_max: int
) -> Place | None:
    """Gather frames from `place` (or from the index) until a bound is met. Returns the place behind the last one."""
    stand: Place | None = None
    for index, (segment, end) in enumerate(zip(segments, ends, strict=True)):
        # Positions may lie beyond this segment's last frame and before the next one's base: lost, and declared there.
        upto = min(walk.limit, segments[index + 1].base - 1) if index + 1 < len(segments) else walk.limit
        try:
            area = area_for_reading(ring, segment)
        except OSError as error:
            if error.errno in NOT_DAMAGE:
                raise
            ring.medium.answers()
            walk.damages.append((segment, Damage(segment.name, 0, end, walk.position, upto, "unreadable")))
            walk.miss(upto, "corrupt")
            continue
        offset = (place.offset if place else segment.seek(walk.position)) if index == 0 else SEGMENT_DATA_AT
        reason = "lost"
        while offset < end and walk.position <= walk.limit:
            # Frames without rows fill no bound: a read gives at least one position.
            if len(walk.missing) > HOLES_MAX or (walk.rows and (walk.rows >= rows_max or walk.bytes >= bytes_max)):
                return stand
            segment.warm_up(area, offset, LINE, ring.medium.answers)
            run = _run(walk, segment, area, offset, end, rows_max, bytes_max)
            if run is not None:
                offset = run.end
                stand = Place(0, segment, offset)
                continue
            header = read_header(area.view, offset, segment.header.nonce)
            size = header.size if header else 0
            segment.warm_up(area, offset, size or end - offset, ring.medium.answers)
            if header is None or offset + size > end:
                found = find_header(area.view, offset + LINE, end, segment.header.nonce)
                behind = end if found is None else found
                later = read_header(area.view, found, segment.header.nonce) if found is not None else None
                last = later.first - 1 if later else upto
                walk.damages.append((segment, damage_of(segment, area, offset, behind - offset, walk.position, last, "header")))
                offset, reason = behind, "corrupt"
                continue
            if header.first > walk.limit or (header.first == walk.limit + 1 and header.rows == 0):
                return _finish(walk, segment, offset, stand, reason)
            if header.last < walk.position and not (header.rows == 0 and header.first >= walk.position):
                offset += size
                continue
            if header.first > walk.position:
                walk.miss(header.first - 1, reason)
                reason = "lost"
            if header.kind != KIND_SPAN:
                if walk.rows and not _fits(walk, header, size, rows_max, bytes_max):
                    return stand
                if not body_intact(area.view, offset, header):
                    walk.damages.append((segment, damage_of(segment, area, offset, size, header.first, header.last, "body")))
                    walk.miss(header.last, "corrupt")
                elif header.last >= walk.position or header.rows == 0:
                    part = Part(area, offset, header, max(walk.position - header.first, 0) if header.rows else 0)
                    walk.parts.append(part)
                    if part.rows:
                        walk.kind = header.kind
                    walk.rows += part.rows
                    walk.bytes += size
                    walk.position = header.last + 1
            offset += size
            stand = Place(0, segment, offset)
        if walk.position > walk.limit:
            return stand
        walk.miss(upto, reason if reason == "corrupt" else "lost")
    return stand


def _finish(walk: _Walk, segment: Segment, offset: int, stand: Place | None, reason: str) -> Place | None:
    """The next frame belongs to another queue id: what is left of this one is lost, or lies unreadable before that frame."""
    walk.miss(walk.limit, reason)
    if reason == "corrupt":
        return stand  # before what is unreadable: the other id may have its part in that, and its read must meet it too
    return stand or Place(0, segment, offset)


def _fits(walk: _Walk, header: FrameHeader, size: int, rows_max: int, bytes_max: int) -> bool:
    """Whether a further frame may join: within the bounds and of one kind (event batches are compared by schema later)."""
    return (walk.kind == header.kind or not header.rows) and walk.rows + header.rows <= rows_max and walk.bytes + size <= bytes_max


def _run(walk: _Walk, segment: Segment, area: Area, offset: int, end: int, rows_max: int, bytes_max: int) -> Run | None:
    """A run of frames that go on where the walk stands, taken together; never the first frame of a read."""
    if walk.patience or walk.kind != KIND_RAW:
        walk.patience = max(walk.patience - 1, 0)
        return None
    end = min(end, segment.warm[1])  # a page fault in there would hold the GIL
    run = find_run(area, offset, end, segment.header.nonce, walk.position, walk.limit, rows_max - walk.rows, bytes_max - walk.bytes)
    if run is None:
        walk.patience = PATIENCE
        return None
    walk.parts.append(run)
    walk.rows += run.rows
    walk.bytes += run.bytes
    walk.position += run.rows
    return run


def _cut(walk: _Walk, part: Part) -> None:
    """Leave `part` and what follows it out of a read."""
    first = part.header.first + part.skip
    walk.parts = walk.parts[: walk.parts.index(part)]
    # Holes before the part stay in the read; those behind go with it.
    walk.missing = [hole for hole in walk.missing if hole.last < first]
    walk.position, walk.cut = first, True


class _GivenBack(Exception):
    """A segment's space was given back, and perhaps reused, while it was mapped."""


def area_for_reading(ring: Ring, segment: Segment) -> Area:
    """A segment's map. OSError when the file cannot be mapped."""
    area = segment.writer or segment.area
    if area is not None:
        return area
    area = ring.medium.read(segment.name)
    with ring.lock:
        if segment not in ring.segments:
            raise _GivenBack
        # One map for all: what gives the segment back waits for the views of those maps that it knows.
        segment.area = segment.area or area
        return segment.area
