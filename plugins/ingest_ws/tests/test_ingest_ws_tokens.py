"""Tokens: what is made, what is kept, who is let in."""

from __future__ import annotations

import hashlib
import hmac
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_ingest_ws.auth import tokens
from headrace_ingest_ws.auth.credential import BEARER_SUBPROTOCOL, bearer_token, subprotocols_offered
from headrace_ingest_ws.auth.gateway import devices_of
from headrace_ingest_ws.auth.identity import DevicePatterns, Identity, NotAuthorized
from headrace_ingest_ws.auth.tokens import TokenSet, new_token
from headrace_ingest_ws.protocol import Refusal


def test_a_token_is_found_by_its_id_and_only_its_hash_is_kept() -> None:
    token, record = new_token("pump-7")
    others = [new_token(f"d{number}")[1] for number in range(100)]
    identity = TokenSet([*others, record]).identify(token)
    assert (identity.name, identity.gateway, identity.credential) == ("pump-7", None, record.id)
    assert record.sha256 == hashlib.sha256(token.encode()).hexdigest()
    assert token.rpartition("_")[2] not in str(record)


def test_tokens_are_random_and_long_enough() -> None:
    made = [new_token("d")[0] for _ in range(200)]
    assert len(set(made)) == 200
    assert all(len(token.rpartition("_")[2]) == 52 for token in made), "256 bits in base 32"


def test_the_hash_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    token, record = new_token("d1")
    compared = []

    def compare(one: Any, other: Any) -> bool:
        compared.append((one, other))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr(tokens, "hmac", SimpleNamespace(compare_digest=compare))
    held = TokenSet([record])
    assert held.identify(token).name == "d1"
    with pytest.raises(NotAuthorized):
        held.identify(token[:-1] + ("a" if token[-1] != "a" else "b"))
    assert [len(one) == len(other) == 32 for one, other in compared] == [True, True]


@pytest.mark.parametrize(
    ("token", "why"),
    [
        ("", "malformed"),
        ("x", "malformed"),
        ("hrt_" + "a" * 16 + "_" + "b" * 52, "unknown"),
        ("hrt_" + "A" * 16 + "_" + "b" * 52, "malformed"),
    ],
)
def test_what_is_no_token_of_ours_is_refused_with_a_reason(token: str, why: str) -> None:
    with pytest.raises(NotAuthorized) as refused:
        TokenSet([new_token("d")[1]]).identify(token)
    assert (refused.value.why, refused.value.status) == (why, 401)
    assert len(token) < 20 or token not in str(refused.value)


def test_a_token_with_the_id_of_one_and_the_secret_of_another_is_nobodys() -> None:
    (one, first), (two, second) = new_token("d1"), new_token("d2")
    mixed = one.rpartition("_")[0] + "_" + two.rpartition("_")[2]
    with pytest.raises(NotAuthorized, match="not known"):
        TokenSet([first, second]).identify(mixed)


def test_whether_a_token_still_holds() -> None:
    token, record = new_token("gw", "meter-*")
    identity = TokenSet([record]).identify(token)
    assert TokenSet([new_token("d")[1], record]).holds(identity)
    assert not TokenSet([]).holds(identity)
    assert not TokenSet([record._replace(devices="pump-*")]).holds(identity), "it may write for others now"
    assert not TokenSet([record._replace(name="gw2")]).holds(identity)
    assert not TokenSet([record]).holds(Identity("gw", credential=record.id))


@pytest.mark.parametrize(
    "bad",
    [{"id": "x"}, {"sha256": "00"}, {"name": ""}, {"name": "a/b"}, {"devices": "/"}, {"devices": "a\tb"}, {"sha256": "A" * 64}],
)
def test_a_record_that_is_wrong_makes_no_set(bad: dict[str, str]) -> None:
    record = new_token("d")[1]._replace(**bad)
    with pytest.raises(ValueError, match="expected"):
        TokenSet([record])


def test_an_id_is_there_once() -> None:
    record = new_token("d")[1]
    with pytest.raises(ValueError, match="once"):
        TokenSet([record, record])


names = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"], exclude_characters="/%"), min_size=1, max_size=40).filter(
    lambda name: name.isprintable() and name not in (".", "..")
)


@settings(max_examples=30, deadline=None)
@given(name=names, patterns=st.lists(names, max_size=3))
def test_records_come_back_from_a_set(name: str, patterns: list[str]) -> None:
    record = new_token(name, "/".join(patterns))[1]
    assert list(TokenSet([record]).records()) == [record]


