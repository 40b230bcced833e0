"""From a message to its events, or the reason to refuse it."""

from __future__ import annotations

import pytest

from headrace.encodings import Sent
from headrace_ingest_ws import message as message_module
from headrace_ingest_ws.message import JSON, lines_of
from headrace_ingest_ws.protocol import Refusal


def events_of(message: bytes, events_max: int) -> list[bytes] | Refusal:
    return message_module.events_of(message, JSON, Sent("d1", 0.0, events_max))


def test_an_object_is_one_event_byte_for_byte() -> None:
    assert events_of(b' {"a": 1.50}\n', 10) == [b' {"a": 1.50}\n']


def test_an_array_gives_an_event_for_each_element() -> None:
    assert events_of(b' [{"a":1}, {"b":[2,3]} ]', 10) == [b'{"a":1}', b'{"b":[2,3]}']


@pytest.mark.parametrize(
    "message", [b"", b"nope", b"3", b'"x"', b"null", b'{"a":1', b'{"a":1}{"b":2}', b"\xff{}", b'{"a":"\xc3"}', b"[]", b"[{}"]
)
def test_what_is_no_event_is_refused_with_a_reason(message: bytes) -> None:
    refusal = events_of(message, 10)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "payload_invalid"
    assert refusal.reason


@pytest.mark.parametrize(
    ("message", "index"), [(b"[1,{}]", 0), (b'[{},{},"x"]', 2), (b"[{},[{}]]", 1), (b"[{}," + b'{"a":' * 40 + b"1" + b"}" * 41, 1)]
)
def test_one_bad_element_refuses_the_whole_message_and_is_named(message: bytes, index: int) -> None:
    refusal = events_of(message, 10)
    assert isinstance(refusal, Refusal)
    if refusal.at is not None:  # an array that is broken JSON has no elements to name
        assert refusal.at == index
        assert f"event {index} " in refusal.reason
    assert refusal.code == "payload_invalid"


def test_too_many_events_are_refused_and_counted() -> None:
    assert isinstance(events_of(b"[{},{}]", 2), list)
    refusal = events_of(b"[{},{},{}]", 2)
    assert isinstance(refusal, Refusal)
    assert (refusal.code, refusal.events) == ("too_large", 3)


def test_lines_keep_their_index_across_blank_ones() -> None:
    assert lines_of(b'{"a":1}\r\n\r\n{"b":2}\n', 5) == [(0, b'{"a":1}\r'), (2, b'{"b":2}')]


def test_a_body_of_blank_lines_and_one_of_too_many_are_refused() -> None:
    for body, code in ((b"", "payload_invalid"), (b"\n\n \n", "payload_invalid"), (b"\n" * 5 + b"{}", "too_large")):
        refusal = lines_of(body, 5)
        assert isinstance(refusal, Refusal)
        assert refusal.code == code
