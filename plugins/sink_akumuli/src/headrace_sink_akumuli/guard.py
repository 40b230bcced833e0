"""Whether the server may be written to. One that was killed and started once has forgotten which points are late, and would take them
out of order; started in two phases it knows again.

Series of our own tell: their points are many and random, so that parts of them reach the server's files at once, as the parts of busy
series do. A point of the year 1970 must be refused as late. Where it is taken, that series is spoilt for good; so there are
several, and each process of the server is asked once.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from typing import Final

from headrace import TransientError
from headrace_sink_akumuli.names import DEVICE, series_name, tag_value
from headrace_sink_akumuli.render import point
from headrace_sink_akumuli.wire import ServerRefused, Session

METRIC: Final = "headrace.guard"
#: Written by the start script when the server is ready, one point each time.
START_METRIC: Final = "headrace.start"
#: A leaf of the server's trees takes about 350 random points; only a second one makes it repair the tree after a crash.
BURST_POINTS: Final = 2000
#: Guard series in use at a time: so many processes in a row may be found unrepaired.
SERIES: Final = 4
#: The nanosecond of 1970 that must be refused; whatever lies before OLD_NS_MAX was taken.
OLD_NS: Final = 1
OLD_NS_MAX: Final = 1000


class Unrepaired(TransientError):
    """The server was killed, and started without the two phases."""


class Guard:
    """The guard of one output, which is named by its tier and id."""

    def __init__(self, writer: str) -> None:
        self._writer = tag_value(writer)
        self._watch: Session | None = None

    def name(self, number: int) -> str:
        """The name of one of its series."""
        return series_name(METRIC, {DEVICE: self._writer, "n": str(number)})

    def check(self, target: str, timeout_s: float, held: Mapping[str, int], spoilt: Collection[str], started: bool) -> None:
        """held: the server's last timestamps by name. spoilt: guard series that took an old point. started: the start script has
        started it since we last agreed with it. Raises Unrepaired, ServerGone, or ServerRefused (for anything but a late write)."""
        if self._same_process():
            raise self._unrepaired(target)
        known = [name for name in map(self.name, range(len(spoilt) + SERIES)) if name in held]
        fit = [name for name in known if name not in spoilt]
        if not known or (started and not fit):
            return  # a new database; or one whose guards are all spoilt, but the script has stopped it cleanly
        if fit and self._refuses_old(fit[0], target, timeout_s):
            return
        # while this connection stands, it is the same process
        self._watch = Session(target, timeout_s)
        raise self._unrepaired(target)

    def burst(self, ns: int, spoilt: Collection[str], rng: random.Random) -> bytes:
        """Points from `ns` on, for the series in use."""
        names = [name for name in map(self.name, range(len(spoilt) + SERIES)) if name not in spoilt][:SERIES]
        return b"".join(point(name, ns + index, rng.random()) for name in names for index in range(BURST_POINTS))

    def close(self) -> None:
        """Safe twice."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _same_process(self) -> bool:
        if self._watch is None:
            return False
        try:
            self._watch.look()
        except OSError:
            self._watch = None
            return False
        return True

    def _refuses_old(self, name: str, target: str, timeout_s: float) -> bool:
        session = Session(target, timeout_s)
        try:
            session.send(point(name, OLD_NS, 0.0))
            session.finish()
        except ServerRefused as refused:
            if not refused.late:
                raise
            return True
        finally:
            session.close()
        return False

    def _unrepaired(self, target: str) -> Unrepaired:
        return Unrepaired(
            f"Akumuli at {target} was killed and started once: it would take old points out of order. Stop it, and start it by "
            "deploy/akumuli/start.sh, which does so in two phases; nothing is written until then"
        )
