"""Opening a queue: read the head, scan what is not sealed, decide where the log ends, and make all of it durable again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from headrace_queue_pmem.finding import find_segments, load_note, open_head, own_files
from headrace_queue_pmem.head import Head
from headrace_queue_pmem.layout import SEGMENT_DATA_AT
from headrace_queue_pmem.log import read_log
from headrace_queue_pmem.marks import Marks, Note, pack, unpack
from headrace_queue_pmem.medium import Medium
from headrace_queue_pmem.ring import Ring
from headrace_queue_pmem.scanning import Found, Report
from headrace_queue_pmem.segment import Segment
from headrace_queue_pmem.state import Options, no_fault

MARKS: Final = ("marks-a", "marks-b")


def recover(
    name: str, path: str, medium: Medium, options: Options, marks: Marks, fault: Callable[[str], None] = no_fault
) -> tuple[Ring, Report]:
    """Open the queue in `medium`, creating it when there is none. OSError: the medium cannot be used at all."""
    report = Report()
    names = medium.names()
    segments, file_number = find_segments(path, medium, names, report)
    # Counted before empty ones are dropped: a dropped file may come back after a power loss, and must not meet its number.
    segment_number = max((segment.header.number for segment in segments), default=0)
    notes: dict[str, Note] = {name: note for name in MARKS if name in names and (note := unpack(load_note(medium, name)))}
    if not notes and any(name in names for name in MARKS):
        report.repairs.append("both copies of the origin marks are damaged: they are made again from the frames that are here")
    head = open_head(path, medium, names, options, report, bool(segments))
    head, notes, segments = own_files(medium, head, notes, segments, options, report)
    ring = Ring(name, path, medium, head, options, marks, fault)
    if not report.created:
        head.rewrite()
    note = newest(notes.values())
    for mark in note.marks:
        marks.put(mark)
    ring.checkpoint_upto = note.upto
    told = [ring.checkpoint_upto, *(reader.cursor for reader in head.readers.values())]
    told += [span.last for span in head.spans if span.last is not None]
    told += [span.first - 1 for span in head.spans]
    upto = read_log(ring, segments, report, max(told, default=0), passed(head, note, any(name in names for name in MARKS)))
    ring.take_segments(segments, upto, file_number, segment_number)
    resync(segments, report.unproven)
    if not notes:
        # From its first open on a queue has them: they are the third that tells which of its files are another queue's.
        for note_name in MARKS:
            medium.save(note_name, pack(Note([], 0, head.owner, ring.given_back, medium.place())))
    report.passed = min((reader.cursor for reader in head.readers.values()), default=ring.given_back)
    report.events = upto - report.passed - report.lost_behind(report.passed)
    return ring, report


def newest(notes: Iterable[Note]) -> Note:
    """The note that counts; an empty one where there is none."""
    return max(notes, key=lambda note: (note.upto, note.given_back or 0), default=Note([], 0))


def passed(head: Head | None, note: Note, noted: bool) -> int | None:
    """The last position that every reader has passed; what is not here above it was not given back, but lost. None: not known.

    Space is given back behind cursors and a note that are durable, so the higher of both counts. A queue that never wrote a note
    gave nothing back.
    """
    cursors = [reader.cursor for reader in head.readers.values()] if head else []
    told = [*([min(cursors)] if cursors else []), *([note.given_back] if note.given_back is not None else [])]
    return max(told, default=0 if head and head.owned_from == 1 and not noted else None)


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
