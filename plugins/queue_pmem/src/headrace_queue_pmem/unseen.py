"""Failures that the callers of failed appends have not seen yet.

A sender in a session counts on the order: when message 5 was given up, 6 must not become durable, because the session's
mark would then say that 5 is held. The sender stops at the failure, but between the moment at which a commit is given up
and the moment at which the caller's code runs again, it may append more. So a failure stands until then, and what is
appended meanwhile fails with it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from typing import Final

#: The caller runs one turn of its loop after it was told; where a task or a gather lies between, one more for each.
TURNS: Final = 3


class Unseen:
    """The failures that stand. `lock` is the committer's, which its caller holds unless a method says otherwise."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._standing: list[tuple[asyncio.AbstractEventLoop, Exception]] = []

    def check(self) -> None:
        """Raise the oldest failure that stands."""
        if self._standing:
            self._standing = [(loop, error) for loop, error in self._standing if not loop.is_closed()]
            if self._standing:
                raise self._standing[0][1]

    def add(self, error: Exception, loops: Iterable[asyncio.AbstractEventLoop]) -> None:
        """Let a failure stand until the callers on each of these loops have seen it."""
        self._standing += [(loop, error) for loop in loops]

    def told(self, loop: asyncio.AbstractEventLoop) -> None:
        """On this loop, the running one: its callers were told of its oldest failure. Ends it some turns later, with the lock."""
        loop.call_soon(self._turn, loop, TURNS - 1)

    def _turn(self, loop: asyncio.AbstractEventLoop, left: int) -> None:
        if left:
            loop.call_soon(self._turn, loop, left - 1)
            return
        with self._lock:
            oldest = next((index for index, (of, _) in enumerate(self._standing) if of is loop), None)
            if oldest is not None:
                del self._standing[oldest]
