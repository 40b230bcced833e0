"""`headrace lake verify`: every position exactly once, or declared missing or dead, from files and commit records alone.

Three accounts are compared: the commit records of each queue id (they chain, and each adds up), the files (each that a
record or the manifest names is there with its rows, and no other), and the events (no (origin, position) twice, and those
of a roll's own queue within its range). A row for each position that is neither missing nor dead, and no event twice: that
is each position once. Memory: some 400 bytes a file, and one bit an event of at most 256 MiB, beyond which the files are
read several times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace_sink_lake.columns import ids
from headrace_sink_lake.inspection import RESTORE, queue_names, records, require_lake
from headrace_sink_lake.ledger import COMMITS, TEMPORARIES
from headrace_sink_lake.manifest import COMPACTED_FILE, MANIFESTS, MERGED, PARQUET, ROLL_FILE, Index, Manifest
from headrace_sink_lake.positions import Seen, passes_for
from headrace_sink_lake.record import CommitRecord, size
from headrace_sink_lake.snapshot import newest, read_manifest
from headrace_sink_lake.store import Store

#: Findings that are told one by one; the others are counted.
FINDINGS_MAX = 1000
POSITIONS_TOLD_MAX = 5


class Finding(NamedTuple):
    """Something that is not as it must be: where, what was expected, what came, what to do."""

    path: str
    expected: str
    found: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected}, found {self.found}; {self.remedy}"


@dataclass
class Verdict:
    """What was looked at, and what is wrong. `notes`: states that are well but not final."""

    rolls: int = 0
    files: int = 0
    rows: int = 0
    missing: int = 0
    dead: int = 0
    findings: list[Finding] = field(default_factory=list)
    findings_more: int = 0
    notes: list[str] = field(default_factory=list)

    def add(self, path: str, expected: str, found: str, remedy: str) -> None:
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(Finding(path, expected, found, remedy))
        else:
            self.findings_more += 1

    @property
    def ok(self) -> bool:
        return not self.findings


def verify(store: Store, *, fast: bool = False, tell: Callable[[str], None] = lambda text: None) -> Verdict:
    """Check a lake, also while it is written and compacted. `fast`: records, names, sizes and footers, but no events."""
    require_lake(store)
    while True:
        manifest = read_manifest(store)
        verdict = _Check(store, manifest, fast, tell).run()
        if verdict.ok or newest(store) == manifest.number:
            return verdict
        tell("the lake was compacted meanwhile: looking again")


class _Range(NamedTuple):
    first: int
    last: int
    absent: tuple[tuple[int, int], ...]


class _Expected(NamedTuple):
    rows: int
    bytes: int
    attempt: str  # "" for a compacted file
    number: int  # of the file within the roll


class _Check:
    def __init__(self, store: Store, manifest: Manifest, fast: bool, tell: Callable[[str], None]) -> None:
        self._store, self._manifest, self._fast, self._tell = store, manifest, fast, tell
        self._index: Index = manifest.index()
        self._verdict = Verdict()
        self._live: dict[str, _Expected] = {}
        self._ranges: dict[str, _Range] = {}
        self._covered_rows: dict[str, int] = {}
        self._replaced: set[str] = set()
        self._known: set[tuple[str, int]] = set()

    def run(self) -> Verdict:
        for queue in queue_names(self._store):
            self._read_records(queue)
        for partition in self._manifest.partitions:
            held, due = sum(file.rows for file in partition.files), self._covered_rows.get(partition.folder, 0)
            if held != due:
                self._verdict.add(
                    partition.folder or ".",
                    f"{due} rows of compacted rolls by their records",
                    f"{held} in the files of the manifest",
                    f"restore {COMMITS} and {MANIFESTS} from one backup",
                )
            for file in partition.files:
                self._live[file.path] = _Expected(file.rows, file.bytes, "", 0)
        self._match_files()
        self._verdict.files = len(self._live)
        self._verdict.rows = sum(file.rows for file in self._live.values())
        self._look_into()
        return self._verdict

    # --- the records ---------------------------------------------------------------------------------------------

    def _read_records(self, queue: str) -> None:
        following: int | None = None
        for path, record in records(self._store, queue):
            if isinstance(record, OSError):
                self._verdict.add(path, "a commit record", str(record), "restore it from a backup of the lake")
                following = None
                continue
            if following is not None and record.first != following:
                what = "a hole" if record.first > following else "an overlap"
                self._verdict.add(
                    path,
                    f"a record that begins at {following}, where the one before ends",
                    f"{what}: it begins at {record.first}",
                    f"restore the records of {unquote(queue)} from a backup of {COMMITS}",
                )
            following = record.last + 1
            self._verdict.rolls += 1
            self._take(path, queue, record)

    def _take(self, path: str, queue: str, record: CommitRecord) -> None:
        holes = [(hole.first, hole.last) for hole in record.missing]
        missing, dead = sum(map(size, record.missing)), sum(last - first + 1 for first, last in record.dead)
        self._verdict.missing += missing
        self._verdict.dead += dead
        remedy = "restore the record from a backup of the lake"
        if record.rows + missing + dead != record.last - record.first + 1:
            came = f"{record.rows} rows + {missing} missing + {dead} dead"
            self._verdict.add(path, f"{record.last - record.first + 1} positions in {record.first}..{record.last}", came, remedy)
        if record.rows != sum(file.rows for file in record.files):
            self._verdict.add(path, f"files of {record.rows} rows", f"{sum(file.rows for file in record.files)}", remedy)
        if (unquote(queue), record.first) != (record.queue_id, int(path[-25:-5])):
            self._verdict.add(path, "the record of that queue id and position", f"one of {record.queue_id}/{record.first}", remedy)
        self._known.add((queue, int(path[-25:-5])))
        self._ranges[record.attempt] = _Range(record.first, record.last, tuple(sorted([*holes, *record.dead])))
        for number, file in enumerate(record.files):
            folder = file.path.rpartition("/")[0]
            if self._index.is_covered(folder, queue, record.first):
                self._covered_rows[folder] = self._covered_rows.get(folder, 0) + file.rows
                self._replaced.add(file.path)
            else:
                self._live[file.path] = _Expected(file.rows, file.bytes, record.attempt, number)
        self._progress(f"{self._verdict.rolls:,} records")

    # --- the files -----------------------------------------------------------------------------------------------

    def _match_files(self) -> None:
        there: set[str] = set()
        leftover = 0
        for path, length in self._store.walk():
            name = path.rpartition("/")[2]
            if path in self._live:
                there.add(path)
                if length != self._live[path].bytes:
                    self._verdict.add(path, f"{self._live[path].bytes} bytes", f"{length}", RESTORE)
            elif path in self._replaced or COMPACTED_FILE.fullmatch(name):
                leftover += 1
            elif path.endswith((PARQUET, MERGED)) and not self._is_newer(path):
                self._verdict.add(path, "only files that a commit record or the manifest names", *self._unnamed(name))
        if leftover:
            self._verdict.notes.append(f"{leftover} files that compacted ones replace are still there; `headrace lake vacuum` removes them")
        for path in sorted(self._live.keys() - there):
            self._absent(path, self._live[path])

    def _unnamed(self, name: str) -> tuple[str, str]:
        """What to say of a file that nothing names, and what to do: one whose record was damaged holds events that were acknowledged."""
        roll = ROLL_FILE.fullmatch(name)
        if roll is None or (roll["queue"], int(roll["first"])) in self._known:
            return "this one", "move it out of the lake: readers count it"
        record = f"{COMMITS}/{roll['queue']}/{roll['first']}.json"
        remedy = "restore that record from a backup of the lake; only where there never was one, move it out of the lake"
        return f"this one, whose record {record} is not there or cannot be read", remedy

    def _is_newer(self, path: str) -> bool:
        # A roll that was committed after its queue id's records were read.
        roll = ROLL_FILE.fullmatch(path.rpartition("/")[2])
        data = self._store.get(f"{COMMITS}/{roll['queue']}/{roll['first']}.json") if roll else None
        return roll is not None and data is not None and path.encode() in data and roll["attempt"] not in self._ranges

    def _absent(self, path: str, file: _Expected) -> None:
        waiting = f"{TEMPORARIES}/{file.attempt}/{file.number}.tmp"
        if self._store.size(path) is not None:
            return  # published since the walk
        if file.attempt and self._store.size(waiting) is not None:
            self._verdict.notes.append(f"{path} is committed and not yet moved from {waiting}; a writer's next resume or open does it")
            self._live[waiting] = self._live.pop(path)
            return
        if self._store.size(path) is None:
            self._verdict.add(path, f"a file of {file.rows} rows", "none", RESTORE)
            self._live.pop(path)

    # --- the events ----------------------------------------------------------------------------------------------

    def _look_into(self) -> None:
        passes = 1 if self._fast else passes_for(self._verdict.rows)
        doubles: dict[str, set[int]] = {}
        read = 0
        for number in range(passes):
            seen = Seen(passes, number)
            for path, file in sorted(self._live.items()):
                for origin, positions in self._events(path, file, first=number == 0):
                    if len(twice := seen.add(origin, positions)):
                        doubles.setdefault(origin, set()).update(twice[:FINDINGS_MAX].tolist())
                read += 1
                self._progress(f"{read:,} of {len(self._live) * passes:,} files")
        if doubles:
            self._tell_doubles(doubles)

    def _events(self, path: str, file: _Expected, *, first: bool) -> Iterator[tuple[str, Any]]:
        rows = 0
        try:
            with self._store.open_input(path) as stream, pq.ParquetFile(stream, read_dictionary=["origin"]) as parquet:
                rows = parquet.metadata.num_rows
                if first and rows != file.rows:
                    self._verdict.add(path, f"{file.rows} rows", f"{rows}", RESTORE)
                if self._fast:
                    return
                for batch in parquet.iter_batches(columns=["origin", "position"], batch_size=1 << 18):
                    yield from self._by_origin(path, file, batch, first)
        except (OSError, pa.ArrowException) as error:
            if first:
                self._verdict.add(path, f"a Parquet file of {file.rows} rows", f"{type(error).__name__}: {error}", RESTORE)

    def _by_origin(self, path: str, file: _Expected, batch: pa.RecordBatch, first: bool) -> Iterator[tuple[str, Any]]:
        names, codes, positions = ids(batch)
        for code in np.unique(codes).tolist():
            own = positions if len(names) == 1 else positions[codes == code]
            if first and file.attempt:
                self._check_range(path, file.attempt, names[code], own)
            yield names[code], own

    def _check_range(self, path: str, attempt: str, origin: str, positions: Any) -> None:
        if origin != unquote(attempt.rsplit("-", 2)[0]):
            return  # it came over a link, with the id that its first queue gave it
        span = self._ranges[attempt]
        wrong = (positions < span.first) | (positions > span.last)
        for low, high in span.absent:
            wrong |= (positions >= low) & (positions <= high)
        if wrong.any():
            shown = _shown(positions[wrong])
            declared = f"positions of {span.first}..{span.last} that are neither missing nor dead"
            self._verdict.add(path, declared, f"{int(wrong.sum())} others ({shown})", RESTORE)

    def _tell_doubles(self, doubles: dict[str, set[int]]) -> None:
        wanted = {origin: np.array(sorted(positions), dtype=np.uint64) for origin, positions in doubles.items()}
        for path, file in sorted(self._live.items()):
            for origin, positions in self._events(path, file, first=False):
                if len(common := positions[np.isin(positions, wanted.get(origin, positions[:0]))]):
                    self._verdict.add(
                        path,
                        f"each event of {origin} once in the lake",
                        f"{len(common)} that are there twice ({_shown(common)})",
                        "restore the files that are named for them from a backup, and move others out of the lake",
                    )

    def _progress(self, text: str) -> None:
        self._tell(text)


def _shown(positions: Any) -> str:
    told = ", ".join(map(str, np.unique(positions)[:POSITIONS_TOLD_MAX].tolist()))
    return told + (", ..." if len(positions) > POSITIONS_TOLD_MAX else "")
