"""Frames of a lane that carries some of a queue's events: what they say, who takes them, and the names that rows keep."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from headrace import NO_ORIGINS, Missing, RangeKey, origin_batch
from headrace.engine.reading import Events
from headrace.position import global_ids, row_positions, rows_origin, without
from headrace.scattered import Names, Scattered, pack_rows
from headrace.testing import raw_batch
from headrace_queue_pmem.trim import trim
from headrace_transport_zmq import wire
from headrace_transport_zmq.content import joined, take
from headrace_transport_zmq.cutting import cut
from headrace_transport_zmq.receiver import Peer, Staged
from headrace_transport_zmq.sender import Options, Sender, Unwelcome
from headrace_transport_zmq.sending import flight_of
from headrace_transport_zmq.wire import MalformedError

EDGE = "00000000-0000-4000-8000-000000000001"
MIDDLE = "aaaaaaaa-0000-4000-8000-000000000000"
HOLES = (Missing(4, 5, "corrupt"),)


def frame_of(events: Events, batch: pa.RecordBatch | None = None) -> wire.Frame:
    flight = flight_of(events.batch if batch is None else batch, events.origins, events.key)
    parts = (flight.first, flight.last, flight.rows, 1, flight.parts)
    return wire.decode(wire.encode(wire.Frame(wire.DATA, bytes(16), flight.flags, flight.first - 1, *parts)))


def events_of(first: int, last: int, missing: tuple[Missing, ...] = (), origins: pa.RecordBatch = NO_ORIGINS) -> Events:
    positions = row_positions(first, last, missing)
    return Events(RangeKey(EDGE, first, last, missing), raw_batch(len(positions), first), positions, origins)


@pytest.mark.parametrize("seed", range(60))
def test_each_row_arrives_on_its_lane_under_its_name_however_frames_are_cut(seed: int) -> None:
    """An edge's or a middle's events (named before, or not), in two shares, each in frames of any size, trimmed at any mark."""
    rng = random.Random(seed)
    rows = rng.randint(1, 60)
    gap = rng.randint(1, rows)
    missing = (Missing(gap, min(rows, gap + rng.randint(0, 2)), "lost"),) if rng.random() < 0.6 else ()
    positions = row_positions(1, rows, missing)
    origins, named = NO_ORIGINS, [(EDGE, int(number)) for number in positions]
    if rng.random() < 0.6 and len(positions):
        codes = np.array([rng.randrange(2) for _ in positions], np.uint16)
        numbers = np.array(sorted(rng.sample(range(1, 1000), len(positions))), np.uint64)
        names = Names((MIDDLE, "bbbbbbbb-0000-4000-8000-000000000000"), codes, numbers)
        origins = origin_batch([rows_origin("relay/up.1", 1, rows, 0, Scattered(positions, names))])
        named = [(names.ids[code], int(number)) for code, number in zip(codes, numbers, strict=True)]
    whole = events_of(1, rows, missing, origins)
    mask = np.array([rng.random() < 0.5 for _ in positions], bool)
    dead = {int(number) for number in positions if rng.random() < 0.1}
    for share in (mask, ~mask):
        own, staged, first = whole.only(share).without(dead), [], 1
        peer = Peer(b"", b"", f"{EDGE}/up.1", 1, None, None, 0.0)
        while first <= rows:
            last = min(rows, first + rng.randint(0, 20))
            if rng.random() < 0.5:
                frame = frame_of(own.part(first, last))
            else:
                batch, names_there, key = cut(own.batch, own.origins, own.key, first, last)
                frame = frame_of(Events(key, batch, own.positions, names_there))
            staged.append(Staged(peer, first, last, take(frame), 0))
            first = last + 1
        batch, sent = joined(staged)
        held = rng.choice([None, rng.randint(1, rows)])
        trimmed = trim(batch, sent, lambda _, held=held: held)
        kept = [row for row in np.flatnonzero(share).tolist() if int(positions[row]) not in dead and int(positions[row]) > (held or 0)]
        assert trimmed.batch.column("payload").to_pylist() == [whole.batch.column("payload")[row].as_py() for row in kept]
        ids, numbers_there = global_ids("far", np.arange(500, 500 + len(kept), dtype=np.uint64), trimmed.origins)
        assert list(zip(ids.to_pylist(), numbers_there.to_pylist(), strict=True)) == [named[row] for row in kept]


def test_ten_thousand_scattered_rows_are_one_origin_of_a_bit_each() -> None:
    events = events_of(1, 10_000)
    own = events.only(np.arange(10_000) % 2 == 0)
    frame = frame_of(own)
    assert len(frame.parts[1]) < 10_000 // 8 + 50
    _, origins = joined([Staged(Peer(b"", b"", f"{EDGE}/up.1", 1, None, None, 0.0), 1, 10_000, take(frame), 0)])
    assert origins.num_rows == 1


def test_a_frame_without_a_row_says_that_nothing_is_missing() -> None:
    frame = frame_of(events_of(1, 9).only(np.zeros(9, bool)))
    taken = take(frame)
    assert (frame.first, frame.last, frame.rows, taken.missing) == (1, 9, 0, ())
    assert taken.rows is not None
    assert len(taken.rows.positions) == 0


def malformed(rows: bytes, count: int, missing: tuple[Missing, ...] = ()) -> wire.Frame:
    payload, _ = wire.pack_batch(raw_batch(count))
    return wire.Frame(wire.DATA, bytes(16), wire.ROWS, 0, 1, 9, count, 1, (wire.pack_missing(missing), rows, payload))


@pytest.mark.parametrize(
    ("positions", "count", "missing", "why"),
    [
        ([1, 3], 3, (), "do not fit"),
        ([1, 12], 2, (), "do not fit"),
        ([3, 4], 2, HOLES, "do not fit"),
        ([0, 3], 2, (), "do not fit"),
    ],
)
def test_rows_that_do_not_fit_their_frame_are_refused(positions: list[int], count: int, missing: tuple[Missing, ...], why: str) -> None:
    with pytest.raises(MalformedError, match=why):
        take(malformed(pack_rows(Scattered(np.array(positions, np.uint64))), count, missing))


def test_names_that_are_none_and_damaged_rows_are_refused() -> None:
    positions = np.array([1, 3], np.uint64)
    for name, number in (("not a queue", 5), (MIDDLE, 0), (MIDDLE, 1 << 63)):
        names = Names((name,), np.zeros(2, np.uint16), np.array([5, number], np.uint64))
        with pytest.raises(MalformedError, match="names of scattered rows"):
            take(malformed(pack_rows(Scattered(positions, names)), 2))
    with pytest.raises(MalformedError, match="scattered rows"):
        take(malformed(b"nonsense", 2))
    with pytest.raises(MalformedError, match="is not 2 rows"):
        take(malformed(pack_rows(Scattered(positions)), 2)._replace(flags=0))


@pytest.mark.parametrize(
    ("takes", "why"), [({}, "it takes no part"), ({"names": True}, "it takes no part"), ({"names": True, "spread": True}, "")]
)
def test_a_far_side_that_would_take_it_for_something_else_is_sent_nothing(takes: dict[str, bool], why: str) -> None:
    def hello(queue_id: str) -> wire.Hello:
        return wire.Hello(queue_id=queue_id, output="up", level="process", proof="0" * 64)

    sender = Sender(Options(1000, 1 << 20, 1.0, 5.0), hello, 1, lambda: bytes(15) + b"\1")
    sender.connected(0.0)
    sender.ask(EDGE, 0.0)
    welcome = wire.Welcome(level="process", window_bytes=1 << 20, window_events=1000, frame_bytes=1 << 20, **takes)
    sender.received(wire.Frame(wire.WELCOME, sender.session, parts=(wire.pack_text(welcome),)), 0.0)
    sender.effects()
    own = events_of(1, 9).only(np.arange(9) < 3)
    sender.send(flight_of(own.batch, own.origins, own.key), 0.0)
    told = [effect.reason for effect in sender.effects() if isinstance(effect, Unwelcome)]
    assert [reason[: len(why)] for reason in told] == ([why] if why else [])
    assert (sender.state, sender.flying_events) == (("down", 0) if why else ("open", 3))


def test_positions_without_the_missing_ones() -> None:
    assert without(np.arange(1, 8, dtype=np.uint64), HOLES).tolist() == [1, 2, 3, 6, 7]
