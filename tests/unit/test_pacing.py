"""How fast a backlog is sent while devices are there, and how that is known."""

from __future__ import annotations

import threading
import time

import pytest

from headrace.engine.pacing import BACKLOG_EVENTS, PAUSE_S_MAX, QUIET_S, RATE_MIN, CoreWaits, Pace, Waits
from headrace.hookspecs import QueueInfo

BATCH = 8_000
BATCH_S = 0.001  # what a batch takes by itself


class Drain:
    """Batches of a backlog, one after the other; events come in meanwhile, `comes` per second."""

    def __init__(self, comes: float, wait_s: float | None, lag: int = 10 * BACKLOG_EVENTS, fill: float = 0.1) -> None:
        """wait_s: what the sources' thread waits for a core at each of its turns; None: nobody knows."""
        self.comes, self.wait_s, self.lag, self.fill = comes, wait_s, lag, fill
        self.at = self.came = 0.0
        self.pace = Pace(self.waits, lambda: self.at)

    def waits(self) -> Waits | None:
        turns = round(1000 * self.at)
        return None if self.wait_s is None else Waits(self.wait_s * turns, turns)

    def rate(self, seconds: float) -> float:
        """Events per second that go out over so long."""
        begun, sent = self.at, 0
        while self.at < begun + seconds:
            sent += BATCH
            head = self.lag + int(self.came)
            info = QueueInfo("q", None, "process", "", "", head, 1, head, int(self.fill * 1000), 1000, None, (), ())
            pause_s = self.pace.pause_s(BATCH, info, head - self.lag)
            assert 0 <= pause_s <= PAUSE_S_MAX
            self.at += pause_s + BATCH_S
            self.came += self.comes * (pause_s + BATCH_S)
        return sent / (self.at - begun)


FULL = BATCH / BATCH_S


@pytest.mark.parametrize("wait_s", [0.0003, None])
def test_while_devices_wait_for_cores_a_backlog_goes_at_the_least_rate(wait_s: float | None) -> None:
    drain = Drain(comes=2_000, wait_s=wait_s)
    drain.rate(1.0)
    assert drain.rate(5.0) == pytest.approx(RATE_MIN, rel=0.1)


def test_where_nobody_waits_it_grows_faster_step_by_step_and_slower_again() -> None:
    drain = Drain(comes=2_000, wait_s=0.00002)
    assert drain.rate(0.2) < 2 * RATE_MIN, "it begins slowly"
    drain.rate(5.0)
    assert drain.rate(1.0) > 0.8 * FULL
    drain.rate(60.0)
    drain.wait_s = 0.0003
    drain.rate(2.0)
    assert drain.rate(1.0) < 0.5 * FULL


def test_it_ends_whatever_comes_in() -> None:
    drain = Drain(comes=150_000, wait_s=0.001)
    drain.rate(1.0)
    assert drain.rate(3.0) > 1.8 * drain.comes


@pytest.mark.parametrize(
    "drain",
    [
        pytest.param(Drain(comes=0, wait_s=0.001), id="nobody sends"),
        pytest.param(Drain(comes=2_000, wait_s=0.001, lag=BACKLOG_EVENTS - 1), id="no backlog"),
        pytest.param(Drain(comes=2_000, wait_s=0.001, fill=0.51), id="the queue is filling up"),
    ],
)
def test_otherwise_it_goes_at_full_speed(drain: Drain) -> None:
    drain.rate(QUIET_S + PAUSE_S_MAX)  # at first nobody knows whether anybody is there
    assert drain.rate(3.0) == pytest.approx(FULL)


def test_when_the_last_device_has_gone_it_goes_at_full_speed() -> None:
    drain = Drain(comes=2_000, wait_s=0.001)
    drain.rate(3.0)
    drain.comes = 0
    drain.rate(QUIET_S + PAUSE_S_MAX)
    assert drain.rate(1.0) == pytest.approx(FULL)


def test_what_a_thread_waited_for_a_core_is_told_to_others() -> None:
    waits = CoreWaits()
    before = waits()
    assert before is not None
    for _ in range(5):
        time.sleep(0.001)  # gives its core back
    found: list[Waits | None] = []
    other = threading.Thread(target=lambda: found.append(waits()))
    other.start()
    other.join()
    (after,) = found
    assert after is not None
    assert after.times >= before.times + 5, "of the one that made it"
    assert after.seconds >= before.seconds


def test_where_the_system_does_not_tell_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "get_native_id", lambda: 2**31 - 1)
    assert CoreWaits()() is None
