"""The few C functions that Python does not offer as we need them: memory that outlives objects, and calls without the GIL.

cffi releases the GIL around every call of a function found by `dlopen`, which `ffi.memmove` and `mmap.flush` do not do
for us in the same way: a copy that faults pages in from a disk must not hold up the loop that acknowledges devices.
"""

from __future__ import annotations

import errno
import mmap
import os
from typing import Any, Final

from cffi import FFI

ffi = FFI()
# Addresses are declared as the integers that Python has of them: turning one into a pointer costs as much as a short call.
ffi.cdef(
    """
    intptr_t mmap(uintptr_t addr, size_t length, int prot, int flags, int fd, long offset);
    int munmap(uintptr_t addr, size_t length);
    int madvise(uintptr_t addr, size_t length, int advice);
    uintptr_t memcpy(uintptr_t dest, const void *src, size_t n);
    uintptr_t memset(uintptr_t s, int c, size_t n);
    int sync_file_range(int fd, long offset, long nbytes, unsigned int flags);
    """
)
libc: Any = ffi.dlopen(None)

PAGE: Final = mmap.PAGESIZE
MAP_SHARED_VALIDATE: Final = 0x03
MAP_FIXED: Final = 0x10
MAP_SYNC: Final = 0x080000
EHWPOISON: Final = 133  # Linux has it, the errno module not
MADV_DONTNEED: Final = 4
MADV_POPULATE_READ: Final = 22
MADV_POPULATE_WRITE: Final = 23
SYNC_FILE_RANGE_WRITE_AND_WAIT: Final = 7


def map_file(fd: int, length: int, writable: bool, flags: int = mmap.MAP_SHARED) -> int:
    """Map the first `length` bytes of a file; return the address. OSError tells why it cannot be."""
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    address: int = libc.mmap(0, length, protection, flags, fd, 0)
    if address == -1:
        raise OSError(ffi.errno, os.strerror(ffi.errno))
    return address


def unmap(address: int, length: int) -> None:
    """Give a mapping back."""
    libc.munmap(address, length)


def view(address: int, length: int) -> memoryview:
    """Memory as a writable memoryview; the caller keeps the mapping alive."""
    return memoryview(ffi.buffer(ffi.cast("char *", address), length))


def copy(address: int, source: Any, length: int) -> None:
    """memcpy from any buffer, without the GIL."""
    libc.memcpy(address, ffi.from_buffer(source), length)


def fill(address: int, length: int) -> None:
    """Zero a range, without the GIL."""
    libc.memset(address, 0, length)


def populate(address: int, length: int) -> None:
    """Bring a range into memory without the GIL, so that no later access faults.

    OSError: its pages cannot be had, from a device that fails or a file that was cut off; whoever looked at them would die of
    SIGBUS. A kernel before 5.14 cannot tell.
    """
    start = address & ~(PAGE - 1)
    _populate(start, address + length - start, MADV_POPULATE_READ)


def populate_written(address: int, length: int) -> None:
    """The same for pages that are stored to next."""
    _populate(address, length, MADV_POPULATE_WRITE)


def _populate(address: int, length: int, advice: int) -> None:
    if libc.madvise(address, length, advice) and ffi.errno in (errno.EFAULT, EHWPOISON):
        raise OSError(errno.EIO, "the device cannot give or take pages of a map")


def blank(address: int, length: int) -> None:
    """Put zeros in the place of those pages of a map that cannot be had; in this map alone."""
    for page in range(address & ~(PAGE - 1), address + length, PAGE):
        try:
            populate(page, 1)
        except OSError:
            flags = MAP_FIXED | mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            libc.mmap(page, PAGE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)


def write_out(fd: int, offset: int, length: int) -> None:
    """Write a range of a file to its device and wait, without a flush: a sync that follows has little left to do.

    OSError when the device refused: the kernel tells it once, so that the sync would not.
    """
    if libc.sync_file_range(fd, offset, length, SYNC_FILE_RANGE_WRITE_AND_WAIT) and ffi.errno not in (errno.ENOSYS, errno.EINVAL):
        raise OSError(ffi.errno, f"sync_file_range: {os.strerror(ffi.errno)}")


def unpopulate(address: int, length: int) -> None:
    """Take the pages of a shared map out of it, in one go; what they hold stays in the page cache, and comes back when it is looked at.

    A sync of pages that were stored to through a map interrupts every core that runs this process, once for each page: 16,000
    times for a segment, in which the loop hardly came to anything for 10 ms. Of pages that are in no map it does not.
    """
    libc.madvise(address, length, MADV_DONTNEED)
