"""What readers count at one moment: the newest manifest, and the list of live files. Blocking I/O; may raise OSError."""

from __future__ import annotations

from headrace_sink_lake.manifest import MANIFEST, MANIFESTS, PARQUET, Manifest, decode, manifest_path
from headrace_sink_lake.store import Store, open_store


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
