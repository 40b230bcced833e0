"""How fast the readers of queues get on, from their cursors of the last minute. No I/O."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Final

from headrace.hookspecs import QueueInfo

#: Over which a rate is taken, and how far its samples lie apart.
WINDOW_S: Final = 60.0
SAMPLE_S: Final = 5.0


class ReleaseRates:
    """`take` the queues every SAMPLE_S; times are monotonic."""

    def __init__(self) -> None:
        self._cursors: dict[tuple[str, str], deque[tuple[float, int]]] = {}

    def take(self, infos: Iterable[QueueInfo], now: float) -> None:
        """Where all readers stand now. Those that are not there any more are forgotten."""
        found: dict[tuple[str, str], deque[tuple[float, int]]] = {}
        for info in infos:
            for reader in info.readers:
                key = info.name, reader.name
                kept = self._cursors.get(key) or deque()
                if kept and kept[-1][1] > reader.cursor:
                    kept.clear()  # rewound, or another reader of that name
                kept.append((now, reader.cursor))
                while len(kept) > 2 and now - kept[1][0] >= WINDOW_S:
                    kept.popleft()
                found[key] = kept
        self._cursors = found

    def drain_s(self, queue: str, reader: str, lag_events: int) -> float | None:
        """Seconds until that reader has released what is there, at its rate over the window; infinity when it does not move. None
        while nobody can tell."""
        if lag_events <= 0:
            return 0.0
        kept = self._cursors.get((queue, reader))
        if kept is None or len(kept) < 2:
            return None
        (since, first), (until, last) = kept[0], kept[-1]
        return lag_events * (until - since) / (last - first) if last > first else math.inf
