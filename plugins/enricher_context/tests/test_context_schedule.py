"""When the database is read again."""

from __future__ import annotations

import random

import pytest

from headrace_enricher_context.schedule import RETRY_S_FIRST, Schedule


def schedule(early_s: float = 10) -> Schedule:
    return Schedule(60, early_s, 30, random.Random(1))


def read_at(one: Schedule, now: float, took_s: float = 1) -> None:
    one.begin(now)
    one.succeeded(now + took_s)


def test_the_first_reading_is_due_at_once() -> None:
    assert schedule().wait_s(5) <= 0


def test_readings_begin_an_interval_apart() -> None:
    one = schedule()
    read_at(one, 100)
    assert one.wait_s(101) == 59
    read_at(one, 160, took_s=90)  # slower than the interval: the next follows, but not before this one has ended
    assert one.wait_s(250) == 0


def test_an_unknown_device_brings_the_next_reading_forward() -> None:
    one = schedule()
    read_at(one, 100)
    one.ask_early()
    assert one.wait_s(101) == 9
    assert one.wait_s(140) < 0


def test_an_early_request_never_puts_a_reading_off() -> None:
    one = schedule(early_s=1000)
    read_at(one, 100)
    one.ask_early()
    assert one.wait_s(101) == 59


def test_a_reading_answers_the_requests_before_it() -> None:
    one = schedule()
    read_at(one, 100)
    one.ask_early()
    read_at(one, 110)
    assert one.wait_s(111) == 59


def test_early_requests_can_be_switched_off() -> None:
    one = schedule(early_s=0)
    read_at(one, 100)
    one.ask_early()
    assert one.wait_s(101) == 59


def test_failures_wait_longer_each_time_up_to_the_bound_with_jitter() -> None:
    one, now, waits = schedule(), 0.0, []
    for _ in range(12):
        one.begin(now)
        waits.append(one.failed(now))
        assert one.wait_s(now) == pytest.approx(waits[-1])
        now += waits[-1]
    assert RETRY_S_FIRST / 2 <= waits[0] <= RETRY_S_FIRST
    assert all(15 <= wait <= 30 for wait in waits[-4:])
    assert len(set(waits[-4:])) == 4
    one.begin(now)
    one.succeeded(now)
    one.begin(now)
    assert one.failed(now) <= RETRY_S_FIRST


def test_an_unknown_device_does_not_hurry_a_failing_database() -> None:
    one = schedule()
    for _ in range(8):
        one.begin(0)
        wait = one.failed(0)
    one.ask_early()
    assert one.wait_s(0) == wait
