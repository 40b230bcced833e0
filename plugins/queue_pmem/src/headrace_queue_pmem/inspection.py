"""Looking into a queue without opening it: read-only maps, no lock, nothing is changed. Fit for a stopped queue; of a running
one it shows a moment. What belongs to the log is decided by the rules of an open (log.py), so that what a check calls damaged is
what an open sets aside, and what a dump prints is what readers get."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from headrace import QueueFormatError
from headrace_queue_pmem.finding import better_copy
from headrace_queue_pmem.frame import FrameHeader, body_intact, decode_batch, decode_origins, read_header
from headrace_queue_pmem.head import HEAD, Head, Span
from headrace_queue_pmem.layout import (
    BEGINS_COMMIT,
    HEAD_BYTES,
    KIND_SPAN,
    LINE,
    MAGIC_AT,
    OPEN,
    PAGE,
    SEGMENT_DATA_AT,
    SEGMENT_MAGIC,
    VERSION,
    align,
)
from headrace_queue_pmem.lock import is_held
from headrace_queue_pmem.marks import Note, unpack
from headrace_queue_pmem.medium import FileMedium
from headrace_queue_pmem.ownership import OWNER_NOTE, Claim, owned_from, read_claim, stranger, whose
from headrace_queue_pmem.recovery import MARKS, newest, passed
from headrace_queue_pmem.ring import SEGMENT_PREFIX
from headrace_queue_pmem.scanning import Found, ends, learn_span, scan
from headrace_queue_pmem.segment import Segment, read_owner, read_seal, read_segment_header
from headrace_queue_pmem.state import NIL, Damage, damage_of


@dataclass
class Inspection:
    """What lies in a queue's directory. `problems` is what a check reports."""

    directory: Path
    head: Head | None
    segments: list[Segment]
    spans: dict[int, Span]
    pool: bool
    held: bool = False
    passed: int | None = None  # every reader has passed this position; None: not known
    told: int = 0  # the last position of which something says that it was committed
    problems: list[str] = field(default_factory=list)
    spare: int = 0

    @property
    def bytes(self) -> int:
        """Bytes that a look at everything has to look at, at most."""
        return sum(segment.end if segment.sealed else segment.header.data_end for segment in self.segments)

    def pieces(self, deep: bool = True, done: Callable[[int], None] = lambda _bytes: None) -> Iterator[Found]:
        """The log in order: frames that count, and damaged pieces (not `intact`); not what a crash left behind its end.

        Without `deep` a sealed segment is one piece without a header. `done` is told of bytes that were looked at.
        """
        told = max([self.told, *(segment.last for segment in self.segments if segment.sealed)])
        waiting: list[Found] = []  # from a bad piece on, until something says that it was committed
        for segment, base in zip(self.segments, self._ends(), strict=True):
            for piece in self._pieces_of(segment, deep):
                done(piece.length)
                if piece.last >= base or not (piece.first < base or ends(piece, base)):
                    continue  # begun again in a later segment
                told = max(told, piece.header.durable_upto if piece.header else 0)
                if waiting and piece.header is not None and piece.header.flags & BEGINS_COMMIT:
                    yield from waiting
                    waiting = []
                if waiting or not piece.intact:
                    waiting.append(piece)
                else:
                    yield piece
        for piece in waiting:
            if not piece.intact and piece.last > told:
                return
            yield piece

    def queue_id(self, header: FrameHeader) -> str:
        """The id under which a frame was appended."""
        span = self.spans.get(header.generation)
        return str(span.id if span else NIL)

    def moved_on(self, piece: Found) -> bool:
        """Whether a piece of a running queue looked damaged only because it was being written, or its space given back."""
        area, nonce = piece.segment.area, piece.segment.header.nonce
        if not self.held or area is None:
            return False
        of_segment, _ = read_segment_header(area)
        if of_segment is None or of_segment.nonce != nonce:
            return True
        header = read_header(area.view, piece.offset, nonce)
        return header is not None and body_intact(area.view, piece.offset, header)

    def _pieces_of(self, segment: Segment, deep: bool) -> Iterator[Found]:
        assert segment.area is not None
        if segment.sealed and not deep:
            yield Found(segment, SEGMENT_DATA_AT, segment.end - SEGMENT_DATA_AT, segment.base, segment.last, None, True)
            return
        end = segment.end if segment.sealed else segment.header.data_end
        yield from scan(segment, segment.area, self.spans, end, _say_nothing)

    def _ends(self) -> list[int]:
        """For each segment the base of the next one in which a frame lies: of positions in both, the later one is right."""
        base, found = OPEN, []
        for segment in reversed(self.segments):
            found.append(base)
            if segment.sealed or any(piece.header and piece.last < base for piece in self._pieces_of(segment, deep=True)):
                base = min(base, segment.base)
        return found[::-1]


