"""A file of fixed size that is mapped into memory, and how what is written to it becomes durable."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from headrace_queue_pmem import libc

#: Between two slices of long work; may sleep, so that whoever shares the cores comes to its turn.
Pace = Callable[[], None]
SLICE_BYTES: Final = 512 << 10


def no_pace() -> None:
    """At full speed."""


def slices(start: int, length: int) -> Iterator[tuple[int, int]]:
    """A range in pieces (where, how long) of SLICE_BYTES at most."""
    for at in range(start, start + length, SLICE_BYTES):
        yield at, min(SLICE_BYTES, start + length - at)


class Area:
    """A mapped file. It lives as long as anybody refers to it, so a zero-copy batch keeps its bytes valid by itself.

    `address` and `size` are those of the usable part; `view` is the same as a memoryview (read-only maps must not be written).
    """

    #: Whether `gather_durably` is one call that is cheaper than `gather` and `persist`.
    written = False

    def __init__(
        self,
        address: int,
        size: int,
        persist: Callable[[int, int], None],
        sync: Callable[[int, int], None],
        release: Callable[[], None] | None,
    ) -> None:
        self.address, self.size = address, size
        self.view = libc.view(address, size)
        self._persist, self._sync = persist, sync
        self._finalizer = weakref.finalize(self, release) if release else None
        if self._finalizer:
            # At interpreter exit batches may still be alive; the kernel takes the mapping back.
            self._finalizer.atexit = False

    def close(self) -> None:
        """Give the mapping back now: for areas of which no batch can be a view."""
        if self._finalizer:
            self._finalizer()

    def write(self, offset: int, source: Any, length: int) -> None:
        """Copy bytes in; they are durable only after `persist`."""
        libc.copy(self.address + offset, source, length)

    def gather(self, parts: Sequence[tuple[int, Any]]) -> None:
        """Copy several pieces in, each with its offset, in rising order; what lies between two of them means nothing."""
        for offset, source in parts:
            self.write(offset, source, len(source))

    def gather_durably(self, parts: Sequence[tuple[int, Any]]) -> None:
        """The same, durable at the medium's level on return. Says nothing of what was written otherwise before."""
        self.gather(parts)
        end = parts[-1][0] + len(parts[-1][1])
        self.persist(parts[0][0], end - parts[0][0])

    def persist(self, offset: int, length: int) -> None:
        """Make a range durable at the medium's level. OSError: it may not be."""
        self._persist(self.address + offset, length)

    def sync(self, offset: int, length: int) -> None:
        """Make a range survive power loss, whatever the level."""
        self._sync(self.address + offset, length)

    def write_out(self, pace: Pace) -> None:
        """Bring all that was stored through the map to the device, slice by slice; it takes a `sync` to be durable."""

    def populate(self, offset: int, length: int) -> None:
        """Bring a range into memory without holding the GIL. OSError: to look at it would end the process."""
        libc.populate(self.address + offset, length)

    def fetch(self, offset: int, length: int, answers: Callable[[], None]) -> bool:
        """Bring a range into memory, without holding the GIL, before it is looked at.

        Where the device cannot give it, `answers` raises if it gives nothing at all, which says nothing of what lies there.
        Otherwise the pages that are bad are zeros in this map from now on: damage like any other. False then.
        """
        length = min(length, self.size - offset)
        try:
            for at, part in slices(self.address + offset, length):
                libc.populate(at, part)
        except OSError:
            answers()
            libc.blank(self.address + offset, length)
            return False
        return True


class WrittenArea(Area):
    """An area that is mapped for reading and written through its file, and durable at level `power` where `durable`.

    A filesystem that turned read-only, was shut down or cannot reach its device refuses a write to the file, and the append
    fails; stores into a map it takes or ends the process for, whichever page they meet. And it costs less: a store into the
    map is a page fault, and writing its page back a TLB flush on every core (msync of a 10 KiB commit took 260-370 us where
    pwritev and fdatasync took 190-250). `at` is the area's offset in the file.
    """

    written = True

    def __init__(self, address: int, size: int, descriptor: int, at: int, durable: bool, release: Callable[[], None]) -> None:
        self._descriptor, self._at = os.dup(descriptor), at
        self._flags = os.RWF_DSYNC if durable else 0

        def sync(_address: int, _length: int, fd: int = self._descriptor) -> None:
            os.fdatasync(fd)

        def close(fd: int = self._descriptor) -> None:
            os.close(fd)
            release()

        super().__init__(address, size, sync if durable else no_sync, sync, close)

    def write(self, offset: int, source: Any, length: int) -> None:
        self._write([memoryview(source)[:length]], offset, length)

    def gather(self, parts: Sequence[tuple[int, Any]], flags: int = 0) -> None:
        for start in range(0, len(parts), _PARTS_MAX):
            pieces: list[Any] = []
            first = end = parts[start][0]
            for offset, source in parts[start : start + _PARTS_MAX]:
                if offset > end:
                    pieces.append(bytes(offset - end))
                pieces.append(source)
                end = offset + len(source)
            self._write(pieces, first, end - first, flags)

    def gather_durably(self, parts: Sequence[tuple[int, Any]]) -> None:
        if len(parts) > _PARTS_MAX:
            super().gather_durably(parts)
        else:
            # One system call for both: under a busy loop the thread waits for the interpreter after each.
            self.gather(parts, self._flags)

    def write_out(self, pace: Pace) -> None:
        for at, length in slices(0, self.size):
            libc.unpopulate(self.address + at, length)
            libc.write_out(self._descriptor, self._at + at, length)
            pace()

    def _write(self, pieces: list[Any], offset: int, length: int, flags: int = 0) -> None:
        written = os.pwritev(self._descriptor, pieces, self._at + offset, flags)
        if written == length:
            return
        rest = memoryview(b"".join(pieces))
        while written < length:  # a signal, or the last block of a disk
            written += os.pwritev(self._descriptor, [rest[written:]], self._at + offset + written, flags)


#: Pieces and the gaps between them must not be more than the kernel takes in one call (1024).
_PARTS_MAX: Final = 500


def no_sync(_address: int, _length: int) -> None:
    """At level `process` a store into a shared map is enough: the page cache outlives the process."""
