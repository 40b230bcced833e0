"""Queues: what was acked is there after `kill -9`."""

from __future__ import annotations

import signal
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Final

from headrace.hookspecs import QueueInfo
from headrace.testing.context import run
from headrace.testing.contract import skip
from headrace.testing.crash import Nursery, kill_at_random, rounds, test_seed
from headrace.testing.journal import Journal
from headrace.testing.queue_bench import QueueBench, numbers_of, read_next
from headrace.testing.queue_driver import ORIGIN, READER, QueueDriver

#: A release may become durable a second late: the points on that way take as long to reach.
LAZY_S: Final = 1.5


class QueueCrashes(QueueBench):
    """Real processes, killed."""

    #: Crashes at random moments in one test.
    crash_rounds: ClassVar[int] = 10
    #: Declared fault points that 4,000 events need not pass.
    fault_points_rare: ClassVar[frozenset[str]] = frozenset()

    def test_kill_9_at_random_moments_keeps_what_was_acked(self, tmp_path: Path) -> None:
        seed = test_seed()
        rng, journal, killed = Random(seed), Journal(tmp_path / "journal"), 0
        with Nursery(self, tmp_path) as nursery:
            for _ in range(rounds(self.crash_rounds)):
                child = nursery.start(folder=str(tmp_path), seed=rng.getrandbits(32), goal=10_000_000)
                killed += kill_at_random(child, journal, rng, lines_max=200)
                assert child.exit_code == -signal.SIGKILL, f"seed {seed}: the process ended by itself:\n{child.log()}"
                self._check_after_crash(tmp_path, journal, seed)
        assert killed
        print(f"{killed} crashes, {sum(note.last - note.first + 1 for note in journal.notes() if note.kind == 'acked')} events acked")

    def test_kill_9_at_every_fault_point_keeps_what_was_acked(self, tmp_path: Path) -> None:
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
                    goal = max((note.last for note in journal.notes() if note.kind == "sent"), default=0) + 4000
                    late_s = 0.0 if killed else LAZY_S
                    child = nursery.start(
                        folder=str(folder), seed=rng.getrandbits(32), goal=goal, seconds_min=late_s, faults=f"{point}=kill@{hit}"
                    )
                    code = child.wait()
                    assert code in (0, -signal.SIGKILL), f"seed {seed}, {point}: the process ended with {code}:\n{child.log()}"
                    killed += code == -signal.SIGKILL
                    self._check_after_crash(folder, journal, seed)
                    if not killed and point in self.fault_points_rare:
                        break  # the next tries would pass it as little
                assert killed or point in self.fault_points_rare, f"fault point {point!r} was never passed in 4,000 events"

    def child(self, request: dict[str, Any]) -> None:
        """What the forked process does: append and release until it is killed or has reached the goal."""
        folder = Path(request["folder"])
        context = self.context(folder, seed=request["seed"], faults=request.get("faults", ""))
        driver = QueueDriver(self.make(context), Journal(folder / "journal"), request["seed"])
        run(driver.run(request["goal"], request.get("seconds_min", 0.0)), timeout_s=600)

    def _check_after_crash(self, folder: Path, journal: Journal, seed: int) -> None:
        notes = journal.notes()
        acked = [note for note in notes if note.kind == "acked"]
        places = {note.last: note.first for note in notes if note.kind == "at"}
        asked = max((note.first for note in notes if note.kind == "release"), default=0)
        mark = max((note.first for note in notes if note.kind == "mark"), default=0)
        sent = max((note.last for note in notes if note.kind == "sent"), default=0)

        async def check(hook: Any) -> None:
            reader = await hook.queue_reader_open(reader=READER, start="oldest")
            assert reader.cursor <= asked, f"seed {seed}: cursor {reader.cursor} is newer than the last release, {asked}"
            info: QueueInfo = hook.queue_info()
            at: dict[int, int] = {}
            seen: set[int] = set()
            position = reader.cursor
            while position < info.head:
                read = await read_next(hook, READER, position)
                assert not read.missing, f"seed {seed}: positions are missing after kill -9: {read.missing}"
                assert read.first == position + 1, f"seed {seed}: a hole before {read.first}, behind {position}"
                for offset, number in enumerate(numbers_of(read)):
                    assert number <= sent, f"seed {seed}: event {number} was never sent"
                    assert number not in seen, f"seed {seed}: event {number} stands twice, at {at[number]} and {read.first + offset}"
                    seen.add(number)
                    at[number] = read.first + offset
                position = read.last
            for note in acked:
                start = places.get(note.first)
                if start is None:
                    continue  # killed between two notes
                for number in range(note.first, note.last + 1):
                    place = start + number - note.first
                    if place > reader.cursor:
                        came = at.get(number)
                        assert came == place, (
                            f"seed {seed}: event {number} was acked at {place}, found {'nowhere' if came is None else f'at {came}'}"
                        )
            held = await hook.queue_origin_position(origin=ORIGIN)
            assert (held or 0) >= mark, f"seed {seed}: the origin's mark is {held}, events up to {mark} were acked"

        self._with(folder, check)
