"""One roll: the rows of a contiguous range of one queue id, on their way into the lake."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from headrace_sink_lake import columns, units
from headrace_sink_lake.ledger import TEMPORARIES, attempt_name
from headrace_sink_lake.ordering import ordered
from headrace_sink_lake.outputs import ParquetFiles
from headrace_sink_lake.partition import Part, partition
from headrace_sink_lake.record import LakeFile
from headrace_sink_lake.rows import Rows
from headrace_sink_lake.store import OutFile, Store

#: Beyond it, files that are complete are made safe at once: object stores hold them in memory until then.
UNSYNCED_BYTES_MAX = 64 << 20


class Roll:
    """Collects rows by partition in memory and writes them as temporary Parquet files.

    Methods do blocking I/O; they may raise OSError, and pyarrow's errors for what Parquet cannot store. Memory: about
    `buffer_bytes_max` of rows, twice that while they are written; beyond it rows go to temporary files before the flush.
    """

    def __init__(self, store: Store, config: Any, queue_id: str, first: int, on_overflow: Callable[[int], None]) -> None:
        self._store, self._config, self._on_overflow = store, config, on_overflow
        self.queue_id, self.first, self.next = queue_id, first, first
        self.rows = 0
        self.wrong_clock_rows = 0
        #: A commit was tried and its outcome is unknown: the files must stay, for the record may appear later.
        self.uncertain = False
        self.attempt = attempt_name(queue_id, first, secrets.token_hex(8))
        self.files: list[LakeFile] = []
        self.schemas: dict[str, dict[str, dict[str, str]]] = {}
        self._batches: list[pa.RecordBatch] = []
        self._folders: dict[str, int] = {}
        self._buffered_bytes = 0
        self._unsynced: list[OutFile] = []
        self._unsynced_bytes = 0
        self._begun = False

    def add(self, batch: pa.RecordBatch) -> None:
        """Take rows in the order of their positions."""
        if batch.num_rows == 0:
            return
        self._batches.append(batch)
        self.rows += batch.num_rows
        self.wrong_clock_rows += columns.wrong_clock_rows(batch)
        self._buffered_bytes += batch.nbytes
        if self._buffered_bytes > self._config.buffer_bytes_max:
            self.write_out()

    def _number(self, part: Part) -> int:
        folder = part.folder
        if folder not in self._folders and len(self._folders) >= self._config.partitions_max:
            folder = part.overflow
            self._on_overflow(part.rows)
        return self._folders.setdefault(folder, len(self._folders))

    def begin(self) -> None:
        """Make the folder of the temporaries, once."""
        if not self._begun:
            self._store.make_dirs(f"{TEMPORARIES}/{self.attempt}")
            self._begun = True

    def write_out(self) -> None:
        """Write what is buffered as temporary files."""
        self.begin()
        declared = units.declared(batch.schema for batch in self._batches)
        for schema, batches in columns.shapes(self._batches):
            held = Rows(schema, batches)
            keys = held.keys(self._config.partition_by)
            numbers, parts = partition(keys, self._config.partition_by)
            places = np.array([self._number(part) for part in parts])
            order, runs = ordered(keys, numbers if np.array_equal(places, np.arange(len(places))) else places[numbers])
            folders = list(self._folders)
            rows = held.taken(order)
            absent = columns.absent(rows, [run.start for run in runs])
            for run, without in zip(runs, absent, strict=True):
                part = columns.storable(rows.slice(run.start, run.stop - run.start), without)
                self._write(folders[run.partition], part, declared)
        self._let_go()

    def _let_go(self) -> None:
        self._batches.clear()
        self._buffered_bytes = 0

    def sync(self) -> None:
        """Make the temporary files safe."""
        self._unsynced_bytes = 0
        if self._store.uploads > 1 and len(self._unsynced) > 1:
            with ThreadPoolExecutor(self._store.uploads) as pool:
                list(pool.map(lambda file: file.finish(), self._unsynced))
            self._unsynced.clear()
        while self._unsynced:
            self._unsynced.pop(0).finish()

    def abandon(self) -> None:
        """Close what is open; the files themselves are the ledger's to settle."""
        while self._unsynced:
            with contextlib.suppress(OSError):  # they are given up anyway
                self._unsynced.pop().abandon()
        self._let_go()

    def _write(self, folder: str, rows: pa.RecordBatch, declared: units.Declared) -> None:
        seen = columns.seen_schema(rows)
        seen = seen.with_metadata({**(seen.metadata or {}), **self._metadata()})
        if declared:
            seen = units.with_units(seen, declared, units.classes(rows))
        schema = self._name_schema(seen)

        def written(file: OutFile, rows: int, size: int) -> None:
            path = f"{folder}/{self.attempt}-{len(self.files)}.parquet".lstrip("/")
            self.files.append(LakeFile(path, rows, size, schema))
            self._unsynced_bytes += size
            if len(self._unsynced) >= self._config.partition_files_max or self._unsynced_bytes >= UNSYNCED_BYTES_MAX:
                self.sync()

        files = ParquetFiles(
            seen,
            compression_level=self._config.compression_level,
            row_group_rows=self._config.row_group_rows,
            target_bytes=self._config.file_bytes,
            create=self._create,
            written=written,
        )
        try:
            files.write(pa.Table.from_batches([rows]))
            files.end()
        finally:
            files.abandon()

    def _create(self) -> OutFile:
        file = self._store.create(f"{TEMPORARIES}/{self.attempt}/{len(self.files)}.tmp")
        self._unsynced.append(file)
        return file

    def _metadata(self) -> dict[bytes, bytes]:
        return {b"headrace.queue_id": self.queue_id.encode(), b"headrace.first": str(self.first).encode()}

    def _name_schema(self, schema: pa.Schema) -> str:
        described = columns.described(schema)
        name = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]
        self.schemas[name] = described
        return name
