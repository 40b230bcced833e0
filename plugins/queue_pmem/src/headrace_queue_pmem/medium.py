"""What the ring needs of a medium, and the plain one: preallocated files in a directory, mapped into memory.

A medium keeps *areas* (mapped files of fixed size: the head and the segments) and *notes* (small files replaced as a
whole). `persist` does what the durability level asks for; `sync` always goes to the device.
"""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path
from typing import Final, Literal, Protocol

from headrace_queue_pmem import libc
from headrace_queue_pmem.area import Area, Pace, WrittenArea, no_pace, no_sync, slices
from headrace_queue_pmem.failing import DISK_FULL
from headrace_queue_pmem.layout import HEAD_MAGIC, MAGIC_AT, SEGMENT_MAGIC

Level = Literal["process", "power"]

AREA_MAGICS: Final = (HEAD_MAGIC, SEGMENT_MAGIC)


class Medium(Protocol):
    """A directory of areas and notes. OSError is the only error that these calls raise for what the disk does."""

    level: Level
    name: str  # "file", "pmem": what the config calls it
    filesystem: str
    method: str

    def names(self) -> list[str]:
        """The names of all areas and notes."""

    def create(self, name: str, size: int, pace: Pace = no_pace) -> Area:
        """Make an area of `size` bytes on disk, fully allocated and zeroed. Fails cleanly when the disk is full.

        The allocation comes first and at once; what takes longer is done in slices with `pace` between them.
        """

    def open(self, name: str) -> Area:
        """Map an area for writing."""

    def read(self, name: str) -> Area:
        """Map an area for reading only: needs nothing but the file, however damaged the rest is."""

    def size(self, name: str) -> int:
        """Bytes of an area's file on disk."""

    def rename(self, old: str, new: str) -> None:
        """Rename durably, replacing what is there."""

    def remove(self, name: str) -> None:
        """Remove a file; the areas that are mapped stay valid."""

    def save(self, name: str, content: bytes) -> None:
        """Replace a note as a whole, surviving power loss; on a full disk in its own place, where a crash may tear it.

        So each note has a second copy, which is saved behind it.
        """

    def load(self, name: str) -> bytes | None:
        """A note's content, or None."""

    def usable(self, size: int) -> int:
        """How many bytes of an area of `size` bytes on disk are ours."""

    def place(self) -> bytes:
        """16 bytes that no other directory has, the same as long as this one is not made anew."""

    def answers(self) -> None:
        """OSError when nothing can be made durable here now: then a failed read says nothing about the file."""


