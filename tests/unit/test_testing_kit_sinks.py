"""The sink contract: two good sinks pass it, and each sink that is bad on purpose is caught by it."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa
import pytest

from headrace import Component, Config, Context, PermanentError, RangeKey, TransientError, hookimpl
from headrace.testing import SinkContract, crash, event_batch, failures
from headrace.testing.sink_driver import way_of

Idempotence = Literal["none", "key", "event"]


def lines_of(batch: pa.RecordBatch) -> list[str]:
    rows = batch.select(["origin", "position", "device", "readings"]).to_pylist()
    return [json.dumps(row) + "\n" for row in rows]


class KeyFiles(Component):
    """Good: a file per key, written whole and then renamed; the same key replaces its own file."""

    idempotence: ClassVar[Idempotence] = "key"
    fault_points: ClassVar[tuple[str, ...]] = ("key_files.before_rename", "key_files.after_rename")

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.folder = context.data_dir / "files"
        self.pending: dict[str, list[str]] = {}

    async def open(self) -> None:
        self.folder.mkdir(exist_ok=True)

    @hookimpl
    async def sink_write(self, batch: pa.RecordBatch, key: RangeKey) -> None:
        if batch.num_rows and "poison" in batch.column("device").to_pylist():
            raise PermanentError(
                "poison", {str(key): [row for row, name in enumerate(batch.column("device").to_pylist()) if name == "poison"]}
            )
        self.pending[str(key)] = lines_of(batch)

    @hookimpl
    async def sink_flush(self, key: RangeKey) -> None:
        for name, lines in self.pending.items():
            path = self.folder / (name.replace("/", "_") + ".ndjson")
            try:
                path.with_suffix(".part").write_text("".join(lines))
                self.context.fault("key_files.before_rename")
                path.with_suffix(".part").rename(path)
            except OSError as error:
                raise TransientError(str(error)) from error
            self.context.fault("key_files.after_rename")
        self.pending.clear()

    @hookimpl
    async def sink_reset(self) -> None:
        self.pending.clear()


class KeyFilesKit(SinkContract):
    ordered = False

    def make(self, context: Context) -> Component:
        return KeyFiles(KeyFiles.Config(), context)

    def read_back(self, context: Context) -> pa.Table | Iterable[tuple[str, int]]:
        rows = [json.loads(line) for path in sorted((context.data_dir / "files").glob("*.ndjson")) for line in path.open()]
        return [(row["origin"], row["position"]) for row in rows]

    def break_store(self, context: Context) -> None:
        (context.data_dir / "files").rename(context.data_dir / "away")

    def heal_store(self, context: Context) -> None:
        (context.data_dir / "away").rename(context.data_dir / "files")

    def refused(self, context: Context) -> tuple[pa.RecordBatch, list[int]]:
        return event_batch(6, devices=["a", "poison", "b"]), [0, 3]


class TestKeyFiles(KeyFilesKit):
    """A good sink with idempotence by key."""


class Log(Component):
    """Good: one file of lines, each flush a block that ends in a mark; `sink_resume` reads the marks back."""

    name: ClassVar[str] = "log.ndjson"
    fault_points: ClassVar[tuple[str, ...]] = ("log.half_written", "log.before_mark", "log.after_mark")

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.path = context.data_dir / self.name
        self.pending: list[str] = []

    async def open(self) -> None:
        self.path.touch()
        at = end = 0
        for line in self.path.read_bytes().splitlines(keepends=True):
            at += len(line)
            if line.startswith(b'{"mark"') and line.endswith(b"\n"):
                end = at
        os.truncate(self.path, end)  # what no mark covers was never flushed

    @hookimpl
    async def sink_write(self, batch: pa.RecordBatch, key: RangeKey) -> None:
        self.pending += lines_of(batch)

    @hookimpl
    async def sink_flush(self, key: RangeKey) -> None:
        with self.path.open("a") as file:
            half = len(self.pending) // 2
            file.write("".join(self.pending[:half]))
            file.flush()
            self.context.fault("log.half_written")
            file.write("".join(self.pending[half:]))
            file.flush()
            self.context.fault("log.before_mark")
            file.write(json.dumps({"mark": key.queue_id, "last": key.last}) + "\n")
        self.context.fault("log.after_mark")
        self.pending = []

    @hookimpl
    async def sink_reset(self) -> None:
        self.pending = []

    @hookimpl
    async def sink_resume(self, queue_id: str) -> int | None:
        marks = [line for line in map(json.loads, self.path.open()) if line.get("mark") == queue_id]
        return max((mark["last"] for mark in marks), default=None)


class LogKit(SinkContract):
    component: ClassVar[type[Log]] = Log
    crash_rounds = 4

    def make(self, context: Context) -> Component:
        return self.component(self.component.Config(), context)

    def read_back(self, context: Context) -> pa.Table | Iterable[tuple[str, int]]:
        path = context.data_dir / self.component.name
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
        rows = [line for line in lines if "mark" not in line]
        return pa.Table.from_pylist(rows) if rows else []


class TestLog(LogKit):
    """A good sink with resume; its table is compared value by value."""

    crash_rounds = 10


# --- sinks that are bad on purpose -----------------------------------------------------------------------------------


class AcksBeforeItStores(Log):
    """Bad: flush returns at once, the lines are written with the next flush or at close."""

    fault_points: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.late: list[str] = []

    @hookimpl
    async def sink_flush(self, key: RangeKey) -> None:
        self._store()
        self.late = [*self.pending, json.dumps({"mark": key.queue_id, "last": key.last}) + "\n"]
        self.pending = []

    @hookimpl
    async def sink_resume(self, queue_id: str) -> int | None:
        marks = [
            line for line in itertools.chain(map(json.loads, self.path.open()), map(json.loads, self.late)) if line.get("mark") == queue_id
        ]
        return max((mark["last"] for mark in marks), default=None)

    async def close(self) -> None:
        self._store()

    def _store(self) -> None:
        with self.path.open("a") as file:
            file.write("".join(self.late))
        self.late = []


class LosesARetry(KeyFiles):
    """Bad: remembers a key as soon as it was written, and leaves it out when it comes again."""

    fault_points: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.seen: set[str] = set()

    @hookimpl
    async def sink_write(self, batch: pa.RecordBatch, key: RangeKey) -> None:
        if str(key) not in self.seen:
            self.pending[str(key)] = lines_of(batch)
        self.seen.add(str(key))


class Reorders(Log):
    """Bad: stores the newest write of a flush first."""

    fault_points: ClassVar[tuple[str, ...]] = ()

    @hookimpl
    async def sink_write(self, batch: pa.RecordBatch, key: RangeKey) -> None:
        self.pending = lines_of(batch) + self.pending


class DoublesOnResend(Component):
    """Bad: says that it is idempotent by key, and appends whatever comes."""

    idempotence: ClassVar[Idempotence] = "key"

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.pending: list[str] = []

    @hookimpl
    async def sink_write(self, batch: pa.RecordBatch, key: RangeKey) -> None:
        self.pending += lines_of(batch)

    @hookimpl
    async def sink_flush(self, key: RangeKey) -> None:
        with (self.context.data_dir / "log.ndjson").open("a") as file:
            file.write("".join(self.pending))
        self.pending = []

    @hookimpl
    async def sink_reset(self) -> None:
        self.pending = []


class ResumesTooFar(Log):
    """Bad: its resume point counts what was written and not yet flushed."""

    fault_points: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.written: dict[str, int] = {}

    @hookimpl
    async def sink_write(self, batch: pa.RecordBatch, key: RangeKey) -> None:
        self.pending += lines_of(batch)
        self.written[key.queue_id] = key.last

    @hookimpl
    async def sink_resume(self, queue_id: str) -> int | None:
        return self.written.get(queue_id)


class ForgetsReset(Log):
    """Bad: keeps what it was told to forget."""

    fault_points: ClassVar[tuple[str, ...]] = ()

    @hookimpl
    async def sink_reset(self) -> None:
        pass


class MarksBeforeLines(Log):
    """Bad: the mark is in the store before what it vouches for, so a crash in between loses a block."""

    fault_points: ClassVar[tuple[str, ...]] = ("marks_before_lines.between",)

    @hookimpl
    async def sink_flush(self, key: RangeKey) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"mark": key.queue_id, "last": key.last}) + "\n")
            file.flush()
            self.context.fault("marks_before_lines.between")
            file.write("".join(self.pending) + '{"mark": "", "last": 0}\n')
        self.pending = []


class SwallowsErrors(KeyFiles):
    """Bad: says that a flush went well while the store is broken."""

    fault_points: ClassVar[tuple[str, ...]] = ()

    @hookimpl
    async def sink_flush(self, key: RangeKey) -> None:
        try:
            for name, lines in self.pending.items():
                (self.folder / (name.replace("/", "_") + ".ndjson")).write_text("".join(lines))
        except OSError:
            pass
        self.pending.clear()


class PromisesNothing(DoublesOnResend):
    """Bad: holds the queue, but can neither resume nor take a key twice."""

    idempotence: ClassVar[Idempotence] = "none"


class NeverPassesItsPoint(KeyFiles):
    """Bad: declares a fault point that no code passes."""

    fault_points: ClassVar[tuple[str, ...]] = ("key_files.nowhere",)


class AcksBeforeItStoresKit(LogKit):
    component = AcksBeforeItStores


class ReordersKit(LogKit):
    component = Reorders


class ResumesTooFarKit(LogKit):
    component = ResumesTooFar


class ForgetsResetKit(LogKit):
    component = ForgetsReset


class MarksBeforeLinesKit(LogKit):
    component = MarksBeforeLines


class LosesARetryKit(KeyFilesKit):
    def make(self, context: Context) -> Component:
        return LosesARetry(LosesARetry.Config(), context)


class SwallowsErrorsKit(KeyFilesKit):
    def make(self, context: Context) -> Component:
        return SwallowsErrors(SwallowsErrors.Config(), context)


class NeverPassesItsPointKit(KeyFilesKit):
    def make(self, context: Context) -> Component:
        return NeverPassesItsPoint(NeverPassesItsPoint.Config(), context)


class DoublesOnResendKit(LogKit):
    def make(self, context: Context) -> Component:
        return DoublesOnResend(Config(), context)


class PromisesNothingKit(LogKit):
    def make(self, context: Context) -> Component:
        return PromisesNothing(Config(), context)


KILL = "test_kill_9_at_random_moments_loses_and_doubles_nothing"
KILL_AT_POINTS = "test_kill_9_at_every_fault_point_loses_and_doubles_nothing"


@pytest.mark.parametrize(
    ("kit", "caught_by", "said"),
    [
        (AcksBeforeItStoresKit, KILL, "lost: sink_flush returned for everything up to"),
        (LosesARetryKit, "test_what_was_reset_is_stored_once_when_it_comes_again", "10 lost"),
        (ReordersKit, "test_the_order_of_the_writes_is_kept", "expected the positions in order"),
        (DoublesOnResendKit, "test_the_same_key_again_does_not_double", "10 doubled"),
        (ResumesTooFarKit, "test_resume_is_the_contiguous_prefix_that_is_flushed", "leave out what was reset"),
        (ForgetsResetKit, "test_what_was_reset_is_stored_once_when_it_comes_again", "doubled"),
        (MarksBeforeLinesKit, KILL_AT_POINTS, "lost"),
        (SwallowsErrorsKit, "test_a_broken_store_is_a_transient_error_and_nothing_is_lost", "expected TransientError"),
        (PromisesNothingKit, "test_a_sink_that_holds_has_resume_or_idempotence", "implement sink_resume"),
        (NeverPassesItsPointKit, KILL_AT_POINTS, "was never passed"),
    ],
)
def test_a_bad_sink_is_caught(kit: type[SinkContract], caught_by: str, said: str) -> None:
    failed = failures(kit, caught_by)
    assert caught_by in failed
    assert said in failed[caught_by]


def test_the_way_follows_from_what_the_class_declares(tmp_path: Path) -> None:
    assert [way_of(kind) for kind in (KeyFiles, Log, PromisesNothing)] == ["plan", "resume", "none"]


# --- the harness itself ----------------------------------------------------------------------------------------------


class CannotBeMadeElsewhereKit(LogKit):
    """Its store is known to the test's own process only."""

    home = os.getpid()

    def make(self, context: Context) -> Component:
        if os.getpid() != self.home:
            raise RuntimeError("no such store in this process")
        return super().make(context)


class HangsKit(KeyFilesKit):
    def make(self, context: Context) -> Component:
        return Hangs(Hangs.Config(), context)


class Hangs(KeyFiles):
    """Bad: never comes back from a flush."""

    @hookimpl
    async def sink_flush(self, key: RangeKey) -> None:
        await asyncio.Event().wait()


def test_what_the_killed_process_says_is_in_the_failure() -> None:
    assert "no such store in this process" in failures(CannotBeMadeElsewhereKit, KILL)[KILL]


def test_a_sink_that_hangs_fails_with_the_place_where_it_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crash, "ROUND_TIMEOUT_S", 3.0)
    failed = failures(HangsKit, KILL)[KILL]
    assert "made no progress" in failed
    assert "kind='flush'" in failed


def test_a_contract_that_another_process_cannot_import_says_so() -> None:
    class LocalKit(LogKit):
        pass

    assert "define it at the module's top" in failures(LocalKit, KILL)[KILL]
