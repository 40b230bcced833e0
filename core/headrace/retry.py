"""When to try again. No I/O: the caller waits."""

from __future__ import annotations

import random


class Backoff:
    """Exponential backoff with full jitter between half of the step and the step, so that many clients spread out."""

    def __init__(self, base_ms: int, wait_ms_max: int, rng: random.Random) -> None:
        self.base_ms, self.wait_ms_max, self._random = base_ms, wait_ms_max, rng
        self.attempts = 0

    def next_s(self, at_least_s: float | None = None) -> float:
        """Seconds to wait before the next attempt; at least `at_least_s`, when the other side asked for that."""
        # 2.0 ** 30 steps are centuries: the exponent is bounded only to keep the float small
        step_ms = min(self.wait_ms_max, self.base_ms * 2.0 ** min(self.attempts, 30))
        self.attempts += 1
        return max(at_least_s or 0.0, step_ms * (0.5 + 0.5 * self._random.random()) / 1000)

    @property
    def slowest(self) -> bool:
        """Whether it has come to the longest wait: the other side is tried now and then, to see whether it is back."""
        return self.attempts > 0 and self.base_ms * 2.0 ** min(self.attempts - 1, 30) >= self.wait_ms_max

    def reset(self) -> None:
        """The last attempt succeeded."""
        self.attempts = 0
