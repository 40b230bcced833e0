"""Random histories of a link: crashes of either side, reconnects that skip, lost answers, damage, failed commits, full stages."""

from __future__ import annotations

import os
import random

import pytest
from link_model import Counts, Link

HISTORIES = 60 if "HEADRACE_FULL" not in os.environ else 5_000
STEPS = 600


@pytest.mark.parametrize("part", range(2))
def test_nothing_is_lost_or_doubled_whatever_goes_wrong(part: int) -> None:
    base = int(os.environ.get("HEADRACE_SEED", random.randrange(2**32)))
    counts = Counts()
    for number in range(HISTORIES if "HEADRACE_SEED" not in os.environ else 1):
        seed = base + number
        link = Link(seed, counts)
        link.faults = link.rng.choice((0.02, 0.1, 0.4))
        try:
            for _ in range(STEPS):
                link.step()
            link.settle(60_000)
            link.check()
        except Exception as error:
            error.add_note(f"HEADRACE_SEED={seed}")
            raise
    if "HEADRACE_SEED" not in os.environ:
        expected = (
            "edge crashes", "far crashes", "reconnects", "frames skipped", "answers lost", "frames damaged", "commits failed",
            "rewinds", "duplicates", "discarded session", "discarded gap", "discarded room", "batches", "hellos replayed",
        )  # fmt: skip
        assert [what for what in expected if not counts.events.get(what)] == [], counts.events
