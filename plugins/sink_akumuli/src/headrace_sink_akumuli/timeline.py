"""When each point of a series is: strictly increasing nanoseconds, the same at every replay. No I/O.

Events have microseconds, Akumuli nanoseconds, and it stores two points of one timestamp twice. So the points of a series that share a
microsecond are numbered 0, 1, 2, ... nanoseconds, in the order of the queue. A point of an earlier microsecond than the series' last
one is late: the server would refuse it. What is `held` by the server is not sent again.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

#: Nanoseconds in a microsecond: how many points of a series may share one.
SHARED_MAX: Final = 1000
#: 2262-04-11, where 64 bits of nanoseconds end.
TIME_US_MAX: Final = (2**63 - 1) // 1000 - 1


class Stamped(NamedTuple):
    """What became of points. `send`: mask of those to be sent; ns: int64 of all; the others are counted."""

    send: Any
    ns: Any
    late: int
    crowded: int
    held: int


class Timeline:
    """The last timestamp of each series, by series number: as given out (`last`), and as the server says (`held`); 0 is none."""

    def __init__(self, last: Any = None, held: Any = None) -> None:
        self.last = np.zeros(0, np.int64) if last is None else np.asarray(last, np.int64).copy()
        self.held = np.zeros(len(self.last), np.int64) if held is None else np.asarray(held, np.int64).copy()

    def grow(self, count: int) -> None:
        """Make room for `count` series."""
        self.last, self.held = grown(self.last, count), grown(self.held, count)

    def stamp(self, series: Any, time_us: Any) -> Stamped:
        """Give points their timestamps. `series` (numbers): each one's points stand together, ascending by `time_us` (> 0)."""
        before = self.last[series]
        before_us = before // 1000
        late = time_us < before_us
        index = _shared(series, time_us)
        follows = time_us == before_us
        if follows.any():
            index = index + np.where(follows, before % 1000 + 1, 0)
        crowded = (index >= SHARED_MAX) & ~late
        ns = time_us * 1000 + index
        keep = ~(late | crowded)
        # of a series that comes several times the last one counts, which is its newest
        self.last[series[keep]] = ns[keep]
        send = keep & (ns > self.held[series])
        return Stamped(send, ns, int(late.sum()), int(crowded.sum()), int(keep.sum() - send.sum()))


def _shared(series: Any, time_us: Any) -> Any:
    """For each point, how many before it share its series and its microsecond."""
    same = (series[1:] == series[:-1]) & (time_us[1:] == time_us[:-1])
    if not same.any():
        return np.zeros(len(series), np.int64)
    begins = np.concatenate([[True], ~same])
    starts = np.flatnonzero(begins)
    return np.arange(len(series)) - starts[np.cumsum(begins) - 1]


def grown(array: Any, count: int) -> Any:
    """An int64 array with zeros behind it."""
    return array if len(array) >= count else np.concatenate([array, np.zeros(count - len(array), np.int64)])
