"""The commit record of one roll, and the arithmetic of its range. No I/O."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from headrace import Missing, RangeKey

RECORD_FORMAT = 1


class LakeFile(msgspec.Struct, frozen=True):
    """One Parquet file of a roll: path below the lake's root, rows, size in bytes, and its entry in `CommitRecord.schemas`."""

    path: str
    rows: int
    bytes: int
    schema: str


class CommitRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What one roll put into the lake: positions first..last of one queue id, each a row, missing, or dead.

    `attempt` names the roll's folder below `_tmp`, in which file n waits as `<n>.tmp` until it is published at
    `files[n].path`. `dead` holds ranges of dead-lettered positions, both ends inclusive. `schemas` says, for each name
    that a file refers to, the children of `readings` and of `context` with their Arrow types. `wrong_clock_rows`: events that
    were received while the host's clock stood before its release, so that their `received` means nothing.
    """

    queue_id: str
    first: int
    last: int
    rows: int
    attempt: str
    files: tuple[LakeFile, ...] = ()
    missing: tuple[Missing, ...] = ()
    dead: tuple[tuple[int, int], ...] = ()
    schemas: dict[str, dict[str, dict[str, str]]] = {}
    written_at: str = ""
    wrong_clock_rows: int = 0
    format: int = RECORD_FORMAT


def encode(record: CommitRecord) -> bytes:
    return msgspec.json.format(msgspec.json.encode(record), indent=1)


def decode(data: bytes, path: str) -> CommitRecord:
    """A record from its bytes; OSError (so that the host tries again) when they are no record that we read."""
    try:
        record = msgspec.json.decode(data, type=CommitRecord)
    except msgspec.MsgspecError as error:
        raise OSError(f"commit record {path} cannot be read ({error}); restore it from a backup of the lake") from error
    if record.format > RECORD_FORMAT:
        raise OSError(f"commit record {path} has format {record.format}, expected at most {RECORD_FORMAT}; upgrade headrace-sink-lake")
    return record


def size(span: RangeKey | Missing) -> int:
    """How many positions a range has; 0 or less when it is empty."""
    return span.last - span.first + 1


def rows_of(key: RangeKey) -> int:
    """How many rows belong to a range."""
    return size(key) - sum(size(hole) for hole in key.missing) - len(key.dead)


def up_to(key: RangeKey, last: int) -> RangeKey:
    """The part of a range at or below `last`; its size is 0 or less where there is none."""
    missing = tuple(Missing(hole.first, min(hole.last, last), hole.reason) for hole in key.missing if hole.first <= last)
    return RangeKey(key.queue_id, key.first, min(key.last, last), missing, tuple(p for p in key.dead if p <= last))


def behind(key: RangeKey, end: int) -> RangeKey:
    """The part of a range above `end`; its size is 0 or less where there is none."""
    missing = tuple(Missing(max(hole.first, end + 1), hole.last, hole.reason) for hole in key.missing if hole.last > end)
    return RangeKey(key.queue_id, max(key.first, end + 1), key.last, missing, tuple(p for p in key.dead if p > end))


def ranges(positions: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Positions as ranges, both ends inclusive."""
    found: list[tuple[int, int]] = []
    for position in sorted(positions):
        if found and found[-1][1] == position - 1:
            found[-1] = (found[-1][0], position)
        else:
            found.append((position, position))
    return tuple(found)
