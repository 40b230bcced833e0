"""One process per queue: an flock that the kernel drops with the process, and who holds it in the file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from pathlib import Path

import msgspec

from headrace import QueueLocked


class Lock:
    """The queue's `lock` file, held until `close`."""

    def __init__(self, directory: Path) -> None:
        path = directory / "lock"
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            raise QueueLocked(str(directory), holder(path), drains(path)) from None
        command = " ".join(sys.argv)[:200] or "python"
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = msgspec.json.encode({"pid": os.getpid(), "command": command, "since": since, "drains": sys.argv[1:2] == ["drain"]})
        # Over the old one, and cut behind it: on a full disk the block that was let go of would not be had again.
        with contextlib.suppress(OSError):  # it only says who holds the lock
            os.pwrite(self._descriptor, record, 0)
            os.ftruncate(self._descriptor, len(record))

    def close(self) -> None:
        """Let go; safe twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def holder(path: Path) -> str:
    """Who holds the lock, as it says of itself."""
    try:
        record = msgspec.json.decode(path.read_bytes())
        return f"process {record['pid']} ({record['command']}, since {record['since']})"
    except (OSError, msgspec.DecodeError, KeyError, TypeError):
        return "another process"


def drains(path: Path) -> bool:
    """Whether who holds it is there only to empty it (`headrace drain`)."""
    try:
        return bool(msgspec.json.decode(path.read_bytes()).get("drains"))
    except (OSError, msgspec.DecodeError, AttributeError):
        return False


def is_held(directory: Path) -> bool:
    """Whether some process has the queue open."""
    try:
        descriptor = os.open(directory / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