def inspect(directory: Path) -> Inspection:
    """Look at the queue in `directory`. QueueFormatError when there is none, or one of another version."""
    medium = FileMedium(directory, "process")
    try:
        names = medium.names()
    except (FileNotFoundError, NotADirectoryError):
        names = []
    if HEAD not in names and not any(name.startswith(SEGMENT_PREFIX) for name in names):
        there = "it has neither a head file nor a segment" if directory.is_dir() else "there is no such directory"
        there = "that is a file" if directory.is_file() else there
        raise QueueFormatError(
            str(directory), f"expected the directory of a queue, but {there}; the option path of the tier's queue names it"
        )
    found = Inspection(directory, None, [], {}, pool=False, held=is_held(directory))
    notes = [note for name in MARKS if name in names and (note := unpack(medium.load(name)))]
    if not notes and any(name in names for name in MARKS):
        found.problems.append("both copies of the origin marks are damaged: the next open makes them again from the frames that are here")
    readers = _inspect_head(found, medium, names)
    for name in names:
        if name.startswith(SEGMENT_PREFIX):
            _inspect_segment(found, medium, name)
    found.segments.sort(key=lambda segment: (segment.header.number, segment.header.generation, segment.header.created_us))
    _leave_out(found, medium, notes)
    for segment in found.segments:
        learn_span(found.spans, segment.header.generation, segment.base, uuid.UUID(bytes=segment.header.queue_id))
    note = newest(notes)
    found.passed = passed(readers, note, any(name in names for name in MARKS))
    known = found.spans.values()
    found.told = max([note.upto, *(span.last for span in known if span.last is not None), *(span.first - 1 for span in known)], default=0)
    if readers is not None:
        found.told = max([found.told, *(reader.cursor for reader in readers.readers.values())])
    return found


def _inspect_head(found: Inspection, medium: FileMedium, names: list[str]) -> Head | None:
    if HEAD not in names:
        found.problems.append("the head file is missing: readers and their cursors are lost")
        return None
    try:
        area = medium.read(HEAD)
    except OSError as error:
        found.problems.append(f"the head file cannot be read: {error}")
        return None
    found.pool = area.size < medium.size(HEAD)
    area.fetch(0, HEAD_BYTES, _say_nothing)
    head = Head(area)
    if area.size < HEAD_BYTES:
        found.problems.append(f"the head file is cut off at {area.size} bytes: the next open makes it again from the log")
        return None
    if not head.load():
        found.problems.append("the head's header is damaged: the next open makes the head again from what can be read")
    if head.version != VERSION:
        raise QueueFormatError(str(found.directory), f"the format is version {head.version}, this program reads version {VERSION}")
    if head.damage and found.held:
        again = Head(area)  # a copy that is being written looks damaged for a moment
        again.load()
        head.damage = [damage for damage in head.damage if damage in again.damage]
    found.problems += head.damage
    found.head, found.spans = head, {span.generation: span for span in head.spans}
    return head


def _inspect_segment(found: Inspection, medium: FileMedium, name: str) -> None:
    try:
        area = medium.read(name)
    except OSError as error:
        file = found.directory / name
        if not found.held or (file.exists() and file.stat().st_size >= PAGE):  # else it is being made, or was just removed
            found.problems.append(f"{name} cannot be read: {error}")
        return
    header, damaged = read_segment_header(area)
    if header is None:
        # In a pool that is being made there is nothing of ours yet.
        if damaged and not (found.held and not any(bytes(area.view[at : at + 8]) == SEGMENT_MAGIC for at in MAGIC_AT)):
            found.problems.append(f"{name}: both copies of its header are damaged")
        found.spare += 1
        return
    if header.version != VERSION:
        raise QueueFormatError(str(found.directory), f"segment {name} has format version {header.version}, this program reads {VERSION}")
    if damaged and not found.held:
        found.problems.append(f"{name}: one copy of its header is damaged")
    segment = Segment(name, header, SEGMENT_DATA_AT, header.base - 1, area=area, owner=read_owner(area))
    read_seal(segment, area)
    found.segments.append(segment)


