"""The file of the dead letters: its tables, their versions, and how it is opened. The engine and `headrace dead` share it.

A letter's `state` is `dead` (waits for a person) or `queued` (is to be replayed). Of one that was replayed or purged its position
stays, in `settled`: a range that is written again has to leave it out for as long as the queue can give it.

`replays` is the queue of what goes through again, one numbering per output, and its rows are never reused: `number` is the
position under which the output gets the letter, `queue_id` the identity under which it does. `replay_readers` has the cursor and
the plan of each output, as the queue proper has them for events.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

NAME: Final = "dead_letters.db"
CORRUPT: Final = ".corrupt"
BUSY_S: Final = 10.0

_TABLES: Final = """
create table if not exists letters (
    seq integer primary key autoincrement,
    queue_id text not null, position integer not null, output text not null,
    stage text not null, component text not null, reason text not null, refused_us integer not null,
    device text not null, received_us integer not null, encoding integer not null, payload blob not null,
    unique (queue_id, position, output)
);
create table if not exists settled (
    queue_id text not null, position integer not null, output text not null, stage text not null,
    primary key (queue_id, position, output)
) without rowid;
create table if not exists replays (
    output text not null, number integer not null, queue_id text not null, seq integer not null,
    state text not null, stage text not null default '',
    primary key (output, number)
) without rowid;
create index if not exists replays_of_letter on replays (seq, output);
create table if not exists replay_readers (output text primary key, head integer not null, cursor integer not null, plan text);
"""

#: Columns that came after the first version.
_ADDED: Final = {
    "origin": "text",
    "origin_position": "integer",
    "state": "text not null default 'dead'",
    "attempts": "integer not null default 1",
}


#: Move what a letter is known by to `settled`, and drop the letter; by seq.
_SETTLE: Final = (
    "insert or ignore into settled select queue_id, position, output, stage from letters where seq = ?",
    "delete from letters where seq = ?",
    "delete from replays where seq = ?",
)


def settle(db: sqlite3.Connection, seq: int) -> None:
    """The letter was replayed or purged; within a transaction of the caller's."""
    for statement in _SETTLE:
        db.execute(statement, (seq,))


def connect(path: Path) -> sqlite3.Connection:
    """Open or create it; every commit is synced. Raises sqlite3.Error."""
    db = sqlite3.connect(path, timeout=BUSY_S, check_same_thread=False)
    try:
        db.execute("pragma journal_mode = wal")
        db.execute("pragma synchronous = full")
        db.executescript(_TABLES)
        known = {row[1] for row in db.execute("pragma table_info(letters)")}
        for column, kind in _ADDED.items():
            if column not in known:
                db.execute(f"alter table letters add column {column} {kind}")
        db.execute("create index if not exists letters_by_state on letters (state, seq)")
        db.commit()
    except BaseException:
        db.close()
        raise
    return db


def is_one(path: Path) -> bool:
    """Whether the file, which is there, is a store of dead letters: to look into another must not change it. Raises sqlite3.Error."""
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)
    try:
        return db.execute("select 1 from sqlite_master where type = 'table' and name = 'letters'").fetchone() is not None
    finally:
        db.close()


def size_bytes(db: sqlite3.Connection) -> int:
    """What the letters take, without the pages that are free again."""
    pages, free, size = (db.execute(f"pragma {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size"))
    return int((pages - free) * size)


def corrupt_files(path: Path) -> list[Path]:
    """The stores that were set aside because they were unreadable, oldest first."""
    found = [file for file in path.parent.glob(f"{path.name}{CORRUPT}*") if not file.name.endswith(("-wal", "-shm"))]
    return sorted(found, key=lambda file: (len(file.name), file.name))


def set_aside(path: Path) -> Path:
    """Move an unreadable store out of the way, with its log, over nothing that was set aside before; its new place."""
    number = len(corrupt_files(path))
    aside = path.with_name(f"{path.name}{CORRUPT}{f'.{number}' if number else ''}")
    path.replace(aside)
    for ending in ("-wal", "-shm"):
        beside = path.with_name(path.name + ending)
        if beside.exists():
            beside.replace(aside.with_name(aside.name + ending))
    return aside
