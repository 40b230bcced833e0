"""A clock that stands still until a test moves it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from typing import Final

#: 2026-11-23 12:00:00 UTC: a fixed day, so that what a test writes does not depend on today.
WALL_START_S: Final = 1_795_435_200.0
#: How often a woken task may give way before it counts as waiting again.
LOOP_TURNS: Final = 4


class FakeClock:
    """`headrace.Clock` by hand: `advance` moves both clocks and wakes who slept until then."""

    def __init__(self, wall: float = WALL_START_S, monotonic: float = 1000.0) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def wall(self) -> float:
        """Unix time in seconds."""
        return self._wall

    def monotonic(self) -> float:
        """Seconds that only grow."""
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        """Wait until `advance` has moved the clock so far; a sleep of 0 only gives way."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic + seconds, next(self._order), future))
        await future

    @property
    def sleepers(self) -> int:
        """How many wait now."""
        return sum(not future.done() for _, _, future in self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Move on by `seconds`; each sleeper wakes at its own time, and may sleep again within the same move."""
        end = self._monotonic + seconds
        await _turn_loop()  # tasks that were just started reach their sleep
        while self._sleepers and self._sleepers[0][0] <= end:
            due, _, future = heapq.heappop(self._sleepers)
            self._move_to(max(due, self._monotonic))
            if not future.done():
                future.set_result(None)
                await _turn_loop()
        self._move_to(end)

    def jump_wall(self, seconds: float) -> None:
        """The machine's wall clock is set: it jumps, `monotonic` does not."""
        self._wall += seconds

    def _move_to(self, monotonic: float) -> None:
        self._wall += monotonic - self._monotonic
        self._monotonic = monotonic


async def _turn_loop() -> None:
    for _ in range(LOOP_TURNS):
        await asyncio.sleep(0)
