"""What a lake says of itself, without reading an event: `headrace lake info`. Blocking I/O; may raise OSError."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from headrace_sink_lake.ledger import ATTEMPT, COMMITS, RECORD, TEMPORARIES
from headrace_sink_lake.manifest import LiveFile
from headrace_sink_lake.record import CommitRecord, decode, size
from headrace_sink_lake.snapshot import read_manifest
from headrace_sink_lake.store import Store

#: Files that readers like; what is below a quarter of it counts as small.
TARGET_BYTES = 128 << 20
SMALL_BYTES = TARGET_BYTES // 4
#: What to do about a damaged file.
RESTORE = "restore the file from a backup, or replay its range from a recording"


@dataclass
class Queue:
    """What the commit records of one queue id add up to, in positions."""

    id: str
    rolls: int = 0
    rows: int = 0
    missing: int = 0
    dead: int = 0
    wrong_clock: int = 0
    first: int | None = None
    last: int | None = None
    written_first: str = ""
    written_last: str = ""

    def add(self, record: CommitRecord) -> None:
        self.rolls += 1
        self.rows += record.rows
        self.missing += sum(size(hole) for hole in record.missing)
        self.dead += sum(last - first + 1 for first, last in record.dead)
        self.wrong_clock += record.wrong_clock_rows
        self.first = record.first if self.first is None else min(self.first, record.first)
        self.last = record.last if self.last is None else max(self.last, record.last)
        self.written_first = min(self.written_first or record.written_at, record.written_at)
        self.written_last = max(self.written_last, record.written_at)


@dataclass
class Folder:
    """What readers count in one partition."""

    files: int = 0
    rows: int = 0
    bytes: int = 0
    small: int = 0

    def add(self, file: LiveFile) -> None:
        self.files += 1
        self.rows += file.rows
        self.bytes += file.bytes
        self.small += file.bytes < SMALL_BYTES


@dataclass(frozen=True)
class Pending:
    """A roll's folder in `_tmp`: of a writer at work, or left by a crash."""

    attempt: str
    committed: bool
    files: int


@dataclass
class Inspection:
    """A lake as its records, its manifest and its `_tmp` describe it."""

    root: str
    queues: list[Queue] = field(default_factory=list)
    folders: dict[str, Folder] = field(default_factory=dict)
    pending: list[Pending] = field(default_factory=list)
    #: Files of rolls that compacted ones stand in for. They may be on the disk still.
    replaced: int = 0
    compacted: int = 0
    #: Compacted partitions whose replaced files are still on the disk.
    unsettled: int = 0

    def facts(self) -> dict[str, Any]:
        """As one JSON object."""
        total = [sum(getattr(folder, name) for folder in self.folders.values()) for name in ("files", "rows", "bytes", "small")]
        return {
            "path": self.root,
            **dict(zip(("files", "rows", "bytes", "small_files"), total, strict=True)),
            "partitions": len(self.folders),
            "compacted_files": self.compacted,
            "replaced_files": self.replaced,
            "unsettled_partitions": self.unsettled,
            "written_first": min((queue.written_first for queue in self.queues), default=None),
            "written_last": max((queue.written_last for queue in self.queues), default=None),
            "queue_ids": [vars(queue) for queue in self.queues],
            "pending": [vars(roll) for roll in self.pending],
            "folders": {name: vars(folder) for name, folder in sorted(self.folders.items())},
        }


def require_lake(store: Store) -> None:
    """OSError unless a lake is there."""
    if not store.names(COMMITS) and not store.names(TEMPORARIES) and not {COMMITS, TEMPORARIES} & set(store.names("")):
        raise OSError(f"expected a lake with a folder {COMMITS} at {store.root}, found none; give the `path` of the output sink_lake")


def queue_names(store: Store) -> list[str]:
    """The queue ids that have commit records, percent-encoded as their folders are."""
    return store.folders(COMMITS)


def records(store: Store, queue: str) -> Iterator[tuple[str, CommitRecord | OSError]]:
    """The commit records of one queue id (percent-encoded) by position: path, and record or why it cannot be read."""
    for name in store.names(f"{COMMITS}/{queue}"):
        if not RECORD.fullmatch(name):
            continue
        path = f"{COMMITS}/{queue}/{name}"
        if (data := store.get(path)) is None:
            continue
        try:
            yield path, decode(data, f"{store.root}/{path}")
        except OSError as error:
            yield path, error


def inspect(store: Store) -> Inspection:
    """Look at a lake; also while it is written."""
    require_lake(store)
    found = Inspection(store.root)
    manifest = read_manifest(store)
    index = manifest.index()
    for partition in manifest.partitions:
        found.compacted += len(partition.files)
        found.unsettled += not partition.settled
        for live in partition.files:
            found.folders.setdefault(partition.folder, Folder()).add(live)
    for queue in queue_names(store):
        entry = Queue(unquote(queue))
        for _, record in records(store, queue):
            if isinstance(record, OSError):
                raise record
            entry.add(record)
            for file in record.files:
                folder = file.path.rpartition("/")[0]
                if index.is_covered(folder, queue, record.first):
                    found.replaced += file.path not in index.files
                else:
                    found.folders.setdefault(folder, Folder()).add(LiveFile(file.path, file.rows, file.bytes))
        if entry.rolls:
            found.queues.append(entry)
    found.pending = list(pending(store))
    return found


def pending(store: Store) -> Iterator[Pending]:
    """The rolls that have a folder in `_tmp`."""
    for attempt in store.folders(TEMPORARIES):
        if (name := ATTEMPT.fullmatch(attempt)) is None:
            continue
        data = store.get(f"{COMMITS}/{name['queue']}/{name['first']}.json")
        committed = data is not None and decode(data, attempt).attempt == attempt
        yield Pending(attempt, committed, sum(file.removesuffix(".tmp").isdigit() for file in store.names(f"{TEMPORARIES}/{attempt}")))
