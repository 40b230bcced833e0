"""What a look announces is what an open then does: over queues that were damaged at random, as in test_queue_pmem_attack.py."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest

from headrace_queue_pmem import reading
from headrace_queue_pmem.inspection import check, contents, inspect
from headrace_queue_pmem.marks import Marks
from headrace_queue_pmem.medium import FileMedium
from headrace_queue_pmem.recovery import recover

sys.path.insert(0, str(Path(__file__).parent))
from test_queue_pmem_attack import OPTIONS, Attack, build

ROUNDS = int(os.environ.get("HEADRACE_ATTACK_ROUNDS") or ("1000" if os.environ.get("HEADRACE_FULL") == "1" else "25"))


def as_read(directory: Path) -> tuple[dict[int, bytes], list[int], list[int]]:
    """Opened, and read by a reader: what is served by position, what is declared corrupt, and what lost that not all have passed."""
    ring, report = recover("sim", "queue", FileMedium(directory, "process"), OPTIONS, Marks(8, 8, 8))
    served: dict[int, bytes] = {}
    declared: dict[str, list[int]] = {"corrupt": [], "lost": []}
    after = ring.oldest
    while (part := reading.read(ring, "reader", after, 64, 1 << 20)) is not None:
        gone = {position: hole.reason for hole in part.missing for position in range(hole.first, hole.last + 1)}
        for position, reason in gone.items():
            declared[reason].append(position)
        here = [position for position in range(part.first, part.last + 1) if position not in gone]
        served |= zip(here, part.batch["payload"].to_pylist() if part.batch is not None else [], strict=True)
        after = part.last
    ring.close()
    return served, declared["corrupt"], [position for position in declared["lost"] if position > report.passed]


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_look_announces_what_an_open_does(tmp_path, number):
    seed = int(os.environ.get("HEADRACE_SEED") or random.SystemRandom().randrange(1 << 30))
    print(f"HEADRACE_SEED={seed}")
    chance = random.Random(f"{seed}/{number}")
    queue, other = build(seed, b"ours:"), build(seed + 1, b"theirs:")
    attack = Attack(chance, {name: file.copy() for name, file in queue.files.items()}, dict(queue.notes), other)
    attack.run()
    for name, content in [*attack.files.items(), *attack.notes.items()]:
        (tmp_path / name).write_bytes(bytes(content))
    if not any(name == "head" or name.startswith("segment-") for name in attack.files):
        return  # then it is no queue to either
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    found = inspect(tmp_path)
    verdict = check(found)
    announced = {
        content.first + row: payload
        for content in contents(found)
        for row, payload in enumerate(content.batch["payload"].to_pylist())
    }  # fmt: skip
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before, "a look changes nothing"
    served, corrupt, lost = as_read(tmp_path)
    assert announced == served, attack.done
    assert verdict.events == len(served)
    assert (verdict.first, verdict.last) == ((min(served), max(served)) if served else (None, 0))
    damaged = [position for damage in verdict.damage for position in range(damage.first, damage.last + 1)]
    missing = [position for first, last in verdict.lost for position in range(first, last + 1)]
    assert sorted({*damaged, *missing}) == sorted([*corrupt, *lost]), attack.done
    assert not set(missing) & set(damaged)
