"""The store for events that a decoder, an enricher or an output refused for good.

One SQLite file per tier, synced at every commit. Refused rows are durable here before the commit that leaves them out
(DELIVERY 21); a letter is named by (queue id, position, output), so that a repetition after a crash adds nothing. Bounded:
when full, the output that wants to add holds. How letters go through again is in `dead_letter_replays`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from headrace.engine import dead_letter_file
from headrace.errors import TransientError
from headrace.hookspecs import QueueSpan
from headrace.log import Log, describe

#: The `output` of letters that concern every output of the tier: decoding and enrichment happen once for all.
ALL_OUTPUTS: Final = ""
#: Positions that are forgotten in one transaction.
FORGET_ROWS: Final = 10_000


class Letter(NamedTuple):
    """One refused event.

    stage is `decode`, `enrich`, `output` or `crash`; component refused it. received in Unix microseconds; payload holds the
    device's bytes as they came, in `encoding` (0: an Arrow IPC stream with the one event, where no payload is left). origin and
    origin_position: the event's global id, where another queue gave it (None: it is queue_id and position).
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
    origin: str | None = None
    origin_position: int | None = None


class Stored(NamedTuple):
    """How much there is: letters that wait or are to be replayed, their stores' bytes, and the number of stores set aside as corrupt."""

    letters: int
    bytes: int
    bytes_max: int
    corrupt: int


_COLUMNS: Final = ", ".join(Letter._fields)


class DeadLetters:
    """The store of one tier. Blocking; safe to call from one thread at a time."""

    def __init__(self, path: Path, size_bytes_max: int) -> None:
        self.path, self.size_bytes_max = path, size_bytes_max
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.db = dead_letter_file.connect(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise  # locked, or the disk: the file may be sound
            # without them the tier would not start; they are kept for a person to look at
            aside = dead_letter_file.set_aside(path)
            Log("").error("dead letters are unreadable: set aside", path=str(aside), error=describe(error))
            self.db = dead_letter_file.connect(path)
        counts = self.db.execute("select (select count(*) from letters) + (select count(*) from settled)")
        self.count: int = counts.fetchone()[0]

    def add(self, letters: Sequence[Letter]) -> int:
        """Store these letters; durable on return. Returns how many were new; raises TransientError when full or failing."""
        marks = ", ".join("?" * len(Letter._fields))
        try:
            size = dead_letter_file.size_bytes(self.db)
            if size >= self.size_bytes_max and not all(map(self._known, letters)):
                raise TransientError(
                    f"dead letters are full: {size} of {self.size_bytes_max} bytes; run `headrace dead list {self.path}`, then purge or "
                    "replay (`headrace dead purge`, `headrace dead replay`), or raise engine.dead_letters_bytes_max"
                )
            with self.db:
                before = self.db.total_changes
                fresh = [letter for letter in letters if not self._settled(letter)]
                self.db.executemany(f"insert or ignore into letters ({_COLUMNS}) values ({marks})", fresh)
                added = self.db.total_changes - before
        except sqlite3.Error as error:
            raise self.failing(error) from error
        self.count += added
        return added

    def _known(self, letter: Letter) -> bool:
        found = self.db.execute(
            "select 1 from letters where queue_id = ? and position = ? and output = ?", (letter.queue_id, letter.position, letter.output)
        )
        return found.fetchone() is not None or self._settled(letter)

    def _settled(self, letter: Letter) -> bool:
        found = self.db.execute(
            "select 1 from settled where queue_id = ? and position = ? and output = ?", (letter.queue_id, letter.position, letter.output)
        )
        return found.fetchone() is not None

    def positions(self, queue_id: str, first: int, last: int, output: str, stage: str = "%") -> set[int]:
        """The positions in first..last that this output (or all of them) must leave out; raises TransientError when failing."""
        try:
            return {
                row[0]
                for table in ("letters", "settled")
                for row in self.db.execute(
                    f"select position from {table} where queue_id = ? and position between ? and ? and output in (?, ?) and stage like ?",
                    (queue_id, first, last, output, ALL_OUTPUTS, stage),
                )
            }
        except sqlite3.Error as error:
            raise self.failing(error) from error

    def stored(self) -> Stored:
        """How much there is; raises TransientError when failing."""
        try:
            count = self.db.execute("select count(*) from letters").fetchone()[0]
            size = dead_letter_file.size_bytes(self.db)
        except sqlite3.Error as error:
            raise self.failing(error) from error
        return Stored(count, size, self.size_bytes_max, len(dead_letter_file.corrupt_files(self.path)))

    def forget(self, spans: Sequence[QueueSpan], tail: int) -> int:
        """Remove what is left of letters that were replayed or purged and that the queue cannot give any more; how many."""
        held = {span.queue_id for span in spans}
        try:
            rows = self.db.execute("select queue_id, position, output from settled limit ?", (FORGET_ROWS,)).fetchall()
            gone = [row for row in rows if row[0] not in held or row[1] < tail]
            if gone:
                with self.db:
                    self.db.executemany("delete from settled where queue_id = ? and position = ? and output = ?", gone)
        except sqlite3.Error as error:
            raise self.failing(error) from error
        self.count -= len(gone)
        return len(gone)

    def failing(self, error: sqlite3.Error) -> TransientError:
        """What to raise for an error of SQLite."""
        return TransientError(f"dead letters at {self.path}: {error}")

    def close(self) -> None:
        """Safe twice."""
        self.db.close()
