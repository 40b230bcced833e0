"""A backlog gives way to the devices that are there: while events come in, what is behind is sent no faster than the sources' thread bears.

A drain at full speed takes every core, here and where it goes, and then each ack waits several times for one. How long the sources' thread
waits for a core each time that it has something to do is what the system tells of it; the rate follows that, and is never less than twice
what comes in.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from headrace.hookspecs import QueueInfo

#: Events behind the head from which on it is a backlog.
BACKLOG_EVENTS: Final = 65_536
#: A fuller queue is emptied as fast as it can be.
FILL_MAX: Final = 0.5
#: Events per second that a backlog gets in any case, and begins with.
RATE_MIN: Final = 80_000.0
#: More than an output sends at full speed: a rate that grew beyond would take as long to come down again.
RATE_MAX: Final = 10_000_000.0
#: To what comes in: so that it ends.
TO_INTAKE_MIN: Final = 2.0
#: A mean wait for a core that is none, in seconds. On an idle machine it is 5 to 20 us, with more threads than cores 300 and more; at
#: 100 us one ack in a hundred takes four times as long already.
WAIT_S: Final = 0.00003
LOOK_S: Final = 0.1
#: So long after the last event nobody waits for an ack.
QUIET_S: Final = 1.0
FASTER: Final = 1.2
SLOWER: Final = 0.7
PAUSE_S_MAX: Final = 0.25


class Waits(NamedTuple):
    """What a thread has waited for a core since its start, and how often it got one."""

    seconds: float
    times: int


class CoreWaits:
    """Of the thread that makes it. Called on any; None where the system does not tell (it is Linux that does)."""

    def __init__(self) -> None:
        self._file = Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/schedstat")

    def __call__(self) -> Waits | None:
        try:
            _, waited, times = map(int, self._file.read_bytes().split())
        except (OSError, ValueError):
            return None
        return Waits(waited / 1e9, times)


class Pace:
    """Of one output. `waits` are those of the sources' thread; where they are not known, it is taken to wait."""

    def __init__(self, waits: Callable[[], Waits | None], now: Callable[[], float] = time.monotonic) -> None:
        self._waits, self._now = waits, now
        self._rate = RATE_MIN
        self._free_at = self._looked = now()
        self._known: Waits | None = None
        self._head: int | None = None
        self._came = -math.inf

    def pause_s(self, rows: int, info: QueueInfo, attempted: int) -> float:
        """After a batch of so many rows up to `attempted`; 0 where there is no backlog, nothing comes in, or the queue is filling up."""
        now = self._now()
        if info.head - attempted < BACKLOG_EVENTS or info.size_bytes > FILL_MAX * info.size_bytes_max:
            self._head = None
            return 0.0
        if self._head is None or now - self._looked >= LOOK_S:
            self._look(now, info.head)
        if now - self._came > QUIET_S:
            return 0.0
        self._free_at = max(self._free_at + rows / self._rate, now)  # the time that the batch took counts
        return min(PAUSE_S_MAX, self._free_at - now)

    def _look(self, now: float, head: int) -> None:
        known = self._waits()
        if self._head is None:
            self._rate, self._came = RATE_MIN, now  # as if somebody were there, until that is known
        else:
            intake = (head - self._head) / (now - self._looked)
            rate = min(RATE_MAX, self._rate * (SLOWER if self._waited(known) else FASTER))
            self._rate = max(RATE_MIN, TO_INTAKE_MIN * intake, rate)
            if intake:
                self._came = now
        self._known, self._head, self._looked = known, head, now

    def _waited(self, known: Waits | None) -> bool:
        if known is None or self._known is None:
            return True
        return known.seconds - self._known.seconds > WAIT_S * max(1, known.times - self._known.times)
