"""When do dead letters need somebody? No I/O."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from headrace.component import Health
from headrace.engine.dead_letters import Stored

#: So many new letters in so long a time: something refuses by the stream, not now and then.
GROWTH_LETTERS: Final = 100
GROWTH_S: Final = 600.0
#: The share of their room from which on they are a matter for a person, before they are full.
FULL_RATIO: Final = 0.5
SEEN_MAX: Final = 1000


class LettersHealth:
    """Told on one thread how many letters there are; says on any whether that is a condition."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # replaced, never changed in place: another thread may be reading it
        self._seen: tuple[tuple[float, int], ...] = ()
        self._stored = Stored(0, 0, 1, 0)

    def note(self, now: float, stored: Stored) -> None:
        """So much is there at the time `now` (monotonic)."""
        self._stored = stored
        # purged or replayed: growth counts from here
        seen = tuple(each for each in self._seen if each[1] <= stored.letters)
        if not seen or seen[-1][1] != stored.letters:
            seen = (*seen, (now, stored.letters))
        seen = _within(seen, now)
        # bounded: of many in the window every second one is enough
        self._seen = (seen[0], *seen[1::2]) if len(seen) > SEEN_MAX else seen

    def health(self, now: float) -> Health:
        """Degraded while they grow fast, are half full, or one was set aside as corrupt; the reason names the command to run."""
        stored, seen = self._stored, _within(self._seen, now)
        grown = stored.letters - seen[0][1] if seen else 0
        look = f"run `headrace dead list {self._path}`"
        mend = "then `headrace dead replay` or `headrace dead purge`, or raise engine.dead_letters_bytes_max"
        if stored.bytes >= stored.bytes_max:
            return Health("degraded", f"dead letters are full ({stored.bytes} bytes): outputs that refuse an event wait; {look}, {mend}")
        if stored.bytes >= FULL_RATIO * stored.bytes_max:
            full = f"{stored.bytes} of {stored.bytes_max} bytes are taken, when they are full the outputs wait"
            return Health("degraded", f"{stored.letters} dead letters: {full}; {look}, {mend}")
        if grown >= GROWTH_LETTERS:
            return Health("degraded", f"{grown} new dead letters in {GROWTH_S / 60:.0f} minutes, {stored.letters} in all; {look}")
        if stored.corrupt:
            return Health("degraded", f"{stored.corrupt} stores of dead letters were set aside as corrupt; {look}, then move them away")
        return Health("ok", f"{stored.letters} dead letters wait; {look}" if stored.letters else "")


def _within(seen: tuple[tuple[float, int], ...], now: float) -> tuple[tuple[float, int], ...]:
    """Those of the last GROWTH_S seconds; the first one kept says how many there were when they began."""
    first = max((place for place, (when, _) in enumerate(seen) if when <= now - GROWTH_S), default=0)
    return seen[first:]