def _leave_out(found: Inspection, medium: FileMedium, notes: list[Note]) -> None:
    """Take out copies and segments of other queues, as an open does."""
    claim = read_claim(medium.load(OWNER_NOTE))
    said: list[Note | Claim] = [*([claim] if claim else []), *notes]
    owner = whose(found.head.owner if found.head else b"", said, found.segments, medium.place())
    since = found.head.owned_from if found.head and found.head.owner else owned_from(owner, found.segments)
    ids = {span.generation: span.id.bytes for span in found.spans.values()}
    kept: list[Segment] = []
    for segment in found.segments:
        if why := stranger(segment, owner, since, ids):
            found.problems.append(f"{segment.name}: {why}")
        elif kept and kept[-1].header.nonce == segment.header.nonce:
            better, worse = better_copy(kept[-1], segment)
            kept[-1] = better
            found.problems.append(f"{worse.name}: it is a copy of segment {better.name}")
        else:
            kept.append(segment)
    found.segments = kept


def _say_nothing() -> None:
    """A look writes nothing, so that it cannot tell a dead device from a bad sector: both are damage to it."""


@dataclass
class Content:
    """One intact frame with what it holds."""

    queue_id: str
    header: FrameHeader
    batch: pa.RecordBatch
    origins: pa.RecordBatch


def contents(found: Inspection, first: int = 0, last: int = 2**63, done: Callable[[int], None] = lambda _bytes: None) -> Iterator[Content]:
    """The intact frames that hold positions first..last, in order."""
    for piece in found.pieces(done=done):
        header, area = piece.header, piece.segment.area
        if header is None or not piece.intact or header.kind == KIND_SPAN or header.last < first or header.first > last:
            continue
        assert area is not None
        start = piece.offset + LINE
        origins = decode_origins(bytes(area.view[start : start + header.origins_bytes]))
        payload = pa.foreign_buffer(area.address + start + align(header.origins_bytes), header.payload_bytes, area)
        batch = decode_batch(header.kind, payload)
        skip, stop = max(first - header.first, 0), min(last - header.first + 1, header.rows)
        yield Content(found.queue_id(header), header._replace(first=header.first + skip), batch.slice(skip, stop - skip), origins)


@dataclass
class Verdict:
    """What a look at all frames found. `damage` is what lies there unreadable, `lost` what is not there at all."""

    frames: int = 0
    events: int = 0
    first: int | None = None
    last: int = 0
    bytes: int = 0
    lost: list[tuple[int, int]] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def missing(self) -> int:
        """Events that are damaged or lost."""
        return sum(last - first + 1 for first, last in [*self.lost, *((one.first, one.last) for one in self.damage)])


def check(found: Inspection, deep: bool = True, done: Callable[[int], None] = lambda _bytes: None) -> Verdict:
    """Whether each position that some reader has yet to pass is there; with `deep` the CRC of every frame is checked as well."""
    verdict = Verdict(problems=list(found.problems))
    expected = None if found.passed is None else found.passed + 1
    gone: list[tuple[int, int]] = []
    for piece in found.pieces(deep, done):
        expected = piece.first if expected is None else expected
        if piece.first > expected:
            gone.append((expected, piece.first - 1))
        expected = max(expected, piece.last + 1)
        if not piece.intact and found.moved_on(piece):
            continue
        header = piece.header
        if not piece.intact:
            what = f"{piece.segment.name}: {piece.length} damaged bytes at {piece.offset}, positions {piece.first}-{piece.last}"
            verdict.problems.append(what)
            assert piece.segment.area is not None
            reason = "header" if header is None else "body"
            damage = damage_of(piece.segment, piece.segment.area, piece.offset, piece.length, piece.first, piece.last, reason)
            verdict.damage.append(damage)
            continue
        events = piece.last - piece.first + 1
        if events:
            verdict.first = piece.first if verdict.first is None else verdict.first
            verdict.last = max(verdict.last, piece.last)
        verdict.frames += piece.segment.frames if header is None else 1
        verdict.events, verdict.bytes = verdict.events + events, verdict.bytes + piece.length
    if expected is not None and found.told >= expected:
        gone.append((expected, found.told))
    elif expected is not None and found.segments and found.segments[-1].sealed and found.told <= found.segments[-1].last:
        gone.append((expected, expected))  # at least: a segment is sealed behind the first commit into the next one
    if gone and found.held:
        gone = _still_gone(found, gone)
    for first, last in gone:
        verdict.lost.append((first, last))
        verdict.problems.append(f"positions {first}-{last} are lost: committed, not passed by every reader, and in no file")
    return verdict


def _still_gone(found: Inspection, gone: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Of a running queue: without what its readers have passed, and its space been given back, while we looked."""
    now = inspect(found.directory)
    here = max((segment.base for segment in now.segments), default=0)  # what comes behind it was not here when we began
    passed_now = found.passed if now.passed is None else now.passed
    return [(max(first, (passed_now or 0) + 1), last) for first, last in gone if last > (passed_now or 0) and last < here]