# --- patterns --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("meter-1", ["meter-1"], ["meter-11", "ameter-1", "meter-", ""]),
        ("meter-*", ["meter-", "meter-1", "meter-*"], ["Meter-1", "meter"]),
        ("*-north", ["a-north", "-north", "a-north-north"], ["a-north-", "north"]),
        ("a*b*c", ["abc", "axxbyyc", "abbc", "abcbc"], ["ac", "abcd", "acb"]),
        ("a/b*", ["a", "b", "bc"], ["ab", "c", "a/b"]),
        ("*", ["anything", "x"], []),
        ("a.b", ["a.b"], ["axb"]),
        ("*ab*ab", ["abab", "xababab"], ["ab", "aab"]),
    ],
)
def test_patterns(pattern: str, yes: list[str], no: list[str]) -> None:
    patterns = DevicePatterns(pattern)
    assert [name for name in yes if not patterns.allow(name)] == []
    assert [name for name in no if patterns.allow(name)] == []


@settings(deadline=None)
@given(st.text("ab*", min_size=1, max_size=8), st.text("ab", max_size=10))
def test_a_pattern_matches_as_a_plain_glob_does(pattern: str, name: str) -> None:
    import fnmatch

    assert DevicePatterns(pattern).allow(name) == fnmatch.fnmatchcase(name, pattern)


def test_a_hostile_pattern_takes_no_time_to_speak_of() -> None:
    patterns = DevicePatterns("*a" * 40 + "b")
    assert not patterns.allow("a" * 128)  # backtracking would take longer than the universe


# --- gateways --------------------------------------------------------------------------------------------------------


def test_each_event_of_a_gateway_has_a_device_of_its_own() -> None:
    gateway = Identity("gw", DevicePatterns("meter-*"))
    events = [b'{"device":"meter-7","v":1}', b'{"v":2}', b'{"v":{"device":"x"}}', b'{"device":"gw"}', b'{"device":"no","device":"meter-1"}']
    assert devices_of(events, gateway) == ["meter-7", "gw", "gw", "gw", "meter-1"]


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (b'{"device":"pump-1"}', "not_authorized"),
        (b'{"device":"meter-1","device":"pump-1"}', "not_authorized"),
        (b'{"device":7}', "payload_invalid"),
        (b'{"device":null}', "payload_invalid"),
        (b'{"device":""}', "payload_invalid"),
        (b'{"device":"meter-a/b"}', "payload_invalid"),
    ],
)
def test_an_event_for_whom_a_gateway_may_not_write_is_named_by_its_index(event: bytes, code: str) -> None:
    refused = devices_of([b'{"device":"meter-7"}', event], Identity("gw", DevicePatterns("meter-*")))
    assert isinstance(refused, Refusal)
    assert (refused.code, refused.at, refused.events) == (code, 1, 2)


# --- headers ---------------------------------------------------------------------------------------------------------


def subprotocol(token: str) -> str:
    import base64

    return BEARER_SUBPROTOCOL + base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")


def test_a_token_comes_in_the_header_or_as_a_subprotocol() -> None:
    assert bearer_token(["Bearer abc"], []) == "abc"
    assert bearer_token(["bearer   abc "], []) == "abc"
    offered = subprotocols_offered([f"headrace.v1.json , {subprotocol('a.b-c_d~e')}"])
    assert bearer_token([], offered) == "a.b-c_d~e"


@pytest.mark.parametrize(
    ("headers", "offers", "why"),
    [
        ([], [], "missing"),
        ([], ["headrace.v1.json"], "missing"),
        (["Basic YTpi"], [], "malformed"),
        (["Bearer"], [], "malformed"),
        (["Bearer a b"], [], "malformed"),
        (["Bearer ä"], [], "malformed"),
        (["Bearer " + "a" * 9000], [], "malformed"),
        (["Bearer a", "Bearer a"], [], "malformed"),
        (["Bearer a"], [subprotocol("a")], "malformed"),
        ([], [subprotocol("a"), subprotocol("b")], "malformed"),
        ([], [BEARER_SUBPROTOCOL], "malformed"),
        ([], [BEARER_SUBPROTOCOL + "a"], "malformed"),
        ([], [BEARER_SUBPROTOCOL + "YQ=="], "malformed"),
        ([], [BEARER_SUBPROTOCOL + "w6Q"], "malformed"),
        ([], [BEARER_SUBPROTOCOL + "YQ+/"], "malformed"),
        ([], [BEARER_SUBPROTOCOL + "a" * 20_000], "malformed"),
    ],
)
def test_anything_else_is_refused(headers: list[str], offers: list[str], why: str) -> None:
    with pytest.raises(NotAuthorized) as refused:
        bearer_token(headers, offers)
    assert refused.value.why == why


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.text(max_size=60), st.text(max_size=60).map("Bearer {}".format)), max_size=3),
    st.lists(st.text(max_size=60).map(lambda text: BEARER_SUBPROTOCOL + text), max_size=3),
)
def test_whatever_the_headers_hold_it_is_a_token_or_a_refusal(headers: list[str], offers: list[str]) -> None:
    held = TokenSet([new_token("d")[1]])
    with pytest.raises(NotAuthorized):
        held.identify(bearer_token(headers, offers))
