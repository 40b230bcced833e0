"""The queue contract: a plain file queue passes it, and each queue that is bad on purpose is caught by it."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from headrace import (
    NO_ORIGINS,
    Component,
    Context,
    Origin,
    OriginMark,
    Plan,
    QueueFull,
    QueueInfo,
    QueueRead,
    QueueSpan,
    ReaderInfo,
    hookimpl,
    origin_batch,
    origins_of,
)
from headrace.position import ORIGIN_QUEUE, ORIGIN_ROWS, rows_of, slice_origins
from headrace.testing import QueueContract, failures

BYTES_MAX = 1 << 20


@dataclass
class Entry:
    queue_id: str
    first: int
    last: int
    batch: pa.RecordBatch
    origins: list[Origin]
    size: int


@dataclass
class Reader:
    start: int
    cursor: int
    plan: Plan | None = None


@dataclass
class State:
    entries: list[Entry] = field(default_factory=list)
    readers: dict[str, Reader] = field(default_factory=dict)
    marks: dict[str, OriginMark] = field(default_factory=dict)
    head: int = 0


class FileQueue(Component):
    """Good, and nothing more: one log that is written through, one file of readers that is replaced; never trimmed."""

    fault_points: ClassVar[tuple[str, ...]] = ("file_queue.half_written", "file_queue.written", "file_queue.before_replace")

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.state = State()
        self.queue_id: str | None = None
        self.lock = threading.RLock()
        self.waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self.log_path, self.readers_path = context.data_dir / "log", context.data_dir / "readers.json"
        self.descriptor = -1

    async def open(self) -> None:
        self.descriptor = os.open(self.log_path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        end = self._recover(self.log_path.read_bytes())
        os.truncate(self.descriptor, end)
        if self.readers_path.exists():
            for name, (start, cursor, plan) in json.loads(self.readers_path.read_text()).items():
                self.state.readers[name] = Reader(start, cursor, Plan(plan[0], plan[1], plan[2], tuple(plan[3])) if plan else None)

    def _recover(self, whole: bytes) -> int:
        end = 0
        while (line_end := whole.find(b"\n", end)) >= 0:
            header = json.loads(whole[end:line_end])
            at = line_end + 1
            stop = at + header["bytes"]
            if whole[stop : stop + 1] != b"\n":
                break
            with pa.ipc.open_stream(whole[at:stop]) as stream:
                batch = next(iter(stream))
            origins = [Origin(**{**fields, "note": fields["note"] and fields["note"].encode("latin-1")}) for fields in header["origins"]]
            self._hold(Entry(header["id"], header["first"], header["last"], batch, origins, stop - at))
            end = stop + 1
        return end

    def _hold(self, entry: Entry) -> None:
        self.state.entries.append(entry)
        self.state.head = entry.last
        for origin in entry.origins:
            self.state.marks[origin.id] = OriginMark(max(origin.last, self._mark(origin.id)), origin.note)

    def _mark(self, origin: str) -> int:
        mark = self.state.marks.get(origin)
        return mark.last if mark else 0

    async def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _tail(self) -> int:
        return min((reader.cursor for reader in self.state.readers.values()), default=0) + 1

    def _held_bytes(self) -> int:
        tail = self._tail()
        return sum(entry.size for entry in self.state.entries if entry.last >= tail)

    @hookimpl
    def queue_info(self) -> QueueInfo:
        with self.lock:
            state, tail = self.state, self._tail()
            readers = tuple(
                ReaderInfo(name, reader.start, reader.cursor, reader.plan, state.head - reader.cursor, 0)
                for name, reader in state.readers.items()
            )
            firsts: dict[str, int] = {}
            for entry in state.entries:
                if entry.last >= tail:
                    firsts.setdefault(entry.queue_id, entry.first)
            names = list(firsts)
            spans = tuple(
                QueueSpan(name, firsts[name], None if name == self.queue_id else (firsts[after] - 1 if after else state.head))
                for name, after in itertools.zip_longest(names, names[1:])
            )
            return QueueInfo(
                "file",
                self.queue_id,
                "process",
                "file",
                "write",
                state.head,
                tail,
                state.head - tail + 1,
                self._held_bytes(),
                BYTES_MAX,
                1.0,
                readers,
                spans,
            )

    @hookimpl
    async def queue_append(self, batch: pa.RecordBatch, origins: pa.RecordBatch) -> tuple[int, int]:
        with self.lock:
            batch, kept = self._without_known(batch, origins_of(origins))
            first, last = self.state.head + 1, self.state.head + batch.num_rows
            if not batch.num_rows and not kept:
                return first, last
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema) as stream:
                stream.write_batch(batch)
            body = sink.getvalue().to_pybytes()
            if self._held_bytes() + len(body) > BYTES_MAX:
                raise QueueFull("file", self._held_bytes(), BYTES_MAX)
            self.queue_id = self.queue_id or self._new_id()
            entry = Entry(self.queue_id, first, last, batch, kept, len(body))
            fields = [{**origin._asdict(), "note": origin.note and origin.note.decode("latin-1")} for origin in kept]
            header = json.dumps({"id": entry.queue_id, "first": first, "last": last, "bytes": len(body), "origins": fields})
            self._write(header.encode() + b"\n" + body + b"\n")
            self._hold(entry)
            for loop, future in self.waiting:
                loop.call_soon_threadsafe(_wake, future)
            self.waiting.clear()
        return first, last

    def _new_id(self) -> str:
        return str(uuid.uuid4())

    def _write(self, record: bytes) -> None:
        half = len(record) // 2
        os.write(self.descriptor, record[:half])
        self.context.fault("file_queue.half_written")
        os.write(self.descriptor, record[half:])
        self.context.fault("file_queue.written")

    def _without_known(self, batch: pa.RecordBatch, origins: list[Origin]) -> tuple[pa.RecordBatch, list[Origin]]:
        rows = list(range(batch.num_rows))
        kept: list[Origin] = []
        dropped = 0
        for origin in origins:
            known = self._mark(origin.id) if origin.kind in (ORIGIN_QUEUE, ORIGIN_ROWS) else 0
            passed = drop = min(max(0, known - origin.first + 1), origin.last - origin.first + 1)
            if origin.kind == ORIGIN_ROWS:
                drop = int((rows_of(origin).positions <= known).sum())
            for row in range(origin.row_offset, origin.row_offset + drop):
                rows.remove(row)
            dropped += drop
            if origin.first + passed <= origin.last:
                kept.append(origin._replace(first=origin.first + passed, row_offset=origin.row_offset + drop - dropped))
        return (batch.take(pa.array(rows, pa.int64())) if dropped else batch), kept

    @hookimpl
    async def queue_origin_position(self, origin: str) -> int | None:
        return self._mark(origin) or None

    @hookimpl
    async def queue_origin_mark(self, origin: str) -> OriginMark | None:
        return self.state.marks.get(origin)

    @hookimpl
    async def queue_origin_forget(self, origins: Sequence[str]) -> None:
        for origin in origins:
            self.state.marks.pop(origin, None)

    @hookimpl
    async def queue_reader_open(self, reader: str, start: str) -> ReaderInfo:
        with self.lock:
            if reader not in self.state.readers:
                cursor = {"oldest": self._tail() - 1, "head": self.state.head}.get(start)
                if cursor is None:
                    cursor = self.state.readers[start.partition(":")[2]].cursor
                self.state.readers[reader] = Reader(cursor, cursor)
                self._save()
            return next(info for info in self.queue_info().readers if info.name == reader)

    @hookimpl
    async def queue_reader_drop(self, reader: str) -> None:
        with self.lock:
            self.state.readers.pop(reader, None)
            self._save()

    @hookimpl
    async def queue_read(self, reader: str, after: int, rows_max: int, bytes_max: int) -> QueueRead:
        while True:
            with self.lock:
                if after < self.state.head:
                    return self._joined(after, rows_max, bytes_max)
                future = asyncio.get_running_loop().create_future()
                self.waiting.append((asyncio.get_running_loop(), future))
            await future

    def _joined(self, after: int, rows_max: int, bytes_max: int) -> QueueRead:
        behind = [entry for entry in self.state.entries if entry.last > after]
        taken, rows, size = [behind[0]], behind[0].last - after, behind[0].size
        for entry in behind[1:]:
            rows, size = rows + entry.batch.num_rows, size + entry.size
            if rows > rows_max or size > bytes_max or not self._joins(taken[0], entry):
                break
            taken.append(entry)
        skip = after + 1 - taken[0].first
        origins, offset = [], 0
        for entry in taken:
            origins += [origin._replace(row_offset=origin.row_offset + offset) for origin in entry.origins]
            offset += entry.batch.num_rows
        batch = pa.concat_batches([entry.batch for entry in taken]).slice(skip)
        named = slice_origins(origin_batch(origins), skip, batch.num_rows) if origins else NO_ORIGINS
        return QueueRead(taken[0].queue_id, after + 1, taken[-1].last, batch, named, ())

    def _joins(self, first: Entry, entry: Entry) -> bool:
        return entry.queue_id == first.queue_id and entry.batch.schema.equals(first.batch.schema)

    @hookimpl
    async def queue_plan(self, reader: str, plan: Plan | None) -> None:
        with self.lock:
            self.state.readers[reader].plan = plan
            self._save()

    @hookimpl
    async def queue_release(self, reader: str, upto: int) -> None:
        with self.lock:
            self.state.readers[reader].cursor = self._moved(self.state.readers[reader].cursor, upto)
            self._save()

    def _moved(self, cursor: int, upto: int) -> int:
        return max(cursor, upto)

    def _save(self) -> None:
        readers = {name: [reader.start, reader.cursor, reader.plan] for name, reader in self.state.readers.items()}
        part = self.readers_path.with_suffix(".part")
        part.write_text(json.dumps(readers))
        self.context.fault("file_queue.before_replace")
        part.replace(self.readers_path)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class FileQueueKit(QueueContract):
    component: ClassVar[type[FileQueue]] = FileQueue
    crash_rounds = 4

    def make(self, context: Context) -> Component:
        return self.component(self.component.Config(), context)


class TestFileQueue(FileQueueKit):
    """A good queue."""


# --- queues that are bad on purpose ----------------------------------------------------------------------------------


class AcksBeforeDurable(FileQueue):
    """Bad: keeps records in memory, and writes them when there are ten."""

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.late: list[bytes] = []

    def _write(self, record: bytes) -> None:
        self.late.append(record)
        if len(self.late) >= 10:
            super()._write(b"".join(self.late))
            self.late.clear()


class MovesBack(FileQueue):
    """Bad: a cursor goes where it is told."""

    def _moved(self, cursor: int, upto: int) -> int:
        return upto


class SameIdAgain(FileQueue):
    """Bad: the id names the file, not this open of it."""

    def _new_id(self) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, "queue"))


class SpansIds(FileQueue):
    """Bad: joins what lies side by side, whoever named it."""

    def _joins(self, first: Entry, entry: Entry) -> bool:
        return bool(entry.batch.schema.equals(first.batch.schema))


class ForgetsMarks(FileQueue):
    """Bad: knows what it holds of an origin only until it is opened again."""

    async def open(self) -> None:
        await super().open()
        self.state.marks.clear()


class ForgetsNotes(FileQueue):
    """Bad: knows how far a session came, and not what of it was refused."""

    def _hold(self, entry: Entry) -> None:
        super()._hold(entry)
        self.state.marks = {name: OriginMark(mark.last) for name, mark in self.state.marks.items()}


class ForgetsTooMuch(FileQueue):
    """Bad: forgets everybody."""

    @hookimpl
    async def queue_origin_forget(self, origins: Sequence[str]) -> None:
        self.state.marks.clear()


class TakesAndSaysFull(FileQueue):
    """Bad: stores the batch that it says it has no room for."""

    @hookimpl
    async def queue_append(self, batch: pa.RecordBatch, origins: pa.RecordBatch) -> tuple[int, int]:
        full = self._held_bytes() > BYTES_MAX - (1 << 17)
        first, last = await super().queue_append(batch, origins)
        if full:
            raise QueueFull("file", self._held_bytes(), BYTES_MAX)
        return first, last


class LosesWhatACancelledReadHad(FileQueue):
    """Bad: what a read has taken is gone, whether or not anybody got it."""

    @hookimpl
    async def queue_read(self, reader: str, after: int, rows_max: int, bytes_max: int) -> QueueRead:
        read = await super().queue_read(reader, after, rows_max, bytes_max)
        self.state.entries = [entry for entry in self.state.entries if entry.first > read.last]
        await asyncio.sleep(0)
        return read


class AcksBeforeDurableKit(FileQueueKit):
    component = AcksBeforeDurable


class MovesBackKit(FileQueueKit):
    component = MovesBack


class SameIdAgainKit(FileQueueKit):
    component = SameIdAgain


class SpansIdsKit(FileQueueKit):
    component = SpansIds


class ForgetsMarksKit(FileQueueKit):
    component = ForgetsMarks


class ForgetsNotesKit(FileQueueKit):
    component = ForgetsNotes


class ForgetsTooMuchKit(FileQueueKit):
    component = ForgetsTooMuch


class TakesAndSaysFullKit(FileQueueKit):
    component = TakesAndSaysFull


class LosesWhatACancelledReadHadKit(FileQueueKit):
    component = LosesWhatACancelledReadHad


@pytest.mark.parametrize(
    ("kit", "caught_by", "said"),
    [
        (AcksBeforeDurableKit, "test_kill_9_at_random_moments_keeps_what_was_acked", "found nowhere"),
        (MovesBackKit, "test_release_is_repeatable_and_never_moves_back", "expected the cursor at 3, got 1"),
        (SameIdAgainKit, "test_every_open_takes_a_new_id_at_its_first_append", "a queue id was used again"),
        (SpansIdsKit, "test_every_open_takes_a_new_id_at_its_first_append", "spans two queue ids"),
        (ForgetsMarksKit, "test_origins_that_were_held_are_dropped", "did not survive the restart"),
        (ForgetsNotesKit, "test_the_mark_of_a_session_has_the_note_of_its_last_messages", "AssertionError"),
        (ForgetsTooMuchKit, "test_the_marks_of_origins_that_are_over_are_dropped", "the mark of another origin went with it"),
        (TakesAndSaysFullKit, "test_a_full_queue_takes_nothing_until_something_is_released", "AssertionError"),
        (LosesWhatACancelledReadHadKit, "test_a_cancelled_read_loses_nothing", "Error"),
    ],
)
def test_a_bad_queue_is_caught(kit: type[QueueContract], caught_by: str, said: str) -> None:
    failed = failures(kit, caught_by)
    assert caught_by in failed
    assert said in failed[caught_by]
