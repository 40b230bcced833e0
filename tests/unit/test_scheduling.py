"""What threads ask of the system: short slices where they acknowledge, less weight where they store."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace import scheduling
from headrace.testing.context import fake_context, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="of threads only on Linux")


def on_a_thread(work: Callable[[], object]) -> object:
    """What `work` gives on a thread of its own: what it asks for ends with that."""
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)


def test_a_thread_that_gives_way_and_those_that_it_starts_have_less_weight_and_no_others() -> None:
    before = niceness()

    def work() -> tuple[int, object]:
        scheduling.give_way(3)
        return niceness(), on_a_thread(niceness)

    assert on_a_thread(work) == (before + 3, before + 3)
    assert niceness() == before


def test_nobody_is_nicer_than_there_is() -> None:
    def work() -> int:
        scheduling.give_way(12)
        scheduling.give_way(12)
        return niceness()

    assert on_a_thread(work) == scheduling.NICE_MAX


def test_short_slices_leave_niceness_alone() -> None:
    before = niceness()

    def work() -> tuple[bool, int]:
        scheduling.give_way(2)
        return scheduling.short_slices(), niceness()

    assert on_a_thread(work) == (True, before + 2)


def test_a_policy_that_somebody_chose_stays() -> None:
    def work() -> tuple[bool, int]:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        return scheduling.short_slices(), os.sched_getscheduler(0)

    assert on_a_thread(work) == (False, os.SCHED_BATCH)


def test_without_the_system_call_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling.platform, "machine", lambda: "none")
    assert on_a_thread(scheduling.short_slices) is False


def slice_ns() -> int:
    """What the calling thread asks for, by sched_getattr."""
    attr = ctypes.create_string_buffer(scheduling._ATTR.size)
    number = scheduling._SETATTR[platform.machine()] + 1
    assert ctypes.CDLL(None, use_errno=True).syscall(number, 0, attr, len(attr), 0) == 0
    return int(scheduling._ATTR.unpack(attr.raw)[5])


@pytest.mark.skipif(tuple(map(int, platform.release().split(".")[:2])) < (6, 12), reason="Linux 6.12 and later")
def test_slices_are_short_until_a_thread_gives_way() -> None:
    def work() -> tuple[int, int, object, int]:
        before = slice_ns()
        scheduling.short_slices()
        short = slice_ns()
        return before, short, on_a_thread(other), slice_ns()

    def other() -> int:
        scheduling.give_way()
        return slice_ns()

    before, short, given_way, still = on_a_thread(work)  # type: ignore[misc]
    assert short == still == 100_000 < before
    assert given_way == before


def test_the_own_threads_of_a_component_give_way_as_its_table_says(tmp_path: Path) -> None:
    context = fake_context(tmp_path)
    context.nice = 4
    assert run(context.call_blocking(niceness)) == niceness() + 4
    context.close()
