"""The account: how far commit records reach, what a hint is worth, and a model of power cuts."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lake_driver import events

from headrace import Missing, RangeKey
from headrace_sink_lake import CommitRecord, LakeConfig, Ledger, LocalStore
from headrace_sink_lake import record as records
from headrace_sink_lake.ledger import attempt_name
from headrace_sink_lake.roll import Roll


def ledger_at(path: Path) -> tuple[Ledger, list[int]]:
    orphans: list[int] = []
    store = LocalStore(path)
    store.make_dirs("")
    ledger = Ledger(store, orphans.append)
    ledger.open()
    return ledger, orphans


def add(ledger: Ledger, path: Path, first: int, last: int, nonce: str = "00") -> bool:
    attempt = attempt_name("q", first, nonce)
    (path / "_tmp" / attempt).mkdir()
    entry = CommitRecord(queue_id="q", first=first, last=last, rows=0, attempt=attempt)
    if not ledger.commit(entry):
        return False
    ledger.publish(entry)
    return True


def test_an_empty_lake_holds_nothing(tmp_path: Path) -> None:
    ledger, _ = ledger_at(tmp_path)
    assert ledger.end("q") is None


def test_the_end_is_that_of_the_contiguous_prefix(tmp_path: Path) -> None:
    ledger, _ = ledger_at(tmp_path)
    for first, last in ((101, 110), (111, 111), (112, 130), (141, 150)):
        add(ledger, tmp_path, first, last)
    (tmp_path / "_commits/q/tail.json").unlink()
    assert ledger.end("q") == 130
    assert ledger.end("other") is None


def test_a_range_is_taken_by_one_writer_only(tmp_path: Path) -> None:
    ledger, _ = ledger_at(tmp_path)
    assert add(ledger, tmp_path, 1, 10, "aa")
    assert not add(ledger, tmp_path, 1, 20, "bb")
    assert ledger.end("q") == 10


@pytest.mark.parametrize(
    "hint", [b"", b'{"first":11,"la', b'{"first":11,"last":19}', b'{"first":5,"last":10}', b'{"first":1,"last":10}', b"[]"]
)
def test_a_hint_that_is_torn_wrong_or_old_changes_nothing(tmp_path: Path, hint: bytes) -> None:
    ledger, _ = ledger_at(tmp_path)
    for first in (1, 11, 21):
        add(ledger, tmp_path, first, first + 9)
    (tmp_path / "_commits/q/tail.json").write_bytes(hint)
    assert ledger.end("q") == 30


def test_resume_reads_two_records_however_many_there_are(tmp_path: Path) -> None:
    ledger, _ = ledger_at(tmp_path)
    for first in range(1, 1001, 10):
        add(ledger, tmp_path, first, first + 9)

    class Counted(LocalStore):
        asked: list[str]

        def get(self, path: str) -> bytes | None:
            self.asked.append(path)
            return super().get(path)

        def names(self, path: str) -> list[str]:
            self.asked.append(path)
            return super().names(path)

    store = Counted(tmp_path)
    store.asked = []
    assert Ledger(store, lambda count: None).end("q") == 1000
    assert store.asked == ["_tmp", "_commits/q/tail.json", "_commits/q/00000000000000000991.json", "_commits/q/00000000000000001001.json"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"queue_id":"q"}', b'{"queue_id":"q","first":1,"last":2,"rows":0,"attempt":"a","format":99}']
)
def test_a_record_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    ledger, _ = ledger_at(tmp_path)
    add(ledger, tmp_path, 1, 10)
    (tmp_path / "_commits/q/00000000000000000001.json").write_bytes(content)
    with pytest.raises(OSError, match=r"0001\.json"):
        ledger.end("q")


def test_queue_ids_cannot_leave_the_lake(tmp_path: Path) -> None:
    ledger, _ = ledger_at(tmp_path / "lake")
    entry = CommitRecord(queue_id="../../x", first=1, last=2, rows=0, attempt=attempt_name("../../x", 1, "00"))
    (tmp_path / "lake/_tmp" / entry.attempt).mkdir()
    assert ledger.commit(entry)
    assert ledger.end("../../x") == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["lake"]


def test_recovery_removes_losers_and_leaves_what_may_be_alive(tmp_path: Path) -> None:
    ledger, orphans = ledger_at(tmp_path)
    for first, nonce in ((1, "bb"), (11, "cc")):
        folder = tmp_path / "_tmp" / attempt_name("q", first, nonce)
        folder.mkdir()
        (folder / "0.tmp").write_bytes(b"rows")
    (tmp_path / "_tmp" / "something-else").mkdir()
    add(ledger, tmp_path, 1, 10, "aa")
    ledger.recover("other")
    assert orphans == []
    ledger.recover("q")
    assert orphans == [1]
    assert sorted(entry.name for entry in (tmp_path / "_tmp").iterdir()) == [attempt_name("q", 11, "cc"), "something-else"]


def test_the_arithmetic_of_ranges() -> None:
    key = RangeKey("q", 1, 20, (Missing(3, 6, "a"), Missing(10, 10, "b")), (1, 8, 20))
    assert records.rows_of(key) == 12
    assert records.up_to(key, 5) == RangeKey("q", 1, 5, (Missing(3, 5, "a"),), (1,))
    assert records.behind(key, 5) == RangeKey("q", 6, 20, (Missing(6, 6, "a"), Missing(10, 10, "b")), (8, 20))
    for end in range(25):
        assert records.rows_of(records.up_to(key, end)) + records.rows_of(records.behind(key, end)) == (
            12 if end <= 20 else 12 - (end - 20)
        )
    assert records.ranges([5, 1, 2, 3, 9, 10]) == ((1, 3), (5, 5), (9, 10))


# --- power cuts --------------------------------------------------------------------------------------------------------


class PowerCut(Exception):
    """The machine stops here."""


class ModelDisk:
    """A Store in memory that forgets, at a power cut, what was not synced: file contents, and names of files.

    `now` maps path -> inode as processes see it, `disk` what the disk has. Of what is unsynced a random part survives, as on
    a real disk. After `left` more operations the power goes.
    """

    root, exclusive, uploads = "model", True, 1

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.now: dict[str, int] = {}
        self.disk: dict[str, int] = {}
        self.bytes: dict[int, bytes] = {}
        self.synced: set[int] = set()
        self.pairs: dict[str, tuple[str, str]] = {}
        self.left = 1 << 60

    def probe(self, folder: str) -> None: ...

    def missing(self, folder: str) -> bool:
        return False

    def cut(self) -> None:
        """Power goes and comes back."""
        for path in {*self.now, *self.disk}:
            if self.now.get(path) != self.disk.get(path) and self.chance.random() < 0.5:
                self._settle(path)
        self.now = dict(self.disk)
        self.pairs.clear()
        for inode in set(self.now.values()) - self.synced:
            self.bytes[inode] = self.bytes[inode][: self.chance.randrange(len(self.bytes[inode]) + 1)]
        self.left = 1 << 60

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise PowerCut

    def _settle(self, path: str) -> None:
        # A rename is one entry of the journal: both names change on the disk, or neither.
        for name in self.pairs.pop(path, (path,)):
            self.pairs.pop(name, None)
            if name in self.now:
                self.disk[name] = self.now[name]
            else:
                self.disk.pop(name, None)

    def make_dirs(self, path: str) -> None: ...

    def create(self, path: str) -> Any:
        self.step()
        return ModelFile(self, path)

    def write(self, path: str, data: bytes, sync: bool) -> None:
        self.step()
        inode = len(self.bytes) + 1
        self.now[path], self.bytes[inode] = inode, data
        if sync:
            self.step()
            self.synced.add(inode)

    def sync_dirs(self, paths: Iterable[str]) -> None:
        self.step()
        folders = {str(folder) for path in paths for folder in (PurePosixPath(path), *PurePosixPath(path).parents)}
        for path in {*self.now, *self.disk}:
            if str(PurePosixPath(path).parent) in folders:
                self._settle(path)

    def move(self, source: str, target: str) -> bool:
        self.step()
        if source not in self.now:
            return False
        self.now[target] = self.now.pop(source)
        self.pairs[source] = self.pairs[target] = (source, target)
        return True

    def put_new(self, path: str, data: bytes, temporary: str) -> bool:
        self.write(temporary, data, sync=True)
        self.step()
        if path in self.now:
            return False
        self.now[path] = self.now[temporary]
        self.sync_dirs([str(PurePosixPath(path).parent)])
        return True

    def put(self, path: str, data: bytes, temporary: str) -> None:
        self.write(path, data, sync=False)

    def get(self, path: str) -> bytes | None:
        return self.bytes[self.now[path]] if path in self.now else None

    def folders(self, path: str) -> list[str]:
        return self.names(path)

    def names(self, path: str) -> list[str]:
        inside = [PurePosixPath(name).relative_to(path) for name in self.now if PurePosixPath(name).is_relative_to(path)]
        return sorted({name.parts[0] for name in inside})

    def remove_tree(self, path: str) -> int:
        gone = [name for name in self.now if PurePosixPath(name).is_relative_to(path)]
        for name in gone:
            self.step()
            del self.now[name]
        return len(gone)


class ModelFile:
    def __init__(self, disk: ModelDisk, path: str) -> None:
        self.disk, self.path, self.stream = disk, path, pa.BufferOutputStream()

    def finish(self) -> None:
        self.disk.write(self.path, self.stream.getvalue().to_pybytes(), sync=True)


def lake_positions(disk: ModelDisk) -> list[int]:
    files = [name for name in disk.now if name.endswith(".parquet")]
    tables = [pq.read_table(pa.BufferReader(disk.bytes[disk.now[name]]), columns=["position"]) for name in files]
    return sorted(position for table in tables for position in table.column("position").to_pylist())


def one_roll(disk: ModelDisk, position: int, last: int) -> None:
    key = RangeKey("q", position + 1, last)
    roll = Roll(disk, LakeConfig(), "q", key.first, lambda count: None)
    roll.add(events(key))
    roll.write_out()
    roll.sync()
    ledger = Ledger(disk, lambda count: None)
    entry = CommitRecord(queue_id="q", first=key.first, last=last, rows=roll.rows, attempt=roll.attempt, files=tuple(roll.files))
    assert ledger.commit(entry)
    ledger.publish(entry)
    ledger.recover("q")


def test_power_cuts_at_any_step_lose_and_double_nothing() -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(10):
        disk, flushed, total = ModelDisk(chance), 0, 60
        cuts = 0
        while flushed < total:
            # The machine stops for good moments: kill -9 alone, or a cut that also loses what the disk has not.
            disk.left = chance.randrange(60) if cuts < 15 else 1 << 60
            try:
                ledger = Ledger(disk, lambda count: None)
                ledger.open()
                position = ledger.end("q") or 0
                assert position >= flushed, f"seed {seed}: {flushed} was promised, the lake says {position}"
                assert lake_positions(disk) == list(range(1, position + 1)), f"seed {seed}"
                flushed = position
                while flushed < total:
                    last = min(total, flushed + chance.randint(1, 20))
                    one_roll(disk, flushed, last)
                    flushed = last
            except PowerCut:
                cuts += 1
                disk.left = 1 << 60
                if chance.random() < 0.7:
                    disk.cut()
        assert lake_positions(disk) == list(range(1, total + 1))
        disk.cut()
        assert lake_positions(disk) == list(range(1, total + 1)), f"seed {seed}: what was flushed did not survive a cut"


class NothingSurvives(random.Random):
    """A disk that keeps only what was synced."""

    def random(self) -> float:
        return 1.0

    def randrange(self, *bounds: int) -> int:  # type: ignore[override]
        return 0


def test_what_resume_says_survives_a_power_cut_wherever_the_writer_was_killed() -> None:
    for steps in range(100):
        disk = ModelDisk(NothingSurvives(1))
        Ledger(disk, lambda count: None).open()
        one_roll(disk, 0, 10)
        disk.left = steps
        try:
            one_roll(disk, 10, 20)
            return
        except PowerCut:  # kill -9: the page cache lives on
            disk.left = 1 << 60
        ledger = Ledger(disk, lambda count: None)
        ledger.open()
        promised = ledger.end("q")
        disk.cut()
        ledger.open()
        assert (steps, ledger.end("q")) == (steps, promised)
        assert promised is not None
        assert lake_positions(disk) == list(range(1, promised + 1)), f"after {steps} steps"
    raise AssertionError("expected a roll to take fewer than 100 steps")


def test_everything_a_record_names_is_synced_before_it_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def watched(fd: int) -> None:
        synced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), tmp_path))  # noqa: PTH115
        fsync(fd)

    monkeypatch.setattr(os, "fsync", watched)
    store = LocalStore(tmp_path)
    Ledger(store, lambda count: None).open()
    roll = Roll(store, LakeConfig(), "q", 1, lambda count: None)
    roll.add(events(RangeKey("q", 1, 8)))
    roll.write_out()
    roll.sync()
    written = len(roll.files)
    folder = f"_tmp/{roll.attempt}"
    assert {f"{folder}/{n}.tmp" for n in range(written)} <= set(synced)
    ledger = Ledger(store, lambda count: None)
    entry = CommitRecord(queue_id="q", first=1, last=8, rows=8, attempt=roll.attempt, files=tuple(roll.files))
    synced.clear()
    assert ledger.commit(entry)
    assert synced.index(folder) < synced.index(f"{folder}/record.tmp") < synced.index("_commits/q")
    synced.clear()
    ledger.publish(entry)
    folders = {str(Path(file.path).parent) for file in roll.files}
    assert {*folders, *(str(Path(folder).parent) for folder in folders), "."} <= set(synced)


def test_resume_does_not_list_the_lake_however_many_rolls_it_has(tmp_path: Path) -> None:
    ledger_at(tmp_path)
    template = CommitRecord(queue_id="q", first=1, last=10, rows=0, attempt="a", missing=(Missing(1, 10, "skipped"),))
    (tmp_path / "_commits/q").mkdir()
    for first in range(1, 100_001, 10):
        record = msgspec.structs.replace(template, first=first, last=first + 9)
        (tmp_path / f"_commits/q/{first:020d}.json").write_bytes(records.encode(record))
    (tmp_path / "_commits/q/tail.json").write_bytes(b'{"first":99971,"last":99980}')
    asked: list[str] = []

    class Counted(LocalStore):
        def get(self, path: str) -> bytes | None:
            asked.append(path)
            return super().get(path)

        def names(self, path: str) -> list[str]:
            asked.append(path)
            return super().names(path)

        def walk(self) -> Iterator[tuple[str, int]]:
            raise AssertionError("the lake was listed")

    # Of 10,000 rolls: the hint, and the records from there on.
    assert Ledger(Counted(tmp_path), lambda count: None).end("q") == 100_000
    assert len(asked) == 6
    assert "_commits/q" not in asked
