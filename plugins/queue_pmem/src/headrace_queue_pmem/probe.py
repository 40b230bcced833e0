"""What a directory's medium really is: its filesystem, whether it is direct-access memory, and what a sync costs."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

from headrace_queue_pmem import libc
from headrace_queue_pmem.failing import DISK_FULL

#: Filesystems in memory: nothing on them survives power loss, whatever is synced.
VOLATILE = frozenset({"tmpfs", "ramfs", "devtmpfs"})


class Probe(NamedTuple):
    """filesystem: as the kernel names it. dax: stores reach persistent memory directly. Sync times in us, None if not measured."""

    filesystem: str
    dax: bool
    sync_p50_us: int
    sync_p99_us: int


def probe(directory: Path, syncs: int = 0) -> Probe:
    """Look at the medium under `directory`; with `syncs` > 0 time so many syncs of one page."""
    path = directory / "probe.tmp"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    times: list[int] = []
    try:
        dax = _is_dax(descriptor)
        try:
            times = [_sync_us(descriptor, number) for number in range(syncs)]
        except OSError as error:
            if error.errno not in DISK_FULL:  # a full disk must not keep a queue closed: what is in it could never leave
                raise
    finally:
        os.close(descriptor)
        path.unlink(missing_ok=True)
    times.sort()
    return Probe(filesystem(directory), dax, times[len(times) // 2] if times else 0, times[int(len(times) * 0.99)] if times else 0)


def filesystem(directory: Path) -> str:
    """The type of the filesystem that holds `directory`, from the kernel's mount table; "unknown" where there is none."""
    try:
        device = directory.stat().st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}"
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            fields = line.split()
            if fields[2] == wanted:
                return fields[fields.index("-") + 1]
    except (OSError, ValueError, IndexError):
        pass
    return "unknown"


def _is_dax(descriptor: int) -> bool:
    """MAP_SYNC is granted only where a store into the map is a store into persistent memory."""
    try:
        address = libc.map_file(descriptor, libc.PAGE, writable=True, flags=libc.MAP_SHARED_VALIDATE | libc.MAP_SYNC)
    except OSError:
        return False
    libc.unmap(address, libc.PAGE)
    return True


def _sync_us(descriptor: int, number: int) -> int:
    os.pwrite(descriptor, number.to_bytes(8, "little"), 0)
    started = time.perf_counter_ns()
    os.fdatasync(descriptor)
    return (time.perf_counter_ns() - started) // 1000
