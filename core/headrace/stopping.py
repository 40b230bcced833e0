"""When a process is to stop: a first signal asks it to drain, a second one to stop at once."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from headrace.log import Log

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
#: One Ctrl-C may reach us twice: from the terminal, and from the script that started us.
SAME_SIGNAL_S: Final = 1.0
#: How long a process that has closed everything waits for the threads of plugins.
LEAVE_S: Final = 5.0


class Stopping:
    """`asked` and `at_once` are set by signals, and by whoever calls `ask`."""

    def __init__(self, monotonic: Callable[[], float], log: Log) -> None:
        self._monotonic, self._log = monotonic, log
        self._since = float("inf")
        self.asked, self.at_once = asyncio.Event(), asyncio.Event()

    def ask(self) -> None:
        """As a signal does."""
        now = self._monotonic()
        if self.asked.is_set() and now - self._since < SAME_SIGNAL_S:
            return
        self._since = min(self._since, now)
        if self.asked.is_set():
            self._log.warning("stopping at once: what is unflushed is written again after the next start")
            self.at_once.set()
        self.asked.set()

    def listen(self, loop: asyncio.AbstractEventLoop, hangup: Callable[[], object]) -> None:
        """Take the process's signals; SIGHUP calls `hangup`."""
        for number in SIGNALS:
            loop.add_signal_handler(number, self.ask)
        loop.add_signal_handler(signal.SIGHUP, hangup)

    def deaf(self, loop: asyncio.AbstractEventLoop) -> None:
        """All is done: a signal that comes now must not turn a clean end into a kill."""
        for number in (*SIGNALS, signal.SIGHUP):
            loop.remove_signal_handler(number)  # fine where there is none
            signal.signal(number, signal.SIG_IGN)


def end_anyway(code: int) -> None:
    """From here on the process ends within LEAVE_S: Python would wait for ever for a plugin's thread in a call that never returns."""

    def leave() -> None:
        time.sleep(LEAVE_S)
        stuck = [thread.name for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]
        Log("").warning("ended beside calls of plugins that do not return", threads=stuck)
        os._exit(code)

    threading.Thread(target=leave, daemon=True).start()


async def unless(stop: asyncio.Event, work: asyncio.Future[Any]) -> None:
    """Await the work, unless `stop` comes first; then it is cancelled."""
    stopped: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
    finally:
        stopped.cancel()
        work.cancel()
        await asyncio.wait({work})
