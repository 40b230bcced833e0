"""Opening a queue: read the head, scan what is not sealed, decide where the log ends, and make all of it durable again.

The rule for a bad frame: when anything that was committed later (`durable_upto` of a later frame, a recorded end, a seal, a
cursor, a checkpoint) speaks of its positions, it is a hole in the middle, declared, and reading goes on behind it. Otherwise
nobody was ever told that it is here: it is the torn tail, and the log ends before it.
"""

from __future__ import annotations

import errno
import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from headrace import QueueFormatError
from headrace_queue_pmem.frame import FrameHeader, any_frame, body_intact, decode_origins, find_header, read_header
from headrace_queue_pmem.head import HEAD, Head, Span
from headrace_queue_pmem.layout import (
    BEGINS_COMMIT,
    HEAD_BYTES,
    HEAD_FILE_BYTES,
    KIND_SPAN,
    LINE,
    OPEN,
    SEGMENT_DATA_AT,
    SPAN,
    VERSION,
)
from headrace_queue_pmem.marks import Marks, marks_of, unpack
from headrace_queue_pmem.medium import Area, Medium
from headrace_queue_pmem.ring import SEGMENT_PREFIX, Ring
from headrace_queue_pmem.segment import Segment, read_seal, read_segment_header
from headrace_queue_pmem.state import Damage, Options, damage_of, no_fault, now_us

MARKS: Final = ("marks-a", "marks-b")
SET_ASIDE_PREFIX: Final = "damaged-"
SET_ASIDE_MAX: Final = 8
#: A file that cannot be opened because of these may be as sound as ever: the open fails, and is tried again.
NOT_DAMAGE: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR})


@dataclass(slots=True)
class Found:
    """One piece of an unsealed segment: a frame, or bytes that are none (`header` None)."""

    segment: Segment
    offset: int
    length: int
    first: int
    last: int
    header: FrameHeader | None
    intact: bool


@dataclass
class Report:
    """What an open found and did, for the log and the metrics."""

    created: bool = False
    events: int = 0
    frames_scanned: int = 0
    tail_dropped: int = 0
    damage: list[Damage] = field(default_factory=list)
    repairs: list[str] = field(default_factory=list)
    set_aside: list[tuple[str, str]] = field(default_factory=list)
    unproven: list[Found] = field(default_factory=list)


def recover(
    name: str, path: str, medium: Medium, options: Options, marks: Marks, fault: Callable[[str], None] = no_fault
) -> tuple[Ring, Report]:
    """Open the queue in `medium`, creating it when there is none. OSError: the medium cannot be used at all."""
    report = Report()
    names = medium.names()
    segments, file_number = _segments(path, medium, names, report)
    # Counted before empty ones are dropped: a dropped file may come back after a power loss, and must not meet its number.
    segment_number = max((segment.header.number for segment in segments), default=0)
    head = _head(path, medium, names, options, report, bool(segments))
    ring = Ring(name, medium, head, options, marks, fault)
    if not report.created:
        head.rewrite()
    checkpoint = max((found for found in (unpack(medium.load(note)) for note in MARKS) if found), key=lambda found: found[1], default=None)
    if checkpoint is None and any(note in names for note in MARKS):
        report.repairs.append("both copies of the origin marks are damaged: they are made again from the frames that are here")
    for mark in checkpoint[0] if checkpoint else []:
        marks.put(mark)
    ring.checkpoint_upto = checkpoint[1] if checkpoint else 0
    told = [ring.checkpoint_upto, *(reader.cursor for reader in head.readers.values())]
    told += [span.last for span in head.spans if span.last is not None]
    told += [span.first - 1 for span in head.spans]
    upto = _log(ring, segments, report, max(told, default=0))
    ring.take_segments(segments, upto, file_number, segment_number)
    resync(segments, report.unproven)
    report.events = upto - min((reader.cursor for reader in head.readers.values()), default=ring.tail - 1)
    return ring, report


def resync(segments: list[Segment], unproven: list[Found]) -> None:
    """Make durable what was recovered: the page cache may hold frames that the disk does not, and nobody may see those.

    Frames of which no later one says that they were committed are written again: when their sync failed, the kernel took
    their pages for clean, and a sync alone would write nothing.
    """
    for piece in unproven:
        if piece.segment.writer is not None:
            content = bytes(piece.segment.writer.view[piece.offset : piece.offset + piece.length])
            piece.segment.writer.write(piece.offset, content, piece.length)
    for segment in segments:
        area = segment.writer or segment.area
        if area is not None and segment.end > SEGMENT_DATA_AT:
            area.persist(0, segment.end)


