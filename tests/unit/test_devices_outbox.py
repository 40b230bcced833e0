"""The device's bookkeeping: what is acked, refused, retried and sent again."""

from __future__ import annotations

import random

import pytest

from headrace.devices.outbox import Message, Outbox, ProtocolError
from headrace.devices.totals import Totals


def filled(count: int, window: int = 100, capacity: int = 1000) -> tuple[Outbox, Totals]:
    totals = Totals()
    outbox = Outbox(totals, capacity, window)
    for number in range(1, count + 1):
        assert outbox.add(b"%d" % number, number)
    return outbox, totals


def drain(outbox: Outbox, now: float = 0.0) -> list[int]:
    sent = []
    while (payload := outbox.next_payload(now)) is not None:
        sent.append(int(payload))
    return sent


def test_an_ack_covers_all_messages_up_to_its_number() -> None:
    outbox, totals = filled(5)
    assert drain(outbox) == [1, 2, 3, 4, 5]
    outbox.receive('{"ack":3}', 0.25)
    assert (totals.acked, totals.unacked, len(outbox)) == (3, 2, 2)
    outbox.receive('{"ack":3}', 0.3)
    outbox.receive('{"ack":5}', 0.3)
    assert (totals.acked, totals.unacked, len(outbox)) == (5, 0, 0)
    assert totals.latency.count == 5
    assert totals.latency.quantile(0.5) == pytest.approx(0.25, rel=0.05)


def test_unacked_messages_come_first_and_in_order_on_a_new_connection() -> None:
    outbox, totals = filled(4)
    drain(outbox)
    outbox.receive('{"ack":2}', 0.0)
    outbox.add(b"5")
    outbox.connected()
    assert drain(outbox) == [3, 4, 5]
    outbox.receive('{"ack":1}', 0.0)
    assert (totals.sent, totals.resent, totals.acked, totals.unacked) == (5, 2, 3, 2)


def resume(outbox: Outbox, text: str, now: float = 0.0) -> None:
    outbox.connected_in_session()
    assert outbox.next_payload(now) is None, "nothing may be sent before the hello"
    outbox.receive('{"hello":{"window":100,' + text + "}}", now)


def test_a_hello_settles_what_the_server_holds_and_numbers_go_on() -> None:
    outbox, totals = filled(5)
    resume(outbox, '"resume":0')
    assert drain(outbox) == [1, 2, 3, 4, 5]
    outbox.receive('{"ack":1}', 0.0)
    assert outbox.acked == 1
    resume(outbox, '"resume":3,"refused":[]')
    assert (totals.acked, totals.resumed, outbox.acked) == (3, 2, 3)
    assert drain(outbox) == [4, 5]
    outbox.receive('{"ack":5}', 0.0)
    assert (totals.acked, totals.resent, totals.unacked) == (5, 2, 0)


def test_a_hello_repeats_what_was_refused() -> None:
    refused: list[object] = []
    totals = Totals()
    outbox = Outbox(totals, on_reject=lambda message, code, reason: refused.append((message.tag, code)))
    for number in range(1, 6):
        outbox.add(b"%d" % number, number)
    resume(outbox, '"resume":0')
    drain(outbox)
    resume(outbox, '"resume":3,"refused":[{"reject":1,"code":"rate","retry_ms":0},{"reject":2,"code":"too_large"}]')
    assert refused == [(2, "too_large")]
    assert (totals.acked, totals.rejected, totals.unacked) == (1, 1, 3)
    assert drain(outbox) == [4, 5, 1], "what is left keeps its numbers; a message that is taken later has a new one"
    outbox.receive('{"ack":6}', 0.0)
    assert (totals.acked, totals.rejected, totals.unacked) == (4, 1, 0)


def test_a_server_that_does_not_know_gets_all_that_is_unacked_under_the_old_numbers() -> None:
    refused: list[object] = []
    outbox = Outbox(totals := Totals(), on_reject=lambda message, code, reason: refused.append(message.tag))
    for number in range(1, 6):
        outbox.add(b"%d" % number, number)
    resume(outbox, '"resume":0')
    drain(outbox)
    outbox.receive('{"ack":2}', 0.0)
    outbox.receive('{"reject":4,"code":"payload_invalid"}', 0.0)  # and the connection breaks before its ack
    resume(outbox, '"resume":null')
    assert outbox.acked == 2
    assert drain(outbox) == [3, 4, 5], "a message whose reject came without its ack keeps its place, and so do those behind it"
    outbox.receive('{"reject":4,"code":"payload_invalid"}', 0.0)
    outbox.receive('{"ack":5}', 0.0)
    assert refused == [4]
    assert (totals.acked, totals.rejected, totals.resumed, totals.unacked, len(outbox)) == (4, 1, 0, 0, 0)


