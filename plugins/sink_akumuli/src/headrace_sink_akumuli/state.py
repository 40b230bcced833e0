"""What the output remembers between two lives: how far it came in each queue, and the last timestamp of every series there.

Two checkpoints, each a file that is replaced as a whole: `newest`, as of the last flush, and `base`, from which points are sent again
when the server lost some. See docs/decisions/0018.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from headrace.locked import replace_durably
from headrace_sink_akumuli.timeline import grown

FORMAT: Final = 1
#: Queue ids and origins that are remembered; those longest unheard of are forgotten.
MARKS_MAX: Final = 1000
ORIGINS_MAX: Final = 4096
GAPS_MAX: Final = 100


class Gap(msgspec.Struct, frozen=True, array_like=True):
    """Positions that the queue could not give and the lake did not fill: a rebuild brings them back."""

    queue_id: str
    first: int
    last: int
    reason: str


class _Header(msgspec.Struct):
    marks: dict[str, int]
    seen: dict[str, int]
    gaps: list[Gap]
    start: int
    since_us: int
    count: int
    check: int
    format: int = FORMAT


@dataclass
class Checkpoint:
    """The output's memory at one position.

    marks: by queue id the last position taken. seen: by origin the highest position of its events. last: by series number the last
    timestamp given out. safe: the same as the server held it when it started, which no crash takes back. start: when the
    server was started last, by its own start script (0: it never said). since_us: when the first event of all was received.
    """

    marks: dict[str, int] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    last: Any = field(default_factory=lambda: np.zeros(0, np.int64))
    safe: Any = field(default_factory=lambda: np.zeros(0, np.int64))
    gaps: list[Gap] = field(default_factory=list)
    start: int = 0
    since_us: int = 0

    def copy(self) -> Checkpoint:
        return Checkpoint(dict(self.marks), dict(self.seen), self.last.copy(), self.safe.copy(), list(self.gaps), self.start, self.since_us)

    def grow(self, count: int) -> None:
        """Make room for `count` series."""
        self.last, self.safe = grown(self.last, count), grown(self.safe, count)

    def mark(self, queue_id: str, position: int) -> None:
        """Everything of the queue id up to there was taken."""
        _newest_last(self.marks, queue_id, position, MARKS_MAX)

    def saw(self, origin: str, position: int) -> None:
        """An event of the origin was taken."""
        _newest_last(self.seen, origin, max(position, self.seen.get(origin, 0)), ORIGINS_MAX)

    def add_gap(self, gap: Gap) -> None:
        """Note positions that are lost to the server until a rebuild."""
        before = self.gaps[-1] if self.gaps else None
        if before is not None and before.queue_id == gap.queue_id and (before.last + 1 >= gap.first or len(self.gaps) == GAPS_MAX):
            self.gaps[-1] = Gap(gap.queue_id, before.first, max(gap.last, before.last), gap.reason)
        else:
            self.gaps = [*self.gaps, gap][-GAPS_MAX:]


def _newest_last(table: dict[str, int], key: str, value: int, most: int) -> None:
    table.pop(key, None)
    table[key] = value
    while len(table) > most:
        del table[next(iter(table))]


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Replace the file, durably. OSError when the disk does not take it."""
    arrays = np.concatenate([grown(checkpoint.last, len(checkpoint.safe)), grown(checkpoint.safe, len(checkpoint.last))]).tobytes()
    header = _Header(
        checkpoint.marks, checkpoint.seen, checkpoint.gaps, checkpoint.start, checkpoint.since_us, len(arrays) // 16, zlib.crc32(arrays)
    )
    replace_durably(path, msgspec.json.encode(header) + b"\n" + arrays)


def load(path: Path) -> Checkpoint | None:
    """The checkpoint in a file; None when there is no such file. OSError when it is damaged, or of a later version."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    line, _, arrays = data.partition(b"\n")
    try:
        header = msgspec.json.decode(line, type=_Header)
    except msgspec.MsgspecError as error:
        raise OSError(f"{path}: expected a checkpoint, got {error}; run headrace akumuli rebuild") from error
    if header.format > FORMAT:
        raise OSError(f"{path} has format {header.format}, expected at most {FORMAT}; upgrade headrace-sink-akumuli")
    if len(arrays) != header.count * 16 or zlib.crc32(arrays) != header.check:
        raise OSError(f"{path} is damaged; run headrace akumuli rebuild")
    both = np.frombuffer(arrays, np.int64)
    return Checkpoint(
        header.marks, header.seen, both[: header.count].copy(), both[header.count :].copy(), header.gaps, header.start, header.since_us
    )
