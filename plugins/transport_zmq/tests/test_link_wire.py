"""The frames, byte by byte: what is sent is what is read, and nothing else is taken for a frame."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pyarrow as pa
import pytest

from headrace import Missing, Origin, origin_batch
from headrace.position import ORIGIN_SESSION, Named
from headrace.testing import event_batch, raw_batch
from headrace_transport_zmq import wire
from headrace_transport_zmq.wire import Frame, MalformedError

EDGE = "0000000e-0000-0000-0000-000000000000"
SESSION = bytes(range(16))
PROTOCOL = (Path(__file__).parents[1] / "PROTOCOL.md").read_text()


def data(rows: int = 3, missing: tuple[Missing, ...] = (Missing(12, 13, "corrupt"),), origins: pa.RecordBatch | None = None) -> Frame:
    payload, flags = wire.pack_batch(raw_batch(rows))
    parts = (wire.pack_missing(missing), wire.pack_origins(origins) if origins is not None else b"", payload)
    return Frame(wire.DATA, SESSION, flags | wire.START, 10, 11, 10 + rows + sum(hole.size for hole in missing), rows, 7, parts)


def test_a_frame_comes_out_as_it_went_in() -> None:
    origins = origin_batch(
        [Origin(f"{EDGE}/up.1", 5, 6), Origin("device/session", 1, 9, 2, ORIGIN_SESSION), Origin(f"{EDGE}/up.1", 9, 9, 2)]
    )
    sent = data(origins=origins)
    message = [bytes(part) for part in wire.encode(sent)]
    got = wire.decode(message)
    assert got[:8] == sent[:8]
    assert wire.unpack_missing(got) == (Missing(12, 13, "corrupt"),)
    assert wire.unpack_origins(got) == (Named(0, 2, EDGE, 5), Named(2, 1, EDGE, 9))
    assert wire.unpack_batch(got).equals(raw_batch(3), check_metadata=True)
    assert got.size == sum(len(part) for part in message)


@pytest.mark.parametrize(
    "origins",
    [
        [Origin("not an id", 1, 1)],
        [Origin(EDGE, 0, 1)],
        [Origin(EDGE, 5, 4)],
        [Origin(EDGE, 1, 4)],
        [Origin(EDGE, 1, 2, 0), Origin(EDGE, 7, 7, 1)],
        [Origin(EDGE, 1 << 63, 1 << 63)],
        [Origin(EDGE, 1, 1, note=b"x|-7")],
    ],
)
def test_names_that_are_none_are_refused(origins: list[Origin]) -> None:
    frame = data()
    frame = frame._replace(parts=(frame.parts[0], origin_batch(origins).serialize(), frame.parts[2]))
    with pytest.raises(wire.MalformedError, match="origins"):
        wire.unpack_origins(frame)


def test_an_event_batch_travels_whole() -> None:
    payload, flags = wire.pack_batch(event_batch(4))
    frame = Frame(wire.DATA, SESSION, flags, 0, 1, 4, 4, 1, (wire.pack_missing(()), b"", payload))
    assert wire.unpack_batch(wire.decode(wire.encode(frame))).equals(event_batch(4))


def test_the_header_lies_as_the_page_says() -> None:
    header = wire.encode(Frame(wire.ACK, SESSION, wire.MARKED, 1, 2, 3, 4, 5))[0]
    assert len(header) == 64
    assert header[:8] == b"HRLK\x01\x04\x02\x00"
    assert struct.unpack_from("<16sQQQII", header, 16) == (SESSION, 1, 2, 3, 4, 5)
    for name in ("HELLO", "WELCOME", "DATA", "ACK", "RESUME", "HEARTBEAT", "REFUSE", "BYE"):
        assert f"| {getattr(wire, name)} | {name} |" in PROTOCOL
    for name in ("START", "MARKED", "EVENTS"):
        assert f"`{name}` ({getattr(wire, name)})" in PROTOCOL


def test_no_flipped_bit_goes_unnoticed() -> None:
    message = [bytes(part) for part in wire.encode(data())]
    rng = random.Random(1)
    places = [(part, at) for part in range(len(message)) for at in range(len(message[part]))]
    for part, at in rng.sample(places, 300) + [(0, at) for at in range(64)]:
        damaged = [bytearray(one) for one in message]
        damaged[part][at] ^= 1 << rng.randrange(8)
        with pytest.raises(MalformedError):
            wire.decode(damaged)


def test_cut_frames_and_foreign_bytes_are_no_frames() -> None:
    message = [bytes(part) for part in wire.encode(data())]
    foreign = [[], [b""], [b"GET / HTTP/1.1"], [message[0]], message[:3], [*message, b""], [message[0][:40], *message[1:]], message[1:]]
    for one in foreign:
        with pytest.raises(MalformedError):
            wire.decode(one)


def test_random_bytes_behind_a_good_header_are_refused() -> None:
    """Checksums are no protection against who computes them: what they cover is looked at all the same."""
    rng = random.Random(2)
    for _ in range(300):
        frame = data()
        parts = [bytearray(bytes(part)) for part in frame.parts]
        for _ in range(rng.randint(1, 6)):
            part = rng.choice([one for one in parts if one])
            part[rng.randrange(len(part))] = rng.randrange(256)
        got = wire.decode([bytes(part) for part in wire.encode(frame._replace(parts=tuple(map(bytes, parts))))])
        try:
            batch = wire.unpack_batch(got)
            wire.unpack_missing(got)
        except MalformedError:
            continue
        assert batch.num_rows == frame.rows
        batch.validate(full=True)


def test_another_version_is_told_apart() -> None:
    message = [bytearray(part) for part in wire.encode(Frame(wire.BYE, SESSION))]
    message[0][4] = 2
    with pytest.raises(wire.VersionError, match="version 2, expected 1") as caught:
        wire.decode(message)
    assert caught.value.session == SESSION


@pytest.mark.parametrize(
    "missing",
    [(Missing(10, 10, "x"),), (Missing(13, 12, "x"),), (Missing(12, 99, "x"),), (Missing(12, 13, "x"), Missing(13, 13, "x")), ()],
)
def test_a_range_is_its_rows_and_what_is_missing(missing: tuple[Missing, ...]) -> None:
    frame = data()
    parts = (wire.pack_missing(missing), *frame.parts[1:])
    with pytest.raises(MalformedError, match=r"missing|is not"):
        wire.unpack_missing(wire.decode(wire.encode(frame._replace(parts=parts))))


def test_a_hello_says_what_it_has_to() -> None:
    hello = wire.Hello(queue_id="0" * 36, output="uplink", level="process", proof="a" * 64)
    frame = Frame(wire.HELLO, SESSION, lane=1, parts=(wire.pack_text(hello),))
    assert wire.unpack_text(wire.decode(wire.encode(frame)), wire.Hello) == hello
    for text in (b"", b"{}", b'{"queue_id":"../x"}', wire.pack_text(hello).replace(b'"uplink"', b'"up/link"'), b"[" * 70_000):
        with pytest.raises(MalformedError):
            wire.unpack_text(frame._replace(parts=(text,)), wire.Hello)
