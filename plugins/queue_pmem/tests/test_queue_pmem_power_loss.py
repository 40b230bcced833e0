"""Power loss at any step of random histories, and the proof that the simulation sees each kind of mistake.

`HEADRACE_SEED` repeats a run, `HEADRACE_POWER_LOSS_RUNS` makes more of them.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace_queue_pmem import reading, recovery, runs, scanning, upkeep
from headrace_queue_pmem.area import Area
from headrace_queue_pmem.layout import LINE
from headrace_queue_pmem.ring import Ring

sys.path.insert(0, str(Path(__file__).parent))
from histories import History, process_level, stale_frames

RUNS = int(os.environ.get("HEADRACE_POWER_LOSS_RUNS", "30"))
CRASHES = 6
MUTANT_RUNS_MAX = 200


def base_seed() -> int:
    seed = int(os.environ.get("HEADRACE_SEED") or random.SystemRandom().randrange(1 << 30))
    print(f"HEADRACE_SEED={seed}")
    return seed


@pytest.mark.parametrize("unit", ["lines", "pages"])
def test_every_acknowledged_event_survives_power_loss_at_any_step(unit):
    seed = base_seed()
    crashes = events = 0
    for number in range(RUNS):
        history = History(seed + number, unit, fixed=number % 2 == 0)
        try:
            history.run(CRASHES)
        except Exception as error:
            raise AssertionError(f"HEADRACE_SEED={seed + number} with unit {unit}: {error}") from error
        crashes, events = crashes + history.crashes, events + len(history.bodies)
    print(f"{RUNS} runs, {crashes} crashes, {events} acknowledged events, 0 lost, 0 changed, 0 doubled")
    assert crashes > RUNS


def test_stale_frames_never_come_back():
    seed = base_seed()
    for number in range(30):
        try:
            stale_frames(seed + number)
        except Exception as error:
            raise AssertionError(f"HEADRACE_SEED={seed + number}: {error}") from error


def no_crc(patch: pytest.MonkeyPatch) -> None:
    for module in (scanning, reading):
        patch.setattr(module, "body_intact", lambda *_: True)
    patch.setattr(runs, "count_intact", lambda _view, raw, *_: len(raw) // LINE)
    patch.setattr("headrace_queue_pmem.frame.checksum", _crc_that_fits)


def _crc_that_fits(*_parts: Any) -> int:
    return 0


def ack_before_persist(patch: pytest.MonkeyPatch) -> None:
    real = Ring._make_durable

    def later(self: Ring, touched: list[Any]) -> None:
        before, self.later = getattr(self, "later", []), touched  # type: ignore[attr-defined]
        real(self, before)

    patch.setattr(Ring, "_make_durable", later)


def missing_persist(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ring, "_make_durable", lambda *_: None)


def no_generation_check(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scanning, "accepted", lambda header, _spans, expected: header.first >= expected)


def cursor_moved_before_release(patch: pytest.MonkeyPatch) -> None:
    real = reading.read

    def moving(ring: Ring, reader: str, after: int, rows_max: int, bytes_max: int) -> Any:
        part = real(ring, reader, after, rows_max, bytes_max)
        if part is not None and reader in ring.head.readers:
            ring.head.readers[reader].cursor = max(part.last, ring.head.readers[reader].cursor)
        return part

    patch.setattr(reading, "read", moving)


def space_given_back_before_the_cursor_is_durable(patch: pytest.MonkeyPatch) -> None:
    def pretend(ring: Ring) -> None:
        for reader in ring.head.readers.values():
            reader.durable = reader.cursor

    patch.setattr(upkeep, "store_cursors", pretend)


def marks_not_kept_before_space_is_given_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(upkeep, "checkpoint", lambda _ring: None)


def no_resync_after_recovery(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recovery, "resync", lambda *_: None)


def failed_sync_tried_again(patch: pytest.MonkeyPatch) -> None:
    real = Ring._make_durable

    def stubborn(self: Ring, touched: Any) -> None:
        try:
            real(self, touched)
        except OSError:
            real(self, touched)

    patch.setattr(Ring, "_make_durable", stubborn)


MUTANTS: list[Callable[[pytest.MonkeyPatch], None]] = [
    no_crc,
    ack_before_persist,
    missing_persist,
    no_generation_check,
    cursor_moved_before_release,
    space_given_back_before_the_cursor_is_durable,
    marks_not_kept_before_space_is_given_back,
    no_resync_after_recovery,
    failed_sync_tried_again,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_simulation_catches(mutant, monkeypatch):
    seed = base_seed()
    mutant(monkeypatch)
    for number in range(MUTANT_RUNS_MAX):
        try:
            # Histories alone find a missing generation check too rarely: the frame that names a new id shifts all others.
            stale_frames(seed + number)
            History(seed + number, ("lines", "pages")[number % 2]).run(CRASHES)
        except Exception as error:
            print(f"killed in run {number + 1}: {error}")
            return
    pytest.fail(f"{mutant.__name__} survived {MUTANT_RUNS_MAX} runs")


def test_power_loss_at_level_process_costs_events_but_never_confuses_them():
    seed = base_seed()
    crashes = 0
    for number in range(RUNS):
        try:
            crashes += process_level(seed + number)
        except Exception as error:
            raise AssertionError(f"HEADRACE_TEST_SEED={seed + number}: {error}") from error
    assert crashes > RUNS


def test_the_simulation_catches_a_marks_note_that_outlives_its_frames(monkeypatch):
    seed = base_seed()
    monkeypatch.setattr(Area, "sync", lambda *_: None)
    for number in range(MUTANT_RUNS_MAX):
        try:
            process_level(seed + number)
        except Exception as error:
            print(f"killed in run {number + 1}: {error}")
            return
    pytest.fail(f"survived {MUTANT_RUNS_MAX} runs")
