"""A segment: one area of fixed size that frames fill from front to back, then sealed, and given back as a whole."""

from __future__ import annotations

import time
import uuid
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from headrace_queue_pmem.area import Area
from headrace_queue_pmem.layout import (
    CELL_CRC,
    INDEX_ENTRY,
    INDEX_STEP,
    LINE,
    MAGIC_AT,
    OWNER,
    OWNER_MAGIC,
    SEAL,
    SEAL_MAGIC,
    SEGMENT,
    SEGMENT_COPY_AT,
    SEGMENT_DATA_AT,
    SEGMENT_MAGIC,
    SEGMENT_OWNER_AT,
    VERSION,
    checksum,
    seal_bytes,
)

WARM_BYTES: Final = 1 << 20
#: After that the kernel may have taken it out of memory again.
WARM_S: Final = 5.0


class SegmentHeader(NamedTuple):
    """What a segment says of itself: its number, this use's nonce, its first position, and whose it was when it began."""

    version: int
    number: int
    nonce: int
    base: int
    generation: int
    queue_id: bytes
    data_end: int
    created_us: int


@dataclass(slots=True, eq=False)
class Segment:
    """One segment in use. `end` is the offset behind the last committed frame, `last` its position (base - 1 when empty).

    `writer` is its map for writing, until it is sealed; `area` one for reading, None while nobody reads it. `firsts`,
    `offsets` and `times` are the sparse index: one frame per INDEX_STEP bytes.
    """

    name: str
    header: SegmentHeader
    end: int
    last: int
    writer: Area | None = None
    area: Area | None = None
    frames: int = 0
    synced: int = 0  # how far it is known to survive power loss
    sealed: bool = False
    writable: bool = True
    firsts: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    damaged: set[tuple[int, int, int]] = field(default_factory=set)  # ranges that were reported
    warm: tuple[int, int] = (0, 0)  # what was brought into memory lately
    warm_until: float = 0.0
    let_go: list[weakref.ref[Area]] = field(default_factory=list)  # maps that may still have views
    owner: bytes | None = b""  # whose it says that it is: empty when it does not, None when that is damaged

    @property
    def base(self) -> int:
        return self.header.base

    def note(self, first: int, offset: int, last: int, end: int, time_us: int) -> None:
        """Take a committed frame into account."""
        if not self.offsets or offset - self.offsets[-1] >= INDEX_STEP:
            self.firsts.append(first)
            self.offsets.append(offset)
            self.times.append(time_us)
        self.last, self.end = max(last, self.last), end
        self.frames += 1

    def unmap(self) -> None:
        """Let go of the maps; they live on as long as a batch refers to them. Under the ring's lock, as a map is put in its place."""
        self.let_go = [area for area in self.let_go if area() is not None]
        self.let_go += [weakref.ref(area) for area in (self.writer, self.area) if area is not None]
        self.writer = self.area = None
        self.warm = (0, 0)

    def is_warm(self, offset: int, length: int = LINE) -> bool:
        """Whether a range was brought into memory lately: to look at another one may fault, and end the process where the device fails."""
        start, end = self.warm
        return start <= offset and offset + length <= end

    def warm_up(self, area: Area, offset: int, length: int, answers: Callable[[], None]) -> None:
        """Bring what is read next into memory, without the GIL: a page fault under it would stall the loop that acks devices."""
        if self.is_warm(offset, length) and time.monotonic() < self.warm_until:
            return
        length = min(max(length, WARM_BYTES), area.size - offset)
        if not area.fetch(offset, length, answers):
            self.writable = False  # what is written into a page that is blank here would not be seen
        self.warm, self.warm_until = (offset, offset + length), time.monotonic() + WARM_S

    def viewed(self) -> bool:
        """Whether anybody still refers to a map that was let go."""
        return any(area() is not None for area in self.let_go)

    def seek(self, position: int) -> int:
        """An offset of a frame at or before the one that holds `position`, about INDEX_STEP bytes away at most."""
        # bisect_left on position, not right: a frame without rows shares its first position with the next one.
        place = bisect_left(self.firsts, position) - 1
        return self.offsets[place] if place >= 0 else SEGMENT_DATA_AT

    def time_of(self, position: int) -> int | None:
        """About when `position` was appended, rather too early than too late; None without an index."""
        place = max(bisect_right(self.firsts, position) - 1, 0)
        return self.times[place] if self.times else None

    def bytes_behind(self, position: int) -> int:
        """About how many bytes hold positions above `position`: exact at the ends, within INDEX_STEP between them."""
        if position >= self.last:
            return 0
        if position < self.base:
            return self.end - SEGMENT_DATA_AT
        return max(self.end - self.seek(position + 1), LINE)


