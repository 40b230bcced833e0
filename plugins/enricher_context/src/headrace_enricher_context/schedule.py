"""When the database is read next. No I/O, no clock: times are passed in (monotonic seconds)."""

from __future__ import annotations

import random
from typing import Final

#: The first wait after a failure; it doubles from there.
RETRY_S_FIRST: Final = 0.5

#: How late an early request, or a changed config, may be noticed.
NAP_S_MAX: Final = 1.0


class Schedule:
    """Every `interval_s`; sooner when a new device asks, but `early_s` after the last begin; after failures by backoff."""

    def __init__(self, interval_s: float, early_s: float, retry_s_max: float, rng: random.Random) -> None:
        self._interval_s = interval_s
        self._early_s = early_s
        self._retry_s_max = retry_s_max
        self._random = rng
        self._begun = float("-inf")
        self._next = float("-inf")
        self.failures = 0
        self.early = False

    def begin(self, now: float) -> None:
        """A reading begins."""
        self._begun = now
        self.early = False

    def succeeded(self, now: float) -> None:
        """It ended well."""
        self.failures = 0
        self._next = max(now, self._begun + self._interval_s)

    def failed(self, now: float) -> float:
        """It failed; the seconds until the next try."""
        wait = min(self._retry_s_max, RETRY_S_FIRST * 2.0 ** min(self.failures, 30)) * self._random.uniform(0.5, 1.0)
        self.failures += 1
        self._next = now + wait
        return wait

    def ask_early(self) -> None:
        """A device that was not seen before is not in the context; ignored while the database fails."""
        self.early = self._early_s > 0 and not self.failures

    def wait_s(self, now: float) -> float:
        """Seconds until the next reading; zero or less: now."""
        due = min(self._next, self._begun + self._early_s) if self.early else self._next
        return due - now

    def nap_s(self, now: float) -> float:
        """How long to sleep before asking `wait_s` again: short enough to notice an early request."""
        return min(self.wait_s(now), NAP_S_MAX)