class FileMedium:
    """Preallocated files: the medium where libpmemobj is missing or not wanted."""

    name = "file"

    def __init__(self, directory: Path, level: Level, filesystem: str = "file", dax: bool = False) -> None:
        self.directory, self.level, self.filesystem, self.dax = directory, level, filesystem, dax
        self.method = "fdatasync" if level == "power" else "page-cache"

    def names(self) -> list[str]:
        return sorted(entry.name for entry in os.scandir(self.directory) if entry.is_file())

    def create(self, name: str, size: int, pace: Pace = no_pace) -> Area:
        path = self.directory / name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        area: Area | None = None
        try:
            # Blocks are taken now, so that a full disk is met here and never at a store into the map.
            os.posix_fallocate(descriptor, 0, size)
            address = libc.map_file(descriptor, size, writable=True)
            area = self._area(descriptor, address, size)
            # Zeroed through the map and not by write(2): big writes leave large folios, and then a store into one page of a map
            # writes back 1 MiB.
            for at, length in slices(address, size):
                libc.populate_written(at, length)
                libc.fill(at, length)
                pace()
            if self.level == "power":
                area.write_out(pace)
                area.sync(0, size)
            self._sync_directory()
        except OSError:
            if area is not None:
                area.close()
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        finally:
            os.close(descriptor)
        return area

    def open(self, name: str) -> Area:
        return self._map(name, writable=True)

    def read(self, name: str) -> Area:
        return self._map(name, writable=False)

    def size(self, name: str) -> int:
        return (self.directory / name).stat().st_size

    def rename(self, old: str, new: str) -> None:
        (self.directory / old).replace(self.directory / new)
        self._sync_directory()

    def remove(self, name: str) -> None:
        (self.directory / name).unlink(missing_ok=True)

    def save(self, name: str, content: bytes) -> None:
        temporary = self.directory / (name + ".tmp")
        try:
            _write_safely(temporary, os.O_CREAT | os.O_TRUNC, content)
        except OSError as error:
            if error.errno not in DISK_FULL or not self._has_blocks(name, len(content)):
                raise
            # Without the note no space can be given back: a queue that has passed all that it held would stay full.
            temporary.unlink(missing_ok=True)
            _write_safely(self.directory / name, 0, content)
        else:
            self.rename(temporary.name, name)

    def _has_blocks(self, name: str, size: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return (self.directory / name).stat().st_blocks * 512 >= size
        return False

    def load(self, name: str) -> bytes | None:
        try:
            return (self.directory / name).read_bytes()
        except FileNotFoundError:
            return None

    def usable(self, size: int) -> int:
        return size

    def place(self) -> bytes:
        # By the filesystem and the inode: a copy of the directory is another place.
        return struct.pack("<QQ", os.statvfs(self.directory).f_fsid & (2**64 - 1), self.directory.stat().st_ino)

    def answers(self) -> None:
        path = self.directory / "answers.tmp"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, b"?")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
                path.unlink()
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise

    def _map(self, name: str, writable: bool) -> Area:
        descriptor = os.open(self.directory / name, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        try:
            length = os.fstat(descriptor).st_size // libc.PAGE * libc.PAGE
            if length < libc.PAGE:
                raise OSError(5, f"{name} has {length} bytes, too few for a queue file")
            address = libc.map_file(descriptor, length, writable)
            try:
                start = find_area(address, length)
            except OSError:
                libc.unmap(address, length)
                raise
            return self._area(descriptor, address, length, start) if writable else self._looked_at(name, address, length, start)
        finally:
            os.close(descriptor)

    def _area(self, descriptor: int, address: int, length: int, offset: int = 0) -> Area:
        def release() -> None:
            libc.unmap(address, length)

        return WrittenArea(address + offset, length - offset, descriptor, offset, self.level == "power", release)

    def _looked_at(self, name: str, address: int, length: int, offset: int) -> Area:
        def release() -> None:
            libc.unmap(address, length)

        def sync(_address: int, _length: int) -> None:
            # By a descriptor: of a map that cannot be written to the kernel takes an msync, and does nothing.
            descriptor = os.open(self.directory / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)

        return Area(address + offset, length - offset, sync if self.level == "power" else no_sync, sync, release)

    def _sync_directory(self) -> None:
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_safely(path: Path, flags: int, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags, 0o600)
    try:
        remaining = memoryview(content)
        while remaining:
            remaining = remaining[os.write(descriptor, remaining) :]
        os.ftruncate(descriptor, len(content))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find_area(address: int, length: int) -> int:
    """Where in a mapped file our bytes begin: at the start, or behind libpmemobj's own at the next page with our magic.

    Its first two pages, where headers have their copies, are in memory then; OSError where they cannot be had. 0 when no magic
    is found, so that the caller meets (and reports) what stands there instead.
    """
    memory = libc.view(address, length)
    # The first two are where the areas of plain files and of libpmemobj 1.12's pools are; 8 MiB is beyond what any version needs.
    candidates: tuple[int, ...] = (0, 0x383000, *range(libc.PAGE, min(length, 8 << 20) - libc.PAGE + 1, libc.PAGE))
    for offset in candidates:
        if offset + libc.PAGE > length:
            continue
        libc.populate(address + offset, min(2 * libc.PAGE, length - offset))
        if any(bytes(memory[offset + at : offset + at + 8]) in AREA_MAGICS for at in MAGIC_AT):
            return offset
    return 0
