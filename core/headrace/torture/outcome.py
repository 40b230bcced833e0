"""What a trial did, and what came of it. No I/O."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from headrace.torture.verdict import Finding


@dataclass
class TierRun:
    """What was done to one tier."""

    done: Counter[str] = field(default_factory=Counter)
    points_hit: Counter[str] = field(default_factory=Counter)
    points_not_passed: Counter[str] = field(default_factory=Counter)
    deaths: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """SIGKILLs, from outside and at fault points."""
        return self.done["kill"] + sum(self.points_hit.values()) + sum(self.points_not_passed.values())


@dataclass
class Outcome:
    """All that a report tells."""

    findings: list[Finding]
    tiers: dict[str, TierRun]
    links: dict[str, Counter[str]]
    connections: dict[str, int]
    acked: int
    resent: int
    resumed: int
    refused: int
    stored: int
    fault_s: float
    settle_s: float
    fresh_s: float | None

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against any property."""
        return not any(finding.violations for finding in self.findings)
