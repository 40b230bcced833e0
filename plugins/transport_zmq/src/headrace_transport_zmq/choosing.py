"""To which of several far tiers new batches go: the first that is there, in the order of the config. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

#: A better far tier that is back has to have been there for so long before new batches go to it; doubled with each change.
RETURN_S: Final = 5.0
RETURN_S_MAX: Final = 600.0


class Choice:
    """What is known of each far tier by name: there, away, or not known yet, and since when."""

    def __init__(self, names: Sequence[str], return_s: float = RETURN_S) -> None:
        self._names, self._return_s = list(names), return_s
        self._since: dict[str, tuple[bool, float]] = {}
        self._current: str | None = None
        self.changes = 0

    def told(self, name: str, there: bool, now: float) -> None:
        """A far tier answers, or does not."""
        if name not in self._since or self._since[name][0] != there:
            self._since[name] = there, now

    def is_away(self, name: str) -> bool:
        """Whether it is known not to be there."""
        return name in self._since and not self._since[name][0]

    def current(self, now: float) -> str | None:
        """Where new batches go; None: nowhere, as long as the better ones are not known, or none is there."""
        if self._current is not None and not self.is_away(self._current):
            better = self._names[: self._names.index(self._current)]
            wait_s = min(self._return_s * 2 ** min(self.changes, 10), RETURN_S_MAX)
            back = [name for name in better if name in self._since and self._since[name][0] and now - self._since[name][1] >= wait_s]
            return self._go(back[0]) if back else self._current
        for name in self._names:
            if name not in self._since:
                return None
            if self._since[name][0]:
                return self._go(name)
        return None

    def _go(self, name: str) -> str:
        if self._current not in (None, name):
            self.changes += 1
        self._current = name
        return name
