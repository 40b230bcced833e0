"""When a connection is old enough: after a scaling, devices spread only when they connect again. No I/O."""

from __future__ import annotations

import math
from random import Random


def ends_at(now: float, age_s_max: float, jitter_ratio: float, random: Random) -> float:
    """A random moment in the last part of the age that a connection may reach; inf when there is no such age (0).

    Thousands connect together after a restart; without the jitter they would all be sent away together too.
    """
    if not age_s_max:
        return math.inf
    return now + age_s_max * (1 - jitter_ratio * random.random())
