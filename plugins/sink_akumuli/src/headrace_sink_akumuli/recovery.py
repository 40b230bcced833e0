"""What to send again after a connection was lost: the decision, from what we remember and what the server says. No I/O.

A server that was killed has of each series a prefix. What it had when it last started is safe (its start script ends with a clean
stop, which commits everything); of what came later any part may be gone. So two checkpoints are enough: if every series is as
far as the last flush left it, we go on behind that flush; otherwise from `base`, the flush before the server's start, sending of each
series only what is newer than the server's last point.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from headrace_sink_akumuli.state import Checkpoint, Gap


class Recovery(NamedTuple):
    """point: where to go on. base: the base from now on. lost: series whose tail is gone. emptied: the server has nothing of ours."""

    point: Checkpoint
    base: Checkpoint
    lost: int
    emptied: bool


def recover(newest: Checkpoint | None, base: Checkpoint | None, held: Any, start: int) -> Recovery:
    """held: the server's last timestamps by series number. start: when its start script says that it was started (0: it does not)."""
    count = len(held)
    if newest is None or base is None:
        fresh = Checkpoint(safe=held.copy(), start=start)
        fresh.grow(count)
        return Recovery(fresh.copy(), fresh, 0, False)
    newest.grow(count)
    base.grow(count)
    # of a series that was silent since the start nothing can be lost: where it is gone, its volume was recycled
    lost = int(((newest.last > base.safe) & (held < newest.last)).sum())
    emptied = bool(base.safe.any()) and not held.any()
    started = start > base.start
    if emptied:
        base = base.copy()
        base.safe = np.zeros(count, np.int64)
        queue_id, position = next(reversed(base.marks.items()), ("", 0))
        base.add_gap(Gap(queue_id, 1, position, "emptied"))
    elif not lost and started:
        base = newest.copy()
    if started:
        base = base.copy()
        base.safe, base.start = held.copy(), start
    if lost or emptied:
        return Recovery(base.copy(), base, lost, emptied)
    return Recovery(newest.copy(), base, 0, False)
