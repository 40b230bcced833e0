"""Where the log of a queue that is opened ends, and which of its frames count.

The rule for a bad frame: when anything that was committed later (`durable_upto` of a later frame, a recorded end, a seal, a
cursor, a checkpoint) speaks of its positions, it is a hole in the middle, declared, and reading goes on behind it. Otherwise
nobody was ever told that it is here: it is the torn tail, and the log ends before it.
"""

from __future__ import annotations

import errno
import uuid
from itertools import pairwise

from headrace_queue_pmem.finding import set_aside
from headrace_queue_pmem.frame import decode_origins
from headrace_queue_pmem.layout import BEGINS_COMMIT, LINE, OPEN, SEGMENT_DATA_AT
from headrace_queue_pmem.marks import marks_of
from headrace_queue_pmem.medium import Medium
from headrace_queue_pmem.ring import Ring
from headrace_queue_pmem.scanning import Found, Report, ends, learn_span, scan
from headrace_queue_pmem.segment import Segment, read_seal
from headrace_queue_pmem.state import Damage, damage_of


def read_log(ring: Ring, segments: list[Segment], report: Report, told: int, passed: int | None) -> int:
    """Fill in what the segments hold; return the last position that is held, or that somebody was told is.

    Every reader has passed position `passed` (None: not known).
    """
    head = ring.head
    spans = {span.generation: span for span in head.spans}
    scanned: dict[str, list[Found]] = {}
    for segment in segments:
        area = segment.area
        assert area is not None
        learn_span(spans, segment.header.generation, segment.base, uuid.UUID(bytes=segment.header.queue_id))
        end = segment.header.data_end
        if read_seal(segment, area):
            told, end = max(told, segment.last), segment.end
            # a frame without rows, whose messages were all refused, is behind the note though its position is not
            if segment.last < ring.checkpoint_upto:
                continue
        scanned[segment.name] = scan(segment, area, spans, end, ring.medium.answers)
    _supersede(ring.medium, segments, scanned, report)
    _drop_returned(ring, segments, scanned, passed)
    oldest = segments[0].base - 1 if segments else told
    ring.given_back = oldest if passed is None else min(passed, oldest)
    if segments and oldest > ring.given_back:
        report.damage.append(Damage("", 0, 0, ring.given_back + 1, oldest, "lost"))
    found = [piece for segment in segments for piece in scanned.get(segment.name, ())]
    for generation in sorted(spans.keys() - {span.generation for span in head.spans}):
        report.repairs.append(f"queue id {spans[generation].id} was missing from the head: learned from the log")
        head.store_span(spans[generation])
    report.frames_scanned = len(found)
    told = max([told, *(piece.header.durable_upto for piece in found if piece.header)])
    # A commit begins only after the one before it is durable: what lies before the first frame of a commit was committed.
    begun = max((number for number, piece in enumerate(found) if piece.header and piece.header.flags & BEGINS_COMMIT), default=-1)
    reached = segments[0].base - 1 if segments else ring.given_back
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
    _declare_gaps(ring, segments, report)
    return _end(ring, segments, reached, told, passed or 0, report)


def _supersede(medium: Medium, segments: list[Segment], scanned: dict[str, list[Found]], report: Report) -> None:
    """Where segments speak of the same positions, the one that was begun later is right; those left without a frame go.

    Such are begun when a commit failed and was made again, or removed files that came back after a power loss.
    """
    base = OPEN
    kept: list[Segment] = []
    for segment in reversed(segments):
        pieces = scanned.get(segment.name)
        if pieces is not None and not segment.sealed:
            pieces = scanned[segment.name] = [piece for piece in pieces if piece.last < base and (piece.first < base or ends(piece, base))]
        if segment.sealed or any(piece.header for piece in pieces or ()):
            kept.append(segment)
            base = min(base, segment.base)
        elif base != OPEN and any(piece.length for piece in pieces or ()):
            set_aside(medium, segment.name, "none of its frames is readable", report)
        else:
            medium.remove(segment.name)
    segments[:] = reversed(kept)


def _drop_returned(ring: Ring, segments: list[Segment], scanned: dict[str, list[Found]], passed: int | None) -> None:
    """Segments that were given back, and whose files came back after a power loss while later ones stayed away.

    The hole behind them is released, not lost: every reader has passed it. Without them there is no hole.
    """
    for index in range(len(segments) - 1, 0, -1):
        behind, before = segments[index], segments[:index]
        pieces = [piece for segment in before for piece in scanned.get(segment.name, ()) if piece.header]
        last = max([segment.last for segment in before] + [piece.last for piece in pieces])
        if behind.base <= last + 1 or passed is None or behind.base - 1 > passed:
            continue
        if any(_marks_are_here_only(ring, piece) for piece in pieces):
            continue  # their origins' marks are nowhere else: they were not given back
        for segment in before:
            scanned.pop(segment.name, None)
            ring.medium.remove(segment.name)
        del segments[:index]
        return


def _declare_gaps(ring: Ring, segments: list[Segment], report: Report) -> None:
    """Positions between two segments that some reader has yet to pass: a file is gone, or the end of the first is unreadable."""
    for before, behind in pairwise(segments):
        first = max(before.last, ring.given_back) + 1
        if first < behind.base and behind.end > SEGMENT_DATA_AT:  # else nothing in there was committed
            report.damage.append(Damage(before.name, before.end, 0, first, behind.base - 1, "lost"))


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


def _end(ring: Ring, segments: list[Segment], reached: int, told: int, passed: int, report: Report) -> int:
    """Make the last segment ready for appends, and drop those in which nothing was committed. Returns the last position there is."""
    while segments and segments[-1].end == SEGMENT_DATA_AT:
        ring.medium.remove(segments.pop().name)
    if segments and segments[-1].sealed and told <= reached:
        # A segment is sealed behind the first commit into the next one.
        told = reached + 1
        report.repairs.append(
            f"the segment behind {segments[-1].name} is gone: what came from position {told} on, one event at least, is lost"
        )
    if told > reached:
        where = segments[-1] if segments else None
        if told > passed:
            gone = max(reached, passed) + 1, told
            report.damage.append(Damage(where.name if where else "", where.end if where else 0, 0, *gone, "lost"))
        if where:
            # What may be left of the lost frames behind its end stays as it is, for whoever looks into it.
            where.writable = False
    if segments and not segments[-1].sealed and segments[-1].writable:
        _open_for_appends(ring, segments, report)
    return max(reached, told)


def _open_for_appends(ring: Ring, segments: list[Segment], report: Report) -> None:
    try:
        writer = ring.medium.open(segments[-1].name)
        if writer.size < segments[-1].header.data_end:
            raise OSError(errno.EIO, f"it has {writer.size} bytes, its header speaks of {segments[-1].header.data_end}")
        segments[-1].writer = writer
    except OSError as error:
        report.repairs.append(f"{segments[-1].name} cannot be opened for appends ({error}): they go to the next segment")
        segments[-1].writable = False
