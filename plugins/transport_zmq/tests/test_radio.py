"""RADIO and DISH: over real sockets where this libzmq has them, and what is said where it has not."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
import zmq
from test_fanout_sockets import Fan, metric, positions, statuses
from test_transport_zmq import until

from headrace import Context, TransientError
from headrace.testing import FanOutContract, ScriptedDeliver, event_batch, run
from headrace_transport_zmq import TransportZmq, config
from headrace_transport_zmq.broadcasting import UDP_BYTES_MAX, datagrams
from headrace_transport_zmq.config import TransportConfig, problem
from headrace_transport_zmq.fanout import HEADER, unpack

drafts = pytest.mark.skipif(not zmq.DRAFT_API, reason="this libzmq is built without its draft API: no RADIO and DISH")


@pytest.fixture
def fan(tmp_path: Path) -> Fan:
    return Fan(tmp_path)


class OverUdp(Fan):
    """The same over UDP, where the subscriber has the port."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"udp://127.0.0.1:{probe.getsockname()[1]}"


async def heard(publisher: TransportZmq, *delivers: ScriptedDeliver, topic: str = "pump") -> None:
    """Publish until everybody has got something: nobody tells that it listens."""
    while not all(map(positions, delivers)):
        await publisher.transport_publish(event_batch(1, 1_000_000), topic)
        await asyncio.sleep(0.02)


def came(deliver: ScriptedDeliver) -> list[int]:
    return [position for position in positions(deliver) if position < 1_000_000]


# --- what is said without it ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(zmq.DRAFT_API, reason="this libzmq has RADIO and DISH")
def test_radio_says_what_libzmq_lacks() -> None:
    said = problem(TransportConfig(publish="tcp://127.0.0.1:1", pattern="radio"))
    assert f"libzmq {zmq.zmq_version()} under pyzmq {zmq.__version__} is built without it" in said
    assert 'use pattern = "pubsub", which carries the same events' in said


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"publish": "tcp://127.0.0.1:1"}, ""),
        ({"publish": "udp://127.0.0.1:1"}, ""),
        ({"publish": "udp://239.1.1.1:5556"}, "no keys over UDP: set insecure = true"),
        ({"publish": "udp://239.1.1.1:5556", "insecure": True}, ""),
        ({"publish": "udp://127.0.0.1:1", "key_file": "a.key", "allow_keys_file": "b"}, "nothing is encrypted over UDP"),
        ({"subscribe": "udp://*:5556", "topics": ("a",)}, "no keys over UDP"),
        ({"subscribe": "tcp://127.0.0.1:1"}, "name each that is wanted"),
        ({"subscribe": "tcp://127.0.0.1:1", "topics": ("a", "")}, "name each that is wanted"),
        ({"subscribe": "tcp://127.0.0.1:1", "topics": ("ä" * 128,)}, "255 bytes of UTF-8"),
        ({"subscribe": "tcp://127.0.0.1:1", "topics": ("a",)}, ""),
    ],
)
def test_options_of_radio_that_do_not_go_together_are_told(monkeypatch: Any, options: dict[str, Any], complaint: str) -> None:
    monkeypatch.setattr(config.zmq, "DRAFT_API", True)
    found = problem(TransportConfig(**options, pattern="radio"))
    assert complaint in found
    assert bool(found) == bool(complaint)


def test_what_goes_over_udp_is_cut_until_it_fits() -> None:
    batch = event_batch(300, readings={"text": [f"{number:0100}" for number in range(300)]})
    parts = list(datagrams("pump", batch))
    assert len(parts) > 4
    assert [position for part, _ in parts for position in part.column("position").to_pylist()] == batch.column("position").to_pylist()
    for _, packed in parts:
        assert packed is not None
        assert 1 + len(packed[0]) + HEADER.size + len(packed[1]) <= UDP_BYTES_MAX
    large = list(datagrams("pump", event_batch(3, readings={"text": ["a", "x" * 10_000, "b"]})))
    assert [(part.num_rows, packed is None) for part, packed in large] == [(1, False), (1, True), (1, False)]


# --- with it -------------------------------------------------------------------------------------------------------------


@drafts
class TestRadio(FanOutContract):
    batches = 60

    def make(self, context: Context) -> TransportZmq:
        return TransportZmq(TransportConfig(publish=f"tcp://127.0.0.1:{self.port}", pattern="radio", queued_messages_max=4), context)

    def make_subscriber(self, context: Context) -> TransportZmq:
        address = f"tcp://127.0.0.1:{self.port}"
        settings = TransportConfig(
            subscribe=address, pattern="radio", topics=("pump",), heartbeat_s=0.1, dead_after_s=1.0, reconnect_ms_max=50,
            queued_messages_max=4,
        )  # fmt: skip
        return TransportZmq(settings, context)


@drafts
@pytest.mark.parametrize("kind", [Fan, OverUdp])
def test_a_dish_gets_the_whole_topics_that_it_names(tmp_path: Path, kind: type[Fan]) -> None:
    fan = kind(tmp_path)

    async def scenario() -> None:
        deliver = ScriptedDeliver()
        async with fan.publisher(pattern="radio") as publisher, fan.subscriber(deliver, pattern="radio", topics=("pump", "größe")) as dish:
            await heard(publisher, deliver)
            for first, topic in ((1, "pump"), (6, "pumpkin"), (11, "pum"), (16, "größe")):
                await publisher.transport_publish(event_batch(5, first), topic)
            await until(lambda: came(deliver) == [*range(1, 6), *range(16, 21)])
            assert deliver.committed[-1].batch.slice(deliver.committed[-1].batch.num_rows - 5).to_pylist() == event_batch(5, 16).to_pylist()
            assert metric(dish, "fanout_discarded_messages_total", reason="malformed") == 0

    run(scenario())


