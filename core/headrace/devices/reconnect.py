"""When a device connects again, and when it gives up. No I/O.

Waits are drawn with full jitter (anything between 0 and a ceiling that doubles), so that a fleet that lost its server does
not come back in one instant. What the server asks for (Retry-After) is a floor, with jitter on top.
"""

from __future__ import annotations

import email.utils
import random
from collections.abc import Mapping
from typing import Final

from headrace.errors import HeadraceError

#: The same message, or the same credential, would be refused again.
CLOSE_FINAL: Final[Mapping[int, str]] = {
    1002: "protocol error",
    1003: "unsupported data",
    1007: "invalid text",
    1008: "policy violation",
    1009: "message too big",
    1010: "extension missing",
    4409: "session taken over by a newer connection",
}
#: Upgrade answers that a later try may change; all other 4xx stand.
STATUS_RETRIED: Final = frozenset({408, 425, 429})
RETRY_AFTER_S_MAX: Final = 300.0


class GaveUp(HeadraceError):
    """A device stopped trying: `device`, and `why` with the server's words."""

    def __init__(self, device: str, why: str) -> None:
        self.device, self.why = device, why
        super().__init__(f"device {device!r} gave up: {why}")


class Reconnect:
    """Decides over one device's next connection."""

    def __init__(self, device: str, rng: random.Random, first_s: float = 0.1, ceiling_s: float = 10.0) -> None:
        self._device, self._random = device, rng
        self._first_s, self._ceiling_s = first_s, ceiling_s
        self._failures = 0

    def worked(self) -> None:
        """The connection did its job: the next failure starts from the shortest wait."""
        self._failures = 0

    def wait_s(self, floor_s: float = 0.0) -> float:
        """Seconds to wait before the next try."""
        ceiling = min(self._ceiling_s, self._first_s * 2.0 ** min(self._failures, 30))
        self._failures += 1
        return floor_s + self._random.uniform(0.0, ceiling)

    def after_status(self, status: int, retry_after: str | None, now_wall: float) -> float:
        """Seconds to wait after an upgrade that was answered with `status`; raises GaveUp where waiting is no use."""
        if status < 500 and status not in STATUS_RETRIED:
            raise GaveUp(self._device, f"the upgrade was answered with HTTP {status}, expected 101")
        return self.wait_s(retry_after_s(retry_after, now_wall))

    def after_close(self, code: int | None, reason: str) -> float:
        """Seconds to wait after a close; raises GaveUp where the same would happen again."""
        if code is not None and code in CLOSE_FINAL:
            said = f": {reason}" if reason else ""
            raise GaveUp(self._device, f"the server closed with {code} ({CLOSE_FINAL[code]}){said}")
        return self.wait_s()


def retry_after_s(header: str | None, now_wall: float) -> float:
    """A Retry-After header (seconds or an HTTP date) as seconds from now; 0 where it is absent or unreadable."""
    if not header:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - now_wall
        except (TypeError, ValueError):
            return 0.0
    return min(max(seconds, 0.0), RETRY_AFTER_S_MAX) if seconds == seconds else 0.0
