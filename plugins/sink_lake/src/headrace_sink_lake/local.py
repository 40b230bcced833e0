"""A lake in a folder of this machine: synced, with exclusive create."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from headrace_sink_lake.store import OutFile

#: os.link on filesystems without hard links.
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class LocalStore:
    """A folder of this machine. Everything that must be safe is fsynced, folders included."""

    exclusive = True
    uploads = 1

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self.root = str(self._root)

    def probe(self, folder: str) -> None:
        """Nothing to find out: without hard links `put_new` does what it can."""

    def missing(self, folder: str) -> bool:
        return not self._path(folder).is_dir()

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

    def folders(self, path: str) -> list[str]:
        # What else lies there (a `.DS_Store`, a `.nfs...`) is nobody's roll.
        return [name for name in self.names(path) if self._path(f"{path}/{name}").is_dir()]

    def remove_tree(self, path: str) -> int:
        count = len(self.names(path))
        shutil.rmtree(self._path(path), onerror=_ignore_absence)
        return count

    def walk(self) -> Iterator[tuple[str, int]]:
        for folder, _, names in os.walk(self._root):
            inner = os.path.relpath(folder, self._root)
            for name in names:
                path = name if inner == "." else f"{inner}/{name}"
                if (size := self.size(path)) is not None:  # else it was removed since
                    yield path, size

    def size(self, path: str) -> int | None:
        try:
            return self._path(path).stat().st_size
        except FileNotFoundError:
            return None

    def open_input(self, path: str) -> Any:
        return pa.OSFile(str(self._path(path)), "rb")

    def link(self, source: str, target: str) -> None:
        try:
            self._path(target).hardlink_to(self._path(source))
        except FileExistsError:
            return
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            beside = self._path(f"{target}.tmp")
            with beside.open("wb") as copy, self._path(source).open("rb") as original:
                shutil.copyfileobj(original, copy, 1 << 20)
                copy.flush()
                os.fsync(copy.fileno())
            beside.rename(self._path(target))

    def remove(self, path: str) -> None:
        self._path(path).unlink(missing_ok=True)

    def _path(self, path: str) -> Path:
        return self._root / path


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

    def abandon(self) -> None:
        try:
            self.stream.close()
        finally:
            os.close(self._fd)


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
