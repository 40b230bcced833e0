"""Small rings in a directory, for tests that need no component: segments of 32 KiB, frames of one event."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from conftest import numbers, rows

from headrace import NO_ORIGINS
from headrace_queue_pmem import reading
from headrace_queue_pmem.frame import encode
from headrace_queue_pmem.marks import Marks
from headrace_queue_pmem.medium import FileMedium, Level
from headrace_queue_pmem.recovery import recover
from headrace_queue_pmem.ring import Ring
from headrace_queue_pmem.scanning import Report
from headrace_queue_pmem.state import Options

SEGMENT: Final = 32 << 10
OPTIONS: Final = Options(SEGMENT, 64 * SEGMENT)


def opened(directory: Path, level: Level = "process") -> tuple[Ring, Report]:
    """The queue in `directory`, made where there is none."""
    directory.mkdir(exist_ok=True)
    return recover("site", str(directory), FileMedium(directory, level), OPTIONS, Marks(8, 8, 8))


def append(ring: Ring, first: int, count: int, together: int = 1) -> None:
    """The events first.., each in a frame of its own, so many in a commit."""
    for start in range(first, first + count, together):
        entries = [encode(rows(number, 1, 900), NO_ORIGINS, 1) for number in range(start, start + together)]
        for entry in entries:
            ring.reserve(entry)
        ring.commit(entries)


def held(ring: Ring) -> list[int]:
    """All that is delivered."""
    found, after = [], ring.oldest
    while (part := reading.read(ring, "lake", after, 1000, 1 << 20)) is not None:
        found += numbers(part.batch)
        after = part.last
    return found
