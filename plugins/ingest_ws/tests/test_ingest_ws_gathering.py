"""What C takes without Python: only what Python would take, in the same order, acked to whom it came from."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
import resource
import select
import socket
import struct
from types import SimpleNamespace

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace import RAW_SCHEMA
from headrace.encodings.json_text import check, decode
from headrace.position import ORIGIN_SESSION
from headrace.testing import FakeClock
from headrace_ingest_ws.connection import Connection
from headrace_ingest_ws.parser import RUN_BRACES_MAX
from headrace_ingest_ws.rates import Rate, limit_of
from headrace_ingest_ws.session_connection import SessionConnection

wsframes = pytest.importorskip("headrace_ingest_ws._wsframes", reason="the C parser was not built here")

from headrace_ingest_ws.gathering import Gatherer  # noqa: E402  not there without it
from headrace_ingest_ws.parser_c import CFrameBuffer  # noqa: E402


def is_object(text: bytes) -> bool:
    buffer = wsframes.ffi.from_buffer(text)
    return bool(wsframes.lib.ws_is_object(wsframes.ffi.cast("uint8_t *", buffer), wsframes.ffi.cast("uint8_t *", buffer) + len(text)))


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
texts = st.dictionaries(st.text(max_size=6), values, max_size=4).flatmap(
    lambda value: st.sampled_from(
        [json.dumps(value), json.dumps(value, ensure_ascii=False), json.dumps(value, indent=1).replace("\n", " ")]
    )
)


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A JSON text with a few bytes cut out, put in or changed."""
    text = bytearray(draw(texts).encode())
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text)))
        text[at : at + draw(st.integers(0, 2))] = draw(
            st.sampled_from([b"", b",", b"}", b"{", b'"', b"\\", b"0", b"-", b".", b"e9", b"\t", b":"])
        )
    return bytes(text)


@settings(max_examples=600, deadline=None)
@given(broken())
@example(b'{"a":1e999}')
@example(b'{"a":01}')
@example(b'{"a":-}')
@example(b'{"a":1.}')
@example(b'{"a":1,}')
@example(b'{"a":"\\ud800"}')
@example(b'{"a":[1,2}')
@example(b'{"a":1}{')
@example(b'{"a" 1}')
@example(b'{,"a":1}')
@example(b'{"a":123456789012345678901234567890}')
@example(b'{"a":nul}')
def test_c_says_yes_only_to_what_python_takes_and_decodes(text: bytes) -> None:
    try:
        text.decode()
    except UnicodeDecodeError:
        return  # the parser has refused it before
    if text.count(b"{") + text.count(b"[") <= RUN_BRACES_MAX and is_object(text):
        assert check(text) is None
        assert decode([text])[1] == []


@pytest.mark.parametrize(
    "text",
    [
        b"{}",
        b' {"a" : 1 , "b":[ ] } ',
        b'{"temperature":21.5,"humidity":-40.25,"ok":true,"bad":false,"none":null,"name":"\xc3\xbc\\n\\"x\\""}',
        b'{"a":{"b":{"c":[1,2,[3,{"d":[]}]]}},"e":1.5e-7,"ts":1794000000.123}',
    ],
)
def test_what_devices_send_is_taken_without_python(text: bytes) -> None:
    assert is_object(text)
    assert check(text) is None