# --- the head ------------------------------------------------------------------------------------------------------------


def _head(path: str, medium: Medium, names: list[str], options: Options, report: Report, has_segments: bool) -> Head:
    if HEAD not in names:
        report.created = not has_segments
        if has_segments:
            report.repairs.append("the head file is missing: a new one is made; readers begin again at the oldest position")
        return _new_head(medium, options, None)
    try:
        area = medium.open(HEAD)
    except OSError as error:
        if error.errno in NOT_DAMAGE:
            raise
        report.repairs.append(f"the head file cannot be opened as a {medium.name} area ({error}): it is made again from its content")
        try:
            old = Head(medium.read(HEAD))
        except OSError:
            return _new_head(medium, options, None)
        intact = old.area.size >= HEAD_BYTES and old.load()
        _check_version(path, old, intact)
        return _new_head(medium, options, old)
    head = Head(area)
    intact = area.size >= HEAD_BYTES and head.load()
    _check_version(path, head, intact)
    report.repairs += head.damage
    if not intact:
        report.repairs.append("the head's header is damaged: the head is made again from what can be read")
        del area
        salvage = Head(head.area)
        salvage.readers, salvage.spans = head.readers, head.spans
        return _new_head(medium, options, salvage)
    return head


def _check_version(path: str, head: Head, intact: bool) -> None:
    if intact and head.version != VERSION:
        what = "a newer" if head.version > VERSION else "an older"
        raise QueueFormatError(
            path,
            f"the format is version {head.version}, this program reads version {VERSION}: use {what} headrace-queue-pmem to drain it, "
            "or give this tier another path",
        )


def _new_head(medium: Medium, options: Options, old: Head | None) -> Head:
    temporary = HEAD + ".new"
    medium.remove(temporary)
    head = Head(medium.create(temporary, HEAD_FILE_BYTES))
    head.format(options.segment_bytes, now_us(), old.secret if old and old.secret else secrets.token_bytes(16))
    if old:
        head.copy_from(list(old.readers.values()), old.spans)
        head.mirror()
    medium.rename(temporary, HEAD)
    return head


# --- segments ------------------------------------------------------------------------------------------------------------


def _segments(path: str, medium: Medium, names: list[str], report: Report) -> tuple[list[Segment], int]:
    """All segments in use, in order. Spare ones are removed: they are made again when they are needed."""
    found: list[Segment] = []
    file_number = 0
    for name in names:
        if not name.startswith(SEGMENT_PREFIX) or not name[len(SEGMENT_PREFIX) :].isdigit():
            continue
        file_number = max(file_number, int(name[len(SEGMENT_PREFIX) :]))
        try:
            area = medium.read(name)
        except OSError as error:
            if error.errno in NOT_DAMAGE:
                raise
            _set_aside(medium, name, f"cannot be mapped: {error}", report)
            continue
        header, damaged = read_segment_header(area)
        if header is None:
            # A spare one, or one whose making was cut short; frames in it mean that it once was more.
            if damaged and any_frame(area.view):
                _set_aside(medium, name, "both copies of its header are damaged", report)
            else:
                del area
                medium.remove(name)
            continue
        if header.version != VERSION:
            raise QueueFormatError(path, f"segment {name} has format version {header.version}, this program reads version {VERSION}")
        if damaged:
            report.repairs.append(f"{name}: one copy of its header is damaged")
        found.append(Segment(name, header, SEGMENT_DATA_AT, header.base - 1, area=area))
    found.sort(key=lambda segment: (segment.header.number, segment.header.generation, segment.header.created_us))
    kept: list[Segment] = []
    for segment in found:
        if kept and segment.header.nonce == kept[-1].header.nonce:
            _set_aside(medium, segment.name, f"it is a copy of segment {kept[-1].name}", report)
        else:
            kept.append(segment)
    return kept, file_number


def _set_aside(medium: Medium, name: str, reason: str, report: Report) -> None:
    # Evidence for a person, so it is bounded: a machine that breaks a file at every start must not fill its disk with them.
    if sum(other.startswith(SET_ASIDE_PREFIX) for other in medium.names()) < SET_ASIDE_MAX:
        medium.rename(name, SET_ASIDE_PREFIX + name)
    else:
        medium.remove(name)
        reason += f" (not kept: {SET_ASIDE_MAX} are)"
    report.set_aside.append((name, reason))


# --- the log -------------------------------------------------------------------------------------------------------------


