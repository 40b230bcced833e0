"""What readers count at one moment: the newest manifest, and the list of live files. Blocking I/O; may raise OSError."""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Mapping

from headrace_sink_lake.manifest import MANIFEST, MANIFESTS, PARQUET, Manifest, Partition, decode, encode, manifest_path
from headrace_sink_lake.store import Store, open_store

MANIFESTS_KEPT = 16


def newest(store: Store) -> int:
    """The number of the newest manifest; 0 when the lake was never compacted."""
    found = (MANIFEST.fullmatch(name) for name in store.names(MANIFESTS))
    return max((int(name["number"]) for name in found if name), default=0)


def read_manifest(store: Store) -> Manifest:
    """The newest manifest; an empty one when the lake was never compacted."""
    while number := newest(store):
        path = manifest_path(number)
        if (data := store.get(path)) is not None:
            return decode(data, f"{store.root}/{path}")
    return Manifest()


def commit_partitions(store: Store, changes: Mapping[str, tuple[Partition | None, Partition]], wall: float) -> set[str]:
    """Put changed entries into a new manifest; returns the folders whose change is in it.

    changes: folder -> (the entry that the change was made from, the new entry). A folder whose entry is another one by now
    is left out: somebody else has changed it. On an OSError the outcome is unknown.
    """
    while True:
        base = read_manifest(store)
        current = {partition.folder: partition for partition in base.partitions}
        valid = {folder: new for folder, (old, new) in changes.items() if current.get(folder) == old}
        if not valid:
            return set()
        manifest = base.changed(valid.values(), datetime.datetime.fromtimestamp(wall, datetime.UTC).isoformat())
        store.make_dirs(MANIFESTS)
        store.sync_dirs([MANIFESTS])
        temporary = f"{MANIFESTS}/{manifest.number:020d}.{secrets.token_hex(8)}.tmp"
        won = store.put_new(manifest_path(manifest.number), encode(manifest), temporary)
        store.remove(temporary)
        if won:
            return set(valid)


def forget_old(store: Store) -> None:
    """Remove manifests that newer ones stand in for, and what a killed writer of one left. Some are kept: for one who is late."""
    current = newest(store)
    for name in store.names(MANIFESTS):
        if name[:20].isdigit() and int(name[:20]) <= current - MANIFESTS_KEPT:
            store.remove(f"{MANIFESTS}/{name}")


def live_files(path: str | Store) -> list[str]:
    """The files that hold each row of the lake once, below its root and sorted: what a reader is to open.

    Compaction may go on meanwhile: the list is that of one moment. It stays readable for as long as replaced files are kept.
    """
    store = open_store(path) if isinstance(path, str) else path
    while True:
        manifest = read_manifest(store)
        index = manifest.index()
        found = {name for name, _ in store.walk() if name.endswith(PARQUET) and index.is_live(name)}
        # A file that a newer manifest covers may have been gone before the walk came to it.
        if newest(store) == manifest.number:
            return sorted(found | index.files)