@pytest.mark.parametrize("seed", range(6))
def test_all_kinds_of_messages_mixed_keep_their_order_their_acks_and_their_rejects(kit: SimpleNamespace, seed: int) -> None:
    async def scenario() -> None:
        chance = random.Random(seed)
        deliver = kit.FakeDeliver()
        async with kit.running(deliver, window_messages=16, batch_rows_max=40) as site:
            clients = [await site.raw(f"d{number}") for number in range(8)]
            wanted: dict[int, list[bytes]] = {number: [] for number in range(8)}
            refused: dict[int, set[int]] = {number: set() for number in range(8)}
            counts = dict.fromkeys(range(8), 0)
            for step in range(60):
                number = chance.randrange(8)
                sent = b""
                for part in range(chance.randint(1, 12)):
                    event = b'{"step":%d,"part":%d}' % (step, part)
                    kind = chance.randrange(8)
                    counts[number] += kind != 7
                    if kind <= 3:
                        sent += kit.frame(1, event)
                        wanted[number].append(event)
                    elif kind == 4:
                        sent += kit.frame(1, b"[" + event + b"," + event + b"]")
                        wanted[number] += [event, event]
                    elif kind == 5:
                        sent += kit.frame(1, b'{"broken":')
                        refused[number].add(counts[number])
                    elif kind == 6:
                        unicode = event[:-1] + b',"t":"\\u00e9"}'
                        sent += kit.frame(1, unicode[:9], fin=False) + kit.frame(9, b"?") + kit.frame(0, unicode[9:])
                        wanted[number].append(unicode)
                    else:
                        sent += kit.frame(9, b"!")
                while sent:
                    size = chance.randint(1, len(sent))
                    clients[number].send(sent[:size])
                    sent = sent[size:]
                    await asyncio.sleep(0)
            for number, client in enumerate(clients):
                rejects, last, acked = set(), 0, 0
                while acked < counts[number]:
                    opcode, text = await asyncio.wait_for(client.receive(), 10)
                    if opcode == 1:
                        frame = json.loads(text)
                        if "reject" in frame:
                            assert frame["reject"] > acked
                            rejects.add(frame["reject"])
                        else:
                            last, acked = acked, frame["ack"]
                            assert acked > last
                assert acked == counts[number]
                assert rejects == refused[number]
                client.writer.transport.abort()
            for number, events in wanted.items():
                assert [payload for device, payload in deliver.rows if device == f"d{number}"] == events
            assert site.metric("ingest_acked_events_total") == sum(map(len, wanted.values()))

    asyncio.run(scenario())


