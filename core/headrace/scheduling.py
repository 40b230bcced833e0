"""Whose turn on a core comes first, where tiers share a machine: told to the system for one thread at a time, and only on Linux.

A thread that wakes up gets a core that another one has at once when it asks for shorter slices and has not used more than its share;
otherwise it may wait for the next tick of the system's clock, which is 4 ms away with 250 of them a second. Needs no privilege.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import sys
from typing import Final

#: What a thread that acknowledges asks for: the shortest slice that Linux grants (6.12 and later; before, it changes nothing).
SLICE_S: Final = 0.0001
NICE_MAX: Final = 19

#: The number of the system call sched_setattr, which neither Python nor the C library of Debian 12 has.
_SETATTR: Final = {"x86_64": 314, "aarch64": 274, "riscv64": 274}
#: struct sched_attr, first version: size, policy, flags, nice, priority, runtime, deadline, period.
_ATTR: Final = struct.Struct("=IIQiIQQQ")


def short_slices() -> bool:
    """For the calling thread and those that it starts. False where the system does not do it, or somebody chose another policy for it."""
    return _slice(SLICE_S)


def give_way(nice: int = 0) -> None:
    """For the calling thread and those that it starts: the system's own slices, and less weight by so much (relative, as of nice(1))."""
    _slice(0.0)
    if nice and sys.platform == "linux":  # elsewhere it would be the whole process
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, min(NICE_MAX, os.getpriority(os.PRIO_PROCESS, 0) + nice))


def _slice(seconds: float) -> bool:
    """0.0: the system's own."""
    number = _SETATTR.get(platform.machine()) if sys.platform == "linux" else None
    if number is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attr = _ATTR.pack(_ATTR.size, os.SCHED_OTHER, 0, nice, 0, round(seconds * 1e9), 0, 0)
    refused: int = ctypes.CDLL(None).syscall(number, 0, attr, 0)
    return not refused
