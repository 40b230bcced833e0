"""RFC 6455 case by case, on a live echo server that runs the same protocol class as ingest_ws, with both parsers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace

import pytest

from headrace_ingest_ws.echo import start_echo
from headrace_ingest_ws.parser import ERROR, MORE, frame_buffer
from headrace_ingest_ws.parser import TEXT as TEXT_FOUND

pytestmark = pytest.mark.usefixtures("each_loop")

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
UPGRADE = (
    b"GET /any HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Client:
    """Raw frames both ways."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, *frames: bytes) -> None:
        self.writer.write(b"".join(frames))

    async def receive(self) -> tuple[int, bytes]:
        return await asyncio.wait_for(self._receive(), 10)

    async def _receive(self) -> tuple[int, bytes]:
        first, size = await self.reader.readexactly(2)
        assert first & 0xF0 == 0x80, "every frame is final, without reserved bits"
        assert not size & 0x80, "a server masks nothing"
        if size == 126:
            (size,) = struct.unpack("!H", await self.reader.readexactly(2))
            assert size >= 126
        elif size == 127:
            (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
            assert size >= 65_536
        return first & 15, await self.reader.readexactly(size)

    async def close_code(self) -> tuple[list[tuple[int, bytes]], int | None]:
        """All frames up to the close frame, and its code; then the server must hang up by itself or on our end of stream."""
        frames: list[tuple[int, bytes]] = []
        while True:
            opcode, payload = await self.receive()
            if opcode == CLOSE:
                break
            frames.append((opcode, payload))
        with contextlib.suppress(OSError):
            self.writer.write_eof()
        assert await asyncio.wait_for(self.reader.read(), 10) == b"", "nothing follows a close frame"
        return frames, struct.unpack("!H", payload[:2])[0] if payload else None


@contextlib.asynccontextmanager
async def echo(parser: str, message_bytes_max: int = 1 << 40, behind_upgrade: bytes = b"") -> AsyncIterator[Client]:
    runner, port = await start_echo(0, parser, message_bytes_max)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(UPGRADE + behind_upgrade)
    answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in answer, "the RFC's own example"
    assert b"extensions" not in answer.lower()
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()
        await runner.cleanup()


def play(scenario: Callable[[Client], Awaitable[None]], parser: str, **options: int) -> None:
    async def run() -> None:
        async with echo(parser, **options) as client:  # type: ignore[arg-type]
            await scenario(client)

    asyncio.run(run())


@pytest.fixture
def frame(kit: SimpleNamespace) -> Callable[..., bytes]:
    return kit.frame  # type: ignore[no-any-return]


# --- lengths, opcodes, chunks ----------------------------------------------------------------------------------------


def test_every_length_form_at_its_bounds_in_text_and_binary(frame: Callable[..., bytes], parser: str) -> None:
    async def scenario(client: Client) -> None:
        for size in (0, 1, 2, 3, 4, 7, 8, 9, 124, 125, 126, 127, 128, 65_535, 65_536, 65_537, 200_000):
            data = os.urandom(size)
            client.send(frame(BINARY, data))
            assert await client.receive() == (BINARY, data), size
            text = b"{" * min(size, 3) + b"*" * (size - min(size, 3))
            client.send(frame(TEXT, text))
            assert await client.receive() == (TEXT, text), size

    play(scenario, parser)


def test_frames_in_chunks_of_every_size(frame: Callable[..., bytes], parser: str) -> None:
    async def scenario(client: Client) -> None:
        stream = frame(TEXT, b'{"n":1}') + frame(PING, b"p") + frame(BINARY, b"x" * 130) + frame(TEXT, "äöü€😀".encode())
        for size in (1, 2, 3, 5, 7, 11, 13):
            for start in range(0, len(stream), size):
                client.send(stream[start : start + size])
                await client.writer.drain()
                await asyncio.sleep(0)
            got = [await client.receive() for _ in range(4)]
            assert got == [(TEXT, b'{"n":1}'), (PONG, b"p"), (BINARY, b"x" * 130), (TEXT, "äöü€😀".encode())]

    play(scenario, parser)


def test_bytes_right_behind_the_upgrade_are_frames_like_others_even_a_lot_of_them(frame: Callable[..., bytes], parser: str) -> None:
    async def scenario() -> None:
        messages = [os.urandom(1000) for _ in range(300)]
        async with echo(parser, behind_upgrade=b"".join(frame(BINARY, message) for message in messages)) as client:
            for message in messages:
                assert await client.receive() == (BINARY, message)

    asyncio.run(scenario())


def test_a_client_that_sends_without_reading_stops_the_echo_and_loses_nothing(frame: Callable[..., bytes], parser: str) -> None:
    async def scenario(client: Client) -> None:
        messages = [bytes([number % 256]) * 30_000 for number in range(400)]
        sending = asyncio.create_task(send(client, messages))
        await asyncio.sleep(0.2)
        for message in messages:
            assert await client.receive() == (BINARY, message)
        await sending

    async def send(client: Client, messages: list[bytes]) -> None:
        for message in messages:
            client.send(frame(BINARY, message))
            await client.writer.drain()

    play(scenario, parser)


# --- pings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 124, 125])
def test_a_ping_is_answered_with_its_own_payload(frame: Callable[..., bytes], parser: str, size: int) -> None:
    async def scenario(client: Client) -> None:
        payload = os.urandom(size)
        client.send(frame(PING, payload), frame(PONG, b"unasked"), frame(PING, b"2"))
        assert await client.receive() == (PONG, payload)
        assert await client.receive() == (PONG, b"2")

    play(scenario, parser)


# --- fragments -------------------------------------------------------------------------------------------------------


def test_a_message_in_fragments_with_control_frames_between_is_one_message(frame: Callable[..., bytes], parser: str) -> None:
    async def scenario(client: Client) -> None:
        for kind, parts in ((TEXT, [b'{"a":', b"", b"1", b"}"]), (BINARY, [b"", b"\xff\x00", b"x" * 70_000]), (TEXT, [b"", b"", b""])):
            for number, part in enumerate(parts):
                client.send(frame(PING, b"%d" % number))
                client.send(frame(kind if not number else 0, part, fin=number == len(parts) - 1))
            for number in range(len(parts)):
                assert await client.receive() == (PONG, b"%d" % number)
            assert await client.receive() == (kind, b"".join(parts))

    play(scenario, parser)


def test_a_thousand_fragments_of_one_byte(frame: Callable[..., bytes], parser: str) -> None:
    async def scenario(client: Client) -> None:
        client.send(*(frame(TEXT if not number else 0, b"a", fin=number == 999) for number in range(1000)))
        client.send(frame(TEXT, b"next"))
        assert await client.receive() == (TEXT, b"a" * 1000)
        assert await client.receive() == (TEXT, b"next")

    play(scenario, parser)


# --- what breaks the protocol ----------------------------------------------------------------------------------------

MASK = b"\0\0\0\0"
BROKEN = {
    "reserved bit 1": b"\xc1\x80" + MASK,
    "reserved bit 2": b"\xa1\x80" + MASK,
    "reserved bit 3": b"\x91\x80" + MASK,
    "reserved bit in a control frame": b"\xc9\x80" + MASK,
    **{f"opcode {opcode}": bytes((0x80 | opcode, 0x80)) + MASK for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "not masked": b"\x81\x01a",
    "not masked ping": b"\x89\x00",
    "fragmented ping": b"\x09\x80" + MASK,
    "fragmented close": b"\x08\x80" + MASK,
    "ping of 126 bytes": b"\x89\xfe\x00\x7e" + MASK + b"p" * 126,
    "close of 126 bytes": b"\x88\xfe\x00\x7e" + MASK + b"\x03\xe8" + b"p" * 124,
    "continuation of nothing": b"\x80\x81" + MASK + b"a",
    "unfinished continuation of nothing": b"\x00\x81" + MASK + b"a",
    "text inside a text": b"\x01\x81" + MASK + b"a" + b"\x81\x81" + MASK + b"b",
    "binary inside a text": b"\x01\x81" + MASK + b"a" + b"\x82\x81" + MASK + b"b",
    "16 bits for 125": b"\x82\xfe\x00\x7d" + MASK + b"x" * 125,
    "64 bits for 65535": b"\x82\xff" + (65_535).to_bytes(8, "big") + MASK + b"x" * 65_535,
    "length of 2^63": b"\x82\xff\x80" + bytes(7) + MASK,
    "close with one byte": b"\x88\x81" + MASK + b"\x03",
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_the_protocol_is_closed_with_1002_behind_the_answers_to_what_came_before(
    frame: Callable[..., bytes], parser: str, name: str
) -> None:
    async def scenario(client: Client) -> None:
        client.send(frame(TEXT, b'{"n":1}'), BROKEN[name], frame(TEXT, b"never answered"))
        assert await client.close_code() == ([(TEXT, b'{"n":1}')], 1002)

    play(scenario, parser)


# --- UTF-8 -----------------------------------------------------------------------------------------------------------

VALID = [
    "κόσμε",
    "\x00",
    "\x7f",
    "\x80",
    "\u07ff",
    "\u0800",
    "\ud7ff",
    "\ue000",
    "\uffff",
    "\ufffd",
    "\U00010000",
    "\U0010ffff",
    '{"ä":"€😀"}',
]
INVALID = {
    "lone continuation": b"\x80",
    "lone continuation bf": b"{}\xbf",
    "cut two": b"\xc3",
    "cut three": b"a\xe2\x82",
    "cut four": b"\xf0\x9f\x98",
    "overlong two": b"\xc0\xaf",
    "overlong c1": b"\xc1\xbf",
    "overlong three": b"\xe0\x80\xaf",
    "overlong three high": b"\xe0\x9f\xbf",
    "overlong four": b"\xf0\x80\x80\xaf",
    "overlong four high": b"\xf0\x8f\xbf\xbf",
    "first surrogate": b"\xed\xa0\x80",
    "last surrogate": b"\xed\xbf\xbf",
    "above the last": b"\xf4\x90\x80\x80",
    "f5": b"\xf5\x80\x80\x80",
    "five bytes": b"\xf8\x88\x80\x80\x80",
    "fe": b"\xfe",
    "ff": b"\xff",
    "wrong second": b"\xc3(",
    "wrong third": b"\xe2\x82(",
    "in a long text": b'{"long":"' + b"x" * 50 + b"\xe2\x28\xa1" + b"x" * 50 + b'"}',
}


def test_valid_utf8_passes_whole_and_cut_at_every_byte(frame: Callable[..., bytes], parser: str) -> None:
    async def scenario(client: Client) -> None:
        for text in (sample.encode() for sample in VALID):
            client.send(frame(TEXT, text))
            assert await client.receive() == (TEXT, text)
            client.send(*(frame(TEXT if not at else 0, text[at : at + 1], fin=at == len(text) - 1) for at in range(len(text))))
            assert await client.receive() == (TEXT, text)

    play(scenario, parser)


@pytest.mark.parametrize("fragments", [1, 2, 99], ids=["whole", "halves", "bytes"])
@pytest.mark.parametrize("name", INVALID)
def test_invalid_utf8_is_closed_with_1007(frame: Callable[..., bytes], parser: str, name: str, fragments: int) -> None:
    text = b"ok" + INVALID[name]
    size = max(1, len(text) // fragments)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]

    async def scenario(client: Client) -> None:
        client.send(frame(TEXT, "ä".encode()))
        for number, piece in enumerate(pieces):
            client.send(frame(TEXT if not number else 0, piece, fin=number == len(pieces) - 1))
        assert await client.close_code() == ([(TEXT, "ä".encode())], 1007)

    play(scenario, parser)


def verdict(parser: str, *chunks: bytes) -> list[bytes | int]:
    """The texts that a parser finds in bytes that arrive in these chunks, and the code of an error."""
    buffer = frame_buffer("c" if parser == "c" else "python")[0]
    one, found = buffer.parser(1 << 20), []
    for chunk in chunks:
        buffer.view[: len(chunk)] = chunk
        start, event = 0, -1
        while event != MORE:
            event, start, run, count, data, code = one.parse(start, len(chunk), 100)
            found += run.split(b"\n") if count else []
            if event == ERROR:
                return [*found, code]
            if event == TEXT_FOUND:
                found.append(data)
    return found


def test_utf8_split_at_every_byte_into_frames_and_into_reads_gets_the_same_verdict(frame: Callable[..., bytes], parser: str) -> None:
    samples: list[tuple[bytes, list[bytes | int]]] = [(text.encode(), [text.encode()]) for text in VALID]
    samples += [(before + bad, [1007]) for bad in INVALID.values() for before in (b"", b"{", "κόσμε".encode())]
    for text, expected in samples:
        for cut in range(len(text) + 1):
            parts = frame(TEXT, text[:cut], fin=False), frame(PING, b"between"), frame(0, text[cut:])
            assert verdict(parser, b"".join(parts)) == expected, (text, cut)
            assert verdict(parser, *parts) == expected, (text, cut)
            whole = frame(TEXT, text)
            at = len(whole) - len(text) + cut
            assert verdict(parser, whole[:at], whole[at:]) == expected, (text, cut)


def test_invalid_utf8_is_noticed_before_the_message_ends(frame: Callable[..., bytes], parser: str) -> None:
    async def scenario(client: Client) -> None:
        client.send(frame(TEXT, b"a\xed\xa0", fin=False))
        assert await client.close_code() == ([], 1007)

    play(scenario, parser)


def test_binary_is_never_checked_for_utf8(frame: Callable[..., bytes], parser: str) -> None:
    async def scenario(client: Client) -> None:
        client.send(frame(BINARY, b"\xff\xfe", fin=False), frame(0, b"\x80"))
        assert await client.receive() == (BINARY, b"\xff\xfe\x80")

    play(scenario, parser)


# --- close -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999])
def test_a_close_with_an_allowed_code_is_answered_with_it(frame: Callable[..., bytes], parser: str, code: int) -> None:
    async def scenario(client: Client) -> None:
        client.send(frame(TEXT, b"last"), frame(CLOSE, code.to_bytes(2, "big") + "grüße".encode()), frame(TEXT, b"never answered"))
        assert await client.close_code() == ([(TEXT, b"last")], code)

    play(scenario, parser)


@pytest.mark.parametrize("code", [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
def test_a_close_with_a_code_that_may_not_be_sent_is_answered_with_1002(frame: Callable[..., bytes], parser: str, code: int) -> None:
    async def scenario(client: Client) -> None:
        client.send(frame(CLOSE, code.to_bytes(2, "big")))
        assert await client.close_code() == ([], 1002)

    play(scenario, parser)


def test_a_close_without_a_code_is_answered_without_one(frame: Callable[..., bytes], parser: str) -> None:
    async def scenario(client: Client) -> None:
        client.send(frame(CLOSE, b""))
        assert await client.close_code() == ([], None)

    play(scenario, parser)


def test_a_close_whose_reason_is_no_utf8_is_answered_with_1007(frame: Callable[..., bytes], parser: str) -> None:
    async def scenario(client: Client) -> None:
        client.send(frame(CLOSE, b"\x03\xe8\xff"))
        assert await client.close_code() == ([], 1007)

    play(scenario, parser)


def test_a_close_with_the_longest_reason(frame: Callable[..., bytes], parser: str) -> None:
    async def scenario(client: Client) -> None:
        client.send(frame(CLOSE, b"\x03\xe8" + b"r" * 123))
        assert await client.close_code() == ([], 1000)

    play(scenario, parser)


def test_a_close_inside_a_fragmented_message_ends_it(frame: Callable[..., bytes], parser: str) -> None:
    async def scenario(client: Client) -> None:
        client.send(frame(TEXT, b"half", fin=False), frame(CLOSE, b"\x03\xe8"))
        assert await client.close_code() == ([], 1000)

    play(scenario, parser)


def test_an_end_of_stream_without_a_close_frame_ends_the_connection(frame: Callable[..., bytes], parser: str) -> None:
    async def scenario(client: Client) -> None:
        client.send(frame(TEXT, b"last"))
        assert await client.receive() == (TEXT, b"last")
        client.writer.write_eof()
        assert await asyncio.wait_for(client.reader.read(), 10) == b""

    play(scenario, parser)


# --- limits ----------------------------------------------------------------------------------------------------------


def test_the_size_limit_holds_for_a_frame_and_for_fragments_together(frame: Callable[..., bytes], parser: str) -> None:
    async def fits(client: Client) -> None:
        for _ in range(3):
            client.send(frame(BINARY, b"x" * 1000), frame(TEXT, b"y" * 600, fin=False), frame(PING, b""), frame(0, b"y" * 400))
            assert [await client.receive() for _ in range(3)] == [(BINARY, b"x" * 1000), (PONG, b""), (TEXT, b"y" * 1000)]

    async def frame_too_long(client: Client) -> None:
        client.send(frame(BINARY, b"", announced=1001))
        assert await client.close_code() == ([], 1009)

    async def fragments_too_long(client: Client) -> None:
        client.send(frame(TEXT, b"y" * 600, fin=False), frame(0, b"", announced=401))
        assert await client.close_code() == ([], 1009)

    for scenario in (fits, frame_too_long, fragments_too_long):
        play(scenario, parser, message_bytes_max=1000)


def test_random_messages_in_random_frames_and_chunks_come_back(frame: Callable[..., bytes], parser: str) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print("seed", seed)
    rng = random.Random(seed)
    messages = [(rng.choice((TEXT, BINARY)), rng.choice((b"{}", b"{\n}", b"[1]", "ß".encode())) * rng.randrange(400)) for _ in range(150)]
    stream = b""
    for kind, data in messages:
        cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((0, 0, 1, 3))))
        pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        stream += b"".join(frame(kind if not at else 0, piece, fin=at == len(pieces) - 1) for at, piece in enumerate(pieces))

    async def scenario(client: Client) -> None:
        async def send() -> None:
            at = 0
            while at < len(stream):
                size = rng.choice((1, 10, 1000, 5000))
                client.send(stream[at : at + size])
                await client.writer.drain()
                at += size

        sending = asyncio.create_task(send())
        for message in messages:
            assert await client.receive() == message
        await sending

    play(scenario, parser)
