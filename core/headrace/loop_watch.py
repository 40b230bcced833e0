"""Who holds a loop? Sources share one with the acks, outputs another: code that blocks there stops all of them, and no loop can say so.

A thread of its own asks each loop for a sign of life. One that gives none for HELD_S is held, and the line of code that its thread
is at goes into the log, once for each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from headrace.log import Log

ASK_EVERY_S: Final = 0.5
HELD_S: Final = 1.0
#: Frames of the stack that are told, the innermost last.
FRAMES_MAX: Final = 5

_ASYNCIO: Final = str(Path(asyncio.__file__).parent)


@dataclass
class _Watched:
    """A loop and its thread. asked_s: since when it owes a sign of life (None: it does not); excused_s: for how much of that nothing ran;
    told: that it is held was said."""

    name: str
    loop: asyncio.AbstractEventLoop
    thread: int
    asked_s: float | None = None
    excused_s: float = 0.0
    told: bool = False

    def answer(self) -> None:
        self.asked_s = None


class LoopWatch:
    """Watches the loops of one process, from `start` to `close`."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._watched: list[_Watched] = []
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, name: str, loop: asyncio.AbstractEventLoop, thread: int) -> None:
        """Watch a loop that runs in the thread of that id."""
        self._watched.append(_Watched(name, loop, thread))

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="loop_watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End; whoever holds a loop from now on is not told of."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        before = time.monotonic()
        while not self._closing.wait(ASK_EVERY_S):
            now = time.monotonic()
            # what this thread itself is late by, the whole process stood still (SIGSTOP, a machine without time for it)
            late_s, before = now - before - ASK_EVERY_S, now
            for one in self._watched:
                one.excused_s += late_s
                self._look(one, now)

    def _look(self, one: _Watched, now: float) -> None:
        asked_s = one.asked_s
        if asked_s is None:
            one.asked_s, one.excused_s, one.told = now, 0.0, False
            with contextlib.suppress(RuntimeError):  # it was closed: it owes nothing any more
                one.loop.call_soon_threadsafe(one.answer)
                return
            one.asked_s = None
        elif now - asked_s - one.excused_s > HELD_S and not one.told:
            stack = _stack(sys._current_frames().get(one.thread))
            if stack:
                one.told = True
                self._log.warning("a loop is held", loop=one.name, held_s=round(now - asked_s, 1), at=stack[-1], stack=stack)


def _stack(frame: FrameType | None) -> list[str]:
    """The innermost frames as `file:line function`; nothing when the thread is in the loop itself, which is late but not held."""
    if frame is None or frame.f_code.co_filename.startswith(_ASYNCIO):
        return []
    entries = traceback.extract_stack(frame, FRAMES_MAX)
    return [f"{entry.filename}:{entry.lineno} {entry.name}" for entry in entries]