def _log(ring: Ring, segments: list[Segment], report: Report, told: int) -> int:
    """Fill in what the segments hold; return the last position that is held, or that somebody was told is."""
    head = ring.head
    spans = {span.generation: span for span in head.spans}
    scanned: dict[str, list[Found]] = {}
    for segment in segments:
        area = segment.area
        assert area is not None
        _learn_span(spans, segment.header.generation, segment.base, uuid.UUID(bytes=segment.header.queue_id))
        end = segment.header.data_end
        if read_seal(segment, area):
            told, end = max(told, segment.last), segment.end
            # a frame without rows, whose messages were all refused, is behind the note though its position is not
            if segment.last < ring.checkpoint_upto:
                continue
        scanned[segment.name] = scan(segment, area, spans, end)
    _supersede(ring.medium, segments, scanned, report)
    _drop_returned(ring, segments, scanned)
    found = [piece for segment in segments for piece in scanned.get(segment.name, ())]
    for generation in sorted(spans.keys() - {span.generation for span in head.spans}):
        report.repairs.append(f"queue id {spans[generation].id} was missing from the head: learned from the log")
        head.store_span(spans[generation])
    report.frames_scanned = len(found)
    told = max([told, *(piece.header.durable_upto for piece in found if piece.header)])
    # A commit begins only after the one before it is durable: what lies before the first frame of a commit was committed.
    begun = max((number for number, piece in enumerate(found) if piece.header and piece.header.flags & BEGINS_COMMIT), default=-1)
    reached = segments[0].base - 1 if segments else told
    for number, piece in enumerate(found):
        committed = number < begun
        if piece.header is not None and piece.intact and (piece.first <= reached + 1 or piece.first - 1 <= told or number <= begun):
            if piece.first > reached + 1 and not piece.segment.sealed and reached >= piece.segment.base:
                report.damage.append(Damage(piece.segment.name, piece.offset, 0, reached + 1, piece.first - 1, "lost"))
            _take(ring, piece)
            if not committed and piece.last > told:
                report.unproven.append(piece)
        elif committed or (piece.first <= piece.last <= told):
            reason = "header" if piece.header is None else "body"
            assert piece.segment.area is not None
            report.damage.append(damage_of(piece.segment, piece.segment.area, piece.offset, piece.length, piece.first, piece.last, reason))
            if not piece.segment.sealed:
                piece.segment.end = piece.offset + piece.length
                piece.segment.last = max(piece.segment.last, piece.last)
        else:
            report.tail_dropped = sum(1 for rest in found[number:] if rest.header)
            break
        reached = max(reached, piece.last)
    reached = max([reached, *(segment.last for segment in segments if segment.sealed)])
    _end(ring, segments, reached, told, report)
    return max(reached, told)


def _supersede(medium: Medium, segments: list[Segment], scanned: dict[str, list[Found]], report: Report) -> None:
    """Where segments speak of the same positions, the one that was begun later is right; those left without a frame go.

    Such are begun when a commit failed and was made again, or removed files that came back after a power loss.
    """
    base = OPEN
    kept: list[Segment] = []
    for segment in reversed(segments):
        pieces = scanned.get(segment.name)
        if pieces is not None and not segment.sealed:
            pieces = scanned[segment.name] = [piece for piece in pieces if piece.last < base and (piece.first < base or _ends(piece, base))]
        if segment.sealed or any(piece.header for piece in pieces or ()):
            kept.append(segment)
            base = min(base, segment.base)
        elif base != OPEN and any(piece.length for piece in pieces or ()):
            _set_aside(medium, segment.name, "none of its frames is readable", report)
        else:
            medium.remove(segment.name)
    segments[:] = reversed(kept)


def _ends(piece: Found, base: int) -> bool:
    """A frame of origins without rows right before the next segment. Were it of a commit that failed: every row before it is held,
    so what its marks say is true."""
    header = piece.header
    return header is not None and header.origins_bytes > 0 and header.rows == 0 and piece.first == base


def _drop_returned(ring: Ring, segments: list[Segment], scanned: dict[str, list[Found]]) -> None:
    """Segments that were given back, and whose files came back after a power loss while later ones stayed away.

    The hole behind them is released, not lost: every reader has passed it. Without them there is no hole.
    """
    cursors = [reader.cursor for reader in ring.head.readers.values()]
    for index in range(len(segments) - 1, 0, -1):
        behind, before = segments[index], segments[:index]
        pieces = [piece for segment in before for piece in scanned.get(segment.name, ()) if piece.header]
        last = max([segment.last for segment in before] + [piece.last for piece in pieces])
        if behind.base <= last + 1 or not cursors or behind.base - 1 > min(cursors):
            continue
        if any(_marks_are_here_only(ring, piece) for piece in pieces):
            continue  # their origins' marks are nowhere else: they were not given back
        for segment in before:
            scanned.pop(segment.name, None)
            ring.medium.remove(segment.name)
        del segments[:index]
        return


