"""The files of a queue that is opened: its head, and its segments in their order; what cannot be used is set aside."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from typing import Final

from headrace import QueueFormatError
from headrace_queue_pmem.failing import DISK_FULL, NOT_DAMAGE
from headrace_queue_pmem.frame import any_frame, body_intact, find_header, read_header
from headrace_queue_pmem.head import HEAD, Head
from headrace_queue_pmem.layout import HEAD_BYTES, HEAD_FILE_BYTES, LINE, SEGMENT_DATA_AT, VERSION
from headrace_queue_pmem.marks import Note
from headrace_queue_pmem.medium import Medium
from headrace_queue_pmem.ownership import OWNER_NOTE, Claim, owned_from, read_claim, strange_head, stranger, whose
from headrace_queue_pmem.ring import SEGMENT_PREFIX
from headrace_queue_pmem.scanning import Report
from headrace_queue_pmem.segment import Segment, read_owner, read_segment_header
from headrace_queue_pmem.state import Options, now_us

SET_ASIDE_PREFIX: Final = "damaged-"
FOREIGN_PREFIX: Final = "foreign-"
SET_ASIDE_MAX: Final = 8


def load_note(medium: Medium, name: str) -> bytes | None:
    """A note's content; None where there is none, or the device cannot give it."""
    try:
        return medium.load(name)
    except OSError as error:
        _is_damage(medium, error)
        return None


def open_head(path: str, medium: Medium, names: list[str], options: Options, report: Report, has_segments: bool) -> Head:
    """The head, made when there is none, made again from what can be read where it is damaged."""
    if HEAD not in names:
        report.created = not has_segments
        if has_segments:
            report.repairs.append("the head file is missing: a new one is made; readers begin again at the oldest position")
        return _new_head(medium, options, None)
    try:
        area = medium.open(HEAD)
    except OSError as error:
        _is_damage(medium, error)
        report.repairs.append(f"the head file cannot be opened as a {medium.name} area ({error}): it is made again from its content")
        try:
            old = Head(medium.read(HEAD))
            old.area.fetch(0, HEAD_BYTES, medium.answers)
        except OSError:
            return _new_head(medium, options, None)
        intact = old.area.size >= HEAD_BYTES and old.load()
        _check_version(path, old, intact)
        return _new_head(medium, options, old)
    head = Head(area)
    readable = area.fetch(0, HEAD_BYTES, medium.answers)
    intact = area.size >= HEAD_BYTES and head.load()
    _check_version(path, head, intact)
    report.repairs += head.damage
    if not intact or not readable:
        what = "the head's header is damaged" if readable else "the device cannot give a part of the head"
        report.repairs.append(f"{what}: the head is made again from what can be read")
        del area
        salvage = Head(head.area)
        salvage.secret, salvage.readers, salvage.spans = head.secret, head.readers, head.spans
        salvage.owner, salvage.owned_from = head.owner, head.owned_from
        return _new_head(medium, options, salvage)
    return head


def _is_damage(medium: Medium, error: OSError) -> None:
    """Raise where a file that cannot be opened may be as sound as ever."""
    if error.errno in NOT_DAMAGE:
        raise error
    medium.answers()


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
        if old.owner:
            head.store_owner(old.owner, old.owned_from)
        head.copy_from(list(old.readers.values()), old.spans)
        head.mirror()
    medium.rename(temporary, HEAD)
    return head


def own_files(
    medium: Medium, head: Head, notes: dict[str, Note], segments: list[Segment], options: Options, report: Report
) -> tuple[Head, dict[str, Note], list[Segment]]:
    """Those of the files that are this queue's; the others are set aside. A new head, where that which stood here was another queue's."""
    claim, here = read_claim(load_note(medium, OWNER_NOTE)), medium.place()
    owner = whose(head.owner, [*([claim] if claim else []), *notes.values()], segments, here) or secrets.token_bytes(16)
    if why := strange_head(head.owner, owner, segments, {span.generation: span.id.bytes for span in head.spans}):
        head.area.close()
        set_aside_foreign(medium, HEAD, why, report)
        report.repairs.append("a new head is made; readers begin again at the oldest position")
        head = _new_head(medium, options, None)
    if head.owner != owner:
        head.store_owner(owner, owned_from(owner, segments))
    ids = {span.generation: span.id.bytes for span in head.spans}
    ours = []
    for segment in segments:
        if why := stranger(segment, owner, head.owned_from, ids):
            set_aside_foreign(medium, segment.name, why, report)
        else:
            ours.append(segment)
    for name in [name for name, note in notes.items() if note.owner not in (b"", owner)]:
        set_aside_foreign(medium, name, f"it is of another queue: its owner is {notes.pop(name).owner.hex()}", report)
    if claim != Claim(owner, here):
        try:
            medium.save(OWNER_NOTE, Claim(owner, here).pack())
        except OSError as error:
            if error.errno not in DISK_FULL:  # a full disk must not keep a queue closed; the next open writes it
                raise
    return head, notes, ours


