"""A turnstile in front of work that costs the loop some tenths of a millisecond: a rush of it is spread over turns of the loop.

Between two turns the loop reads and acknowledges for the connections that are in already. Without it, everybody who asks for
something at the same moment is answered in the same turn, and all others wait for that.
"""

from __future__ import annotations

import asyncio
from collections import deque


def allowed(turn_s: float, each_s: float, ratio: float, least: int, most: int) -> int:
    """How many pieces of work that take `each_s` are done in a turn when the last one took `turn_s`.

    `least` while turns are short, so that nobody waits for long; on a loop that is busy otherwise, `ratio` of its time, or whoever
    comes would wait for a turn each.
    """
    return max(least, min(most, int(turn_s * ratio / each_s)))


class Turnstile:
    """Lets `per_turn` callers through in a turn of the loop, in the order in which they came. Used on that loop."""

    def __init__(self, per_turn: int) -> None:
        self._per_turn = self._left = per_turn
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._turning = False

    async def passed(self) -> None:
        """Return when it is this caller's turn; at once while nobody else came in this one."""
        if self._left and not self._waiting:
            self._left -= 1
            self._turn_again()
            return
        waiter = self._loop.create_future()
        self._waiting.append(waiter)
        self._turn_again()
        await waiter  # who is cancelled meanwhile stays in the row, done, and costs nobody a turn

    def _turn_again(self) -> None:
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turning = False
        self._left = self._per_turn
        while self._waiting and self._left:
            waiter = self._waiting.popleft()
            if not waiter.done():
                self._left -= 1
                waiter.set_result(None)
        if self._left < self._per_turn:
            self._turn_again()
