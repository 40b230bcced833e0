"""What a process that will be killed has noted down: lines of a fixed length, each written with one call.

A written line survives SIGKILL (the kernel has it); nothing here is meant to survive a power loss.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

LINE_BYTES: Final = 64


class Note(NamedTuple):
    """One line: a word and two numbers."""

    kind: str
    first: int
    last: int


class Journal:
    """Notes of a child process, for its parent and for its successor."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, kind: str, first: int = 0, last: int = 0) -> None:
        """Add a line."""
        text = f"{kind} {first} {last}".ljust(LINE_BYTES - 1) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)

    @property
    def lines(self) -> int:
        """How many there are."""
        return self.path.stat().st_size // LINE_BYTES if self.path.exists() else 0

    def notes(self) -> list[Note]:
        """All lines, in order."""
        if not self.path.exists():
            return []
        words = (line.split() for line in self.path.read_text().splitlines())
        return [Note(kind, int(first), int(last)) for kind, first, last in words]
