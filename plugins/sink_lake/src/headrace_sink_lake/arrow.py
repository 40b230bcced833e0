"""A lake on any other filesystem of pyarrow: durable when a file is closed, as object stores are; for a single writer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pyarrow import fs

if TYPE_CHECKING:
    from headrace_sink_lake.store import OutFile

OBJECT_STORES = {"s3", "gcs", "abfs"}


class ArrowStore:
    """Any other filesystem of pyarrow: durable when a file is closed, as object stores are.

    They have no create that fails when the object exists through this interface: one writer for each lake and queue.
    """

    exclusive = False
    uploads = 1

    def __init__(self, filesystem: fs.FileSystem, base: str, name: str) -> None:
        self._fs, self._base, self.root = filesystem, base.rstrip("/"), name

    def probe(self, folder: str) -> None:
        """Nothing to find out: no pyarrow filesystem has an exclusive create."""

    def missing(self, folder: str) -> bool:
        return False

    def make_dirs(self, path: str) -> None:
        if self._fs.type_name not in OBJECT_STORES:
            self._fs.create_dir(self._path(path), recursive=True)

    def create(self, path: str) -> OutFile:
        return _ArrowFile(self._fs.open_output_stream(self._path(path)))

    def sync_dirs(self, paths: Iterable[str]) -> None:
        """Nothing to do: an object's name is as safe as its content."""

    def move(self, source: str, target: str) -> bool:
        if not self._is_there(source):
            return False
        self._fs.move(self._path(source), self._path(target))
        return True

    def put_new(self, path: str, data: bytes, temporary: str) -> bool:
        if self._is_there(path):
            return False
        self.put(path, data, temporary)
        return True

    def put(self, path: str, data: bytes, temporary: str) -> None:
        with self._fs.open_output_stream(self._path(path)) as stream:
            stream.write(data)

    def get(self, path: str) -> bytes | None:
        try:
            with self._fs.open_input_stream(self._path(path)) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def names(self, path: str) -> list[str]:
        found = self._fs.get_file_info(fs.FileSelector(self._path(path), allow_not_found=True))
        return sorted(entry.base_name for entry in found)

    def folders(self, path: str) -> list[str]:
        found = self._fs.get_file_info(fs.FileSelector(self._path(path), allow_not_found=True))
        return sorted(entry.base_name for entry in found if entry.type == fs.FileType.Directory)

    def remove_tree(self, path: str) -> int:
        count = len(self.names(path))
        if self._is_there(path):
            self._fs.delete_dir(self._path(path))
        return count

    def walk(self) -> Iterator[tuple[str, int]]:
        base = self._base + "/"
        for entry in self._fs.get_file_info(fs.FileSelector(self._base, recursive=True, allow_not_found=True)):
            if entry.type == fs.FileType.File:
                yield entry.path.removeprefix(base), entry.size

    def size(self, path: str) -> int | None:
        entry = self._fs.get_file_info(self._path(path))
        return int(entry.size) if entry.type == fs.FileType.File else None

    def open_input(self, path: str) -> Any:
        return self._fs.open_input_file(self._path(path))

    def link(self, source: str, target: str) -> None:
        if not self._is_there(target):
            self._fs.copy_file(self._path(source), self._path(target))

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_file(self._path(path))

    def _is_there(self, path: str) -> bool:
        return bool(self._fs.get_file_info(self._path(path)).type != fs.FileType.NotFound)

    def _path(self, path: str) -> str:
        return f"{self._base}/{path}"


class _ArrowFile:
    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def finish(self) -> None:
        self.stream.close()

    def abandon(self) -> None:
        self.stream.close()