def test_an_ack_goes_to_the_connection_that_sent_not_to_a_later_one_in_its_place(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        async with kit.running(deliver) as site:
            first = await site.raw()
            first.text(b'{"n":0}')  # its ack is written by Python; from then on C takes over
            assert (await first.receive())[1] == b'{"ack":1}'
            deliver.gate.clear()
            first.send(b"".join(kit.frame(1, b'{"n":%d}' % number) for number in range(1, 5)))
            await kit.until(lambda: deliver.under_way == 1)
            first.writer.transport.abort()
            await kit.until(lambda: site.metric("ingest_connections") == 0)
            second = await site.raw("d2")
            second.text(b'{"n":9}')
            await kit.until(lambda: site.metric("ingest_received_events_total") == 6)
            deliver.gate.set()
            assert (await second.receive())[1] == b'{"ack":1}'
            second.text(b'{"n":10}')
            assert (await second.receive())[1] == b'{"ack":2}'
            assert [payload for _, payload in deliver.rows] == [b'{"n":%d}' % number for number in (0, 1, 2, 3, 4, 9, 10)]
            second.writer.transport.abort()

    asyncio.run(scenario())


def test_sessions_and_others_share_a_batch_and_each_origin_has_its_own_numbers(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        async with kit.running(deliver) as site:
            plain = await site.raw("plain")
            async with site.connect("a", session="s") as one, site.connect("b", session="s") as two:
                await one.recv(), await two.recv()
                await one.send("{}")
                assert await one.recv() == '{"ack":1}'
                deliver.gate.clear()
                plain.text(b'{"n":0}')
                await kit.until(lambda: deliver.under_way == 1)
                plain.text(b'{"n":1}')
                for number in range(3):
                    await one.send(json.dumps({"n": number}))
                    await two.send(json.dumps({"n": number}))
                await one.send("[{},{}]")
                await two.send("no json")
                await kit.until(lambda: site.metric("ingest_received_events_total") == 12)
                deliver.gate.set()
                while await one.recv() != '{"ack":5}':
                    pass
                while await two.recv() != '{"ack":4}':
                    pass
        marks = {origin.id: [] for origin in deliver.origins}
        for origin in deliver.origins:
            assert origin.kind == ORIGIN_SESSION
            marks[origin.id].append((origin.first, origin.last))
        for ranges in marks.values():  # without a hole, and nothing twice
            assert [first for first, _ in ranges] == [1, *(last + 1 for _, last in ranges[:-1])]
        assert {name: ranges[-1][1] for name, ranges in marks.items()} == {"a/s": 5, "b/s": 4}
        plain.writer.transport.abort()

    asyncio.run(scenario())


@pytest.mark.parametrize("message", ["{}", "[{}]"], ids=["gathered", "in Python"])
def test_a_session_whose_connection_left_is_forgotten(kit: SimpleNamespace, message: str) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            for _ in range(12):
                async with site.connect("a", session="s") as ws:
                    number = json.loads(await ws.recv())["hello"]["resume"] or 0
                    await ws.send(message)
                    assert await ws.recv() == f'{{"ack":{number + 1}}}'
                await kit.until(lambda: site.metric("ingest_connections") == 0)
            gc.collect()
            assert sum(isinstance(found, SessionConnection) for found in gc.get_objects()) <= 1

    asyncio.run(scenario())


def test_a_taken_batch_owns_its_rows_and_gives_their_memory_back(kit: SimpleNamespace) -> None:
    buffer = CFrameBuffer()
    gatherer = Gatherer(buffer)
    payload = b'{"pad":"%s"}' % (b"x" * 4000)
    with select.epoll() as epoll, contextlib.ExitStack() as sockets:
        sender, receiver = (sockets.enter_context(sock) for sock in socket.socketpair())
        epoll.register(receiver, select.EPOLLIN)
        parser = buffer.parser(1 << 20)  # the connection only points to it
        connection = gatherer.connection("d\u00fc", "", parser, 1 << 30, 0)
        connection.gathers, connection.paused = 1, 0
        gatherer.place(receiver.fileno(), connection, None)

        def taken(frame: bytes) -> pa.RecordBatch:
            for _ in range(20):
                sender.send(frame)
                assert gatherer.read(epoll, 1 << 20, 1 << 30, 5, 1.0) == []
            return gatherer.take().batch

        kept = taken(kit.frame(1, b'{"a":1}'))
        assert kept.schema.equals(RAW_SCHEMA, check_metadata=True)
        kept.validate(full=True)
        device, payloads = kept.column("device"), kept.column("payload")
        del kept
        before, frame = None, kit.frame(1, payload)
        for round_ in range(800):  # 64 MB in all
            assert taken(frame).column("payload")[19].as_py() == payload
            if round_ == 100:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gc.collect()
    assert device.to_pylist() == ["d\u00fc"] * 20
    assert payloads.to_pylist() == [b'{"a":1}'] * 20
    assert before is not None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 24 << 10  # KB


def test_of_all_connections_those_that_are_not_calm_are_found() -> None:
    buffer = CFrameBuffer()
    gatherer = Gatherer(buffer)
    parser = buffer.parser(1 << 20)
    made = {descriptor: gatherer.connection("d", "", parser, 4, 0) for descriptor in (5, 511, 512, 3000)}
    for descriptor, connection in made.items():
        connection.gathers, connection.special, connection.paused, connection.look_at = 1, 0, 0, 100.0
        gatherer.place(descriptor, connection, None)

    def restless(now: float) -> list[int]:
        return [descriptor for found in gatherer.restless(now) for descriptor in found]

    assert restless(50.0) == []
    assert {connection.calm_at for connection in made.values()} == {50.0}
    made[511].special, made[512].count, made[3000].look_at = 1, 1, 60.0
    assert restless(60.0) == [511, 512, 3000]
    assert [connection.calm_at for connection in made.values()] == [60.0, 50.0, 50.0, 50.0]
    gatherer.remove(512, made[512])
    assert restless(100.0) == [5, 511, 3000]


levels = st.sampled_from([0.0, 1.0, 3.0, 1000.0])


@settings(max_examples=300, deadline=None)
@given(levels, levels, st.lists(st.tuples(st.sampled_from([-1.0, 0.0, 0.01, 0.7, 5.0]), st.integers(1, 40), st.integers(0, 4000))))
def test_c_takes_from_a_rate_as_python_does(events_per_s: float, bytes_per_s: float, takes: list[tuple[float, int, int]]) -> None:
    limit = limit_of(events_per_s, bytes_per_s, 2.0)
    if limit is None:
        return
    gatherer = Gatherer(CFrameBuffer())
    shared, ours, now = Rate(limit, 5.0, gatherer.levels), Rate(limit, 5.0), 5.0
    for passed, events, size in takes:
        now += passed
        assert bool(wsframes.lib.ws_rate_take(shared.levels, events, size, now)) is ours.take(events, size, now)
        assert (shared.levels.events, shared.levels.bytes) == (ours.levels.events, ours.levels.bytes)
        if not ours.wait_ms(now):
            ours.charge(events, size)
            shared.charge(events, size)


def test_c_takes_messages_up_to_the_rate_of_their_device(kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    took_run = Connection.took_run

    def seen(connection: Connection, run: bytes, count: int) -> None:
        runs.append(count)
        took_run(connection, run, count)

    monkeypatch.setattr(Connection, "took_run", seen)

    async def acks(client: SimpleNamespace, last: int) -> list[dict[str, object]]:
        texts: list[dict[str, object]] = []
        while not texts or texts[-1].get("ack") != last:
            texts.append(json.loads((await asyncio.wait_for(client.receive(), 10))[1]))
        return texts

    async def scenario() -> None:
        async with kit.running(clock=FakeClock(), device_events_per_s_max=1.0, device_burst_s=12.0) as site:
            one, two = await site.raw(), await site.raw()  # of one device
            for number in range(1, 6):
                one.text(b"{}")
                two.text(b"{}")
                assert await acks(one, number) == await acks(two, number) == [{"ack": number}]
            assert runs == []
            one.send(kit.frame(1, b"{}") * 4)
            rejects = [text["reject"] for text in await acks(one, 9) if "reject" in text]
            assert (rejects, runs) == ([8, 9], [4])
            two.text(b"{}")
            assert (await acks(two, 6))[0]["code"] == "rate"

    asyncio.run(scenario())


def test_what_comes_behind_bytes_that_wait_is_never_taken_before_them(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with kit.running() as site:
            client = await site.raw()
            (connection,) = site.component._server._connections
            client.send(kit.frame(1, b"bad") * 20_000)  # the slow lane holds what is read, and no read ends where a frame does
            await kit.until(lambda: bool(connection._held))
            client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.writer.transport.abort()  # a reset is told even of a connection that is not to be read
            await kit.until(lambda: site.metric("ingest_connections") == 0)
            assert site.metric("ingest_connections_closed_total", code="1006") == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("rate", [0.0, 1e6], ids=["any rate", "a rate"])
def test_a_long_run_is_taken_by_c_in_pieces_and_what_is_refused_in_it_costs_no_more_than_a_piece(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    runs: list[int] = []
    took_run = Connection.took_run

    def seen(connection: Connection, run: bytes, count: int) -> None:
        runs.append(count)
        took_run(connection, run, count)

    monkeypatch.setattr(Connection, "took_run", seen)

    async def scenario() -> None:
        async with kit.running(device_events_per_s_max=rate) as site:
            client = await site.raw()
            events = [b'{"n":%d}' % number for number in range(700)]
            client.send(b"".join(kit.frame(1, event) for event in events))
            while (await asyncio.wait_for(client.receive(), 10)) != (1, b'{"ack":700}'):
                pass
            assert (site.deliver.payloads, runs) == (events, [])
            client.send(b"".join(kit.frame(1, event) for event in events[:300]) + kit.frame(1, b'{"n":}') * 300 + kit.frame(1, b"{}"))
            while (await asyncio.wait_for(client.receive(), 10)) != (1, b'{"ack":1301}'):
                pass
            assert site.deliver.payloads == [*events, *events[:300], b"{}"]
            assert max(runs) <= 64
            assert site.metric("ingest_rejected_events_total", reason="payload_invalid") == 300

    asyncio.run(scenario())


def test_what_a_session_sends_is_taken_committed_and_acked_without_python(kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with kit.running() as site, site.connect("a", session="s") as ws:
            await ws.recv()
            await ws.send("{}")  # its ack is written by Python; from then on C takes over
            await kit.receive_until_ack(ws, 1)
            for name in ("took_run", "took", "join_at", "settled", "ack_begun"):
                monkeypatch.setattr(SessionConnection, name, None)
            for number in range(2, 40):
                await ws.send("{}")
                await kit.receive_until_ack(ws, number)
            monkeypatch.undo()
            assert site.deliver.marks["a/s"].last == 39

    asyncio.run(scenario())


def test_a_session_whose_connection_left_before_its_commit_is_left_behind_it(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        async with kit.running(deliver) as site:
            for begun in range(1, 30, 4):
                async with site.connect("a", session="s", acked=begun - 1) as ws:
                    assert json.loads(await ws.recv())["hello"]["resume"] == begun - 1
                    await ws.send("{}")
                    await kit.receive_until_ack(ws, begun)
                    deliver.gate.clear()
                    for _ in range(3):
                        await ws.send("{}")
                    await kit.until(lambda: deliver.under_way)
                    await kit.until(lambda last=begun + 3: site.metric("ingest_received_events_total") == last)
                    ws.transport.abort()
                await kit.until(lambda: site.metric("ingest_connections") == 0)
                other = await site.raw()  # on the same descriptor
                deliver.gate.set()
                await kit.until(lambda last=begun + 3: "a/s" in deliver.marks and deliver.marks["a/s"].last == last)
                other.writer.transport.abort()
            gatherer = site.component._intake.gatherer
            await kit.until(lambda: not gatherer._gone)
            assert gatherer._peers == {}
            await kit.until(lambda: not site.component._server.sessions._here._places)
            assert [(origin.first, origin.last) for origin in deliver.origins][-1][1] == 32

    asyncio.run(scenario())


def test_origins_with_and_without_notes_stand_in_the_order_of_their_rows(kit: SimpleNamespace) -> None:
    """Those with refusals are made by Python, and the others are not slower for it."""

    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        async with kit.running(deliver) as site:
            clients = {}
            for number in range(8):
                clients[number] = ws = await site.connect(f"d{number}", session="s")
                await ws.recv()
                await ws.send("no json" if number % 3 == 0 else "{}")
                await kit.receive_until_ack(ws, 1)
            deliver.gate.clear()
            await clients[7].send("{}")
            await kit.until(lambda: deliver.under_way)
            for taken, number in enumerate((3, 1, 6, 2, 0, 4), start=10):
                await clients[number].send("{}")
                await kit.until(lambda taken=taken: site.metric("ingest_received_events_total") == taken)
            del deliver.origins[:]
            deliver.gate.set()
            for number, ws in clients.items():
                if number != 5:
                    await kit.receive_until_ack(ws, 2)
                await ws.close()
            together = [(origin.id, origin.first, origin.last, origin.note is not None, origin.row_offset) for origin in deliver.origins]
            assert together[0] == ("d7/s", 2, 2, False, 0)
            assert together[1:] == [(f"d{d}/s", 2, 2, d % 3 == 0, row) for row, d in enumerate((3, 1, 6, 2, 0, 4))]
            assert {name: mark.last for name, mark in deliver.marks.items()} == {f"d{n}/s": 1 if n == 5 else 2 for n in range(8)}

    asyncio.run(scenario())
