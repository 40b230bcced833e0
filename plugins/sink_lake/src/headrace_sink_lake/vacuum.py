"""`headrace lake vacuum`: remove the files that compacted ones replace, for good. Blocking I/O.

In each partition whose entry in the manifest is old enough, the merged files get names that a glob finds, and the files that
they replace go. For the few milliseconds between the two (seconds on an object store) a reader of a glob sees events twice;
readers of the manifest see each event once at any moment. Repeatable; a kill leaves nothing that the next run does not finish.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from headrace_sink_lake.inspection import require_lake
from headrace_sink_lake.manifest import COMPACTED_FILE, MERGED, ORPHAN_S, ROLL_FILE, Index, LiveFile, Partition, merged_path, settled_path
from headrace_sink_lake.snapshot import commit_partitions, forget_old, read_manifest
from headrace_sink_lake.store import Store


@dataclass
class Removed:
    """What a vacuum did."""

    partitions: int = 0
    files: int = 0
    bytes: int = 0


def vacuum(
    store: Store,
    older_s: float,
    *,
    tell: Callable[[str], None] = lambda text: None,
    fault: Callable[[str], None] = lambda name: None,
    wall: Callable[[], float] = time.time,
) -> Removed:
    """Remove what was replaced more than `older_s` ago, which is to be longer than any query; and what a killed compaction left.

    OSError when a file that should stand in for others is not there as the manifest says; then nothing is removed in that partition.
    """
    require_lake(store)
    manifest = read_manifest(store)
    index = manifest.index()
    entries = {partition.folder: partition for partition in manifest.partitions}
    known = index.files | {merged_path(file) for file in index.files}
    now = wall()
    before = now - older_s
    candidates: dict[str, dict[str, int]] = {}
    for path, size in store.walk():
        folder, _, name = path.rpartition("/")
        if _is_replaced(index, folder, name, path) or _is_left(name, path, known, now, folder in entries):
            candidates.setdefault(folder, {})[path] = size
    removed = Removed()
    settled: dict[str, tuple[Partition | None, Partition]] = {}
    for folder, files in sorted(candidates.items()):
        entry = entries.get(folder)
        if entry is not None:
            if entry.changed_at >= before:
                continue
            tell(f"{removed.partitions:,} partitions, {removed.files:,} files removed")
            new = _settle(store, entry, wall())
            fault("lake.after_link")
            settled[folder] = (entry, new)
            files = {path: size for path, size in files.items() if path not in {file.path for file in (*entry.files, *new.files)}}
        for path, size in files.items():
            store.remove(path)
            fault("lake.mid_remove")
            removed.files += 1
            removed.bytes += size
        removed.partitions += bool(files)
    changed: dict[str, Any] = {folder: pair for folder, pair in settled.items() if pair[0] != pair[1]}
    if changed:
        fault("lake.before_manifest")
        commit_partitions(store, changed, wall())
        fault("lake.after_manifest")
    forget_old(store)
    return removed


def _is_replaced(index: Index, folder: str, name: str, path: str) -> bool:
    roll = ROLL_FILE.fullmatch(name)
    return roll is not None and path not in index.files and index.is_covered(folder, roll["queue"], int(roll["first"]))


def _is_left(name: str, path: str, known: AbstractSet[str], now: float, has_entry: bool) -> bool:
    # Of an older compaction, of one that was killed, or the other name of a settled file.
    made = COMPACTED_FILE.fullmatch(name)
    if made is None:
        return False
    if made["ending"] == "parquet":
        return has_entry  # else the manifest was lost, and what a glob finds may be the only copy
    return path in known or now - int(made["created"]) > ORPHAN_S


def _settle(store: Store, entry: Partition, now: float) -> Partition:
    """Give merged files the names that readers' globs find; the other names go with a later vacuum."""
    for file in entry.files:
        if (size := store.size(file.path)) != file.bytes:
            found = "none" if size is None else f"{size} bytes"
            raise OSError(
                f"expected {file.path} with {file.bytes} bytes, found {found}; nothing was removed there: run headrace lake verify"
            )
    if entry.settled:
        return entry
    files = []
    for file in entry.files:
        if file.path.endswith(MERGED):
            path = settled_path(file.path)
            store.link(file.path, path)
            file = LiveFile(path, file.rows, file.bytes)
        files.append(file)
    store.sync_dirs([entry.folder])
    return Partition(entry.folder, tuple(files), entry.covered, now)
