"""Sockets are counted from accept on, in all and per address."""

from __future__ import annotations

import pytest

from headrace_ingest_ws.places import ADDRESSES_MAX, Arrivals, Places, address_key


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
        ("::1", "::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
    ],
)
def test_an_address_is_an_ipv4_address_or_the_64_of_an_ipv6_one(host: str, key: str) -> None:
    assert address_key(host) == key


def test_an_address_gets_no_more_places_than_one_may_have_and_another_is_not_affected() -> None:
    places = Places(100, 2)
    first, second = places.take("2001:db8::1"), places.take("2001:db8::2")
    assert first is not None
    assert second is not None
    assert places.take("2001:db8::3") is None
    assert places.take("2001:db8:0:1::1") is not None
    first.give_back()
    assert places.take("2001:db8::3") is not None


def test_a_place_is_given_back_once_whatever_it_was() -> None:
    places = Places(2, 0)
    waiting, upgraded = places.take("127.0.0.1"), places.take("127.0.0.1")
    assert waiting is not None
    assert upgraded is not None
    assert places.full
    upgraded.upgraded()
    upgraded.upgraded()
    assert (places.waiting, places.sockets, places.full) == (1, 2, False)
    for place in (waiting, upgraded, waiting, upgraded):
        place.give_back()
        place.upgraded()
    assert (places.waiting, places.sockets, places._by_address) == (0, 0, {})


def test_an_address_comes_as_fast_as_it_may_and_after_a_pause_a_burst_at_once() -> None:
    arrivals = Arrivals(2.0)
    assert [arrivals.wait_s("2001:db8::1", 0.0) for _ in range(20)] == [0.0] * 20
    assert arrivals.wait_s("2001:db8::2", 0.0) == 0.5, "the /64 counts"
    assert arrivals.wait_s("2001:db8:0:1::1", 0.0) == 0.0, "others are not affected"
    assert arrivals.wait_s("2001:db8::1", 0.25) == 0.25, "who was refused has not come"
    assert arrivals.wait_s("2001:db8::1", 0.5) == 0.0
    assert [arrivals.wait_s("2001:db8::1", 60.0) for _ in range(20)] == [0.0] * 20
    assert arrivals.wait_s("2001:db8::1", 60.0) == 0.5


def test_a_slow_rate_lets_one_come_and_addresses_are_forgotten() -> None:
    arrivals = Arrivals(0.01)
    assert arrivals.wait_s("192.0.2.1", 0.0) == 0.0
    assert arrivals.wait_s("192.0.2.1", 0.0) == pytest.approx(100.0)
    for number in range(ADDRESSES_MAX + 10):
        arrivals.wait_s(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1.0)
    assert len(arrivals._levels) == ADDRESSES_MAX
    for number in range(ADDRESSES_MAX):
        arrivals.wait_s("192.0.2.2", 200.0 + number)
    assert len(arrivals._levels) == 1
