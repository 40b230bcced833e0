"""Sinks: `kill -9` neither loses nor doubles."""

from __future__ import annotations

import signal
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from headrace.testing import plan
from headrace.testing.context import run
from headrace.testing.contract import skip
from headrace.testing.crash import Nursery, finish, kill_at_random, rounds, test_seed
from headrace.testing.journal import Journal
from headrace.testing.sink_bench import SinkBench, compare
from headrace.testing.sink_driver import SinkDriver


class SinkCrashes(SinkBench):
    """Real processes, killed."""

    #: Crashes at random moments in one test.
    crash_rounds: ClassVar[int] = 10
    #: Declared fault points that 2,000 events need not pass (for example one on a path that only a broken store takes).
    fault_points_rare: ClassVar[frozenset[str]] = frozenset()

    def test_kill_9_at_random_moments_loses_and_doubles_nothing(self, tmp_path: Path) -> None:
        self._holding(tmp_path)
        seed = test_seed()
        rng, journal, killed = Random(seed), Journal(tmp_path / "journal"), 0
        with Nursery(self, tmp_path) as nursery:
            for _ in range(rounds(self.crash_rounds)):
                child = nursery.start(folder=str(tmp_path), seed=rng.getrandbits(32), goal=1_000_000)
                killed += kill_at_random(child, journal, rng, lines_max=30)
                assert child.exit_code == -signal.SIGKILL, f"seed {seed}: the process ended by itself:\n{child.log()}"
            self._finish_and_check(tmp_path, nursery, journal, seed)
        print(f"{killed} crashes, {flushed_upto(journal)} positions flushed")

    def test_kill_9_at_every_fault_point_loses_and_doubles_nothing(self, tmp_path: Path) -> None:
        self._holding(tmp_path)
        points = type(self.make(self.context(tmp_path))).fault_points
        if not points:
            skip("the plugin declares no fault points")
        seed = test_seed()
        rng = Random(seed)
        with Nursery(self, tmp_path) as nursery:
            for point in points:
                folder = tmp_path / point.replace("/", "_")
                folder.mkdir()
                journal, killed = Journal(folder / "journal"), 0
                for hit in (1, 1, rng.randint(2, 4)):
                    goal = flushed_upto(journal) + 2000
                    child = nursery.start(folder=str(folder), seed=rng.getrandbits(32), goal=goal, faults=f"{point}=kill@{hit}")
                    code = child.wait()
                    assert code in (0, -signal.SIGKILL), f"seed {seed}: the process ended with {code}:\n{child.log()}"
                    killed += code == -signal.SIGKILL
                    if not killed and point in self.fault_points_rare:
                        break  # the next tries would pass it as little
                assert killed or point in self.fault_points_rare, f"fault point {point!r} was never passed in 2,000 events"
                self._finish_and_check(folder, nursery, journal, seed)

    def child(self, request: dict[str, Any]) -> None:
        """What the forked process does: drive the sink until it is killed or has reached the goal."""
        folder = Path(request["folder"])
        context = self.context(folder, seed=request["seed"], faults=request.get("faults", ""))
        driver = SinkDriver(self.make(context), Journal(folder / "journal"), request["seed"])
        run(driver.run(request["goal"]), timeout_s=600)

    def _finish_and_check(self, folder: Path, nursery: Nursery, journal: Journal, seed: int) -> None:
        goal = max((note.last for note in journal.notes()), default=0) + 100
        finish(nursery.start(folder=str(folder), seed=seed & 0xFFFFFFFF, goal=goal))
        last = flushed_upto(journal)
        assert last >= goal, f"seed {seed}: expected everything up to {goal} to be flushed, got {last}"
        expected = [(plan.queue_id(position), position) for position in plan.stored_positions(last)]
        compare(expected, self._stored(folder), f"seed {seed}: ")


def flushed_upto(journal: Journal) -> int:
    return max((note.last for note in journal.notes() if note.kind == "done"), default=0)
