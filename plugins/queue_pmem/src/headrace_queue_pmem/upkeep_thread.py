"""The thread that does a queue's upkeep."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Final

from headrace_queue_pmem.committer import settle
from headrace_queue_pmem.ring import Ring
from headrace_queue_pmem.upkeep import store_cursors, upkeep

#: Slept between two slices of making a segment file: in sum 0.3 s for 64 MiB. More and shorter ones want the interpreter more often.
PACE_S: Final = 0.001


class UpkeepThread:
    """Does a pass when it is woken, and every `interval_s`; tells `failed` what went wrong and goes on."""

    def __init__(self, ring: Ring, interval_s: float, failed: Callable[[Exception], None]) -> None:
        self._ring, self._interval_s, self._failed = ring, interval_s, failed
        self._wake = threading.Event()
        self._stopping = False
        self._cursors_due = 0.0
        self._lock = threading.Lock()
        self._waiters: list[asyncio.Future[None]] = []
        self._thread = threading.Thread(target=self._run, name=f"queue-upkeep-{ring.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._wake.set()

    async def passed(self, seconds: float) -> None:
        """Return when a whole pass was made from now on, or the thread is stopped; after so many seconds at most."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._stopping:
                return
            self._waiters.append(waiter)
        self._wake.set()
        await asyncio.wait([waiter], timeout=seconds)

    def stop(self) -> None:
        with self._lock:
            self._stopping = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        settle(self._waiters, None)

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(self._interval_s)
            self._wake.clear()
            with self._lock:
                waiters, self._waiters = self._waiters, []
            self._cursors_due = time.monotonic() + self._interval_s
            try:
                upkeep(self._ring, self._pace)
            except Exception as error:
                self._failed(error)
            settle(waiters, None)

    def _pace(self) -> None:
        # The loop and the commits share the cores with this: a whole segment at a stretch held them up for many ms.
        if self._stopping or self._waiters:
            return
        time.sleep(PACE_S)
        if time.monotonic() >= self._cursors_due:
            self._cursors_due = time.monotonic() + self._interval_s
            with contextlib.suppress(OSError):  # the next pass meets it again
                store_cursors(self._ring)
