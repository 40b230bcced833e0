"""Looking into a queue without opening it: no lock, nothing is changed. Fit for a stopped queue; of a running one it shows a moment.

A look is an open over private copies (looking.py), read as its readers would read it: what a check calls damaged is what an open
sets aside, and what a dump prints is what readers get.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyarrow as pa

from headrace import QueueFormatError
from headrace_queue_pmem import reading
from headrace_queue_pmem.head import HEAD
from headrace_queue_pmem.layout import SEGMENT_DATA_AT
from headrace_queue_pmem.lock import is_held
from headrace_queue_pmem.looking import LookingMedium
from headrace_queue_pmem.marks import Marks
from headrace_queue_pmem.recovery import recover
from headrace_queue_pmem.ring import SEGMENT_PREFIX, Ring
from headrace_queue_pmem.scanning import Report
from headrace_queue_pmem.state import Damage, Options

LOOKER: Final = ""  # no reader's name
ROWS: Final = 4096
BYTES: Final = 4 << 20
#: A running queue is looked at again so often before a problem is believed: it writes, and gives space back, while one looks.
LOOKS: Final = 4


@dataclass
class Inspection:
    """What lies in a queue's directory, as an open would leave it. `problems` is what that would mend, besides what is missing."""

    directory: Path
    ring: Ring
    report: Report
    pool: bool
    held: bool
    spare: int

    @property
    def problems(self) -> list[str]:
        aside = [f"{name}: {reason.partition('; kept as')[0]}" for name, reason in self.report.set_aside]
        return [*self.report.repairs, *aside]

    @property
    def bytes(self) -> int:
        """Bytes of all frames."""
        return sum(segment.end - SEGMENT_DATA_AT for segment in self.ring.segments)


def inspect(directory: Path) -> Inspection:
    """Look at the queue in `directory`. QueueFormatError when there is none, or one of another version."""
    held = is_held(directory)
    try:
        medium = LookingMedium(directory)
    except (FileNotFoundError, NotADirectoryError):
        medium = None
    if medium is None or not any(name == HEAD or name.startswith(SEGMENT_PREFIX) for name in medium.names()):
        there = "it has neither a head file nor a segment" if directory.is_dir() else "there is no such directory"
        there = "that is a file" if directory.is_file() else there
        raise QueueFormatError(
            str(directory), f"expected the directory of a queue, but {there}; the option path of the tier's queue names it"
        )
    options = Options(64 << 20, 1 << 60, view_bytes_max=0)  # nothing is appended, and what is read are copies: see `contents`
    ring, report = recover(str(directory), str(directory), medium, options, Marks(1 << 24, 1 << 24, 1 << 24))
    spare = sum(name.startswith(SEGMENT_PREFIX) for name in medium.removed)
    return Inspection(directory, ring, report, medium.pool, held, spare)


@dataclass
class Content:
    """Events of one frame with what came with them; `first` is the position of the first, the others follow."""

    queue_id: str
    first: int
    batch: pa.RecordBatch
    origins: pa.RecordBatch


def contents(found: Inspection, first: int = 0, last: int = 2**63, done: Callable[[int], None] = lambda _bytes: None) -> Iterator[Content]:
    """What is held of positions first..last, frame by frame, in order.

    A queue that runs gives space back, and uses it again, while one looks: what was decoded counts only if it lies there still.
    """
    ring = found.ring
    after, last = max(ring.oldest, first - 1), min(ring.upto, last)
    while after < last:
        part, error = None, None
        try:
            part = reading.read(ring, LOOKER, after, 1, 1)  # the least that it gives is one frame
        except (pa.ArrowException, EOFError, OSError, ValueError) as caught:
            error = caught
        still = reading.read(ring, LOOKER, after, 1, 1, rows=False)
        assert still is not None
        if error is not None and not still.missing:
            raise error
        after = still.last
        if part is None or part.batch is None or (part.last, part.missing) != (still.last, still.missing):
            continue
        done(part.batch.nbytes)
        begins = part.first
        for hole in part.missing:
            begins = hole.last + 1 if hole.first == begins else begins
        count = min(part.batch.num_rows, last - begins + 1)
        if count > 0:
            yield Content(part.queue_id, begins, part.batch.slice(0, count), part.origins)


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
    verdict = _look(found, deep, done)
    for _ in range(LOOKS):
        if not found.held or not verdict.problems:
            break
        # What was being written, or given back, while we looked is another thing at another moment.
        again = _look(inspect(found.directory), deep, done)
        again.problems = [problem for problem in again.problems if problem in verdict.problems]
        again.lost = [gone for gone in again.lost if gone in verdict.lost]
        places = {(damage.segment, damage.offset, damage.first) for damage in verdict.damage}
        again.damage = [damage for damage in again.damage if (damage.segment, damage.offset, damage.first) in places]
        verdict = again
    return verdict


