"""What is done to which tier and link, and when: a pure function of the seed. No I/O.

Every tier and every link has a *lane* of steps of its own; lanes run beside each other, so that one tier dies while another is
paused and a third cut off. A step waits `gap_s`, does its deed, holds it for `hold_s`, and undoes it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import Final, Literal, NamedTuple

Deed = Literal["kill", "point", "pause", "drain", "cut", "stall", "stall_there", "stall_back"]

#: Of ten steps of a tier, half are deaths at a fault point: that is where they hurt most.
TIER_DEEDS: Final[tuple[tuple[Deed, float], ...]] = (("point", 0.5), ("kill", 0.25), ("pause", 0.15), ("drain", 0.1))
LINK_DEEDS: Final[tuple[tuple[Deed, float], ...]] = (("cut", 0.5), ("stall", 0.2), ("stall_there", 0.15), ("stall_back", 0.15))
#: What a step takes beside its gap and hold, about: a process that starts needs its time. Only how many steps fit depends on it.
COST_S: Final[dict[Deed, float]] = {"kill": 1.5, "point": 2.5, "drain": 2.0}
#: Between two steps; in a short trial they follow each other faster.
GAP_S: Final = (0.1, 2.5)
GAP_SHORT_S: Final = 0.6
HOLD_S: Final = (0.1, 1.5)
#: One hold in so many is long: past what links take for the death of their far side.
LONG_EVERY: Final = 12
LONG_HOLD_S: Final = (6.0, 8.0)
#: Runs that are shorter have no such holds.
LONG_FROM_S: Final = 60.0
#: Runs of ten minutes and more prove something of every link: each tier dies so often, and at each point that it needs.
FULL_FROM_S: Final = 600.0
DEATHS_MIN: Final = 10
#: Which pass of a point is the last: some are passed once in a process's life.
HITS: Final = (1, 1, 1, 2, 3, 5)


class Point(NamedTuple):
    """A fault point of a tier. needed: the run proves nothing about links unless the tier died there."""

    name: str
    needed: bool = False


class Step(NamedTuple):
    """One deed. point and hit: where the process is to die, for the deed `point`."""

    gap_s: float
    deed: Deed
    hold_s: float
    point: str = ""
    hit: int = 0

    def __str__(self) -> str:
        return f"{self.point}@{self.hit}" if self.deed == "point" else self.deed


class Owed(NamedTuple):
    """What has to have happened to a tier, or the trial proves nothing: SIGKILLs, and deaths at these points."""

    kills: int
    points: tuple[str, ...]


def owed(steps: Sequence[Step], points: Sequence[Point], seconds: float) -> Owed:
    """What a lane promises; of a long run, whatever the lane says, DEATHS_MIN kills and each needed point."""
    full = seconds >= FULL_FROM_S
    named = {step.point for step in steps}
    kills = sum({"kill": 1, "point": 2}.get(step.deed, 0) for step in steps)  # before it dies at a point it is killed, to arm that
    return Owed(
        max(kills, DEATHS_MIN if full else 1),
        tuple(sorted(point.name for point in points if point.needed and (full or point.name in named))),
    )


def tier_lane(seed: int, tier: str, points: Sequence[Point], seconds: float) -> list[Step]:
    """The steps of one tier for a run of about so long: a death at least, of a long run all that is `owed`. Needed points come first."""
    rng = random.Random(f"{seed}/tier/{tier}")
    turns = _in_turn(rng, points)
    steps: list[Step] = []
    left = seconds
    while left > 0 or not _enough(steps, points, seconds):
        deed = _drawn(rng, TIER_DEEDS)
        if deed == "point" and not points:
            deed = "kill"
        point = next(turns) if deed == "point" else Point("")
        hit = rng.choice(HITS) if deed == "point" else 0
        if point.needed and all(step.point != point.name for step in steps):
            hit = 1  # a first time that is sure to come
        hold_s = 0.0 if deed in ("point", "drain") else _hold(rng, seconds)
        step = Step(_gap(rng, seconds), deed, hold_s, point.name, hit)
        steps.append(step)
        left -= step.gap_s + step.hold_s + COST_S.get(deed, 0.0)
    return steps


def link_lane(seed: int, link: str, seconds: float) -> list[Step]:
    """The steps of one link, or of the devices' way to a tier."""
    rng = random.Random(f"{seed}/link/{link}")
    steps: list[Step] = []
    left = seconds
    while left > 0:
        step = Step(2 * _gap(rng, seconds), _drawn(rng, LINK_DEEDS), _hold(rng, seconds))
        steps.append(step)
        left -= step.gap_s + step.hold_s
    return steps


def _enough(steps: Sequence[Step], points: Sequence[Point], seconds: float) -> bool:
    lane, least = owed(steps, points, 0.0), owed([], points, seconds)
    return any(step.deed in ("kill", "point") for step in steps) and lane.kills >= least.kills and set(least.points) <= set(lane.points)


def _in_turn(rng: random.Random, points: Sequence[Point]) -> Iterator[Point]:
    needed = [point for point in points if point.needed]
    others = [point for point in points if not point.needed]
    rng.shuffle(needed)
    rng.shuffle(others)
    return cycle(needed + others)


def _drawn(rng: random.Random, deeds: Sequence[tuple[Deed, float]]) -> Deed:
    return rng.choices([deed for deed, _ in deeds], [weight for _, weight in deeds])[0]


def _gap(rng: random.Random, seconds: float) -> float:
    return round(rng.uniform(GAP_S[0], min(GAP_S[1], max(GAP_SHORT_S, seconds / 10))), 3)


def _hold(rng: random.Random, seconds: float) -> float:
    long = rng.randrange(LONG_EVERY) == 0 and seconds >= LONG_FROM_S
    return round(rng.uniform(*(LONG_HOLD_S if long else HOLD_S)), 3)
