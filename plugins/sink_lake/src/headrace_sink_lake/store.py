"""Where a lake lies: a local folder (synced, with exclusive create) or any pyarrow filesystem. Paths are below its root."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from pyarrow import fs

from headrace_sink_lake.arrow import ArrowStore
from headrace_sink_lake.local import LocalStore

SCHEMES = {"file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs"}


class OutFile(Protocol):
    """A file being written: `stream` takes bytes, `finish` closes it and returns when they are safe, `abandon` lets go of it."""

    stream: Any

    def finish(self) -> None: ...

    def abandon(self) -> None: ...


class Store(Protocol):
    """What the lake needs of a filesystem. Every method may raise OSError."""

    root: str
    #: Whether `put_new` can be won by one writer only; without it the lake must have a single writer.
    exclusive: bool
    #: How many files may be finished at once, to its advantage.
    uploads: int

    def probe(self, folder: str) -> None:
        """Find out what the store can do; may make and remove a file in that folder, which exists."""

    def missing(self, folder: str) -> bool:
        """Whether a folder that was made is there no more; never true where folders are no things of their own."""

    def make_dirs(self, path: str) -> None:
        """Create a folder with its parents, where they are not there."""

    def create(self, path: str) -> OutFile:
        """Open a new file; its folder exists."""

    def sync_dirs(self, paths: Iterable[str]) -> None:
        """Make the entries of these folders and of all above them safe."""

    def move(self, source: str, target: str) -> bool:
        """Rename a file; False when the source is not there."""

    def put_new(self, path: str, data: bytes, temporary: str) -> bool:
        """Create `path` with this content, safely and as a whole; False when it exists. `temporary` is a name to use for it."""

    def put(self, path: str, data: bytes, temporary: str) -> None:
        """Create or replace a small file as a whole; need not be safe on return, nor happen when another process cleans up."""

    def get(self, path: str) -> bytes | None:
        """A small file's content, or None when it is not there."""

    def names(self, path: str) -> list[str]:
        """The names in a folder, sorted; none when it is not there."""

    def folders(self, path: str) -> list[str]:
        """The names of the folders in a folder of folders, sorted; in an object store those below which an object is."""

    def remove_tree(self, path: str) -> int:
        """Remove a folder with its files, and return how many there were; 0 when it is not there."""

    def walk(self) -> Iterator[tuple[str, int]]:
        """All files of the lake with their sizes in bytes, in no order."""

    def size(self, path: str) -> int | None:
        """A file's size in bytes, or None when it is not there."""

    def open_input(self, path: str) -> Any:
        """A file to read at any offset, as pyarrow takes it; FileNotFoundError when it is not there."""

    def link(self, source: str, target: str) -> None:
        """Give a file a second name, or copy it as a whole; nothing when the target exists already. Safe after `sync_dirs`."""

    def remove(self, path: str) -> None:
        """Remove a file; nothing when it is not there."""


def open_store(path: str) -> Store:
    """The store of a local path, of an `s3://` URI (by obstore, where it is installed), or of one that pyarrow's filesystems take."""
    if "://" not in path:
        return LocalStore(Path(path))
    if path.startswith("s3://") and importlib.util.find_spec("obstore") is not None:
        from headrace_sink_lake.objects import open_objects

        return open_objects(path, without_secrets(path))
    try:
        filesystem, inner = fs.FileSystem.from_uri(path)
    except pa.ArrowInvalid as error:
        shown = without_secrets(path)  # pyarrow's text, and the error itself, have the whole URI
        raise OSError(f"{shown} is no filesystem that pyarrow opens: {str(error).replace(path, shown)}") from None
    if isinstance(filesystem, fs.LocalFileSystem):
        return LocalStore(Path(inner))
    return ArrowStore(filesystem, inner, without_secrets(path))


def without_secrets(path: str) -> str:
    """A URI as it may stand in logs: no user, no password, no options."""
    scheme, mark, rest = path.partition("://")
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}" if mark else path
