"""Where a lake lies: a local folder (synced, with exclusive create) or any pyarrow filesystem. Paths are below its root."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import pyarrow as pa
from pyarrow import fs

#: os.link on filesystems without hard links.
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
OBJECT_STORES = {"s3", "gcs", "abfs"}
SCHEMES = {"file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs"}


class OutFile(Protocol):
    """A file being written: `stream` takes bytes, `finish` closes it and returns when they are safe."""

    stream: Any

    def finish(self) -> None: ...


class Store(Protocol):
    """What the lake needs of a filesystem. Every method may raise OSError."""

    root: str
    #: Whether `put_new` can be won by one writer only; without it the lake must have a single writer.
    exclusive: bool

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

    def remove_tree(self, path: str) -> int:
        """Remove a folder with its files, and return how many there were; 0 when it is not there."""


def open_store(path: str) -> Store:
    """The store of a local path or of a URI that `pyarrow.fs.FileSystem.from_uri` takes."""
    if "://" not in path:
        return LocalStore(Path(path))
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


class _LocalFile:
    # The descriptor is opened first and synced last: one that is opened after a failed write-back may not hear of the failure.
    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            self.stream = pa.OSFile(path, "wb")
        except BaseException:
            os.close(self._fd)
            raise

    def finish(self) -> None:
        try:
            self.stream.close()
            os.fsync(self._fd)
        finally:
            os.close(self._fd)


class LocalStore:
    """A folder of this machine. Everything that must be safe is fsynced, folders included."""

    exclusive = True

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self.root = str(self._root)

    def make_dirs(self, path: str) -> None:
        self._path(path).mkdir(parents=True, exist_ok=True)

    def create(self, path: str) -> OutFile:
        return _LocalFile(str(self._path(path)))

    def sync_dirs(self, paths: Iterable[str]) -> None:
        folders = {PurePosixPath(path) for path in paths}
        for folder in sorted(folders | {parent for path in folders for parent in path.parents}, reverse=True):
            _sync_dir(self._path(str(folder)))

    def move(self, source: str, target: str) -> bool:
        try:
            self._path(source).rename(self._path(target))
        except FileNotFoundError:
            if self._path(source).exists():
                raise  # it is the target's folder that is not there
            return False
        return True

    def put_new(self, path: str, data: bytes, temporary: str) -> bool:
        beside, target = self._path(temporary), self._path(path)
        _write(beside, data, sync=True)
        try:
            target.hardlink_to(beside)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            # No hard links here (FAT, some network mounts): two writers are then not told apart.
            if target.exists():
                return False
            beside.rename(target)
        self.sync_dirs([str(PurePosixPath(path).parent)])
        return True

    def put(self, path: str, data: bytes, temporary: str) -> None:
        beside = self._path(temporary)
        with contextlib.suppress(FileNotFoundError):
            _write(beside, data, sync=False)
            beside.replace(self._path(path))

    def get(self, path: str) -> bytes | None:
        try:
            return self._path(path).read_bytes()
        except FileNotFoundError:
            return None

    def names(self, path: str) -> list[str]:
        try:
            return sorted(entry.name for entry in self._path(path).iterdir())
        except FileNotFoundError:
            return []

    def remove_tree(self, path: str) -> int:
        count = len(self.names(path))
        shutil.rmtree(self._path(path), onerror=_ignore_absence)
        return count

    def _path(self, path: str) -> Path:
        return self._root / path


class ArrowStore:
    """Any other filesystem of pyarrow: durable when a file is closed, as object stores are.

    They have no create that fails when the object exists through this interface: one writer for each lake and queue.
    """

    exclusive = False

    def __init__(self, filesystem: fs.FileSystem, base: str, name: str) -> None:
        self._fs, self._base, self.root = filesystem, base.rstrip("/"), name

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

    def remove_tree(self, path: str) -> int:
        count = len(self.names(path))
        if self._is_there(path):
            self._fs.delete_dir(self._path(path))
        return count

    def _is_there(self, path: str) -> bool:
        return bool(self._fs.get_file_info(self._path(path)).type != fs.FileType.NotFound)

    def _path(self, path: str) -> str:
        return f"{self._base}/{path}"


class _ArrowFile:
    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def finish(self) -> None:
        self.stream.close()


def _write(path: Path, data: bytes, *, sync: bool) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        if sync:
            stream.flush()
            os.fsync(stream.fileno())


def _sync_dir(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a filesystem that cannot sync folders
            raise
    finally:
        os.close(fd)


def _ignore_absence(_function: Any, _path: str, info: Any) -> None:
    # Another process may clean the same folder.
    if not isinstance(info[1], FileNotFoundError):
        raise info[1]