def _marks_are_here_only(ring: Ring, piece: Found) -> bool:
    """The frame brings marks that the note may not have."""
    header = piece.header
    return header is not None and header.origins_bytes > 0 and max(header.last, header.first) > ring.checkpoint_upto


def _take(ring: Ring, piece: Found) -> None:
    """A good frame: part of the segment, and its origins' marks with it."""
    header, segment = piece.header, piece.segment
    assert header is not None
    assert segment.area is not None
    if not segment.sealed:
        segment.note(piece.first, piece.offset, piece.last, piece.offset + piece.length, header.time_us)
    if _marks_are_here_only(ring, piece):
        start = piece.offset + LINE
        for mark in marks_of(decode_origins(bytes(segment.area.view[start : start + header.origins_bytes]))):
            ring.marks.put(mark)


def _end(ring: Ring, segments: list[Segment], reached: int, told: int, report: Report) -> None:
    """Make the last segment ready for appends, and drop those in which nothing was committed."""
    while segments and segments[-1].end == SEGMENT_DATA_AT:
        ring.medium.remove(segments.pop().name)
    if told > reached:
        where = segments[-1] if segments else None
        report.damage.append(Damage(where.name if where else "", where.end if where else 0, 0, reached + 1, told, "lost"))
        if where:
            # What may be left of the lost frames behind its end stays as it is, for whoever looks into it.
            where.writable = False
    if not segments or segments[-1].sealed or not segments[-1].writable:
        return
    try:
        writer = ring.medium.open(segments[-1].name)
        if writer.size < segments[-1].header.data_end:
            raise OSError(errno.EIO, f"it has {writer.size} bytes, its header speaks of {segments[-1].header.data_end}")
        segments[-1].writer = writer
    except OSError as error:
        report.repairs.append(f"{segments[-1].name} cannot be opened for appends ({error}): they go to the next segment")
        segments[-1].writable = False


def scan(segment: Segment, area: Area, spans: dict[int, Span], end: int) -> list[Found]:
    """All frames of a segment that belong to a known queue id, and what lies between them, in order."""
    found: list[Found] = []
    end = min(end, area.size)
    nonce, offset, expected = segment.header.nonce, SEGMENT_DATA_AT, segment.base
    while offset < end:
        header = read_header(area.view, offset, nonce)
        if header is not None and header.kind == KIND_SPAN and body_intact(area.view, offset, header):
            start = offset + LINE
            generation, first, _last, name = SPAN.unpack(bytes(area.view[start : start + SPAN.size]))
            _learn_span(spans, generation, first, uuid.UUID(bytes=name))
        if header is not None and accepted(header, spans, expected) and offset + header.size <= end:
            found.append(Found(segment, offset, header.size, header.first, header.last, header, body_intact(area.view, offset, header)))
            offset, expected = offset + header.size, max(header.last + 1, expected)
            continue
        behind = _next_accepted(area, offset + LINE, end, nonce, spans, expected)
        if behind is None:
            break
        later = read_header(area.view, behind, nonce)
        assert later is not None
        found.append(Found(segment, offset, behind - offset, expected, later.first - 1, None, False))
        offset = behind
    return found


def accepted(header: FrameHeader, spans: dict[int, Span], expected: int) -> bool:
    """Whether a frame is part of the log: its generation is known, and its positions are ones that this id was given.

    Frames beyond the recorded end of their id are what a crash left behind: never acknowledged, and not to come back.
    """
    span = spans.get(header.generation)
    if span is None or header.first < span.first or header.first < expected:
        return False
    return span.last is None or (header.last <= span.last and header.first <= span.last + 1)


def _next_accepted(area: Area, start: int, end: int, nonce: int, spans: dict[int, Span], expected: int) -> int | None:
    while (found := find_header(area.view, start, end, nonce)) is not None:
        header = read_header(area.view, found, nonce)
        if header is not None and accepted(header, spans, expected):
            return found
        start = found + LINE
    return None


def _learn_span(spans: dict[int, Span], generation: int, first: int, name: uuid.UUID) -> None:
    """Take a queue id that the head does not know (any more) from the log. In the log it stands only once the head had it."""
    if generation in spans:
        return
    for span in spans.values():
        if span.generation < generation and (span.last is None or span.last >= first):
            span.last = first - 1
    last = min((span.first - 1 for span in spans.values() if span.generation > generation), default=None)
    spans[generation] = Span(generation, first, last, name)
