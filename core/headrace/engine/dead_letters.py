"""The store for events that a decoder, an enricher or an output refused for good.

One SQLite file per tier, synced at every commit. Refused rows are durable here before the commit that leaves them out
(DELIVERY 21); a letter is named by (queue id, position, output), so that a repetition after a crash adds nothing. Bounded:
when full, the output that wants to add holds.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from headrace.errors import TransientError
from headrace.log import Log, describe

#: The `output` of letters that concern every output of the tier: decoding and enrichment happen once for all.
ALL_OUTPUTS: Final = ""


class Letter(NamedTuple):
    """One refused event.

    stage is `decode`, `enrich` or `output`; component refused it. received in Unix microseconds; payload holds the
    device's bytes as they came, in `encoding` (0: an Arrow IPC stream with the one event, where no payload is left).
    """

    queue_id: str
    position: int
    output: str
    stage: str
    component: str
    reason: str
    refused_us: int
    device: str
    received_us: int
    encoding: int
    payload: bytes


_COLUMNS: Final = ", ".join(Letter._fields)
_SCHEMA: Final = """
create table if not exists letters (
    seq integer primary key autoincrement,
    queue_id text not null, position integer not null, output text not null,
    stage text not null, component text not null, reason text not null, refused_us integer not null,
    device text not null, received_us integer not null, encoding integer not null, payload blob not null,
    unique (queue_id, position, output)
)"""


class DeadLetters:
    """The store of one tier. Blocking; safe to call from one thread at a time."""

    def __init__(self, path: Path, size_bytes_max: int) -> None:
        self.path, self.size_bytes_max = path, size_bytes_max
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise  # locked, or the disk: the file may be sound
            # without them the tier would not start; they are kept for a person to look at
            self._db.close()
            aside = path.replace(path.with_name(path.name + ".corrupt"))
            Log("").error("dead letters are unreadable: set aside", path=str(aside), error=describe(error))
            self._open()

    def _open(self) -> None:
        self._db = sqlite3.connect(self.path, check_same_thread=False)
        self._db.execute("pragma journal_mode = wal")
        self._db.execute("pragma synchronous = full")
        self._db.execute(_SCHEMA)
        self.count: int = self._db.execute("select count(*) from letters").fetchone()[0]

    def add(self, letters: Sequence[Letter]) -> int:
        """Store these letters; durable on return. Returns how many were new; raises TransientError when full or failing."""
        marks = ", ".join("?" * len(Letter._fields))
        try:
            size = self._size_bytes()
            if size >= self.size_bytes_max and not all(map(self._known, letters)):
                raise TransientError(
                    f"dead letters at {self.path} are full: {size} of {self.size_bytes_max} bytes; "
                    "move the file away, or raise engine.dead_letters_bytes_max"
                )
            with self._db:
                before = self._db.total_changes
                self._db.executemany(f"insert or ignore into letters ({_COLUMNS}) values ({marks})", letters)
                added = self._db.total_changes - before
        except sqlite3.Error as error:
            raise self._failing(error) from error
        self.count += added
        return added

    def _known(self, letter: Letter) -> bool:
        found = self._db.execute(
            "select 1 from letters where queue_id = ? and position = ? and output = ?", (letter.queue_id, letter.position, letter.output)
        )
        return found.fetchone() is not None

    def positions(self, queue_id: str, first: int, last: int, output: str, stage: str = "%") -> set[int]:
        """The positions in first..last that this output (or all of them) must leave out; raises TransientError when failing."""
        try:
            rows = self._db.execute(
                "select position from letters where queue_id = ? and position between ? and ? and output in (?, ?) and stage like ?",
                (queue_id, first, last, output, ALL_OUTPUTS, stage),
            )
            return {row[0] for row in rows}
        except sqlite3.Error as error:
            raise self._failing(error) from error

    def _failing(self, error: sqlite3.Error) -> TransientError:
        return TransientError(f"dead letters at {self.path}: {error}")

    def _size_bytes(self) -> int:
        pages, free, size = (self._db.execute(f"pragma {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size"))
        return int((pages - free) * size)

    def close(self) -> None:
        """Safe twice."""
        self._db.close()
