"""The ring: appending to the segments of one queue. Synchronous and thread-safe; no asyncio."""

from __future__ import annotations

import contextlib
import secrets
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from headrace import PermanentError, QueueFull, TransientError
from headrace_queue_pmem.area import Area, Pace, no_pace
from headrace_queue_pmem.cursors import Cursors
from headrace_queue_pmem.failing import DISK_FULL, told
from headrace_queue_pmem.frame import Entry
from headrace_queue_pmem.head import Span
from headrace_queue_pmem.layout import BEGINS_COMMIT, KIND_SPAN, LINE, SEGMENT_DATA_AT, SPAN, align, frame_bytes
from headrace_queue_pmem.segment import Segment, begin, prepare
from headrace_queue_pmem.state import SPAN_FRAME_BYTES, Place, now_us

SEGMENT_PREFIX: Final = "segment-"


@dataclass(eq=False)
class _Touched:
    """The part of a segment that a commit writes (`parts`: offset and bytes) and has to make durable."""

    segment: Segment
    start: int
    end: int
    parts: list[tuple[int, Any]] = field(default_factory=list)


class Ring(Cursors):
    """One queue, opened by `recovery.recover`."""

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
            self.spares.clear()

    @property
    def batch_bytes_max(self) -> int:
        """Most bytes of one frame's content, whatever its parts are aligned to."""
        return self._capacity - frame_bytes(LINE, LINE)

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
                raise TransientError(f"queue {self.name!r} at {self.path} cannot write to its medium: {told(error)}", 1.0) from error

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
            with self.lock:
                segment.unmap()
            self.discard(segment.name)

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
            if not self._writer(part.segment).written:
                self._writer(part.segment).gather(part.parts)
        self.fault("queue_pmem.after_write")
        self._make_durable(touched)
        # Durable from here on: only now may readers, marks and acknowledgements speak of it.
        self.fault("queue_pmem.after_persist")
        with self.lock:
            self._span_named = True
            self._publish(placed)

    def _make_durable(self, touched: list[_Touched]) -> None:
        for part in touched:
            area = self._writer(part.segment)
            if area.written and part.start == part.parts[0][0]:
                area.gather_durably(part.parts)
                continue
            if area.written:
                area.gather(part.parts)
            area.persist(part.start, part.end - part.start)  # with the header of a segment that begins

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
        header = begin(area, number, secrets.randbits(64), base, self.span.generation, self.span.id, now_us(), self.head.owner)
        segment = Segment(name, header, SEGMENT_DATA_AT, base - 1, writer=area, owner=self.head.owner)
        with self.lock:
            self.segments = [*self.segments, segment]
            self._write_at = SEGMENT_DATA_AT
        self.fault("queue_pmem.segment_added")
        return segment

    def _take_spare(self) -> tuple[str, Area]:
        self.hurry = True
        try:
            with self.spare_lock:  # one that is being made is there sooner than another one would be
                with self.lock:
                    spare = self.spares.pop() if self.spares else None
                found = spare or self.make_spare()
                self.starved = False
                return found
        except QueueFull:
            self.starved = True
            raise
        finally:
            self.hurry = False

    def make_spare(self, pace: Pace = no_pace) -> tuple[str, Area]:
        """A fresh segment file that is of nobody's use yet. QueueFull when the disk is full; OSError when it fails otherwise.

        Under `spare_lock`.
        """
        with self.lock:
            self._file_number += 1
            name = f"{SEGMENT_PREFIX}{self._file_number:08d}"
        area: Area | None = None
        try:
            area = self.medium.create(name, self.options.segment_bytes, pace)
            prepare(area)
        except OSError as error:
            # Its sync may have failed when all its space was taken: a file that nobody uses must not keep that.
            if area is not None:
                area.close()
            self.discard(name)
            if error.errno not in DISK_FULL:
                raise
            raise self.full(f"no room on the disk for a further segment of {self.options.segment_bytes} bytes: {error}") from error
        return name, area

    def discard(self, name: str) -> None:
        """Remove a segment file that is of nobody's use, now or, where the medium refuses even that, in a later pass of the upkeep."""
        try:
            self.medium.remove(name)
        except OSError:
            self.leftovers.add(name)
        else:
            self.leftovers.discard(name)

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
        if self.spares:
            return True
        active = self.segments[-1] if self.segments else None
        return active is not None and active.writable and self._write_at + entry.size + SPAN_FRAME_BYTES <= active.header.data_end

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

    def forget_only(self) -> Segment | None:
        """Take the only segment off the list, so that the next frame goes to a fresh one; None when it is not the only one, or when
        frames have their place in it already. Under the commit lock and the lock."""
        if len(self.segments) != 1 or self.next != self.upto + 1:
            return None
        (gone,) = self.forget_segments(1)
        self._write_at = SEGMENT_DATA_AT
        self._replan(())
        return gone


def span_entry(span: Span, first: int) -> Entry:
    """The frame that names a queue id in the log itself, so that a lost head can be made again."""
    last = 0 if span.last is None else span.last
    entry = Entry(KIND_SPAN, 0, b"", SPAN.pack(span.generation, span.first, last, span.id.bytes), now_us())
    entry.first = first
    return entry
