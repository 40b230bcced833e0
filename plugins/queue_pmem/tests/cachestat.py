"""What the kernel has yet to write of a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrace_queue_pmem.libc import ffi, libc

ffi.cdef("long syscall(long number, ...);")
CACHESTAT = 451


def dirty_pages(path: Path) -> int:
    """Pages of a file that the kernel has yet to write to its device (dirty or being written)."""
    out, whole = ffi.new("uint64_t[5]"), ffi.new("uint64_t[2]")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        number, fd, zero = (ffi.cast("long", value) for value in (CACHESTAT, descriptor, 0))
        if libc.syscall(number, fd, whole, out, zero):
            pytest.skip("the kernel has no cachestat (it came with 6.5)")
    finally:
        os.close(descriptor)
    return int(out[1] + out[2])
