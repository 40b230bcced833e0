"""What one connection owes its client: numbers, rejects before acks, the window."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from headrace_ingest_ws.protocol import CLOSE_RESTART, Refusal, close_frame, device_problem, reject, text_frame
from headrace_ingest_ws.session import Session

BAD = Refusal("payload_invalid", "because")


def test_messages_count_from_one_whether_taken_or_refused() -> None:
    session = Session(window=10)
    assert [session.take(), session.refuse(BAD), session.take()] == [1, 2, 3]


def test_nothing_is_due_before_something_is_settled() -> None:
    session = Session(window=10)
    session.take()
    session.refuse(BAD)
    assert session.due() == []
    assert not session.quiet


def test_a_reject_comes_before_the_ack_that_covers_it_and_never_earlier_than_its_turn() -> None:
    session = Session(window=10)
    session.take()
    session.refuse(BAD)
    session.take()
    session.settle(1)
    assert session.due() == [b'{"ack":1}']
    session.settle(3)
    texts = [json.loads(text) for text in session.due()]
    assert texts == [{"reject": 2, "code": "payload_invalid", "reason": "because"}, {"ack": 3}]
    assert session.due() == []
    assert session.quiet


def test_one_ack_covers_all_that_was_settled_since_the_last() -> None:
    session = Session(window=10)
    for _ in range(5):
        session.take()
    session.settle(2)
    session.settle(5)
    session.settle(4)
    assert session.due() == [b'{"ack":5}']


def test_the_window_closes_at_its_size_and_opens_when_the_ack_is_handed_out() -> None:
    session = Session(window=2)
    session.take()
    assert session.open
    session.refuse(BAD)
    assert not session.open
    session.settle(2)
    assert not session.open, "an ack that cannot be written must keep the window closed"
    session.due()
    assert session.open


@given(st.lists(st.sampled_from(["take", "refuse", "settle", "write"]), max_size=200), st.integers(1, 20))
def test_every_message_is_covered_one_time_in_order(steps: list[str], window: int) -> None:
    session = Session(window)
    refused: list[int] = []
    written: list[dict[str, int]] = []
    for step in steps:
        if step == "take" and session.open:
            session.take()
        elif step == "refuse" and session.open:
            refused.append(session.refuse(BAD))
        elif step == "settle":
            session.settle((session.count + session.acked + 1) // 2)
        elif step == "write":
            written += [json.loads(text) for text in session.due()]
        assert session.count - session.acked <= window
    session.settle(session.count)
    written += [json.loads(text) for text in session.due()]
    acked = 0
    rejected = []
    for text in written:
        if "reject" in text:
            assert text["reject"] > acked
            rejected.append(text["reject"])
        else:
            assert text["ack"] > acked
            acked = text["ack"]
            assert all(number <= acked for number in rejected)
    assert rejected == refused
    assert acked == session.count


def test_a_reason_is_cut_before_it_goes_back() -> None:
    text = json.loads(reject(7, Refusal("payload_invalid", "x" * 10_000, at=3, retry_ms=20)))
    assert text == {"reject": 7, "code": "payload_invalid", "reason": "x" * 200, "index": 3, "retry_ms": 20}


def test_frames_carry_their_length_in_one_or_three_bytes() -> None:
    assert text_frame(b"a" * 125)[:2] == bytes((0x81, 125))
    assert text_frame(b"a" * 126)[:4] == bytes((0x81, 126, 0, 126))
    assert close_frame(CLOSE_RESTART, b"r" * 200)[:4] == bytes((0x88, 125)) + (1012).to_bytes(2, "big")


def test_device_names_are_printable_short_and_without_slash_or_percent() -> None:
    assert [name for name in ("d1", "Sensor 7", "køkken", "x" * 128) if device_problem(name)] == []
    bad = ("", "x" * 129, "a/b", "%ff", "a\nb", "\x00", ".", "..", "\u202e", "\ud800")
    assert [name for name in bad if device_problem(name) is None] == []
