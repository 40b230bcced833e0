"""`headrace lake compact`: small files of a partition become a few of the size that readers like. Blocking I/O.

Nothing that exists is changed or removed. Merged files are written under names that no glob takes for Parquet, checked
against what they were made of, and put into the next manifest, which is created exclusively: that is the moment at which
readers of the manifest see them in place of the others. Readers of a glob see no change until `vacuum`. A kill before that
moment leaves files that nobody names; `vacuum` removes them.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace import EVENT_COLUMNS
from headrace_sink_lake import columns, units
from headrace_sink_lake.inspection import RESTORE, queue_names, records, require_lake
from headrace_sink_lake.ledger import TEMPORARIES
from headrace_sink_lake.manifest import COMPACTED_FILE, MERGED, ORPHAN_S, Covered, LiveFile, Manifest, Partition, compacted_name
from headrace_sink_lake.merging import batch_rows, merged, mixed
from headrace_sink_lake.outputs import ParquetFiles
from headrace_sink_lake.snapshot import commit_partitions, forget_old, read_manifest
from headrace_sink_lake.store import OutFile, Store

#: Files that are merged at a time: each is open meanwhile.
INPUTS_MAX = 500
#: How long work may lie uncommitted, which a kill would waste.
COMMIT_S = 20.0
#: Work that is older is given up.
STALE_S = ORPHAN_S / 2


class Options(NamedTuple):
    """How to compact. A file of less than half of `target_bytes` is small; a partition with fewer than `files_min` of them waits."""

    target_bytes: int = 128 << 20
    files_min: int = 4
    compression_level: int = 3
    row_group_rows: int = 131_072


@dataclass
class Outcome:
    """What a compaction did. `damaged`: partitions with a file that cannot be read; `notes`: what it left alone, and why."""

    partitions: int = 0
    files_before: int = 0
    files_after: int = 0
    rows: int = 0
    damaged: int = 0
    notes: list[str] = field(default_factory=list)


class _DamagedError(OSError):
    """A file that is there and cannot be read as what it should be."""


class _Input(NamedTuple):
    file: LiveFile
    queue: str
    first: int


def compact(
    store: Store,
    options: Options | None = None,
    *,
    tell: Callable[[str], None] = lambda text: None,
    fault: Callable[[str], None] = lambda name: None,
    wall: Callable[[], float] = time.time,
) -> Outcome:
    """Merge small files, once through the lake. May run beside writers, readers and other compactions; OSError as of the store."""
    require_lake(store)
    return _Compaction(store, options or Options(), tell, fault, wall).run()


class _Compaction:
    def __init__(self, store: Store, options: Options, tell: Callable[[str], None], fault: Any, wall: Callable[[], float]) -> None:
        self._store, self._options, self._tell, self._fault, self._wall = store, options, tell, fault, wall
        self._outcome = Outcome()
        self._ready: dict[str, tuple[Partition | None, Partition]] = {}
        self._replaced: dict[str, int] = {}
        self._ready_since = 0.0
        self._nonces: set[str] = set()

    def run(self) -> Outcome:
        manifest = read_manifest(self._store)
        known = {partition.folder: partition for partition in manifest.partitions}
        work = self._work(manifest)
        for number, (folder, inputs) in enumerate(sorted(work.items())):
            self._tell(f"{number:,} of {len(work):,} partitions, {self._outcome.rows:,} rows")
            self._partition(folder, known.get(folder), inputs)
            if self._ready and time.monotonic() - self._ready_since > COMMIT_S:
                self._commit()
        self._commit()
        forget_old(self._store)
        return self._outcome

    def _work(self, manifest: Manifest) -> dict[str, list[_Input]]:
        """For each partition the files of rolls that the manifest does not cover, in order."""
        index = manifest.index()
        found: dict[str, list[_Input]] = {}
        for queue in queue_names(self._store):
            for record in self._published(queue):
                for file in record.files:
                    folder = file.path.rpartition("/")[0]
                    if not index.is_covered(folder, queue, record.first):
                        live = LiveFile(file.path, file.rows, file.bytes)
                        found.setdefault(folder, []).append(_Input(live, queue, record.first))
        for partition in manifest.partitions:
            found.setdefault(partition.folder, [])
        return found

    def _published(self, queue: str) -> list[Any]:
        # The manifest covers a queue id up to a roll, so all up to there must be known, and lie in their places.
        chain = list(records(self._store, queue))
        waiting = set(self._store.folders(TEMPORARIES))  # behind the records: what is committed and not here is published
        taken: list[Any] = []
        for path, record in chain:
            if isinstance(record, OSError):
                self._outcome.notes.append(f"{unquote(queue)} only up to {path}: {record}")
                break
            if taken and record.first != taken[-1].last + 1:
                self._outcome.notes.append(f"{unquote(queue)} only up to {taken[-1].last}, where its records have a hole")
                break
            if record.attempt in waiting:
                break  # a writer is about to move its files, or a crash left it: the next time
            taken.append(record)
        return taken

    def _partition(self, folder: str, old: Partition | None, rolls: list[_Input]) -> None:
        files = [*(old.files if old else ()), *(entry.file for entry in rolls)]
        small = [file for file in files if file.bytes < self._options.target_bytes // 2]
        if len(small) < max(self._options.files_min, 2):
            return
        names: list[str] = []
        try:
            made = [file for group in self._groups(small) for file in self._merge(folder, group, names)]
            if not names:
                return  # small, but of types that do not go together
        except FileNotFoundError as error:
            # Another compaction has replaced it since, and `vacuum` removed it.
            self._outcome.notes.append(
                f"{folder or '.'}: {error.filename or error} is gone; changed meanwhile, or see headrace lake verify"
            )
            self._discard(names)
            return
        except _DamagedError as error:
            # The others are merged all the same: one bad file must not let small files grow without end.
            self._outcome.notes.append(f"{folder or '.'}: left alone, for {error}")
            self._outcome.damaged += 1
            self._discard(names)
            return
        except BaseException:
            self._discard(names)
            raise
        covered = {entry.queue: entry.upto for entry in (old.covered if old else ())}
        for entry in rolls:
            covered[entry.queue] = max(entry.first, covered.get(entry.queue, 0))
        kept = [file for file in files if file not in set(small)]
        new = Partition(folder, (*kept, *made), tuple(Covered(queue, upto) for queue, upto in sorted(covered.items())), self._wall())
        if not self._ready:
            self._ready_since = time.monotonic()
        self._ready[folder] = (old, new)
        self._replaced[folder] = len(small)

    def _groups(self, files: list[LiveFile]) -> Iterator[list[tuple[LiveFile, pa.Schema]]]:
        """Files whose readings and context go together, as in a roll."""
        shapes: list[tuple[pa.StructType, pa.StructType]] = []
        members: list[list[tuple[LiveFile, pa.Schema]]] = []
        for file in files:
            with self._reading(file.path), self._store.open_input(file.path) as stream, pq.ParquetFile(stream) as parquet:
                schema = parquet.schema_arrow
                if tuple(schema.names) != EVENT_COLUMNS:
                    raise pa.ArrowInvalid(f"expected the columns {', '.join(EVENT_COLUMNS)}, found {', '.join(schema.names)}")
                own = [columns.of_file(schema, parquet.metadata, name) for name in columns.STRUCTS]
            for number, shape in enumerate(shapes):
                wider = columns.merge(shape[0], own[0]), columns.merge(shape[1], own[1])
                if None not in wider and len(members[number]) < INPUTS_MAX:
                    shapes[number] = wider
                    members[number].append((file, schema))
                    break
            else:
                shapes.append((own[0], own[1]))
                members.append([(file, schema)])
        for shape, group in zip(shapes, members, strict=True):
            schema = columns.file_schema(*shape, group[0][1].metadata)
            schema = columns.as_required(schema, [one for _, one in group])
            schema = units.with_units(schema, units.declared(one for _, one in group))
            yield [(file, schema) for file, _ in group]

    def _merge(self, folder: str, group: list[tuple[LiveFile, pa.Schema]], names: list[str]) -> list[LiveFile]:
        if len(group) == 1:
            return [group[0][0]]
        self._fault("lake.before_merge")
        inputs, schema = [file for file, _ in group], group[0][1]
        made: list[LiveFile] = []
        nonce = secrets.token_hex(8)
        self._nonces.add(nonce)

        def create() -> OutFile:
            names.append(f"{folder}/{compacted_name(self._wall(), nonce, len(made))}".lstrip("/"))
            return self._store.create(names[-1])

        def written(file: OutFile, rows: int, size: int) -> None:
            file.finish()
            made.append(LiveFile(names[-1], rows, size))

        files = ParquetFiles(
            schema,
            compression_level=self._options.compression_level,
            row_group_rows=self._options.row_group_rows,
            target_bytes=self._options.target_bytes,
            create=create,
            written=written,
        )
        with contextlib.ExitStack() as stack:
            stack.callback(files.abandon)
            rows = batch_rows(len(inputs))
            streams = [stack.enter_context(self._store.open_input(file.path)) for file in inputs]
            sources = [self._batches(file.path, stream, rows) for file, stream in zip(inputs, streams, strict=True)]
            for table in merged(sources, schema):
                files.write(table)
            files.end()
        self._check(inputs, made)
        self._store.sync_dirs([folder])
        self._fault("lake.after_merge")
        self._outcome.rows += sum(file.rows for file in made)
        return made

    def _batches(self, path: str, stream: Any, rows: int) -> Iterator[pa.RecordBatch]:
        with self._reading(path):
            for batch in pq.ParquetFile(stream).iter_batches(batch_size=rows):
                batch.validate(full=True)  # a text that is none would go into the merged file, and keep DuckDB from the whole lake
                yield batch

    @contextlib.contextmanager
    def _reading(self, path: str) -> Iterator[None]:
        """Turns what pyarrow says of a damaged file into one error that names it; a store that does not answer is none."""
        try:
            yield
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            self._store.size(path)
            raise _DamagedError(f"{path} cannot be read ({error}); {RESTORE}") from error

    def _check(self, inputs: list[LiveFile], made: list[LiveFile]) -> None:
        """The merged files, read back, hold the very events of the others: OSError where they do not."""
        if self._sums(inputs) != self._sums(made):
            raise OSError(
                f"expected {made[0].path} and {len(made) - 1} more to hold the events of {len(inputs)} files from {inputs[0].path} on, "
                "found others; nothing was replaced: run headrace lake verify"
            )

    def _sums(self, files: list[LiveFile]) -> dict[str, tuple[int, int]]:
        # For each origin the number of events and a sum over them that does not depend on their order.
        found: dict[str, tuple[int, int]] = {}
        for file in files:
            rows = 0
            with self._reading(file.path), self._store.open_input(file.path) as stream:
                for batch in pq.ParquetFile(stream, read_dictionary=["origin"]).iter_batches(1 << 18, columns=["origin", "position"]):
                    rows += batch.num_rows
                    names, codes, positions = columns.ids(batch)
                    for code in np.unique(codes).tolist():
                        own = positions[codes == code]
                        count, total = found.get(names[code], (0, 0))
                        found[names[code]] = (count + len(own), (total + int(mixed(own).sum())) % (1 << 64))
            if rows != file.rows:
                raise _DamagedError(f"expected {file.rows} rows in {file.path}, found {rows}; {RESTORE}")
        return found

    def _commit(self) -> None:
        ready, self._ready = self._ready, {}
        for folder in [folder for folder, (_, new) in ready.items() if self._is_stale(new)]:
            self._outcome.notes.append(f"{folder or '.'}: took more than {STALE_S:.0f} s, given up; set a smaller --target-bytes")
            self._discard([file.path for file in ready.pop(folder)[1].files if file.path.endswith(MERGED) and self._is_mine(file.path)])
        if not ready:
            return
        self._fault("lake.before_manifest")
        done = commit_partitions(self._store, ready, self._wall())
        self._fault("lake.after_manifest")
        for folder, (old, new) in ready.items():
            added = [file.path for file in new.files if old is None or file not in old.files]
            if folder in done:
                self._outcome.partitions += 1
                self._outcome.files_before += self._replaced[folder]
                self._outcome.files_after += len(added)
            else:
                self._outcome.notes.append(f"{folder or '.'}: another compaction was faster")
                self._discard([path for path in added if path.endswith(MERGED)])

    def _is_mine(self, path: str) -> bool:
        return path.rpartition("/")[2].split(".")[2] in self._nonces

    def _is_stale(self, entry: Partition) -> bool:
        # By then `vacuum` may take the merged files for those of a compaction that was killed.
        names = (COMPACTED_FILE.fullmatch(file.path.rpartition("/")[2]) for file in entry.files if file.path.endswith(MERGED))
        return any(name and name["nonce"] in self._nonces and self._wall() - int(name["created"]) > STALE_S for name in names)

    def _discard(self, names: list[str]) -> None:
        for name in names:
            with contextlib.suppress(OSError):
                self._store.remove(name)
