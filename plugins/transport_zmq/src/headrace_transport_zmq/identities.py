"""Who may speak for a queue id: whoever proves what the first one proved (DELIVERY 15). Durable before anything of it is taken."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path
from typing import Final

#: Queue ids remembered; the oldest are forgotten, and then anybody may be their first.
IDENTITIES_MAX: Final = 65_536


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

    def close(self) -> None:
        """Safe twice."""
        self._db.close()
