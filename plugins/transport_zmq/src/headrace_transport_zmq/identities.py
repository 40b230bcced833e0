"""Who may speak for a queue id: whoever proves what the first one proved (DELIVERY 15). Durable before anything of it is taken."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

#: Queue ids remembered; the oldest are forgotten, and then anybody may be their first.
IDENTITIES_MAX: Final = 65_536
#: Marks that are kept though nothing will come of them again, unless a copy of a queue comes back.
RELEASED_MAX: Final = 16_384


def proof(secret: bytes) -> str:
    """What a hello shows of the secret: enough to be recognised, and nothing to find the secret by."""
    return hashlib.sha256(b"headrace link proof 1\0" + secret).hexdigest()


class Identities:
    """The proofs by queue id, in a small database. Called from one thread at a time; blocking."""

    def __init__(self, path: Path) -> None:
        """sqlite3.DatabaseError when the file is none."""
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("pragma journal_mode = wal")
        self._db.execute("pragma synchronous = full")
        self._db.execute("create table if not exists identities (queue_id text primary key, hash text not null)")
        self._db.execute("create table if not exists released (origin text primary key)")

    def proves(self, queue_id: str, shown: str) -> bool:
        """Whether it is the proof that came first for this id; the first one is kept."""
        digest = hashlib.sha256(shown.encode()).hexdigest()
        row = self._db.execute("select hash from identities where queue_id = ?", (queue_id,)).fetchone()
        if row is not None:
            return bool(row[0] == digest)
        self._db.execute("insert into identities values (?, ?)", (queue_id, digest))
        self._db.execute(
            "delete from identities where rowid in (select rowid from identities order by rowid desc limit -1 offset ?)", (IDENTITIES_MAX,)
        )
        return True

    def release(self, over: Sequence[tuple[str, str]], origin: str, shown: str) -> list[str]:
        """Whoever shows this proof speaks for `origin`, and says that these (queue id, origin) are over; of others' ids it can say nothing.
        Gives the oldest that were said to be over, beyond RELEASED_MAX."""
        digest = hashlib.sha256(shown.encode()).hexdigest()
        self._db.execute("delete from released where origin = ?", (origin,))  # a copy of a queue came back
        if not over:
            return []
        own = "select 1 from identities where queue_id = ? and hash = ?"
        known = f"insert or ignore into released select ? where exists ({own})"
        with self._db:  # taken back when it fails half-way: else no later one could begin
            self._db.execute("begin")
            self._db.executemany(known, [(released, queue_id, digest) for queue_id, released in over])
        rows = self._db.execute("select origin from released order by rowid desc limit -1 offset ?", (RELEASED_MAX,)).fetchall()
        return [row[0] for row in rows]

    def forgotten(self, origins: Sequence[str]) -> None:
        """Their marks are gone."""
        self._db.executemany("delete from released where origin = ?", [(origin,) for origin in origins])

    def close(self) -> None:
        """Safe twice."""
        self._db.close()
