"""When a device connects again, and when it gives up."""

from __future__ import annotations

import random

import pytest

from headrace.devices.reconnect import RETRY_AFTER_S_MAX, GaveUp, Reconnect, retry_after_s


def reconnect() -> Reconnect:
    return Reconnect("pump-1", random.Random(7), first_s=0.1, ceiling_s=5.0)


def test_waits_are_jittered_under_a_ceiling_that_doubles() -> None:
    policy = reconnect()
    waits = [policy.wait_s() for _ in range(12)]
    assert all(0.0 <= wait <= min(5.0, 0.1 * 2**failures) for failures, wait in enumerate(waits))
    assert len(set(waits)) == len(waits)
    assert max(waits) > 1.0


def test_a_connection_that_worked_starts_the_waits_over() -> None:
    policy = reconnect()
    for _ in range(10):
        policy.wait_s()
    policy.worked()
    assert policy.wait_s() <= 0.1


@pytest.mark.parametrize("code", [1000, 1001, 1006, 1011, 1012, 1013, None])
def test_closes_that_may_pass_lead_to_another_try(code: int | None) -> None:
    assert 0.0 <= reconnect().after_close(code, "") <= 0.1


@pytest.mark.parametrize("code", [1002, 1003, 1007, 1008, 1009, 4409])
def test_closes_that_will_not_pass_end_the_device(code: int) -> None:
    with pytest.raises(GaveUp, match=rf"device 'pump-1' gave up: the server closed with {code} .*: token revoked"):
        reconnect().after_close(code, "token revoked")


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_retry_after_is_a_floor_for_the_wait(status: int) -> None:
    assert 2.0 <= reconnect().after_status(status, "2", 0.0) <= 2.1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 426])
def test_upgrades_refused_for_good_end_the_device(status: int) -> None:
    with pytest.raises(GaveUp, match=f"HTTP {status}, expected 101"):
        reconnect().after_status(status, None, 0.0)


def test_retry_after_may_be_a_date_and_is_bounded() -> None:
    assert retry_after_s("Thu, 01 Jan 1970 00:00:30 GMT", now_wall=10.0) == 20.0
    assert retry_after_s("Thu, 01 Jan 1970 00:00:30 GMT", now_wall=50.0) == 0.0
    assert retry_after_s("86400", now_wall=0.0) == RETRY_AFTER_S_MAX
    assert retry_after_s("-3", now_wall=0.0) == 0.0
    for unreadable in ("soon", "", "nan", None):
        assert retry_after_s(unreadable, now_wall=0.0) == 0.0
