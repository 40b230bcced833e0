"""The dead letters of a site, as a person sees them: found on disk, filtered, listed, marked. Blocking.

Works beside a running tier: SQLite's log lets both have the file open, and every change here is one short transaction.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from headrace.engine import dead_letter_file
from headrace.errors import HeadraceError

#: Letters that are marked in one transaction, so that a running tier never waits long for the file.
CHUNK: Final = 2000


class Filter(NamedTuple):
    """Which letters. refused times in Unix microseconds; seqs as (first, last)."""

    output: str | None = None
    stage: str | None = None
    component: str | None = None
    reason: str | None = None
    device: str | None = None
    since_us: int | None = None
    until_us: int | None = None
    seqs: tuple[tuple[int, int], ...] = ()
    state: str | None = None

    def where(self) -> tuple[str, list[object]]:
        """The condition, and what its question marks stand for."""
        terms = ["1"]
        found: list[object] = []
        columns = (("stage", self.stage), ("component", self.component), ("device", self.device), ("state", self.state))
        for column, value in columns:
            if value is not None:
                terms.append(f"{column} = ?")
                found.append(value)
        if self.output is not None:
            terms.append("output in (?, '')")  # what no output could be given concerns them all
            found.append(self.output)
        if self.reason is not None:
            terms.append("instr(lower(reason), lower(?)) > 0")
            found.append(self.reason)
        if self.since_us is not None:
            terms.append("refused_us >= ?")
            found.append(self.since_us)
        if self.until_us is not None:
            terms.append("refused_us < ?")
            found.append(self.until_us)
        if self.seqs:
            terms.append(f"({' or '.join(['seq between ? and ?'] * len(self.seqs))})")
            found += [bound for pair in self.seqs for bound in pair]
        return " and ".join(terms), found

    @property
    def narrow(self) -> bool:
        """Whether anything was asked for."""
        return self != Filter(state=self.state)


class Row(NamedTuple):
    """One letter. refused and received in Unix microseconds."""

    seq: int
    state: str
    attempts: int
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
    origin: str | None
    origin_position: int | None


class Count(NamedTuple):
    """Letters of one reason."""

    stage: str
    component: str
    reason: str
    letters: int


_ROW: Final = ", ".join(Row._fields)


class DeadStore:
    """One file of dead letters; `name` is the tier's (of a worker: `<tier>.<number>`)."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        try:
            if not dead_letter_file.is_one(path):
                raise HeadraceError(f"{path} holds no dead letters; expected a {dead_letter_file.NAME}")
            self._db = dead_letter_file.connect(path)
        except sqlite3.Error as error:
            raise HeadraceError(f"dead letters at {path} cannot be read: {error}") from error

    def rows(self, wanted: Filter, limit: int | None = None) -> Iterator[Row]:
        """The letters, oldest first."""
        where, values = wanted.where()
        last, left = 0, limit
        while left is None or left > 0:
            size = CHUNK if left is None else min(CHUNK, left)
            rows = self._db.execute(
                f"select {_ROW} from letters where {where} and seq > ? order by seq limit ?", (*values, last, size)
            ).fetchall()
            yield from map(Row._make, rows)
            if len(rows) < size:
                return
            last, left = rows[-1][0], None if left is None else left - size

    def count(self, wanted: Filter) -> int:
        """How many letters."""
        where, values = wanted.where()
        return int(self._db.execute(f"select count(*) from letters where {where}", values).fetchone()[0])

    def counts(self, wanted: Filter) -> list[Count]:
        """Letters by stage, component and reason, the most first. Numbers in a reason do not make it another one."""
        where, values = wanted.where()
        sums: dict[tuple[str, str, str], int] = {}
        for stage, component, reason, letters in self._db.execute(
            f"select stage, component, reason, count(*) from letters where {where} group by 1, 2, 3", values
        ):
            key = (stage, component, re.sub(r"\d+", "#", reason))
            sums[key] = sums.get(key, 0) + letters
        return [Count(*key, letters) for key, letters in sorted(sums.items(), key=lambda pair: -pair[1])]

    def purge(self, wanted: Filter) -> int:
        """Forget the content of these letters for good; how many. Those that are on their way again are not touched."""
        where, values = wanted.where()
        free = "not exists (select 1 from replays where replays.seq = letters.seq and replays.state = 'queued')"
        seqs = self._seqs(f"{where} and {free}", values)
        purged = 0
        for begin in range(0, len(seqs), CHUNK):
            with self._db:
                for seq in seqs[begin : begin + CHUNK]:
                    if self._db.execute(f"select 1 from letters where seq = ? and {free}", (seq,)).fetchone():
                        dead_letter_file.settle(self._db, seq)
                        purged += 1
        return purged

    def queue(self, wanted: Filter) -> list[int]:
        """Have these letters replayed; their numbers."""
        where, values = wanted._replace(state="dead").where()
        seqs = self._seqs(where, values)
        marked = []
        for begin in range(0, len(seqs), CHUNK):
            with self._db:
                for seq in seqs[begin : begin + CHUNK]:
                    if self._db.execute("update letters set state = 'queued' where seq = ? and state = 'dead'", (seq,)).rowcount:
                        marked.append(seq)
        return marked

    def states(self, seqs: Sequence[int]) -> dict[str, int]:
        """How many of these letters are in which state; `gone`: replayed (or purged)."""
        found = {"gone": len(seqs)}
        for begin in range(0, len(seqs), CHUNK):
            part = seqs[begin : begin + CHUNK]
            marks = ", ".join("?" * len(part))
            for state, count in self._db.execute(f"select state, count(*) from letters where seq in ({marks}) group by 1", part):
                found[state] = found.get(state, 0) + count
                found["gone"] -= count
        return found

    def _seqs(self, where: str, values: Sequence[object]) -> list[int]:
        return [row[0] for row in self._db.execute(f"select seq from letters where {where} order by seq", values)]

    def size_bytes(self) -> int:
        """What the letters take on disk."""
        return dead_letter_file.size_bytes(self._db)

    def set_aside(self) -> list[tuple[Path, int | None]]:
        """Stores that were set aside as corrupt, and how many letters can still be counted in each (None: not readable)."""
        return [(file, _countable(file)) for file in dead_letter_file.corrupt_files(self.path)]

    def close(self) -> None:
        self._db.close()