def test_a_server_without_sessions_counts_from_one_on_each_connection() -> None:
    outbox, totals = filled(4)
    resume(outbox, '"resume":0')
    drain(outbox)
    outbox.receive('{"ack":2}', 0.0)
    resume(outbox, '"queue":null')
    assert (outbox.in_session, outbox.acked) == (False, 0)
    assert drain(outbox) == [3, 4]
    outbox.receive('{"ack":2}', 0.0)
    outbox.add(b"5")
    drain(outbox)
    resume(outbox, '"resume":0')
    assert drain(outbox) == [5]
    outbox.receive('{"ack":1}', 0.0)
    assert totals.unacked == 0


def test_a_session_that_was_used_before_goes_on_behind_it() -> None:
    outbox, _ = filled(2)
    resume(outbox, '"resume":70,"refused":[{"reject":69,"code":"rate"}]')
    assert drain(outbox) == [1, 2]
    outbox.receive('{"ack":72}', 0.0)
    assert (len(outbox), outbox.acked) == (0, 72)


@pytest.mark.parametrize(
    "text", ['"resume":6', '"resume":1', '"resume":"x"', '"resume":3,"refused":[{"reject":6}]', '"resume":3,"refused":7']
)
def test_a_hello_that_makes_no_sense_is_an_error(text: str) -> None:
    outbox, _ = filled(5)
    resume(outbox, '"resume":0')
    drain(outbox)
    outbox.receive('{"ack":2}', 0.0)
    with pytest.raises(ProtocolError):
        resume(outbox, text)


def test_sessions_neither_lose_nor_double_under_random_acks_rejects_and_lost_connections() -> None:
    for seed in range(80):
        rng = random.Random(seed)
        refused: list[int] = []

        def on_reject(message: Message, code: str, reason: str, refused: list[int] = refused) -> None:
            refused.append(int(message.payload))

        totals = Totals()
        outbox = Outbox(totals, 50, rng.randint(1, 20), on_reject)
        stored: list[int] = []  # what the server took
        verdicts: dict[int, str] = {}  # by number: what its note keeps
        wire: list[int] = []  # what it has not read yet
        number = acked = given = 0  # acked: what its connection was told
        resume(outbox, '"resume":0')
        while given < 200 or totals.unacked:
            action = rng.random()
            if action < 0.4 and given < 200:
                given += outbox.add(b"%d" % (given + 1))
            elif action < 0.75 and (payload := outbox.next_payload(0.0)) is not None:
                wire.append(int(payload))
            elif action < 0.9 and wire:
                number += 1
                taken, verdict = wire.pop(0), rng.choice(["", "", "", "bad", "rate"])
                if verdict:
                    verdicts[number] = '"code":"%s"%s' % (verdict, ',"retry_ms":0' if verdict == "rate" else "")  # noqa: UP031
                else:
                    stored.append(taken)
            elif action < 0.97 and acked < number:
                acked += 1
                if acked in verdicts:
                    outbox.receive('{"reject":%d,%s}' % (acked, verdicts[acked]), 0.0)  # noqa: UP031
                if rng.random() < 0.8:
                    outbox.receive('{"ack":%d}' % acked, 0.0)  # noqa: UP031
                else:
                    acked -= 1
            elif action > 0.97:
                said = ['{"reject":%d,%s}' % (n, text) for n, text in verdicts.items() if outbox.acked < n]  # noqa: UP031
                resume(outbox, f'"resume":{number},"refused":[{",".join(said)}]')
                wire, acked = [], number
        assert sorted(stored + refused) == list(range(1, 201))
        assert (totals.acked, totals.rejected) == (len(stored), len(refused))


def test_a_full_window_waits_for_an_ack() -> None:
    outbox, _ = filled(5, window=2)
    assert drain(outbox) == [1, 2]
    outbox.receive('{"ack":1}', 0.0)
    assert drain(outbox) == [3]


def test_the_servers_window_is_respected_for_its_connection_only() -> None:
    outbox, _ = filled(9, window=4)
    outbox.receive('{"hello":{"window":2,"queue_id":"q"}}', 0.0)
    assert outbox.hello["queue_id"] == "q"
    assert drain(outbox) == [1, 2]
    outbox.connected()
    assert drain(outbox) == [1, 2, 3, 4]