def _look(found: Inspection, deep: bool, done: Callable[[int], None]) -> Verdict:
    ring = found.ring
    damage = [one for one in found.report.damage if one.reason != "lost"]
    gone = [(one.first, one.last) for one in found.report.damage if one.reason == "lost"]
    if deep:
        known = {(one.segment, one.offset) for one in damage}
        ring.on_damage = lambda one: None if (one.segment, one.offset) in known else damage.append(one)
        gone += _read(found, done)
    damage = [one for one in damage if one.last >= one.first or one.length]
    missing = _joined([*gone, *((one.first, one.last) for one in damage)])
    passed = max(
        ring.oldest, min((reader.cursor for reader in ring.head.readers.values()), default=0)
    )  # what every reader is behind is nobody's loss any more
    lost = [(max(first, passed + 1), last) for first, last in _joined(gone) if last > passed]
    lost = [piece for first, last in lost for piece in _without(first, last, damage)]
    verdict = Verdict(lost=lost, damage=sorted(damage, key=lambda one: one.first), problems=found.problems)
    verdict.events = ring.upto - ring.oldest - sum(last - first + 1 for first, last in missing)
    if verdict.events:
        verdict.first = missing[0][1] + 1 if missing and missing[0][0] <= ring.oldest + 1 else ring.oldest + 1
        verdict.last = missing[-1][0] - 1 if missing and missing[-1][1] >= ring.upto else ring.upto
    sealed = {segment.name for segment in ring.segments if segment.sealed}
    places = {(one.segment, one.offset): one.length for one in damage}
    verdict.frames = sum(segment.frames for segment in ring.segments) - sum(name in sealed for name, _ in places)
    verdict.bytes = found.bytes - sum(places.values())
    for one in verdict.damage:
        verdict.problems.append(f"{one.segment}: {one.length} damaged bytes at {one.offset}, positions {one.first}-{one.last}")
    for first, last in lost:
        verdict.problems.append(f"positions {first}-{last} are lost: committed, not passed by every reader, and in no file")
    return verdict


def _read(found: Inspection, done: Callable[[int], None]) -> list[tuple[int, int]]:
    """Read everything as a reader would; gives what is lost. Of a running queue no frame is decoded: it may be another one by then."""
    ring, lost = found.ring, []
    after, each = ring.oldest, found.bytes / max(ring.upto - ring.oldest, 1)
    while after < ring.upto:
        part = reading.read(ring, LOOKER, after, ROWS, BYTES, rows=False)
        assert part is not None
        lost += [(hole.first, hole.last) for hole in part.missing if hole.reason == "lost"]
        done(int((part.last - after) * each))
        after = part.last
    return lost


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges in order, those that touch or overlap as one."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(joined[-1][1], last)
        elif first <= last:
            joined.append((first, last))
    return joined


def _without(first: int, last: int, damage: list[Damage]) -> Iterator[tuple[int, int]]:
    """What is left of first..last without what is damaged: that lies there, if unreadable."""
    for one in sorted(damage, key=lambda one: one.first):
        if one.first <= last and one.last >= first:
            if first < one.first:
                yield first, one.first - 1
            first = one.last + 1
    if first <= last:
        yield first, last
