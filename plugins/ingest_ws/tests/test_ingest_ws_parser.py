"""Both frame parsers find the same, and what the `websockets` library finds, however the bytes are cut."""

from __future__ import annotations

import codecs
import gc
import itertools
import os
import re
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from websockets.frames import Frame as LibraryFrame
from websockets.frames import Opcode
from websockets.protocol import OPEN, Protocol, Side

from headrace.decoding import check
from headrace_ingest_ws.message import objects_of
from headrace_ingest_ws.parser import BINARY, CLOSE, ERROR, FULL, MORE, PING, PONG, READ_BYTES, TEXT, FrameBuffer, Parser, frame_buffer

Event = tuple[str, bytes] | tuple[str, int]
NAMES = {TEXT: "text", BINARY: "binary", PING: "ping", PONG: "pong", CLOSE: "close"}
LIMIT = 300

KINDS = ["python", "c"]


def buffer_of(kind: str) -> FrameBuffer:
    if kind == "c":
        pytest.importorskip("headrace_ingest_ws._wsframes", reason="the C parser was not built here", exc_type=ImportError)
    return frame_buffer(kind)[0]  # type: ignore[arg-type]


def found_in(kind: str, chunks: list[bytes], messages_max: int = 1 << 30, limit: int = LIMIT) -> list[list[Event]]:
    """What one parser finds in each chunk, up to an error or a close frame."""
    buffer = buffer_of(kind)
    parser, found = buffer.parser(limit), []
    for chunk in chunks:
        events: list[Event] = []
        found.append(events)
        buffer.view[: len(chunk)] = chunk
        start, event = 0, FULL
        while event != MORE:
            event, start, run, count, data, code = parser.parse(start, len(chunk), messages_max)
            assert 0 <= start <= len(chunk)
            assert count <= messages_max
            texts = run.split(b"\n") if count else []
            assert len(texts) == count
            events += [("text", text) for text in texts]
            if event == ERROR:
                return [*found[:-1], [*events, ("error", code)]]
            if event in NAMES:
                events.append((NAMES[event], data))
            if event == CLOSE:
                return found
        assert start == len(chunk)
    return found


def found_by_library(stream: bytes) -> list[Event]:
    """What the `websockets` library's sans-I/O protocol finds; it leaves UTF-8 and fragments to its caller."""
    protocol = Protocol(Side.SERVER, state=OPEN, max_size=LIMIT)
    protocol.receive_data(stream)
    events: list[Event] = []
    message, kind, decoder = b"", 0, codecs.getincrementaldecoder("utf-8")()
    for event in protocol.events_received():
        assert isinstance(event, LibraryFrame)
        if event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            if event.opcode != Opcode.CONT:
                kind, message, decoder = event.opcode, b"", codecs.getincrementaldecoder("utf-8")()
            message += event.data
            if kind == Opcode.TEXT:
                try:
                    decoder.decode(event.data, event.fin)
                except UnicodeDecodeError:
                    return [*events, ("error", 1007)]
                if re.match(rb"\xed[\xa0-\xbf]", decoder.getstate()[0]):  # half a surrogate, for which the decoder waits
                    return [*events, ("error", 1007)]
            if event.fin:
                events.append(("text" if kind == Opcode.TEXT else "binary", bytes(message)))
        else:
            events.append((event.opcode.name.lower(), bytes(event.data)))
            if event.opcode is Opcode.CLOSE:
                return events
    if protocol.parser_exc is not None:
        sent = protocol.close_sent
        assert sent is not None
        events.append(("error", int(sent.code)))
    return events