def test_a_refused_message_is_counted_and_never_sent_again() -> None:
    refused: list[tuple[object, str, str]] = []
    totals = Totals()
    outbox = Outbox(totals, on_reject=lambda message, code, reason: refused.append((message.tag, code, reason)))
    for number in (1, 2, 3):
        outbox.add(b"%d" % number, f"line {number}")
    drain(outbox)
    outbox.receive('{"reject":2,"code":"payload_invalid","reason":"not an object"}', 0.0)
    assert refused == [("line 2", "payload_invalid", "not an object")]
    assert totals.unacked == 2
    outbox.connected()  # the connection is lost before the ack that covers the reject
    assert drain(outbox) == [1, 3]
    outbox.receive('{"ack":2}', 0.0)
    assert (totals.acked, totals.rejected, totals.unacked, totals.rejects_by_code) == (2, 1, 0, {"payload_invalid": 1})


def test_a_message_refused_with_retry_ms_is_sent_again_after_that_time() -> None:
    outbox, totals = filled(3, window=2)
    assert drain(outbox, now=10.0) == [1, 2]
    outbox.receive('{"reject":1,"code":"rate","reason":"too fast","retry_ms":500}', 10.0)
    outbox.receive('{"ack":2}', 10.0)
    assert drain(outbox, now=10.4) == []
    assert outbox.pause_s(10.4) == pytest.approx(0.1)
    assert drain(outbox, now=10.6) == [1, 3]
    outbox.receive('{"ack":4}', 10.7)
    assert (totals.acked, totals.rejected, totals.resent, totals.unacked) == (3, 0, 1, 0)


def test_an_outbox_takes_no_more_than_its_capacity() -> None:
    outbox, totals = filled(3, capacity=3)
    assert not outbox.add(b"4")
    assert totals.taken == 3
    drain(outbox)
    outbox.receive('{"ack":1}', 0.0)
    assert outbox.add(b"4")


@pytest.mark.parametrize(
    "frame",
    ['{"ack":4}', '{"ack":-1}', '{"reject":0}', '{"reject":4,"code":"x"}', "nonsense", "[1]", '{"ack":"one"}'],
)
def test_a_frame_that_makes_no_sense_is_an_error(frame: str) -> None:
    outbox, totals = filled(3)
    drain(outbox)
    with pytest.raises(ProtocolError):
        outbox.receive(frame, 0.0)
    assert totals.acked == 0


def test_an_ack_that_goes_back_is_an_error() -> None:
    outbox, _ = filled(3)
    drain(outbox)
    outbox.receive('{"ack":2}', 0.0)
    with pytest.raises(ProtocolError, match="from 2 to 3, got 1"):
        outbox.receive('{"ack":1}', 0.0)


def test_unknown_frames_are_left_to_later_versions() -> None:
    outbox, totals = filled(1)
    drain(outbox)
    outbox.receive('{"notice":"maintenance at noon"}', 0.0)
    assert totals.unacked == 1


def test_nothing_is_lost_under_random_acks_rejects_and_reconnects() -> None:
    for seed in range(60):
        rng = random.Random(seed)
        refused: list[object] = []

        def on_reject(message: Message, code: str, reason: str, refused: list[object] = refused) -> None:
            refused.append(message.tag)

        totals = Totals()
        outbox = Outbox(totals, 50, rng.randint(1, 20), on_reject)
        stored: list[int] = []  # what a server took, in order
        wire: list[int] = []
        acked = given = 0
        for _ in range(2000):
            action = rng.random()
            if action < 0.4 and given < 300:
                given += outbox.add(b"%d" % (given + 1), given + 1)
            elif action < 0.75 and (payload := outbox.next_payload(0.0)) is not None:
                wire.append(int(payload))
            elif action < 0.95 and acked < len(wire):
                upto = rng.randint(acked + 1, len(wire))
                for number in range(acked + 1, upto + 1):
                    if rng.random() < 0.1:
                        retry = ',"retry_ms":0' if rng.random() < 0.5 else ""
                        outbox.receive(f'{{"reject":{number},"code":"rate"{retry}}}', 0.0)
                    else:
                        stored.append(wire[number - 1])
                if rng.random() < 0.8:  # else the connection is lost before the ack
                    outbox.receive(f'{{"ack":{upto}}}', 0.0)
                    acked = upto
                    continue
                outbox.connected()
                wire, acked = [], 0
            elif action > 0.98:
                outbox.connected()
                wire, acked = [], 0
        while len(outbox):
            outbox.connected()
            count = len(wire := drain(outbox))
            stored += wire
            outbox.receive(f'{{"ack":{count}}}', 0.0)
        assert set(stored) | set(refused) == set(range(1, given + 1)), f"seed {seed}"
        assert totals.taken == totals.acked + totals.rejected == given, f"seed {seed}"
        assert len(refused) == len(set(refused)) == totals.rejected, f"seed {seed}"
