"""How far the queue keeps events for an output with a window of seconds. No I/O.

The queue knows no times per position, so the head is sampled: what was the head `window_s` ago is older than the window.
"""

from __future__ import annotations

from collections import deque
from typing import Final

#: The window is kept to this share of its length, however long it is.
SAMPLES_MAX: Final = 256


class AgeWindow:
    """The samples of one output."""

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        self._samples: deque[tuple[float, int]] = deque()
        self._passed = 0

    def passed(self, now: float, head: int) -> int:
        """The last position that is older than the window; `now` is monotonic, `head` the queue's last position."""
        if not self._samples or now - self._samples[-1][0] >= self.window_s / SAMPLES_MAX:
            self._samples.append((now, head))
        while self._samples[0][0] < now - self.window_s:
            self._passed = self._samples.popleft()[1]
            if not self._samples:
                self._samples.append((now, head))
        return self._passed
