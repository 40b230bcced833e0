"""A small record that is rewritten in place, in two copies, so that neither a torn write nor a flipped bit loses it."""

from __future__ import annotations

from headrace_queue_pmem.area import Area
from headrace_queue_pmem.layout import CELL_CRC, CELL_OVERHEAD, CELL_SEQUENCE, checksum


class Cell:
    """`size` bytes at `at`, and as many behind it for the second copy.

    A mirrored cell writes one copy, makes it durable, and brings the other up to date before the next change (or at
    `mirror`): after that a flipped bit in either costs nothing. A cell that is not mirrored writes its copies in turn with
    one flush: a flipped bit in the newer leaves the value before it, which is right for cursors ("older, never newer").
    """

    __slots__ = ("_area", "_at", "_behind", "_next", "damaged", "mirrored", "sequence", "size", "value")

    def __init__(self, area: Area, at: int, size: int, mirrored: bool = True) -> None:
        self._area, self.size, self.mirrored = area, size, mirrored
        self._at = (at, at + size)
        self._next = 0  # the copy that the next change goes to
        self._behind = False  # the other copy holds an older value
        self.sequence = 0
        self.value: bytes | None = None
        self.damaged = False

    def load(self, length: int) -> bytes | None:
        """The newest valid value of `length` bytes, or None; `damaged` when a copy was written and is not readable."""
        copies = [self._read(at, length) for at in self._at]
        self.damaged = any(copy is None and any(self._area.view[at : at + self.size]) for copy, at in zip(copies, self._at, strict=True))
        found = [(copy[0], index, copy[1]) for index, copy in enumerate(copies) if copy is not None]
        if not found:
            return None
        self.sequence, newest, self.value = max(found)
        self._behind = len(found) < 2 or found[0][0] != found[1][0]
        self._next = newest if self.mirrored and not self._behind else 1 - newest
        if self.mirrored and self._behind:
            # Write next what is not the only good copy.
            self._next = 1 - newest
        return self.value

    def store(self, value: bytes) -> None:
        """Change the value; durable on return. OSError: it may hold either value."""
        assert len(value) + CELL_OVERHEAD <= self.size
        if self.mirrored:
            self.mirror()
        self.sequence += 1
        self._write(self._next, value)
        self.value = value
        self._behind = True
        self._next = 1 - self._next

    def mirror(self) -> None:
        """Bring the other copy up to date."""
        if self._behind and self.value is not None:
            self._write(self._next, self.value)
            self._behind = False

    def _write(self, copy: int, value: bytes) -> None:
        record = CELL_SEQUENCE.pack(self.sequence) + value
        record += CELL_CRC.pack(checksum(record))
        at = self._at[copy]
        self._area.write(at, record, len(record))
        self._area.persist(at, len(record))

    def _read(self, at: int, length: int) -> tuple[int, bytes] | None:
        record = bytes(self._area.view[at : at + length + CELL_OVERHEAD])
        body, (crc,) = record[: -CELL_CRC.size], CELL_CRC.unpack_from(record, len(record) - CELL_CRC.size)
        if checksum(body) != crc:
            return None
        return CELL_SEQUENCE.unpack_from(body)[0], body[CELL_SEQUENCE.size :]
