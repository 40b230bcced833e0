"""What a ring does beside appending and reading, away from both: seal full segments, keep a spare one, make cursors durable,
give back what every reader has passed. One call is one pass; nothing here is in anybody's way."""

from __future__ import annotations

import contextlib
from typing import Final

from headrace import QueueFull
from headrace_queue_pmem.area import Pace, no_pace
from headrace_queue_pmem.failing import NOT_DAMAGE
from headrace_queue_pmem.layout import SEGMENT_DATA_AT, seal_bytes
from headrace_queue_pmem.marks import Note, pack
from headrace_queue_pmem.recovery import MARKS
from headrace_queue_pmem.ring import Ring
from headrace_queue_pmem.segment import Segment, prepare, seal

#: Segments that were given back and wait to be used again: making one anew costs its zeroing, and taking its blocks from the disk.
SPARES_MAX: Final = 4
#: How full the active segment is when its successor is made, and when that has no time left to be made slowly.
SPARE_AT: Final = 1 / 4
HURRY_AT: Final = 3 / 4


def upkeep(ring: Ring, pace: Pace = no_pace) -> int:
    """One pass; long work is done in slices, with `pace` between them. Returns how many segments were given back.

    OSError: the medium refused; the next pass tries again.
    """
    for name in list(ring.leftovers):
        ring.discard(name)
    _seal(ring)
    store_cursors(ring)
    given_back = _give_back(ring) or _give_back_only(ring)
    _unmap(ring)
    _spare(ring, pace)
    return given_back


def store_cursors(ring: Ring) -> None:
    """Make cursors durable that moved."""
    with ring.head_lock:
        for reader in list(ring.head.readers.values()):
            cursor = reader.cursor
            if cursor != reader.durable:
                ring.head.store_cursor(reader, cursor)
        ring.head.mirror()


def checkpoint(ring: Ring, passed: int = 0) -> None:
    """Keep the marks of all committed frames in a note of their own, so that the frames may go.

    So many of the oldest segments are passed by every reader: what becomes of them is nobody's concern any more.
    """
    with ring.lock:
        upto, snapshot, given_back = ring.upto, ring.marks.snapshot(), ring.given_back
        ring.marks.changed = False
        dirty = [(segment, segment.end) for segment in ring.segments[passed:] if segment.synced < segment.end]
    if ring.medium.level == "process":
        # A mark must never outlive its frames: the note survives power loss, so they have to.
        for segment, end in dirty:
            _sync(ring, segment, end)
    content = pack(Note(snapshot, upto, ring.head.owner, given_back, ring.medium.place()))
    for note in MARKS:
        ring.medium.save(note, content)
    ring.checkpoint_upto = upto


def _sync(ring: Ring, segment: Segment, end: int) -> None:
    try:
        area = segment.writer or segment.area or ring.medium.read(segment.name)
    except OSError as error:
        if error.errno in NOT_DAMAGE:
            raise
        return  # the file is gone or cut off: its readers are told of it, and others' space must not stay taken for it
    area.sync(segment.synced, end - segment.synced)
    segment.synced = end


def close(ring: Ring) -> None:
    """Leave everything durable: cursors, marks, and where the log ends."""
    store_cursors(ring)
    with ring.head_lock:
        if ring.span is not None:
            span = ring.span
            span.last = ring.upto
            ring.head.store_span(span)
            ring.head.mirror()
    if ring.checkpoint_upto < ring.upto or ring.marks.changed:
        checkpoint(ring)
    with ring.lock:
        spares, ring.spares = ring.spares, []
    for name in [*ring.leftovers, *(name for name, _ in spares)]:
        ring.discard(name)


def _seal(ring: Ring) -> None:
    with ring.lock:
        full = [segment for segment in ring.segments[:-1] if not segment.sealed]
        ending = ring.segments[-1] if ring.segments else None
    for segment in full:
        # The commit that began the next segment may still be under way; its frames here are not in `end` yet.
        with ring.commit_lock:
            if ending is None or ending.frames == 0:
                return
        with contextlib.suppress(OSError):  # without a seal the next open scans it
            _write_seal(ring, segment)
        segment.sealed = True
        with ring.lock:
            segment.unmap()


