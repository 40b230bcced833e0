"""Sockets are counted from accept on, in all and per address."""

from __future__ import annotations

import pytest

from headrace_ingest_ws.places import Places, address_key


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
