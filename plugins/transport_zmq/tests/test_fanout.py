"""The messages of a fan-out and their numbers, without sockets."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest

from headrace.testing import event_batch
from headrace_transport_zmq import fanout
from headrace_transport_zmq.fanout import TOPICS_MAX, Header, Lost, Numbering, Tracking, message, pack, pieces, unpack
from headrace_transport_zmq.publishing import PREFIXES_MAX, Wanted
from headrace_transport_zmq.wire import MalformedError

PUBLISHER = b"p" * 16


def test_a_message_is_read_as_it_was_written() -> None:
    batch = event_batch(10)
    topic, payload = pack("pump", batch)
    parts = message(topic, Header(10, PUBLISHER, 7, 60, 1_700_000_000_000_000), payload)
    assert [bytes(parts[0]), len(parts[1]), bytes(parts[1][:4])] == [b"pump", 56, b"HRPB"]
    read_topic, header, read = unpack(parts)
    assert (read_topic, header) == ("pump", Header(10, PUBLISHER, 7, 60, 1_700_000_000_000_000))
    assert read.equals(batch)
    assert read.schema.metadata == batch.schema.metadata
    followed = header._replace(followed=True)
    assert unpack(message(topic, followed, payload))[1] == followed, "that another one comes is said"


def test_damaged_messages_are_told_from_good_ones() -> None:
    topic, payload = pack("pump", event_batch(10))
    good = [bytes(part) for part in message(topic, Header(10, PUBLISHER, 1, 0, 0), payload)]
    chance = random.Random(5)
    for part in (1, 2):
        for at in [0, 5, 12, len(good[part]) - 1, *(chance.randrange(len(good[part])) for _ in range(100))]:
            if part == 1 and (at in (5, 6, 7) or at >= 16):
                continue  # flags, and numbers that nothing but themselves depends on
            bad = list(good)
            bad[part] = good[part][:at] + bytes([good[part][at] ^ 1 << chance.randrange(8)]) + good[part][at + 1 :]
            with pytest.raises(MalformedError):
                unpack(bad)
    for parts in ([], good[:2], [*good, b""], [b"\xff", *good[1:]]):
        with pytest.raises(MalformedError):
            unpack(parts)


def test_only_events_are_published() -> None:
    raw = pa.record_batch({"device": ["d"]})
    topic, payload = pack("pump", raw)
    with pytest.raises(MalformedError, match=r"headrace\.kind"):
        unpack(message(topic, Header(1, PUBLISHER, 1, 0, 0), payload))


def test_large_batches_are_cut_and_nothing_gets_lost_or_doubled() -> None:
    batch = event_batch(1000)
    parts = list(pieces(batch, batch.nbytes // 7))
    assert 7 <= len(parts) <= 9
    assert pa.Table.from_batches(parts).equals(pa.Table.from_batches([batch]))
    assert [piece.num_rows for piece in pieces(batch, 1)] == [1] * 1000, "a larger event goes alone"
    assert list(pieces(batch.slice(0, 0), 100)) == []


def test_what_is_lost_is_counted_in_messages_and_events() -> None:
    numbering, tracking = Numbering(PUBLISHER), Tracking()
    headers = [numbering.next("pump", rows, 0) for rows in (5, 7, 11, 13)]
    assert [tracking.came("pump", header) for header in (headers[0], headers[3])] == [Lost(0, 0), Lost(2, 18)]
    assert tracking.came("door", numbering.next("door", 3, 0)) == Lost(0, 0), "each topic counts for itself"
    assert tracking.came("pump", Numbering(b"q" * 16).next("pump", 5, 0)) == Lost(0, 0), "and each publisher"
    assert tracking.came("pump", numbering.next("pump", 1, 0)) == Lost(0, 0)


def test_who_comes_late_has_lost_nothing() -> None:
    assert Tracking().came("pump", Header(5, PUBLISHER, 1000, 5000, 0)) == Lost(0, 0)


def test_topics_are_bounded_at_both_ends() -> None:
    numbering, tracking = Numbering(PUBLISHER), Tracking()
    for number in range(2 * TOPICS_MAX):
        header = numbering.next(f"t{number}", 1, 0)
        assert tracking.came(f"t{number}", header) == Lost(0, 0)
    again = numbering.next("t0", 1, 0)
    assert again.sequence == 1, "a topic that was forgotten begins anew"
    assert tracking.came("t0", again) == Lost(0, 0)
    assert tracking.came("t0", Header(1, PUBLISHER, 1, 0, 0)) == Lost(0, 0), "and that is no loss"
    assert len(tracking._seen) == TOPICS_MAX


def test_what_nobody_wants_is_known() -> None:
    wanted = Wanted()
    assert not wanted.wants("pump")
    for subscription in (b"\1pump", b"\1pump", b"\1", b"\0"):
        assert wanted.told(subscription)
    assert [wanted.wants(topic) for topic in ("pump", "pumps/3", "door")] == [True, True, False]
    wanted.told(b"\0pump")
    assert wanted.wants("pump"), "somebody else still wants it"
    wanted.told(b"\0pump")
    wanted.told(b"\0pump")
    assert not wanted.wants("pump")
    assert not wanted.told(b"")
    assert not wanted.told(b"\2pump")


def test_a_flood_of_prefixes_ends_in_everything_being_wanted() -> None:
    wanted = Wanted()
    for number in range(PREFIXES_MAX + 10):
        wanted.told(b"\1t%d" % number)
    assert len(wanted) == PREFIXES_MAX
    assert wanted.wants("door")
    for number in range(PREFIXES_MAX + 10):
        wanted.told(b"\0t%d" % number)
    assert not wanted.wants("door")


def test_the_header_is_as_the_page_says() -> None:
    assert fanout.HEADER.format == "<4sBBHII16sQQQ"