def _write_seal(ring: Ring, segment: Segment) -> None:
    writer = segment.writer or ring.medium.open(segment.name)
    if writer.size >= segment.header.data_end + seal_bytes(writer.size):  # a file that was cut off has no room for it
        seal(segment, writer)


def _give_back(ring: Ring) -> int:
    with ring.lock:
        slowest = min((reader.durable for reader in ring.head.readers.values()), default=ring.tail - 1)
        count = 0
        for segment in ring.segments[:-1]:
            if not segment.sealed or segment.last > slowest:
                break
            count += 1
        if not count:
            return 0
        ring.given_back = max(ring.given_back, ring.segments[count - 1].last)
    checkpoint(ring, count)
    ring.fault("queue_pmem.before_release")
    with ring.lock:
        gone = ring.forget_segments(count)
    for segment in gone:
        _recycle(ring, segment)
    ring.fault("queue_pmem.after_release")
    return count


def _give_back_only(ring: Ring) -> int:
    """The segment that is appended to, where it is the only one and the disk has no room for another: every reader has passed it,
    and the queue would stay full though it is empty. Appends wait meanwhile: they have no room."""
    with ring.commit_lock:
        with ring.lock:
            slowest = min((reader.durable for reader in ring.head.readers.values()), default=0)
            wanted = ring.starved and not ring.spares and len(ring.segments) == 1 and slowest >= ring.upto == ring.next - 1
            if not wanted:
                return 0
            ring.given_back = ring.upto
        checkpoint(ring, 1)
        with ring.lock:
            gone = ring.forget_only()
        if gone is None:
            return 0
        _recycle(ring, gone)
    return 1


def _recycle(ring: Ring, segment: Segment) -> None:
    """Make a segment that nobody looks at any more a spare one; remove it when a view still lives or there are enough."""
    with ring.lock:
        segment.unmap()
    if len(ring.spares) < SPARES_MAX and len(ring.segments) + len(ring.spares) < ring.options.segments_max and not segment.viewed():
        try:
            fresh = ring.medium.open(segment.name)
            if fresh.size == ring.medium.usable(ring.options.segment_bytes):
                prepare(fresh)
                with ring.lock:
                    ring.spares.append((segment.name, fresh))
                return
        except OSError:  # not fit to be used again; the append that needs a segment says so if nothing is
            pass
    ring.discard(segment.name)


def _unmap(ring: Ring) -> None:
    """Let go of maps that no reader stands in, so that memory does not grow with depth."""
    with ring.lock:
        near = {track.places[-1].segment for track in ring.tracks.values() if track.places}
        for segment in ring.segments[:-1]:
            if segment.sealed and segment not in near:
                segment.unmap()


def _filled(ring: Ring) -> float:
    """How much of the active segment is taken: 1 without one."""
    with ring.lock:
        active = ring.segments[-1] if ring.segments else None
        return (active.end - SEGMENT_DATA_AT) / (active.header.data_end - SEGMENT_DATA_AT) if active else 1.0


def _spare(ring: Ring, pace: Pace) -> None:
    """Make the next segment before it is needed: a full disk is met here, and no append waits for the allocation."""
    with ring.lock:
        wanted = not ring.spares and len(ring.segments) < ring.options.segments_max
    if not wanted or _filled(ring) < SPARE_AT:
        return

    def paced() -> None:
        if not ring.hurry and _filled(ring) < HURRY_AT:
            pace()

    with ring.spare_lock:
        if ring.spares:
            return
        try:
            spare = ring.make_spare(paced)
        except (QueueFull, OSError):
            return  # the append that needs it will say so
        with ring.lock:
            ring.spares.append(spare)
