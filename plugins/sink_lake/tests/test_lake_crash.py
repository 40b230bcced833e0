"""The process is killed at every fault point and at random moments; each position is in the lake one time all the same."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import lake_driver
import pytest

from headrace.testing.forking import Forked
from headrace_sink_lake import LocalStore, SinkLake
from headrace_sink_lake.verify import verify

TOTAL, ROLL = 400, 60
FULL = "HEADRACE_FULL" in os.environ
#: In full, 100 rounds at random moments and as many at fault points, each over three lives of the process.
RANDOM_ROUNDS = 100 if FULL else 1
POINT_ROUNDS = 15 if FULL else 1


def start(lake: Path, queue_id: str, seed: int, *fault: str) -> Forked:
    return Forked(lake_driver.main, [str(lake), queue_id, str(TOTAL), str(ROLL), str(seed), *fault], stdout=True)


def finish(process: Forked) -> str:
    """What it says until its end."""
    assert process.stdout is not None
    with process.stdout as stdout:
        out = stdout.read()
    process.wait(60)
    return out


def safe_upto(out: str) -> int:
    return max((int(line.split()[1]) for line in out.splitlines() if line.startswith("safe ")), default=0)


def expected(upto: int) -> list[int]:
    return [p for p in range(1, upto + 1) if p % 11 and p % 13 != 1]


def check_complete(lake: Path, queue_id: str) -> None:
    found, absent = lake_driver.held(lake, queue_id)
    assert found == expected(TOTAL)
    assert sorted(found + absent) == list(range(1, TOTAL + 1))
    assert list((lake / "_tmp").iterdir()) == []
    verdict = verify(LocalStore(lake))
    assert (verdict.findings, verdict.notes) == ([], [])
    assert verdict.rows == len(found)


def check_unrecovered(lake: Path, upto: int) -> None:
    """What readers of the lake see right behind a kill, before anybody has opened it."""
    found = lake_driver.positions(lake)
    assert len(found) == len(set(found)), "a reader of the unrecovered lake saw an event twice"
    assert set(expected(upto)) <= set(found), "what a flush promised is not there"
    if (lake / "_commits").exists():
        assert verify(LocalStore(lake)).findings == []


@pytest.mark.timeout(3600 if FULL else 300)
@pytest.mark.parametrize("point", SinkLake.fault_points)
def test_kill_at_a_fault_point_loses_and_doubles_nothing(tmp_path: Path, point: str) -> None:
    for number in range(POINT_ROUNDS):
        lake = tmp_path / str(number) / "lake"
        lake.parent.mkdir()
        upto = 0
        # The third roll of a process, then the first of the next; in full the second of a third as well.
        for seed, nth in ((10 * number + 1, "3"), (10 * number + 2, "1"), (10 * number + 3, "2"))[: 3 if FULL else 2]:
            process = start(lake, "q", seed, point, nth)
            out = finish(process)
            assert process.returncode == -signal.SIGKILL or (nth == "2" and out.endswith("done\n"))
            upto = max(upto, safe_upto(out))
            check_unrecovered(lake, upto)
        assert finish(start(lake, "q", 3)).endswith("done\n")
        check_complete(lake, "q")


@pytest.mark.timeout(3600 if FULL else 300)
def test_kill_at_random_moments_loses_and_doubles_nothing(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chance = random.Random(seed)
    for number in range(RANDOM_ROUNDS):
        lake = tmp_path / str(number) / "lake"
        lake.parent.mkdir()
        upto = 0
        for life in range(3 if FULL else 8):
            process = start(lake, "q", seed + life)
            assert process.stdout is not None
            out = "".join(process.stdout.readline() for _ in range(chance.randrange(3)))
            time.sleep(chance.random() * 0.03)  # the moment itself is what is tried
            process.kill()
            upto = max(upto, safe_upto(out + finish(process)))
            check_unrecovered(lake, upto)
        assert finish(start(lake, "q", seed)).endswith("done\n")
        check_complete(lake, "q")


def test_two_processes_that_write_the_same_queue_double_nothing(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    both = [start(lake, "q", seed) for seed in (1, 2)]
    assert all(finish(process).endswith("done\n") for process in both)
    check_complete(lake, "q")


def test_a_second_process_takes_over_while_the_first_is_stopped_and_comes_back(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    first = start(lake, "q", 1)
    assert first.stdout is not None
    first.stdout.readline()
    first.send_signal(signal.SIGSTOP)
    try:
        assert finish(start(lake, "q", 2)).endswith("done\n")
        found, _ = lake_driver.held(lake, "q")
        assert len(found) == len(set(found))
    finally:
        first.send_signal(signal.SIGCONT)
    assert finish(first).endswith("done\n")
    found, absent = lake_driver.held(lake, "q")
    assert found == expected(TOTAL)
    assert sorted(found + absent) == list(range(1, TOTAL + 1))
