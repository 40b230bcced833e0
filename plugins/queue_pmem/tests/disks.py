"""Real filesystems for tests, mounted by root on a loop device, and what can happen to them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
import time
from pathlib import Path
from typing import Final

import pytest

MIB: Final = 1 << 20
EXT4_IOC_SHUTDOWN: Final = 0x8004587D  # _IOR('X', 125, __u32)
SHUTDOWN_NOLOGFLUSH: Final = 2


def call(*command: str) -> str:
    """A command of the system; the test is skipped where it may not be run."""
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        pytest.skip(f"cannot {' '.join(command)} here: {ended.stderr.strip()}")
    return ended.stdout


def mount(*words: str) -> None:
    """As the command; the test is skipped where it may not be run."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a filesystem")
    call("mount", *words)


def mount_image(image: Path, place: Path, size: int = 0) -> None:
    """Mount an ext4 filesystem that lies in a file; with a size it is made first."""
    if size:
        image.touch()
        os.truncate(image, size)
        call("mkfs.ext4", "-q", str(image))
    mount("-o", "loop,errors=remount-ro", str(image), str(place))


def unmounted(place: Path) -> None:
    """The filesystem is gone: the device below is let go of a little later than its user."""
    for _ in range(100):
        if subprocess.run(["umount", str(place)], capture_output=True).returncode == 0:
            return
        time.sleep(0.05)
    subprocess.run(["umount", "-l", str(place)], check=True)
    raise AssertionError(f"{place} is still in use")


class Disk:
    """An ext4 filesystem in a file at `place`. What is in `events` is done to it by that name."""

    events = ("read-only", "shut-down", "device-error")

    def __init__(self, folder: Path, size: int = 64 * MIB) -> None:
        # The image of the device lies on a filesystem of its own: shut down, that gives the device EIO at every access.
        self.outer, self.place = folder / "outer", folder / "disk"
        self.outer.mkdir()
        self.place.mkdir()
        self._outer_image, self._image = folder / "outer.img", self.outer / "inner.img"
        mount_image(self._outer_image, self.outer, size + 32 * MIB)
        mount_image(self._image, self.place, size)

    def happens(self, event: str) -> None:
        """The filesystem finds an error and turns read-only, is shut down, or its device fails. What was written before is synced."""
        call("sync", "-f", str(self.place))
        if event == "read-only":
            device = Path(call("findmnt", "-no", "SOURCE", str(self.place)).strip()).name
            trigger = Path("/sys/fs/ext4") / device / "trigger_fs_error"
            if not trigger.exists():
                pytest.skip("this kernel cannot be told to find an error")
            trigger.write_text("found by a test")
        else:
            self._shut_down(self.place if event == "shut-down" else self.outer)
        with contextlib.suppress(OSError), (self.place / "noticed").open("w") as file:  # where the device fails the filesystem sees it now
            os.fsync(file.fileno())

    def forget(self) -> None:
        """Nothing of what lies there is in memory any more, but what is mapped."""
        call("sync", "-f", str(self.place))
        Path("/proc/sys/vm/drop_caches").write_text("1")

    def mend(self) -> None:
        """Mounted anew, as after a restart of the machine."""
        unmounted(self.place)
        unmounted(self.outer)
        mount_image(self._outer_image, self.outer)
        mount_image(self._image, self.place)

    def close(self) -> None:
        for place in (self.place, self.outer):
            subprocess.run(["umount", "-l", str(place)], capture_output=True)

    def _shut_down(self, place: Path) -> None:
        descriptor = os.open(place, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, struct.pack("I", SHUTDOWN_NOLOGFLUSH))
        except OSError as error:
            pytest.skip(f"this kernel cannot shut a filesystem down: {error}")
        finally:
            os.close(descriptor)
