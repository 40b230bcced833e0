"""A medium in memory that loses power: it keeps what was made durable, and of the rest what chance leaves.

Two kinds of hardware: `lines` (persistent memory: 64-byte cache lines survive or not, torn at 8 bytes) and `pages` (a disk:
4 KiB pages survive or not, torn at 512-byte sectors). A removed file may come back. A crash can happen at every durable
step. After a failed sync the kernel takes the pages for clean: the same sync again succeeds and writes nothing.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from headrace_queue_pmem.area import Area
from headrace_queue_pmem.layout import HEAD_BYTES, PAGE, align
from headrace_queue_pmem.libc import ffi

UNITS = {"lines": (64, 8), "pages": (4096, 512)}


class PowerLoss(BaseException):
    """The lights go out. Not an Exception, so that nothing handles it."""


class _File:
    def __init__(self, size: int, unit: int) -> None:
        self.memory = np.zeros(size, np.uint8)
        self.durable = np.zeros(size, np.uint8)
        self.unit = unit
        self.dirty = np.zeros(size // unit, bool)  # what a sync would write


class _ShadowArea(Area):
    """An area that knows which units were written to."""

    file: _File

    def write(self, offset: int, source: Any, length: int) -> None:
        super().write(offset, source, length)
        self.file.dirty[offset // self.file.unit : -(-(offset + length) // self.file.unit)] = True


class ShadowMedium:
    """Implements `Medium`; `crash_in` counts durable steps down to a PowerLoss, `directory` is which one it is."""

    name = "file"
    filesystem = "shadow"
    method = "shadow"

    def __init__(self, seed: int, unit: str = "lines", level: Any = "power") -> None:
        self.level, self.directory = level, seed
        self.random = random.Random(seed)
        self.unit, self.tear = UNITS[unit]
        self.files: dict[str, _File] = {}
        self.notes: dict[str, bytes] = {}
        self.removed: dict[str, _File] = {}
        self.crash_in: int | None = None
        self.fail_next = 0
        self.steps = 0

    # --- Medium ---

    def names(self) -> list[str]:
        return sorted([*self.files, *self.notes])

    def create(self, name: str, size: int, pace: Any = None) -> Area:
        self._step()
        assert name not in self.files
        self.files[name] = _File(min(size, align(HEAD_BYTES, PAGE)), self.unit)
        return self._area(name)

    def open(self, name: str) -> Area:
        return self._area(name)

    def read(self, name: str) -> Area:
        return self._area(name)

    def size(self, name: str) -> int:
        return len(self.files[name].memory)

    def rename(self, old: str, new: str) -> None:
        self._step()
        if old in self.notes:
            self.notes[new] = self.notes.pop(old)
        else:
            self.files[new] = self.files.pop(old)

    def remove(self, name: str) -> None:
        self._step()
        if name in self.files:
            self.removed[name] = self.files.pop(name)

    def save(self, name: str, content: bytes) -> None:
        self._step()
        self.notes[name] = content

    def load(self, name: str) -> bytes | None:
        return self.notes.get(name)

    def usable(self, size: int) -> int:
        return size

    def place(self) -> bytes:
        return self.directory.to_bytes(16, "little")

    def answers(self) -> None:
        """Memory always does."""

    # --- losing power ---

    def kill(self) -> None:
        """The process dies, the machine does not: everything written is still in the page cache."""
        self.crash_in = None

    def crash(self) -> None:
        """What is found when the power is back."""
        for name, file in self.removed.items():
            if name not in self.files and self.random.random() < 0.5:
                self.files[name] = file
        self.removed = {}
        for file in self.files.values():
            self._lose(file)
        self.crash_in = None

    def add(self, name: str, memory: np.ndarray) -> None:
        """Put a file there as it is."""
        file = _File(len(memory), self.unit)
        file.memory[:] = memory
        file.durable[:] = memory
        self.files[name] = file

    def _lose(self, file: _File) -> None:
        file.dirty[:] = False
        units = (file.memory != file.durable).reshape(-1, self.unit).any(axis=1)
        for unit in np.flatnonzero(units).tolist():
            start = unit * self.unit
            chance = self.random.random()
            if chance < 0.4:
                file.durable[start : start + self.unit] = file.memory[start : start + self.unit]
            elif chance < 0.6:
                for piece in range(start, start + self.unit, self.tear):
                    if self.random.random() < 0.5:
                        file.durable[piece : piece + self.tear] = file.memory[piece : piece + self.tear]
        file.memory = file.durable.copy()

    def _area(self, name: str) -> Area:
        if name not in self.files:
            raise FileNotFoundError(2, name)
        file = self.files[name]
        if len(file.memory) < PAGE:
            raise OSError(5, f"{name} is too short")
        base = int(ffi.cast("uintptr_t", ffi.from_buffer(file.memory)))

        def persist(address: int, length: int) -> None:
            self._step()
            start, end = (address - base) // self.unit, -(-(address - base + length) // self.unit)
            units = np.flatnonzero(file.dirty[start:end]) + start
            file.dirty[start:end] = False
            if self.fail_next:
                self.fail_next -= 1
                raise OSError(5, "the device says no")
            file.durable.reshape(-1, self.unit)[units] = file.memory.reshape(-1, self.unit)[units]

        memory = file.memory
        area = _ShadowArea(base, len(memory), persist if self.level == "power" else lambda _a, _l: None, persist, lambda: memory.size)
        area.file = file
        return area

    def _step(self) -> None:
        self.steps += 1
        if self.crash_in is not None:
            self.crash_in -= 1
            if self.crash_in < 0:
                raise PowerLoss
