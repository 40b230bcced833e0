"""Looking into a queue without opening it: read-only maps, no lock, nothing is changed. Fit for a stopped queue; of a running
one it shows a moment."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from headrace import QueueFormatError
from headrace_queue_pmem.frame import FrameHeader, body_intact, decode_batch, decode_origins
from headrace_queue_pmem.head import HEAD, Head, Span
from headrace_queue_pmem.layout import HEAD_BYTES, KIND_SPAN, LINE, SEGMENT_DATA_AT, VERSION, align
from headrace_queue_pmem.medium import Area, FileMedium
from headrace_queue_pmem.ring import SEGMENT_PREFIX
from headrace_queue_pmem.scanning import Found, learn_span, scan
from headrace_queue_pmem.segment import Segment, read_seal, read_segment_header
from headrace_queue_pmem.state import NIL, Damage, damage_of


@dataclass
class Inspection:
    """What lies in a queue's directory. `problems` is what a check reports."""

    directory: Path
    head: Head | None
    segments: list[Segment]
    spans: dict[int, Span]
    pool: bool
    problems: list[str] = field(default_factory=list)
    spare: int = 0

    def frames(self) -> Iterator[tuple[Found, Area]]:
        """All pieces of all segments in order: frames that are part of the log, and what lies between them."""
        for segment in self.segments:
            area = segment.area
            assert area is not None
            end = segment.end if segment.sealed else segment.header.data_end
            for piece in scan(segment, area, self.spans, end):
                yield piece, area

    def queue_id(self, header: FrameHeader) -> str:
        """The id under which a frame was appended."""
        span = self.spans.get(header.generation)
        return str(span.id if span else NIL)


def inspect(directory: Path) -> Inspection:
    """Look at the queue in `directory`. QueueFormatError when there is none, or one of another version."""
    medium = FileMedium(directory, "process")
    names = medium.names() if directory.is_dir() else []
    if HEAD not in names and not any(name.startswith(SEGMENT_PREFIX) for name in names):
        raise QueueFormatError(str(directory), "there is no queue here: no head file and no segment")
    found = Inspection(directory, None, [], {}, pool=False)
    _inspect_head(found, medium, names)
    for name in names:
        if name.startswith(SEGMENT_PREFIX):
            _inspect_segment(found, medium, name)
    found.segments.sort(key=lambda segment: (segment.header.number, segment.header.generation))
    for segment in found.segments:
        learn_span(found.spans, segment.header.generation, segment.base, uuid.UUID(bytes=segment.header.queue_id))
    return found


def _inspect_head(found: Inspection, medium: FileMedium, names: list[str]) -> None:
    if HEAD not in names:
        found.problems.append("the head file is missing: readers and their cursors are lost")
        return
    try:
        area = medium.read(HEAD)
    except OSError as error:
        found.problems.append(f"the head file cannot be read: {error}")
        return
    found.pool = area.size < medium.size(HEAD)
    head = Head(area)
    if area.size < HEAD_BYTES or not head.load():
        found.problems.append("the head is damaged: the next open makes it again from the log")
        return
    if head.version != VERSION:
        raise QueueFormatError(str(found.directory), f"the format is version {head.version}, this program reads version {VERSION}")
    found.problems += head.damage
    found.head, found.spans = head, {span.generation: span for span in head.spans}


def _inspect_segment(found: Inspection, medium: FileMedium, name: str) -> None:
    try:
        area = medium.read(name)
    except OSError as error:
        found.problems.append(f"{name} cannot be read: {error}")
        return
    header, damaged = read_segment_header(area)
    if header is None:
        if damaged:
            found.problems.append(f"{name}: both copies of its header are damaged")
        found.spare += 1
        return
    if damaged:
        found.problems.append(f"{name}: one copy of its header is damaged")
    segment = Segment(name, header, SEGMENT_DATA_AT, header.base - 1, area=area)
    read_seal(segment, area)
    found.segments.append(segment)


@dataclass
class Content:
    """One intact frame with what it holds."""

    queue_id: str
    header: FrameHeader
    batch: pa.RecordBatch
    origins: pa.RecordBatch


def contents(found: Inspection, first: int = 0, last: int = 2**63) -> Iterator[Content]:
    """The intact frames that hold positions first..last, in order."""
    for piece, area in found.frames():
        header = piece.header
        if header is None or not piece.intact or header.kind == KIND_SPAN or header.last < first or header.first > last:
            continue
        start = piece.offset + LINE
        origins = decode_origins(bytes(area.view[start : start + header.origins_bytes]))
        payload = pa.foreign_buffer(area.address + start + align(header.origins_bytes), header.payload_bytes, area)
        batch = decode_batch(header.kind, payload)
        skip, stop = max(first - header.first, 0), min(last - header.first + 1, header.rows)
        yield Content(found.queue_id(header), header._replace(first=header.first + skip), batch.slice(skip, stop - skip), origins)


@dataclass
class Verdict:
    """What a check of every frame found."""

    frames: int = 0
    events: int = 0
    first: int | None = None
    last: int = 0
    bytes: int = 0
    gaps: list[tuple[int, int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)


def check(found: Inspection) -> Verdict:
    """Check the CRC of every frame, and that positions follow each other."""
    verdict = Verdict(problems=list(found.problems))
    pieces = list(found.frames())
    last_good = max((number for number, (piece, _) in enumerate(pieces) if piece.header and piece.intact), default=-1)
    for number, (piece, area) in enumerate(pieces):
        header = piece.header
        if header is not None and piece.intact and body_intact(area.view, piece.offset, header):
            if verdict.first is not None and header.first > verdict.last + 1:
                verdict.gaps.append((verdict.last + 1, header.first - 1))
            if header.rows:
                verdict.first = header.first if verdict.first is None else verdict.first
                verdict.last = max(verdict.last, header.last)
            verdict.frames, verdict.events, verdict.bytes = verdict.frames + 1, verdict.events + header.rows, verdict.bytes + header.size
        elif number < last_good or (found.head is not None and piece.last <= _told(found)):
            what = f"{piece.segment.name}: {piece.length} damaged bytes at {piece.offset}, positions {piece.first}-{piece.last}"
            verdict.problems.append(what)
            reason = "header" if header is None else "body"
            verdict.damage.append(damage_of(piece.segment, area, piece.offset, piece.length, piece.first, piece.last, reason))
    if found.head is not None and verdict.last < _told(found):
        verdict.problems.append(f"positions {verdict.last + 1}-{_told(found)} were committed and are not here")
    return verdict


def _told(found: Inspection) -> int:
    """The last position that the head knows to have been committed."""
    assert found.head is not None
    ends = [span.last for span in found.head.spans if span.last is not None]
    return max([0, *ends, *(reader.cursor for reader in found.head.readers.values())])
