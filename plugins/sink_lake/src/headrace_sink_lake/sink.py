"""The output `sink_lake`: takes event batches, and makes one roll of what comes between two flushes."""

from __future__ import annotations

import datetime
import errno
import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from headrace import EVENT_COLUMNS, Component, Context, Missing, PermanentError, RangeKey, StoreCalls, TransientError, hookimpl
from headrace_sink_lake import columns, record
from headrace_sink_lake.config import LakeConfig
from headrace_sink_lake.ledger import Ledger
from headrace_sink_lake.record import CommitRecord
from headrace_sink_lake.roll import Roll
from headrace_sink_lake.store import SCHEMES, Store, open_store, without_secrets
from headrace_sink_lake.texts import Texts

T = TypeVar("T")


class SinkLake(Component):
    """Writes events to a Parquet lake, effectively once. README.md has the guarantees and the layout."""

    class Config(LakeConfig, frozen=True):
        """The options of sink_lake."""

    many_workers = True
    takes_dictionaries = True
    fault_points = (
        "sink_lake.before_temp",
        "sink_lake.after_temp",
        "sink_lake.after_fsync",
        "sink_lake.before_commit",
        "sink_lake.after_commit",
        "sink_lake.mid_rename",
        "sink_lake.after_rename",
    )

    def __init__(self, config: LakeConfig, context: Context) -> None:
        super().__init__(config, context)
        self._path = config.path or str(context.shared_dir / "lake")
        self._name = without_secrets(self._path)
        self._ledger: Ledger | None = None
        self._store: Store | None = None
        self._roll: Roll | None = None
        self._texts = Texts()
        self._ends: dict[str, int | None] = {}
        self._clock_told = False
        self._calls = StoreCalls(context, (OSError, MemoryError), self._failure)
        metrics = context.metrics
        self._written_bytes = metrics.counter("sink_written_bytes_total", "Bytes of files made safe by an output.")
        self._files = metrics.counter("sink_files_total", "Files made safe by an output.")
        self._orphans = metrics.counter("lake_orphan_files_removed_total", "Temporary files removed that no commit record names.")
        self._duplicates = metrics.counter("lake_duplicate_events_total", "Events left out because the lake held them already.")
        self._overflow = metrics.counter("lake_partition_overflow_events_total", "Events filed under `_other`: too many partitions.")
        self._wrong_clock = metrics.counter("lake_wrong_clock_events_total", "Events stored that were received while the clock was wrong.")
        self._skipped = metrics.counter("lake_skipped_positions_total", "Positions that the host never wrote, recorded as missing.")

    async def open(self) -> None:
        """Make the lake's folders, and finish or undo what a crash left there."""
        await self._call("open", self._open)
        self._calls.healed()

    async def close(self) -> None:
        if self._ledger is not None:
            await self._calls.quietly(self._forget)
            self._ledger = None

    def check(self) -> list[str]:
        """What stands against writing there, and that a lake on this filesystem has a single writer."""
        if "://" in self._path and not self._path.startswith("file://"):
            scheme = self._path.partition("://")[0]
            if scheme not in SCHEMES:
                return [f"path: expected a folder or a URI of {', '.join(sorted(SCHEMES))}, got {self._name}"]
            if scheme == "s3":
                if importlib.util.find_spec("obstore") is not None:
                    return []
                return [f"path: for {self._name} install headrace-sink-lake[s3]; without it, give each lake a single writer"]
            return [f"path: {self._name} has no exclusive create here: give each lake on it a single writer"]
        path = Path(self._path.removeprefix("file://")).absolute()
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        if not there.is_dir():
            return [f"path: expected a folder, but {there} is a file"]
        if not os.access(there, os.W_OK | os.X_OK):
            return [f"path: {there} is not writable by this user; change its owner or set another path"]
        return []

    @hookimpl
    async def sink_resume(self, queue_id: str) -> int | None:
        return await self._call("read the commit records", self._resume, queue_id)

    @hookimpl
    async def sink_write(self, batch: pa.RecordBatch, key: RangeKey) -> None:
        await self._call("write", self._write, batch, key)

    @hookimpl
    async def sink_flush(self, key: RangeKey) -> None:
        await self._call("flush", self._flush, key)
        self._calls.healed()

    @hookimpl
    async def sink_reset(self) -> None:
        await self._calls.quietly(self._forget)

    # --- in the thread -------------------------------------------------------------------------------------------

    async def _call(self, step: str, work: Callable[..., T], *args: Any) -> T:
        try:
            return await self._calls.make(step, work, *args)
        except pa.ArrowException as error:
            raise PermanentError(f"cannot {step}: Parquet takes no such events ({error})") from error

    def _failure(self, step: str, error: Exception) -> str:
        number = error.errno if isinstance(error, OSError) else None
        self.context.log.warning("lake not usable", step=step, path=self._name, errno=number, error=str(error))
        code = f" ({errno.errorcode.get(number, number)})" if number is not None else ""
        return f"cannot {step} in the lake at {self._name}: {error}{code}"

    def _open(self) -> None:
        store = open_store(self._path)
        ledger = Ledger(store, self._orphans.inc, self.context.fault)
        store.make_dirs("")
        ledger.open()
        self._store, self._ledger = store, ledger
        if not store.exclusive:
            self.context.log.warning("no exclusive create here: the lake must have a single writer", path=self._name)

    def _resume(self, queue_id: str) -> int | None:
        assert self._ledger is not None, "sink_lake is not open"
        if len(self._ends) > 1000:
            self._ends.clear()
        self._ends[queue_id] = self._ledger.end(queue_id)
        return self._ends[queue_id]

    def _end(self, queue_id: str) -> int | None:
        return self._ends[queue_id] if queue_id in self._ends else self._resume(queue_id)

    def _write(self, batch: pa.RecordBatch, key: RangeKey) -> None:
        if batch.num_rows != record.rows_of(key):
            raise ValueError(f"expected {record.rows_of(key)} rows for {key}, got {batch.num_rows}")
        batch = self._checked(batch, key)
        end = self._end(key.queue_id)
        if end is not None and end >= key.first:
            held = max(record.rows_of(record.up_to(key, end)), 0)
            self._duplicates.inc(held)
            self.context.log.info("events left out that the lake holds", key=str(key), held=held, end=end)
            batch, key = batch.slice(held), record.behind(key, end)
            if record.size(key) <= 0:
                return
        roll = self._roll_at(key)
        if key.queue_id != roll.queue_id or key.first != roll.next:
            raise ValueError(f"expected a key that begins at {roll.queue_id}/{roll.next}, got {key}")
        roll.add(batch)
        roll.next = key.last + 1

    def _checked(self, batch: pa.RecordBatch, key: RangeKey) -> pa.RecordBatch:
        if tuple(batch.schema.names) != EVENT_COLUMNS:
            raise ValueError(f"expected the columns {EVENT_COLUMNS} for {key}, got {batch.schema.names}")
        if names := columns.duplicate_names(batch.schema):
            raise PermanentError(f"{', '.join(names)} twice in one event", {str(key): range(batch.num_rows)})
        if (coded := columns.checked(batch, self._texts)) is None:
            rows = columns.bad_rows(batch)
            raise PermanentError(f"{len(rows)} events are not valid UTF-8 or lack a required column", {str(key): rows} if rows else None)
        return coded

    def _roll_at(self, key: RangeKey) -> Roll:
        if self._roll is None:
            assert self._store is not None, "sink_lake is not open"
            assert self._ledger is not None
            self._ledger.present()  # a large roll writes long before its flush
            end = self._end(key.queue_id)
            self._roll = Roll(self._store, self.config, key.queue_id, key.first if end is None else end + 1, self._overflow.inc)
            self._roll.next = key.first
        return self._roll

    def _flush(self, key: RangeKey) -> None:
        assert self._ledger is not None, "sink_lake is not open"
        end = self._end(key.queue_id)
        if end is not None:
            key = record.behind(key, end)
        if record.size(key) <= 0:
            return
        roll = self._roll_at(key)
        if (roll.queue_id, roll.rows) != (key.queue_id, record.rows_of(key)) or roll.next not in (key.first, key.last + 1):
            written = f"{roll.rows} rows of {roll.queue_id} from {roll.first} up to {roll.next - 1}"
            raise ValueError(f"expected a flush of the {written}, got one of {record.rows_of(key)} rows of {key}")
        # Store, sync, commit, publish: only the return of this call lets the queue forget the range.
        started = time.monotonic()
        fault = self.context.fault
        fault("sink_lake.before_temp")
        self._ledger.present()
        roll.begin()
        roll.write_out()
        fault("sink_lake.after_temp")
        roll.sync()
        fault("sink_lake.after_fsync")
        entry = self._record(roll, key)
        self._ends.pop(key.queue_id, None)  # unknown until the end of this call
        roll.uncertain = True
        won = self._ledger.commit(entry)
        roll.uncertain = False
        if not won:
            raise TransientError(f"another writer has put {key.queue_id}/{entry.first} into the lake at {self._name}; resume from there")
        self._account(entry, time.monotonic() - started)
        fault("sink_lake.after_commit")
        self._ledger.publish(entry)
        self._ledger.recover(key.queue_id)  # what earlier attempts at this range left
        self._roll, self._texts = None, Texts()
        self._ends[key.queue_id] = key.last

    def _record(self, roll: Roll, key: RangeKey) -> CommitRecord:
        missing = key.missing
        if key.first > roll.first:
            # Ranges chain. A host that skips (hold = "none") leaves a hole, which is told rather than hidden.
            hole = Missing(roll.first, key.first - 1, "skipped")
            self._skipped.inc(record.size(hole))
            self.context.log.warning("positions never written", queue=key.queue_id, first=hole.first, last=hole.last)
            missing = (hole, *missing)
        return CommitRecord(
            queue_id=key.queue_id,
            first=roll.first,
            last=key.last,
            rows=roll.rows,
            attempt=roll.attempt,
            files=tuple(roll.files),
            missing=missing,
            dead=record.ranges(key.dead),
            schemas=roll.schemas,
            wrong_clock_rows=roll.wrong_clock_rows,
            written_at=datetime.datetime.fromtimestamp(self.context.clock.wall(), datetime.UTC).isoformat(),
        )

    def _account(self, entry: CommitRecord, seconds: float) -> None:
        size = sum(file.bytes for file in entry.files)
        self._written_bytes.inc(size)
        self._files.inc(len(entry.files))
        self._wrong_clock.inc(entry.wrong_clock_rows)
        if entry.wrong_clock_rows and not self._clock_told:
            self._clock_told = True
            self.context.log.warning("events received by a wrong clock: their time decides where they lie", rows=entry.wrong_clock_rows)
        self.context.log.debug("roll committed", first=entry.first, last=entry.last, files=len(entry.files), bytes=size, seconds=seconds)

    def _forget(self) -> None:
        roll, self._roll = self._roll, None
        self._ends.clear()
        if roll is None or self._ledger is None:
            return
        roll.abandon()
        try:
            self._ledger.discard(roll.attempt, uncertain=roll.uncertain)
        except OSError as error:
            # They are out of every reader's sight, and removed when this range is committed.
            self.context.log.warning("temporary files left behind", attempt=roll.attempt, error=str(error))
