"""When do dead letters need somebody? No I/O."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Final

from headrace.component import Health
from headrace.engine.dead_letters import Stored

#: So many new letters in so long a time: something refuses by the stream, not now and then.
GROWTH_LETTERS: Final = 100
GROWTH_S: Final = 600.0
#: The share of their room from which on they are a matter for a person, before they are full.
FULL_RATIO: Final = 0.5


class LettersHealth:
    """Told how many letters there are; says whether that is a condition."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: deque[tuple[float, int]] = deque()
        self._stored = Stored(0, 0, 1, 0)

    def note(self, now: float, stored: Stored) -> None:
        """So much is there at the time `now` (monotonic)."""
        self._stored = stored
        while self._seen and self._seen[-1][1] > stored.letters:
            self._seen.pop()  # purged or replayed: growth counts from here
        if not self._seen or self._seen[-1][1] != stored.letters:
            self._seen.append((now, stored.letters))
        self._trim(now)

    def _trim(self, now: float) -> None:
        # the first one kept says how many there were when the window began
        while len(self._seen) > 1 and self._seen[1][0] <= now - GROWTH_S:
            self._seen.popleft()
        # bounded: of many in the window every second one is enough
        if len(self._seen) > 1000:
            self._seen = deque([self._seen[0], *list(self._seen)[1::2]])

    def health(self, now: float) -> Health:
        """Degraded while they grow fast, are half full, or one was set aside as corrupt; the reason names the command to run."""
        self._trim(now)
        stored = self._stored
        grown = stored.letters - self._seen[0][1] if self._seen else 0
        look = f"run `headrace dead list {self._path}`"
        if stored.bytes >= FULL_RATIO * stored.bytes_max:
            full = f"{stored.bytes} of {stored.bytes_max} bytes are taken, when they are full the outputs wait"
            return Health(
                "degraded", f"{stored.letters} dead letters: {full}; {look}, then `headrace dead replay` or `headrace dead purge`"
            )
        if grown >= GROWTH_LETTERS:
            return Health("degraded", f"{grown} new dead letters in {GROWTH_S / 60:.0f} minutes, {stored.letters} in all; {look}")
        if stored.corrupt:
            return Health("degraded", f"{stored.corrupt} stores of dead letters were set aside as corrupt; {look}, then move them away")
        return Health("ok", f"{stored.letters} dead letters wait; {look}" if stored.letters else "")
