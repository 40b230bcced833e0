"""The slow lane: what connections that misbehave may cost together in one turn of the loop.

A message that is taken costs the loop 0.5 us, one that is refused ten times as much, and a read holds thousands. So a connection
that was refused something, or sends pings without end, goes on only while the lane has something left in this turn; the
others wait in their order. Those that behave are read in every turn, and never wait here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

#: Refusals and control frames handled in a turn: about 0.5 ms.
PER_TURN: Final = 32


class Waiter(Protocol):
    """Who may go on in a later turn."""

    def go_on(self) -> None:
        """There may be something left now. Must not raise, and not spend anything at once."""


class Lane:
    """`left` is what may still be spent in this turn. call_soon: the loop's."""

    def __init__(self, call_soon: Callable[[Callable[[], None]], Any], per_turn: int = PER_TURN) -> None:
        self._call_soon, self._per_turn = call_soon, per_turn
        self.left = per_turn
        self._waiting: dict[Waiter, None] = {}
        self._turning = False

    def spend(self) -> None:
        """One message was refused, or one control frame answered."""
        self.left -= 1
        self._turn()

    def wait(self, waiter: Waiter) -> None:
        """Call `go_on` in a later turn, in the order of asking."""
        self._waiting[waiter] = None
        self._turn()

    def _turn(self) -> None:
        if not self._turning:
            self._turning = True
            self._call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._turning = False
        self.left = self._per_turn
        if self._waiting:
            # one alone: of several the first would take all each time, and those behind it would never get anything
            waiter = next(iter(self._waiting))
            del self._waiting[waiter]
            waiter.go_on()
            self._turn()
