"""The note that keeps a session's refused messages across connections."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_ingest_ws.refusals import NOTE_BYTES_PER_REFUSAL, Refusals, RefusedMessage, decode, encode

CODES = st.tuples(st.sampled_from(["payload_invalid", "too_large", "rate", "quota"]), st.booleans())


@given(st.dictionaries(st.integers(1, 10**15), CODES, max_size=60))
def test_a_note_gives_back_what_was_put_into_it(refused: dict[int, tuple[str, bool]]) -> None:
    held = [RefusedMessage(number, *refused[number]) for number in sorted(refused)]
    assert decode(encode(held)) == held


def test_nothing_refused_is_no_note() -> None:
    assert encode([]) is None
    assert decode(None) == []
    assert Refusals().note() is None


def test_a_whole_window_of_refusals_stays_small() -> None:
    alternating = [RefusedMessage(1_000_000 + 2 * number, "rate", True) for number in range(512)]
    assert len(encode(alternating) or b"") < 512 * NOTE_BYTES_PER_REFUSAL
    in_a_row = [RefusedMessage(1_000_000 + number, "rate", True) for number in range(65_536)]
    assert len(encode(in_a_row) or b"") < 40


@pytest.mark.parametrize("note", [b"", b"\xc0", b"nonsense", encode([RefusedMessage(1, "rate")])[:-1], b"\x93\x02\x90\x90"])
def test_a_note_that_is_not_ours_is_an_error(note: bytes) -> None:
    with pytest.raises(ValueError, match="expected a note"):
        decode(note)


def test_the_note_follows_what_is_added_and_forgotten() -> None:
    refusals = Refusals([RefusedMessage(3, "rate", True)])
    assert decode(refusals.note()) == [RefusedMessage(3, "rate", True)]
    refusals.add(RefusedMessage(5, "payload_invalid"))
    refusals.forget(4)
    assert decode(refusals.note()) == [RefusedMessage(5, "payload_invalid")]
    refusals.forget(5)
    assert refusals.note() is None


def test_the_hello_says_whether_a_message_may_be_taken_later() -> None:
    assert RefusedMessage(3, "payload_invalid").fields() == {"reject": 3, "code": "payload_invalid"}
    assert RefusedMessage(4, "rate", True).fields() == {"reject": 4, "code": "rate", "retry_ms": 0}
