"""A queue's directory as an open would leave it, and nothing of it on disk: what `headrace queue` looks at.

An open decides what belongs to the log by what it finds, and mends as it goes. Over this medium it does all of that to private
copies of the pages that it writes, and to names that are changed in here only. So there is one set of rules, and what a look
announces is what an open does.
"""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

from headrace_queue_pmem import libc
from headrace_queue_pmem.area import Area, Pace, no_pace
from headrace_queue_pmem.medium import FileMedium, find_area


class LookingMedium(FileMedium):
    """Needs no lock, and the right to read the files."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "process")
        self._behind: dict[str, Path | Area | bytes] = {name: directory / name for name in super().names()}
        self.removed: list[str] = []
        self.pool = False  # whether the areas lie in libpmemobj pools

    def names(self) -> list[str]:
        return sorted(self._behind)

    def create(self, name: str, size: int, pace: Pace = no_pace) -> Area:
        address = libc.map_file(-1, size, writable=True, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._behind[name] = area = _area(address, size)
        return area

    def open(self, name: str) -> Area:
        return self.read(name)

    def read(self, name: str) -> Area:
        behind = self._behind[name]
        if isinstance(behind, Path):
            path = behind
            self._behind[name] = behind = _private(path)
            self.pool |= behind.size <= path.stat().st_size - libc.PAGE
        assert isinstance(behind, Area)
        return behind

    def rename(self, old: str, new: str) -> None:
        self._behind[new] = self._behind.pop(old)

    def remove(self, name: str) -> None:
        if self._behind.pop(name, None) is not None:
            self.removed.append(name)

    def save(self, name: str, content: bytes) -> None:
        self._behind[name] = content

    def load(self, name: str) -> bytes | None:
        behind = self._behind.get(name)
        try:
            return behind.read_bytes() if isinstance(behind, Path) else behind if isinstance(behind, bytes) else None
        except FileNotFoundError:
            return None

    def answers(self) -> None:
        """A look writes nothing, so that it cannot tell a dead device from a bad sector: both are damage to it."""


def _private(path: Path) -> Area:
    """A map of a file that may be written to, which changes nothing in the file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        length = os.fstat(descriptor).st_size // libc.PAGE * libc.PAGE
        if length < libc.PAGE:
            raise OSError(errno.EIO, f"{path.name} has {length} bytes, too few for a queue file")
        address = libc.map_file(descriptor, length, writable=True, flags=mmap.MAP_PRIVATE)
    finally:
        os.close(descriptor)
    try:
        return _area(address, length, find_area(address, length))
    except OSError:
        libc.unmap(address, length)
        raise


def _area(address: int, length: int, start: int = 0) -> Area:
    return Area(address + start, length - start, _nothing, _nothing, lambda: libc.unmap(address, length))


def _nothing(_address: int, _length: int) -> None:
    """Nothing is durable here."""