def find_segments(path: str, medium: Medium, names: list[str], report: Report) -> tuple[list[Segment], int]:
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
            _is_damage(medium, error)
            set_aside(medium, name, f"cannot be mapped: {error}", report)
            continue
        header, damaged = read_segment_header(area)
        if header is None:
            # A spare one, or one whose making was cut short; frames in it mean that it once was more.
            area.fetch(0, area.size, medium.answers)
            if damaged and any_frame(area.view):
                set_aside(medium, name, "both copies of its header are damaged", report)
            else:
                del area
                medium.remove(name)
            continue
        if header.version != VERSION:
            raise QueueFormatError(path, f"segment {name} has format version {header.version}, this program reads version {VERSION}")
        if damaged:
            report.repairs.append(f"{name}: one copy of its header is damaged")
        found.append(Segment(name, header, SEGMENT_DATA_AT, header.base - 1, area=area, owner=read_owner(area)))
    found.sort(key=lambda segment: (segment.header.number, segment.header.generation, segment.header.created_us))
    kept: list[Segment] = []
    for segment in found:
        if not kept or segment.header.nonce != kept[-1].header.nonce:
            kept.append(segment)
            continue
        better, worse = better_copy(kept[-1], segment)
        _mend(medium, better, worse, report)
        kept[-1] = better
        set_aside(medium, worse.name, f"it is a copy of segment {better.name}", report)
    return kept, file_number


def _mend(medium: Medium, segment: Segment, copy: Segment, report: Report) -> None:
    """Write into a segment the frames that only its copy has whole."""
    assert segment.area is not None
    assert copy.area is not None
    whole = list(_whole(copy))
    lacking = [(at, size) for at, size in whole if not _is_whole(segment, at)]
    if not lacking:
        return
    with contextlib.suppress(OSError):  # then they stay in the copy, which is set aside
        writer = medium.open(segment.name)
        for at, size in lacking:
            if at + size <= min(segment.header.data_end, writer.size):
                writer.write(at, bytes(copy.area.view[at : at + size]), size)
                writer.persist(at, size)
        segment.area = medium.read(segment.name)
        report.repairs.append(f"{segment.name}: {len(lacking)} damaged frames were whole in {copy.name} and are taken from there")


def _is_whole(segment: Segment, at: int) -> bool:
    assert segment.area is not None
    header = read_header(segment.area.view, at, segment.header.nonce)
    return header is not None and body_intact(segment.area.view, at, header)


def better_copy(one: Segment, other: Segment) -> tuple[Segment, Segment]:
    """Of two copies of a segment the one of which more is intact, and the other."""
    return (one, other) if _whole_bytes(one) >= _whole_bytes(other) else (other, one)


def _whole_bytes(segment: Segment) -> int:
    """Bytes of the frames in a segment that are intact."""
    return sum(size for _, size in _whole(segment))


def _whole(segment: Segment) -> Iterator[tuple[int, int]]:
    """Where in a segment frames lie that are intact, and how long they are."""
    area, nonce, at = segment.area, segment.header.nonce, SEGMENT_DATA_AT
    assert area is not None
    area.fetch(0, area.size, lambda: None)
    while (found := find_header(area.view, at, segment.header.data_end, nonce)) is not None:
        header = read_header(area.view, found, nonce)
        assert header is not None
        if body_intact(area.view, found, header):
            yield found, header.size
            at = found + header.size
        else:
            at = found + LINE  # its length may be right or not


def set_aside_foreign(medium: Medium, name: str, reason: str, report: Report) -> None:
    """Keep a file of another queue, which may be the only one that has its events: never removed, and none in its place."""
    taken = medium.names()
    kept = FOREIGN_PREFIX + name
    while kept in taken:
        kept += ".more"
    medium.rename(name, kept)
    report.set_aside.append((name, f"{reason}; kept as {kept}: move it back to its own queue's directory, or delete it"))


def set_aside(medium: Medium, name: str, reason: str, report: Report) -> None:
    """Keep a segment file of which nothing can be used for whoever looks into it, out of the way."""
    # Evidence for a person, so it is bounded: a machine that breaks a file at every start must not fill its disk with them.
    if sum(other.startswith(SET_ASIDE_PREFIX) for other in medium.names()) < SET_ASIDE_MAX:
        medium.rename(name, SET_ASIDE_PREFIX + name)
    else:
        medium.remove(name)
        reason += f" (not kept: {SET_ASIDE_MAX} are)"
    report.set_aside.append((name, reason))
