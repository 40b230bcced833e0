"""The thread that does a queue's upkeep."""

from __future__ import annotations

import threading
from collections.abc import Callable

from headrace_queue_pmem.ring import Ring
from headrace_queue_pmem.upkeep import upkeep


class UpkeepThread:
    """Does a pass when it is woken, and every `interval_s`; tells `failed` what went wrong and goes on."""

    def __init__(self, ring: Ring, interval_s: float, failed: Callable[[Exception], None]) -> None:
        self._ring, self._interval_s, self._failed = ring, interval_s, failed
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"queue-upkeep-{ring.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(self._interval_s)
            self._wake.clear()
            try:
                upkeep(self._ring)
            except Exception as error:
                self._failed(error)