@drafts
def test_the_message_is_the_header_and_the_events_in_one(fan: Fan) -> None:
    async def scenario() -> None:
        with zmq.Context() as context, context.socket(zmq.DISH) as dish:
            dish.linger, dish.rcvtimeo = 0, 20
            dish.join("pump")
            dish.connect(fan.address)
            async with fan.publisher(pattern="radio") as publisher:
                while True:
                    await publisher.transport_publish(event_batch(5), "pump")
                    try:
                        frame = dish.recv(copy=False)
                    except zmq.Again:
                        continue
                    break
        assert frame.group == "pump"
        assert unpack([b"pump", frame.bytes[:56], frame.bytes[56:]])[2].equals(event_batch(5))

    run(scenario())


@drafts
def test_what_did_not_come_is_counted_and_what_can_never_be_sent(tmp_path: Path) -> None:
    fan = OverUdp(tmp_path)

    async def scenario() -> None:
        deliver = ScriptedDeliver()
        async with fan.publisher(pattern="radio") as publisher, fan.subscriber(deliver, pattern="radio", topics=("pump",)) as dish:
            await heard(publisher, deliver)
            before = metric(dish, "fanout_lost_events_total")
            await publisher.transport_publish(event_batch(3, readings={"text": ["a", "x" * 10_000, "b"]}), "pump")
            await publisher.transport_publish(event_batch(1), "x" * 300)
            await until(lambda: came(deliver) == [1, 3])
            assert metric(dish, "fanout_lost_events_total") - before == 1
            assert metric(publisher, "fanout_oversize_events_total") == 2

    run(scenario())


@drafts
def test_a_dish_that_is_behind_loses_and_nobody_else_does(fan: Fan) -> None:
    async def scenario() -> None:
        slow, quick = ScriptedDeliver("hold"), ScriptedDeliver()
        pad = {"text": ["x" * 20_000] * 20}
        options = {"pattern": "radio", "topics": ("pump",)}
        async with (
            fan.publisher(pattern="radio", queued_messages_max=8) as publisher,
            fan.subscriber(slow, queued_messages_max=2, **options) as behind,
            fan.subscriber(quick, "other", queued_messages_max=1000, **options),
        ):
            await heard(publisher, quick)
            for first in range(1, 1201, 20):
                await publisher.transport_publish(event_batch(20, first, readings=pad), "pump")
                await until(lambda: came(quick)[-1:] == [first + 19])  # noqa: B023
            slow.let_go()
            await heard(publisher, slow)
            while not metric(behind, "fanout_lost_events_total"):
                await publisher.transport_publish(event_batch(1, 1_000_000), "pump")
                await asyncio.sleep(0.02)
        assert came(quick) == list(range(1, 1201))

    run(scenario())


@drafts
def test_a_dish_finds_a_radio_that_was_started_again(fan: Fan) -> None:
    async def scenario() -> None:
        deliver = ScriptedDeliver()
        async with fan.subscriber(deliver, dead_after_s=0.5, pattern="radio", topics=("pump",)) as dish:
            await until(lambda: any("no publisher at" in why for _, why in statuses(dish)))
            for life in range(2):
                async with fan.publisher(pattern="radio") as publisher:
                    got = len(positions(deliver))
                    while len(positions(deliver)) == got:
                        await publisher.transport_publish(event_batch(1, 1 + life), "pump")
                        await asyncio.sleep(0.02)
                    await until(lambda: metric(dish, "fanout_connected") == 1)
            assert {1, 2} == set(positions(deliver))

    run(scenario())


@drafts
def test_with_keys_only_those_on_the_list_hear(fan: Fan) -> None:
    async def scenario() -> None:
        friend, stranger = ScriptedDeliver(), ScriptedDeliver()
        options = {"pattern": "radio", "topics": ("pump",), "dead_after_s": 0.5}
        async with (
            fan.publisher(pattern="radio", **fan.listening) as publisher,
            fan.subscriber(friend, **fan.connecting(), **options) as inside,
            fan.subscriber(stranger, "stranger", **fan.connecting("stranger"), **options) as outside,
        ):
            await heard(publisher, friend)
            await until(lambda: any("does not let this key in" in why for _, why in statuses(outside)))
            assert metric(publisher, "link_refused_connections_total", reason="key") >= 1
            fan.allow()
            await publisher.reread()
            await until(lambda: any("does not let this key in" in why for _, why in statuses(inside)))
        assert stranger.calls == 0

    run(scenario())


@drafts
def test_an_address_that_is_taken_is_a_matter_of_time(fan: Fan) -> None:
    async def scenario() -> None:
        async with fan.publisher(pattern="radio"), fan.publisher(pattern="radio"):
            raise AssertionError("two had the same port")

    with pytest.raises(TransientError, match="choose another"):
        run(scenario())
