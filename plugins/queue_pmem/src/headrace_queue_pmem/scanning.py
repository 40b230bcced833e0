"""What an open finds: frames and bytes that are none in segments without a seal, and the report of all of it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from headrace_queue_pmem.area import Area
from headrace_queue_pmem.frame import FrameHeader, body_intact, find_header, read_header
from headrace_queue_pmem.head import Span
from headrace_queue_pmem.layout import KIND_SPAN, LINE, SEGMENT_DATA_AT, SPAN
from headrace_queue_pmem.segment import Segment
from headrace_queue_pmem.state import Damage


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
    """What an open found and did, for the log and the metrics. passed: the last position that every reader has passed."""

    created: bool = False
    passed: int = 0
    events: int = 0
    frames_scanned: int = 0
    tail_dropped: int = 0
    damage: list[Damage] = field(default_factory=list)
    repairs: list[str] = field(default_factory=list)
    set_aside: list[tuple[str, str]] = field(default_factory=list)
    unproven: list[Found] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """Positions that are damaged or gone."""
        return self.lost_behind(0)

    def lost_behind(self, position: int) -> int:
        """Those of them that lie behind this position."""
        return sum(max(damage.last - max(damage.first - 1, position), 0) for damage in self.damage)


def scan(segment: Segment, area: Area, spans: dict[int, Span], end: int, answers: Callable[[], None]) -> list[Found]:
    """All frames of a segment that belong to a known queue id, and what lies between them, in order. `answers`: see Area.fetch."""
    found: list[Found] = []
    end = min(end, area.size)
    area.fetch(SEGMENT_DATA_AT, end - SEGMENT_DATA_AT, answers)
    nonce, offset, expected = segment.header.nonce, SEGMENT_DATA_AT, segment.base
    while offset < end:
        header = read_header(area.view, offset, nonce)
        if header is not None and header.kind == KIND_SPAN and body_intact(area.view, offset, header):
            start = offset + LINE
            generation, first, _last, name = SPAN.unpack(bytes(area.view[start : start + SPAN.size]))
            learn_span(spans, generation, first, uuid.UUID(bytes=name))
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


def ends(piece: Found, base: int) -> bool:
    """A frame of origins without rows right before the next segment. Were it of a commit that failed: every row before it is held,
    so what its marks say is true."""
    header = piece.header
    return header is not None and header.origins_bytes > 0 and header.rows == 0 and piece.first == base


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


def learn_span(spans: dict[int, Span], generation: int, first: int, name: uuid.UUID) -> None:
    """Take a queue id that the head does not know (any more) from the log. In the log it stands only once the head had it."""
    if generation in spans:
        return
    for span in spans.values():
        if span.generation < generation and (span.last is None or span.last >= first):
            span.last = first - 1
    last = min((span.first - 1 for span in spans.values() if span.generation > generation), default=None)
    spans[generation] = Span(generation, first, last, name)