def frame(first: int, payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    head = bytes((first, 0x80 | size)) if size < 126 else bytes((first, 0xFE)) + struct.pack("!H", size)
    return head + mask + bytes(byte ^ mask[index & 3] for index, byte in enumerate(payload))


payloads = st.one_of(
    st.sampled_from(
        [b"", b"{}", b'{"a":1}', b'{"a":\n1}', b"[1]", b"{" * 16, b"{" * 17, b"x" * 125, b"x" * 126, b'{"x":"' + b"y" * 250 + b'"}']
    ),
    st.text(max_size=40).map(str.encode),
    st.binary(max_size=40),
    st.sampled_from([b"\xed\xa0", b"\xe2\x82", b"\xf0\x90", b"\xf4\x90", b"\xc0", b"\x80", b"\xac"]),
)
masks = st.binary(min_size=4, max_size=4)
honest_firsts = st.sampled_from([0x81, 0x81, 0x82, 0x01, 0x02, 0x00, 0x80, 0x89, 0x8A])
any_firsts = st.one_of(honest_firsts, honest_firsts, honest_firsts, st.integers(0, 255))
frames = st.lists(st.builds(frame, any_firsts, payloads, masks), max_size=12).map(b"".join)
closing = st.builds(frame, st.just(0x88), st.just(b"\x03\xe8"), masks)
streams = st.one_of(frames, st.tuples(frames, closing, frames).map(b"".join), st.tuples(frames, st.binary(max_size=60)).map(b"".join))


@st.composite
def chunked(draw: Callable[..., Any]) -> list[bytes]:
    stream = draw(streams)
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    return [stream[start:end] for start, end in itertools.pairwise([0, *cuts, len(stream)])]


@settings(max_examples=250, deadline=None)
@given(chunks=chunked(), messages_max=st.integers(1, 4))
def test_both_parsers_find_the_same_at_the_same_byte(chunks: list[bytes], messages_max: int) -> None:
    in_c = found_in("c", chunks)
    assert found_in("python", chunks) == in_c
    assert found_in("c", chunks, messages_max) == in_c
    assert found_in("python", chunks, messages_max) == in_c


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=250, deadline=None)
@given(chunks=chunked())
@example(chunks=[b"\x81\x80\0\0\0\0\x88\x80\0\0\0\0"])
def test_a_parser_finds_what_the_websockets_library_finds(kind: str, chunks: list[bytes]) -> None:
    ours = [event for events in found_in(kind, chunks) for event in events]
    library = found_by_library(b"".join(chunks))
    if ours and ours[-1][0] == "error":
        # We judge a header, and UTF-8, as soon as the bytes are there; the library waits for the whole frame, then finds the
        # same or another fault of that frame, or nothing when the rest of it never came. It lets longer lengths than needed pass,
        # and the codes of two faults in one frame may be told in either order.
        before = ours[:-1]
        assert library[: len(before)] == before
        rest = library[len(before) :]
        assert not rest or rest[0][0] == "error" or too_long_a_length(b"".join(chunks))
    elif ours and ours[-1][0] == "close":
        # the library judges what is in a close frame (with us websocket.py does), and allows none inside a fragmented message
        assert library[:-1] == ours[:-1]
        assert library[-1] == ours[-1] or library[-1][0] == "error"
    else:
        assert ours == library


def too_long_a_length(stream: bytes) -> bool:
    """Does the stream hold a length that is not in its shortest form? (Random bytes may.)"""
    at = 0
    while at + 4 <= len(stream):
        size, form = stream[at + 1] & 127, stream[at + 1] & 127
        if form == 126:
            size = int.from_bytes(stream[at + 2 : at + 4], "big")
        elif form == 127:
            size = int.from_bytes(stream[at + 2 : at + 10], "big")
        if (form == 126 and size < 126) or (form == 127 and size < 65_536):
            return True
        at += 2 + {126: 2, 127: 8}.get(form, 0) + 4 + size
    return False


@pytest.mark.parametrize("kind", KINDS)
def test_utf8_is_refused_at_the_first_byte_that_cannot_become_valid(kind: str) -> None:
    leads = [*range(0x7E, 0x82), *range(0xBE, 0xC4), *range(0xDE, 0xE3), *range(0xEB, 0xF6), 0xFF]
    seconds = [0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF]
    for lead, second in itertools.product(leads, seconds):
        text = bytes((lead, second))
        completions = [b"", b"\x80", b"\xbf", b"\x80\x80", b"\xbf\xbf"]
        possible = any(_decodes(text + more) for more in completions)
        events = found_in(kind, [frame(0x01, text, b"abcd")])[0]
        assert events == ([] if possible else [("error", 1007)]), text


