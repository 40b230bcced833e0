"""Runs of small frames, found and checked together: what a read of thousands of one-row frames is made of.

Only what needs no second thought is taken: raw frames with rows that follow each other without a gap and whose checksums fit.
A run ends before anything else, which the reader then looks at frame by frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from headrace_queue_pmem.area import Area
from headrace_queue_pmem.layout import FRAME_MAGIC, KIND_RAW, LINE
from headrace_queue_pmem.messages import Ints

#: How far a run reaches at most; and the fewest frames that are worth the array operations.
SCAN_BYTES: Final = 1 << 20
FRAMES_MIN: Final = 8

#: layout.FRAME as an array's type.
_HEADER: Final = np.dtype(
    [
        ("magic", "<u4"),
        ("crc", "<u4"),
        ("nonce", "<u8"),
        ("first", "<u8"),
        ("rows", "<u4"),
        ("generation", "<u4"),
        ("durable_upto", "<u8"),
        ("time_us", "<i8"),
        ("origins_bytes", "<u4"),
        ("payload_bytes", "<u4"),
        ("body_crc", "<u4"),
        ("kind", "<u2"),
        ("flags", "<u2"),
    ]
)
assert _HEADER.itemsize == LINE


@dataclass(slots=True)
class Run:
    """Frames of one area, one behind the other: where each begins, its rows, and its two bodies."""

    area: Area
    offsets: Ints
    rows_each: Ints
    origins_at: Ints
    origins_bytes: Ints
    payload_at: Ints
    payload_bytes: Ints
    end: int  # where the next frame begins

    @property
    def rows(self) -> int:
        return int(self.rows_each.sum())

    @property
    def bytes(self) -> int:
        return self.end - int(self.offsets[0])


def find_run(area: Area, start: int, end: int, nonce: int, position: int, limit: int, rows_max: int, bytes_max: int) -> Run | None:
    """The run of frames that begins at `start` with `position`, goes up to `limit` at most, and keeps to the bounds."""
    lines = min(end - start, SCAN_BYTES, bytes_max) // LINE
    if lines < FRAMES_MIN:
        return None
    table = np.frombuffer(area.view[start : start + lines * LINE], np.uint8).reshape(lines, LINE)
    magic = np.frombuffer(area.view[start : start + lines * LINE], "<u4").reshape(lines, LINE // 4)[:, 0]
    candidates = np.flatnonzero(magic == FRAME_MAGIC)
    if len(candidates) < FRAMES_MIN:
        return None
    raw = table[candidates]
    headers = raw.view(_HEADER)[:, 0]
    origins, payload = headers["origins_bytes"].astype(np.int64), headers["payload_bytes"].astype(np.int64)
    sizes = 1 + -(-origins // LINE) + -(-payload // LINE)
    plain = (headers["nonce"] == nonce) & (headers["kind"] == KIND_RAW) & (headers["rows"] > 0)
    chain = _chain(candidates.tolist(), sizes.tolist(), plain.tolist(), lines)
    headers, origins, payload, sizes = headers[chain], origins[chain], payload[chain], sizes[chain]
    rows = headers["rows"].astype(np.int64)
    ends = np.cumsum(rows)
    fits = (headers["first"] == (position + ends - rows).astype(np.uint64)) & (ends <= rows_max) & (position + ends - 1 <= limit)
    count = len(chain) if fits.all() else int(fits.argmin())
    offsets = start + candidates[chain].astype(np.int64) * LINE
    origins_at = offsets + LINE
    payload_at = origins_at + -(-origins // LINE) * LINE
    intact = count_intact(area.view, memoryview(raw[chain[:count]].tobytes()), headers, origins_at, payload_at)
    if intact < FRAMES_MIN:
        return None
    last = intact - 1
    return Run(
        area,
        offsets[:intact],
        rows[:intact],
        origins_at[:intact],
        origins[:intact],
        payload_at[:intact],
        payload[:intact],
        int(offsets[last] + sizes[last] * LINE),
    )


def count_intact(view: memoryview, raw: memoryview, headers: npt.NDArray[np.void], origins_at: Ints, payload_at: Ints) -> int:
    """How many of the first frames have checksums that fit. `raw` has their headers, one behind the other."""
    frames = zip(
        headers["crc"].tolist(),
        headers["body_crc"].tolist(),
        origins_at.tolist(),
        headers["origins_bytes"].tolist(),
        payload_at.tolist(),
        headers["payload_bytes"].tolist(),
        strict=True,
    )
    for number, (crc, body_crc, origins, origins_bytes, payload, payload_bytes) in zip(range(len(raw) // LINE), frames, strict=False):
        if crc32c(raw[number * LINE + 8 : (number + 1) * LINE]) != crc:
            return number
        before = crc32c(view[origins : origins + origins_bytes]) if origins_bytes else 0
        if crc32c(view[payload : payload + payload_bytes], before) != body_crc:
            return number
    return len(raw) // LINE


def _chain(candidates: list[int], sizes: list[int], plain: list[bool], lines: int) -> list[int]:
    """Which candidates are frames one behind the other: a payload may look like a frame, but none begins inside another."""
    chain = []
    line = 0
    for index, (candidate, size, good) in enumerate(zip(candidates, sizes, plain, strict=True)):
        if candidate < line:
            continue
        if candidate > line or not good or line + size > lines:
            break
        chain.append(index)
        line += size
    return chain