def _countable(file: Path) -> int | None:
    try:
        db = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
        try:
            return int(db.execute("select count(*) from letters").fetchone()[0])
        finally:
            db.close()
    except sqlite3.Error:
        return None


def find(place: Path, tiers: list[str]) -> list[DeadStore]:
    """The stores of a site's file, a data folder, a tier's folder, or one file. HeadraceError where there is none."""
    if not place.exists():
        raise HeadraceError(f"{place}: no such file; expected a site's TOML file, its data folder, or a {dead_letter_file.NAME}")
    if place.is_file() and place.suffix == ".toml":
        from headrace.config import examine

        site, problems = examine(place, [])
        if site is None:
            raise problems[0]
        names = tiers or list(site.tiers)
        if unknown := [name for name in tiers if name not in site.tiers]:
            raise HeadraceError(f"{place}: no tier {unknown[0]!r}; it has {', '.join(site.tiers)}")
        return _below(Path(site.host.data_dir), names)
    if place.is_file():
        return [DeadStore(place.parent.name or place.name, place)]
    if (place / dead_letter_file.NAME).exists():
        return [DeadStore(place.absolute().name, place / dead_letter_file.NAME)]
    return _below(place, tiers)


def _below(data_dir: Path, tiers: list[str]) -> list[DeadStore]:
    found = sorted(data_dir.glob(f"*/{dead_letter_file.NAME}"))
    # of the tiers asked for, with all their workers (`<tier>.<number>`)
    files = [file for file in found if not tiers or re.sub(r"\.\d+$", "", file.parent.name) in tiers]
    if not files:
        what = f" of {', '.join(tiers)}" if tiers else ""
        raise HeadraceError(
            f"no dead letters{what} below {data_dir}: expected <tier>/{dead_letter_file.NAME}; a tier makes it when it starts"
        )
    return [DeadStore(file.parent.name, file) for file in files]