def _decodes(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_taken_when_there_is_no_room_and_everything_later(kind: str) -> None:
    buffer = buffer_of(kind)
    parser = buffer.parser(LIMIT)
    stream = frame(0x81, b'{"a":1}', b"abcd") * 2 + frame(0x89, b"p", b"abcd")
    buffer.view[: len(stream)] = stream
    assert parser.parse(0, len(stream), 0)[:2] == (FULL, 0)
    event, start, run, count, _, _ = parser.parse(0, len(stream), 1)
    assert (event, run, count) == (FULL, b'{"a":1}', 1)
    event, start, run, count, data, _ = parser.parse(start, len(stream), 5)
    assert (event, start, run, count, data) == (PING, len(stream), b'{"a":1}', 1, b"p")


@pytest.mark.parametrize("kind", KINDS)
def test_a_buffer_full_of_messages_and_one_message_of_megabytes(kind: str) -> None:
    message = b'{"n":1}'
    one = frame(0x81, message, os.urandom(4))
    assert found_in(kind, [one * (READ_BYTES // len(one))]) == [[("text", message)] * (READ_BYTES // len(one))]
    long = os.urandom(3 << 20)
    stream = b"\x82\xff" + len(long).to_bytes(8, "big") + b"\0\0\0\0" + long
    chunks = [stream[at : at + READ_BYTES] for at in range(0, len(stream), READ_BYTES)]
    assert found_in(kind, chunks, limit=len(long))[-1] == [("binary", long)]


json_texts = st.one_of(
    st.sampled_from(
        [b"{}", b'{"a":1}', b'{"a":1} ', b"{]", b'{"a":1e999}', b'{"a":"\\ud800"}', b'{"a":\x01}', b"{}{}", b'{"a":[[[{}]]]}', b"{\r}"]
    ),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: st.dictionaries(st.text(max_size=3), inner),
        max_leaves=5,
    ).map(lambda value: __import__("json").dumps({"v": value}).encode()),
    st.text(alphabet='{}[]":,\\u0123eE+-. \ttrufalsn\x00ä', max_size=20).map(lambda text: ("{" + text).encode()),
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=250, deadline=None)
@given(texts=st.lists(json_texts, min_size=1, max_size=5))
def test_a_run_gets_the_verdict_of_check(kind: str, texts: list[bytes]) -> None:
    buffer = buffer_of(kind)
    stream = b"".join(frame(0x81, text, b"wxyz") for text in texts)
    buffer.view[: len(stream)] = stream
    _, _, run, count, _, _ = buffer.parser(1 << 20).parse(0, len(stream), 1 << 30)
    taken = texts[:count]
    expected = None if any(check(text) is not None for text in taken) else taken
    assert objects_of(run, count) == (expected if count else None)


@pytest.mark.parametrize("kind", KINDS)
def test_unfinished_messages_of_all_parsers_share_a_bound(kind: str) -> None:
    buffer = buffer_of(kind)
    buffer.bound(4096)

    def take(parser: Parser, chunk: bytes) -> tuple[int, int]:
        buffer.view[: len(chunk)] = chunk
        event, _, _, _, _, code = parser.parse(0, len(chunk), 1 << 30)
        return event, code

    def begun(size: int) -> bytes:
        return b"\x81\xfe" + (size + 1).to_bytes(2, "big") + bytes(4) + b"x" * size

    parsers = [buffer.parser(65_536) for _ in range(5)]
    assert [take(parser, begun(1024)) for parser in parsers] == [(MORE, 0)] * 4 + [(ERROR, 1013)]
    assert buffer.unfinished_bytes == 4096
    assert take(parsers[0], b"y")[0] == TEXT, "who has its place ends its message"
    assert take(buffer.parser(65_536), b"\x81\x83" + bytes(4) + b"abc") == (TEXT, 0), "what comes whole needs no place"
    parsers[1].release()
    assert buffer.unfinished_bytes == 2048
    del parsers
    gc.collect()
    assert buffer.unfinished_bytes == 0