def data_end(area_bytes: int) -> int:
    """Where a segment's frames must end: behind it lies the room for its seal."""
    return (area_bytes - seal_bytes(area_bytes)) // LINE * LINE


def prepare(area: Area) -> None:
    """Make a fresh or used area a spare one: found by its magic, and of nobody's use. Durable on return."""
    for at in SEGMENT_COPY_AT:
        area.write(at, bytes(SEGMENT.size + CELL_CRC.size), SEGMENT.size + CELL_CRC.size)
    for at in SEGMENT_OWNER_AT:
        area.write(at, bytes(OWNER.size + CELL_CRC.size), OWNER.size + CELL_CRC.size)
    for at in MAGIC_AT:
        area.write(at, SEGMENT_MAGIC, len(SEGMENT_MAGIC))
    seal_at = data_end(area.size)
    area.write(seal_at, bytes(SEAL.size), SEAL.size)
    area.persist(0, SEGMENT_DATA_AT)
    area.persist(seal_at, SEAL.size)


def begin(area: Area, number: int, nonce: int, base: int, generation: int, queue_id: uuid.UUID, now_us: int, owner: bytes) -> SegmentHeader:
    """Take a spare area into use; durable with the first commit, which covers the header's pages."""
    header = SegmentHeader(VERSION, number, nonce, base, generation, queue_id.bytes, data_end(area.size), now_us)
    for places, content in ((SEGMENT_OWNER_AT, OWNER.pack(OWNER_MAGIC, owner)), (SEGMENT_COPY_AT, SEGMENT.pack(*header))):
        record = content + CELL_CRC.pack(checksum(content))
        for at in places:
            area.write(at, record, len(record))
    return header


def read_owner(area: Area) -> bytes | None:
    """Whose a segment says that it is; empty when it does not say, None when what it says is damaged."""
    said = False
    for at in SEGMENT_OWNER_AT:
        record = bytes(area.view[at : at + OWNER.size + CELL_CRC.size])
        said |= any(record)
        if len(record) == OWNER.size + CELL_CRC.size and checksum(record[: OWNER.size]) == CELL_CRC.unpack_from(record, OWNER.size)[0]:
            magic, owner = OWNER.unpack_from(record)
            if magic == OWNER_MAGIC:
                return bytes(owner)
    return None if said else b""


def read_segment_header(area: Area) -> tuple[SegmentHeader | None, bool]:
    """The header from whichever copy is intact, and whether a copy is damaged."""
    damaged, found = False, None
    for at in SEGMENT_COPY_AT:
        record = bytes(area.view[at : at + SEGMENT.size + CELL_CRC.size])
        body, crc = record[: SEGMENT.size], record[SEGMENT.size :]
        if len(crc) == CELL_CRC.size and checksum(body) == CELL_CRC.unpack(crc)[0]:
            found = found or SegmentHeader._make(SEGMENT.unpack(body))
        elif any(record):
            damaged = True
    return found, damaged or (found is not None and any(not any(area.view[at : at + SEGMENT.size]) for at in SEGMENT_COPY_AT))


def seal(segment: Segment, area: Area) -> None:
    """Write what a later open needs to know of a full segment, so that it need not scan it."""
    at = segment.header.data_end
    entries = np.array([segment.firsts, segment.offsets, segment.times], dtype="<u8").T.tobytes()
    fields = SEAL.pack(SEAL_MAGIC, segment.header.nonce, segment.last, segment.end, segment.frames, len(segment.firsts))
    record = fields + entries
    record += CELL_CRC.pack(checksum(record))
    area.write(at, record, len(record))
    area.persist(at, len(record))


def read_seal(segment: Segment, area: Area) -> bool:
    """Fill a segment's facts from its seal; False when it has none (or a damaged one) and must be scanned."""
    at = segment.header.data_end
    if at + SEAL.size > area.size:
        return False
    try:
        area.populate(at, min(seal_bytes(area.size), area.size - at))
    except OSError:
        return False  # then it is scanned
    head = bytes(area.view[at : at + SEAL.size])
    magic, nonce, last, end, frames, count = SEAL.unpack(head)
    length = SEAL.size + count * INDEX_ENTRY.size
    if magic != SEAL_MAGIC or nonce != segment.header.nonce or at + length + CELL_CRC.size > area.size:
        return False
    record = bytes(area.view[at : at + length + CELL_CRC.size])
    if checksum(record[:length]) != CELL_CRC.unpack_from(record, length)[0]:
        return False
    entries = np.frombuffer(record, dtype="<u8", count=3 * count, offset=SEAL.size).reshape(count, 3)
    segment.firsts, segment.offsets, segment.times = (entries[:, column].tolist() for column in range(3))
    segment.last, segment.end, segment.frames, segment.sealed = last, end, frames, True
    segment.writable = False  # a frame behind the end that the seal names would not be found again
    return True
