"""The lake's account: commit records, how far they reach, and what happens to rolls that a crash left half-way.

    _tmp/<queue id>-<first>-<nonce>/<n>.tmp      the files of a roll, until it is published
    _commits/<queue id>/<first>.json             the commit record: from its creation on the roll is in the lake
    _commits/<queue id>/tail.json                a hint: a record that need not be the last; readers walk on from it
    class=.../date=.../<queue id>-<first>-<nonce>-<n>.parquet

The order is: write and sync the files in `_tmp`, create the record exclusively, move the files to their places. A crash
before the record leaves files that no reader's glob sees; a crash behind it leaves moves to be finished, which `recover`
does. So no reader ever sees an event twice, and a file of `_tmp` is removed only when a record for its `first` exists and
names another attempt.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import msgspec

from headrace_sink_lake.record import CommitRecord, decode, encode
from headrace_sink_lake.store import Store

COMMITS = "_commits"
TEMPORARIES = "_tmp"
ATTEMPT = re.compile(r"(?P<queue>.+)-(?P<first>\d{20})-[0-9a-f]+")
RECORD = re.compile(r"(?P<first>\d{20})\.json")


class _Tail(msgspec.Struct, frozen=True):
    first: int
    last: int


class Ledger:
    """The commit records of one lake. Every method does blocking I/O and may raise OSError.

    `on_orphans(count)` is told how many files of rolls that lost were removed, `fault` marks the points of crash tests.
    """

    def __init__(self, store: Store, on_orphans: Callable[[int], None], fault: Callable[[str], None] = lambda name: None) -> None:
        self._store, self._on_orphans, self._fault = store, on_orphans, fault

    def open(self) -> None:
        """Make the folders, and finish or undo what a crash left."""
        for folder in (COMMITS, TEMPORARIES):
            self._store.make_dirs(folder)
        self._store.sync_dirs([COMMITS, TEMPORARIES])
        self._store.probe(TEMPORARIES)
        self.recover()

    def present(self) -> None:
        """FileNotFoundError where the lake that was opened is gone: removed, or its filesystem was unmounted.

        A new one in its place would be on another disk, and out of sight as soon as the old one is back.
        """
        if self._store.missing(COMMITS):
            what = "the lake that was opened here is gone; mount it or move it back, or restart to begin a new one"
            raise FileNotFoundError(errno.ENOENT, what, f"{self._store.root}/{COMMITS}")

    def end(self, queue_id: str) -> int | None:
        """The last position of the contiguous prefix of that queue id's range that the lake holds; None: nothing.

        What it counts is safe and in its place when it returns. Reads one hint and one record, not the lake.
        """
        self.present()  # else it would seem to hold nothing
        self.recover(queue_id)
        record = self._tail(queue_id) or self._oldest(queue_id)
        if record is None:
            return None
        while (following := self.read(queue_id, record.last + 1)) is not None:
            record = following
        # A record may be visible and its folder's entry not yet synced: its writer was killed in between.
        self._store.sync_dirs([parent(record_path(queue_id, record.first))])
        return record.last

    def read(self, queue_id: str, first: int) -> CommitRecord | None:
        """The record of the roll that begins at `first`."""
        path = record_path(queue_id, first)
        data = self._store.get(path)
        return None if data is None else decode(data, f"{self._store.root}/{path}")

    def commit(self, record: CommitRecord) -> bool:
        """Put a roll into the lake, for good; False when another writer has taken the range from there on.

        Its files are in `_tmp` and safe. On an OSError the outcome is unknown: `end` tells.
        """
        folder = f"{TEMPORARIES}/{record.attempt}"
        for path in {parent(file.path) for file in record.files}:
            self._store.make_dirs(path)  # before the commit, so that a full disk is met here
        self._store.make_dirs(f"{COMMITS}/{quote(record.queue_id, safe='')}")
        self._store.sync_dirs([folder])
        self._fault("sink_lake.before_commit")
        return self._store.put_new(record_path(record.queue_id, record.first), encode(record), f"{folder}/record.tmp")

    def publish(self, record: CommitRecord) -> None:
        """Move the files of a committed roll to their places. Repeatable, and by any process."""
        self._move(record, range(1))
        if len(record.files) > 1:
            self._fault("sink_lake.mid_rename")
            self._move(record, range(1, len(record.files)))
        self._fault("sink_lake.after_rename")
        self._store.sync_dirs({parent(file.path) for file in record.files})
        folder = f"{TEMPORARIES}/{record.attempt}"
        tail = msgspec.json.encode(_Tail(record.first, record.last))
        self._store.put(f"{parent(record_path(record.queue_id, record.first))}/tail.json", tail, f"{folder}/tail.tmp")
        self._store.remove_tree(folder)

    def _move(self, record: CommitRecord, numbers: Iterable[int]) -> None:
        def one(number: int) -> None:
            self._store.make_dirs(parent(record.files[number].path))
            self._store.move(f"{TEMPORARIES}/{record.attempt}/{number}.tmp", record.files[number].path)

        chosen = [number for number in numbers if number < len(record.files)]
        if self._store.uploads > 1 and len(chosen) > 1:
            with ThreadPoolExecutor(self._store.uploads) as pool:
                list(pool.map(one, chosen))
            return
        for number in chosen:
            one(number)

    def recover(self, queue_id: str | None = None) -> None:
        """Publish committed rolls that are not, and remove those that lost. Rolls without a record may be another
        writer's that is alive: they stay until a record for their `first` exists."""
        wanted = None if queue_id is None else quote(queue_id, safe="")
        for attempt in self._store.folders(TEMPORARIES):
            name = ATTEMPT.fullmatch(attempt)
            if name is None or wanted not in (None, name["queue"]):
                continue
            self._settle(attempt, dead=False)

    def discard(self, attempt: str, *, uncertain: bool = False) -> None:
        """Remove the files of an own roll that will not be committed; one that was committed after all is published.

        uncertain: the commit was tried and its outcome is unknown. Then they stay until a record for their `first` exists: a
        request that an object store did not answer may be carried out later, and its record must find its files.
        """
        self._settle(attempt, dead=not uncertain)

    def _settle(self, attempt: str, *, dead: bool) -> None:
        name = ATTEMPT.fullmatch(attempt)
        if name is None:
            raise ValueError(f"expected <queue id>-<first>-<nonce>, got {attempt!r}")
        path = f"{COMMITS}/{name['queue']}/{name['first']}.json"
        data = self._store.get(path)
        record = None if data is None else decode(data, f"{self._store.root}/{path}")
        if record is not None and record.attempt == attempt:
            self._store.sync_dirs([parent(path)])
            self.publish(record)
        elif record is not None or dead:
            self._on_orphans(self._store.remove_tree(f"{TEMPORARIES}/{attempt}"))

    def _tail(self, queue_id: str) -> CommitRecord | None:
        # The hint is written without sync: whatever cannot be confirmed by its record counts as absent.
        data = self._store.get(f"{COMMITS}/{quote(queue_id, safe='')}/tail.json")
        try:
            hint = msgspec.json.decode(data or b"", type=_Tail)
        except msgspec.MsgspecError:
            return None
        record = self.read(queue_id, hint.first)
        return record if record is not None and record.last == hint.last else None

    def _oldest(self, queue_id: str) -> CommitRecord | None:
        found = (RECORD.fullmatch(name) for name in self._store.names(f"{COMMITS}/{quote(queue_id, safe='')}"))
        first = min((int(name["first"]) for name in found if name), default=None)
        return None if first is None else self.read(queue_id, first)


def record_path(queue_id: str, first: int) -> str:
    return f"{COMMITS}/{quote(queue_id, safe='')}/{first:020d}.json"


def attempt_name(queue_id: str, first: int, nonce: str) -> str:
    return f"{quote(queue_id, safe='')}-{first:020d}-{nonce}"


def parent(path: str) -> str:
    return path.rpartition("/")[0]
