"""Publishers and subscribers over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zmq
import zmq.asyncio
from test_link_security import Keyed
from test_transport_zmq import until

from headrace import NO_ORIGINS, ConfigError, TransientError
from headrace.check import check
from headrace.config import load
from headrace.testing import ScriptedDeliver, event_batch, run
from headrace_transport_zmq import TransportZmq, subscribing
from headrace_transport_zmq.config import TransportConfig, problem
from headrace_transport_zmq.connections import SUBSCRIPTIONS_MAX
from headrace_transport_zmq.fanout import Numbering, message, pack, unpack
from headrace_transport_zmq.subscribing import Subscribing


class Fan(Keyed):
    """A publisher on a free port, and subscribers to it."""

    @asynccontextmanager
    async def publisher(self, **options: Any) -> AsyncIterator[TransportZmq]:
        component = TransportZmq(TransportConfig(publish=self.address, **options), self.context("fan"))
        await component.open()
        running = asyncio.create_task(component.run())
        try:
            yield component
        finally:
            running.cancel()
            await asyncio.wait([running])
            await component.close()
            component.context.close()

    @asynccontextmanager
    async def subscriber(self, deliver: Any, name: str = "feed", **options: Any) -> AsyncIterator[TransportZmq]:
        settings = {"dead_after_s": 1.0, "heartbeat_s": 0.2, "reconnect_ms_max": 100, **options}
        component = TransportZmq(TransportConfig(subscribe=self.address, **settings), self.context(name))
        await component.open()
        serving = asyncio.create_task(component.transport_subscribe(deliver))
        try:
            yield component
        finally:
            serving.cancel()
            await asyncio.wait([serving])
            await component.close()


@pytest.fixture
def fan(tmp_path: Path) -> Fan:
    return Fan(tmp_path)


def metric(component: TransportZmq, name: str, **labels: str) -> float:
    return component.context.metric(name, **labels) or 0.0  # type: ignore[attr-defined, no-any-return]


def positions(deliver: ScriptedDeliver) -> list[int]:
    return [position for taken in deliver.committed for position in taken.batch.column("position").to_pylist()]


async def subscribed(publisher: TransportZmq, count: int = 1) -> None:
    await until(lambda: metric(publisher, "fanout_subscriptions") >= count)


def test_who_subscribes_gets_the_topics_that_it_wants(fan: Fan) -> None:
    async def scenario() -> None:
        pumps, all_ = ScriptedDeliver(), ScriptedDeliver()
        async with fan.publisher() as publisher:
            await publisher.transport_publish(event_batch(5), "pump")
            assert metric(publisher, "fanout_published_messages_total") == 0, "nobody wants it: it is not even encoded"
            async with fan.subscriber(pumps, topics=("pump",)), fan.subscriber(all_, "other"):
                await subscribed(publisher, 2)
                await publisher.transport_publish(event_batch(5, 10), "pump")
                await publisher.transport_publish(event_batch(3, 20), "door")
                await until(lambda: len(positions(all_)) == 8)
                await until(lambda: len(positions(pumps)) == 5)
        assert positions(pumps) == list(range(10, 15))
        assert positions(all_) == [*range(10, 15), *range(20, 23)]
        assert pumps.committed[0].batch.equals(event_batch(5, 10)), "as it was published, with the names that the events have"
        assert pumps.committed[0].origins.equals(NO_ORIGINS)

    run(scenario())


def test_a_subscriber_that_is_behind_loses_and_both_ends_tell(fan: Fan) -> None:
    """The publisher never waits, others get everything, and what did not come is counted to the event."""

    async def scenario() -> None:
        slow, quick = ScriptedDeliver("hold"), ScriptedDeliver()
        pad = {"text": ["x" * 20_000] * 20}
        async with (
            fan.publisher(queued_messages_max=8) as publisher,
            fan.subscriber(slow, queued_messages_max=2) as behind,
            fan.subscriber(quick, "other", queued_messages_max=1000, topics=("pu",)),
        ):
            await subscribed(publisher, 2)
            published = 0
            while metric(publisher, "fanout_slow_messages_total") < 5:
                await publisher.transport_publish(event_batch(20, published + 1, readings=pad), "pump")
                published += 20
                await until(lambda: len(positions(quick)) == published)  # noqa: B023
            slow.let_go()

            def came() -> int:
                return len(positions(slow)) + int(metric(behind, "fanout_lost_events_total"))

            # what is published last arrives once there is room again
            while positions(slow)[-1:] != [1_000_001]:
                await publisher.transport_publish(event_batch(1, 1_000_001), "pump")
                await asyncio.sleep(0.02)
            await until(lambda: came() == metric(publisher, "fanout_published_events_total"))
            assert metric(behind, "fanout_lost_messages_total") >= 5
        assert positions(quick)[:published] == list(range(1, published + 1))

    run(scenario())


def test_a_subscriber_finds_a_publisher_that_was_started_again(fan: Fan) -> None:
    async def scenario() -> None:
        deliver = ScriptedDeliver()
        async with fan.subscriber(deliver, dead_after_s=0.5) as subscriber:
            await until(lambda: any("no publisher at" in why for _, why in statuses(subscriber)))
            for life in range(2):
                async with fan.publisher() as publisher:
                    await subscribed(publisher)
                    await publisher.transport_publish(event_batch(5, 10 * life + 1), "pump")
                    await until(lambda: len(positions(deliver)) == 5 * (life + 1))  # noqa: B023
                    await until(lambda: metric(subscriber, "fanout_connected") == 1)
            assert metric(subscriber, "fanout_lost_messages_total") == 0
            assert ("ok", "") in statuses(subscriber)

    run(scenario())


def statuses(component: TransportZmq) -> list[tuple[str, str]]:
    return list(component.context.statuses)  # type: ignore[attr-defined]


def test_a_full_queue_holds_a_subscriber_up_and_loses_no_message_by_itself(fan: Fan) -> None:
    async def scenario() -> None:
        deliver = ScriptedDeliver("full", "transient")
        async with fan.publisher() as publisher, fan.subscriber(deliver) as subscriber:
            await subscribed(publisher)
            await publisher.transport_publish(event_batch(5, 1), "pump")
            await deliver.until_room_awaited()
            for first in (6, 11):
                await publisher.transport_publish(event_batch(5, first), "pump")
            deliver.make_room()
            await until(lambda: positions(deliver)[-5:] == [11, 12, 13, 14, 15])
            assert metric(subscriber, "fanout_discarded_messages_total", reason="refused") == 1
            assert metric(subscriber, "fanout_received_events_total") == 10

    run(scenario())


class Picky(ScriptedDeliver):
    """Takes no more than five events at once."""

    async def __call__(self, batch: pa.RecordBatch, origins: pa.RecordBatch = NO_ORIGINS) -> tuple[int, int]:
        if batch.num_rows > 5:
            raise TransientError("too many at once")
        return await super().__call__(batch, origins)


def test_messages_that_wait_are_handed_over_together_or_one_by_one_where_that_is_refused(fan: Fan) -> None:
    async def scenario() -> None:
        deliver = Picky("full")
        async with fan.publisher() as publisher, fan.subscriber(deliver) as subscriber:
            await subscribed(publisher)
            await publisher.transport_publish(event_batch(5, 1), "pump")
            await deliver.until_room_awaited()
            for first in range(6, 36, 5):
                await publisher.transport_publish(event_batch(5, first), "pump")
            await publisher.transport_publish(event_batch(2, 36, readings={"n": [1.0, 2.0]}), "pump")
            deliver.make_room()
            await until(lambda: positions(deliver)[-2:] == [36, 37])
            assert positions(deliver) == [*range(1, 38)]
            assert metric(subscriber, "fanout_received_events_total") == 37
            assert metric(subscriber, "fanout_discarded_messages_total", reason="refused") == 0

    run(scenario())


def test_what_is_published_in_one_moment_is_handed_over_together_when_it_comes_apart(fan: Fan, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        waits = asyncio.Event()
        following = Subscribing._following

        async def watched(subscribing: Subscribing) -> Any:
            waits.set()
            return await following(subscribing)

        monkeypatch.setattr(Subscribing, "_following", watched)
        monkeypatch.setattr(subscribing, "FOLLOWS_MS", 60_000)
        numbering, client = Numbering(b"p" * 16), zmq.asyncio.Context()
        publisher, deliver = client.socket(zmq.XPUB), ScriptedDeliver()
        publisher.bind(fan.address)

        async def publish(topic: str, batch: pa.RecordBatch, followed: bool) -> None:
            first, payload = pack(topic, batch)
            header = numbering.next(topic, batch.num_rows, 0)._replace(followed=followed)
            await publisher.send_multipart(message(first, header, payload))

        async with fan.subscriber(deliver):
            await publisher.recv()
            await publish("pump", event_batch(5), True)
            await waits.wait()
            assert not deliver.committed
            await publish("door", event_batch(3, 10), False)
            await until(lambda: len(positions(deliver)) == 8)
            assert len(deliver.committed) == 1
            # what was to follow got lost
            monkeypatch.setattr(subscribing, "FOLLOWS_MS", 5)
            await publish("pump", event_batch(5, 20), True)
            await until(lambda: len(positions(deliver)) == 13)
        # one that does not want everything cannot know whether it wants what follows
        monkeypatch.setattr(subscribing, "FOLLOWS_MS", 60_000)
        async with fan.subscriber(pumps := ScriptedDeliver(), "pumps", topics=("pump",)):
            while await publisher.recv() != b"\1pump":
                pass
            await publish("pump", event_batch(5), True)
            await until(lambda: len(positions(pumps)) == 5)
        publisher.close(linger=0)
        client.destroy(linger=0)

    run(scenario())


def test_a_publisher_says_which_message_is_the_last_of_a_moment(fan: Fan) -> None:
    async def scenario() -> None:
        client = zmq.asyncio.Context()
        async with fan.publisher() as publisher:
            sub = client.socket(zmq.SUB)
            sub.subscribe(b"")
            sub.connect(fan.address)
            await subscribed(publisher)
            for topic in ("pump", "door", "pump"):
                await publisher.transport_publish(event_batch(5), topic)
            assert [unpack(await sub.recv_multipart())[1].followed for _ in range(3)] == [True, True, False]
            sub.close(linger=0)
        client.destroy(linger=0)

    run(scenario())


def test_foreign_publishers_harm_no_subscriber(fan: Fan) -> None:
    async def scenario() -> None:
        deliver, stranger = ScriptedDeliver(), zmq.asyncio.Context()
        async with fan.subscriber(deliver) as subscriber:
            foreign = stranger.socket(zmq.PUB)
            foreign.bind(fan.address)
            await until(lambda: metric(subscriber, "fanout_connected") == 1)
            while metric(subscriber, "fanout_discarded_messages_total", reason="malformed") < 3:
                for parts in ([b""], [b"pump", b"x" * 56, b""], [b"a", b"b", b"c", b"d"]):
                    await foreign.send_multipart(parts)
                await asyncio.sleep(0.01)
            foreign.close(linger=0)
            stranger.destroy(linger=0)
        assert deliver.calls == 0

    run(scenario())


def test_with_keys_only_those_on_the_list_read_and_one_taken_out_reads_no_more(fan: Fan) -> None:
    async def scenario() -> None:
        friend, leaving, stranger = ScriptedDeliver(), ScriptedDeliver(), ScriptedDeliver()
        other = fan.pair("other")
        fan.allow(fan.edge, other)
        quick = {"dead_after_s": 0.5}
        async with (
            fan.publisher(**fan.listening) as publisher,
            fan.subscriber(friend, **fan.connecting(), **quick),
            fan.subscriber(leaving, "leaving", topics=("pu",), **fan.connecting("other"), **quick) as left,
            fan.subscriber(stranger, "stranger", topics=("p",), **fan.connecting("stranger"), **quick) as outside,
            fan.subscriber(stranger, "plain", topics=("",), **quick) as plain,
        ):
            await subscribed(publisher, 2)
            await until(lambda: any("does not let this key in" in why for _, why in statuses(outside)))
            await until(lambda: any("it wants keys" in why for _, why in statuses(plain)))
            await publisher.transport_publish(event_batch(5), "pump")
            await until(lambda: len(positions(friend)) == len(positions(leaving)) == 5)
            fan.allow(fan.edge)
            await publisher.reread()
            await until(lambda: any("does not let this key in" in why for _, why in statuses(left)))
            await publisher.transport_publish(event_batch(5, 10), "pump")
            await until(lambda: len(positions(friend)) == 10)
            assert metric(publisher, "link_refused_connections_total", reason="revoked") == 1
        assert positions(leaving) == [1, 2, 3, 4, 5]
        assert stranger.calls == 0

    run(scenario())


def test_who_says_no_subscription_is_no_subscriber(fan: Fan) -> None:
    async def scenario() -> None:
        stranger = zmq.asyncio.Context()
        async with fan.publisher() as publisher:
            rude = stranger.socket(zmq.XSUB)
            rude.connect(fan.address)
            for _ in range(50):
                await rude.send(b"\x07nonsense")
            await rude.send(b"\x01" + b"x" * 5000)
            await until(lambda: metric(publisher, "link_refused_connections_total", reason="nonsense") >= 1 or rude_is_gone(publisher))
            rude.close(linger=0)
            deliver = ScriptedDeliver()
            async with fan.subscriber(deliver):
                await subscribed(publisher)
                await publisher.transport_publish(event_batch(5), "pump")
                await until(lambda: len(positions(deliver)) == 5)
        stranger.destroy(linger=0)

    run(scenario())


def rude_is_gone(publisher: TransportZmq) -> bool:
    return sum(metric(publisher, "link_refused_connections_total", reason=reason) for reason in ("silent", "protocol")) > 0


def test_a_subscriber_may_want_thousands_of_topics(fan: Fan) -> None:
    async def scenario() -> None:
        deliver = ScriptedDeliver()
        async with fan.publisher() as publisher, fan.subscriber(deliver, topics=tuple(f"t{number}/" for number in range(4096))):
            await subscribed(publisher, 4096)
            await publisher.transport_publish(event_batch(5), "t4095/x")
            await until(lambda: len(positions(deliver)) == 5)

    run(scenario())


def test_a_subscriber_without_end_is_cut_and_costs_no_other(fan: Fan) -> None:
    async def scenario() -> None:
        greedy, deliver = zmq.asyncio.Context(), ScriptedDeliver()
        async with fan.publisher() as publisher, fan.subscriber(deliver):
            await subscribed(publisher)
            sub = greedy.socket(zmq.SUB)
            sub.setsockopt(zmq.RECONNECT_IVL, -1)
            sub.setsockopt(zmq.SNDHWM, 0)
            for number in range(SUBSCRIPTIONS_MAX + 10):
                sub.subscribe(b"t%d" % number)
            sub.connect(fan.address)
            await until(lambda: metric(publisher, "link_refused_connections_total", reason="subscriptions") == 1)
            await until(lambda: metric(publisher, "fanout_subscriptions") == 1)
            sub.close(linger=0)
            await publisher.transport_publish(event_batch(5), "pump")
            await until(lambda: len(positions(deliver)) == 5)
        greedy.destroy(linger=0)

    run(scenario())


def test_a_plain_sub_socket_reads_what_the_page_describes(fan: Fan) -> None:
    async def scenario() -> None:
        client = zmq.asyncio.Context()
        async with fan.publisher() as publisher:
            sub = client.socket(zmq.SUB)
            sub.subscribe(b"pump")
            sub.connect(fan.address)
            await subscribed(publisher)
            await publisher.transport_publish(event_batch(5), "pump")
            topic, header, stream = await sub.recv_multipart()
            assert (topic, header[:5]) == (b"pump", b"HRPB\x01")
            assert pa.ipc.open_stream(stream).read_all().to_batches() == [event_batch(5)]
            assert unpack([topic, header, stream])[1].sequence == 1
            sub.close(linger=0)
        client.destroy(linger=0)

    run(scenario())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"publish": "tcp://127.0.0.1:1", "connect": "tcp://127.0.0.1:1"}, "got connect and publish"),
        ({"publish": "tcp://0.0.0.0:5556"}, "set key_file and allow_keys_file"),
        ({"subscribe": "tcp://middle.example:5556"}, "set key_file and server_key"),
        ({"publish": "tcp://127.0.0.1:1", "key_file": "a.key"}, "allow_keys_file: expected one beside key_file"),
        ({"subscribe": "tcp://127.0.0.1:1", "key_file": "a.key", "allow_keys_file": "b"}, "not for the connecting end"),
        ({"publish": "udp://127.0.0.1:1"}, 'udp needs pattern = "radio"'),
        ({"listen": "tcp://127.0.0.1:1", "pattern": "radio"}, "only for `publish` and `subscribe`"),
        ({"subscribe": "tcp://127.0.0.1:1"}, ""),
    ],
)
def test_options_that_make_no_fan_out_are_told(options: dict[str, Any], complaint: str) -> None:
    found = problem(TransportConfig(**options))
    assert complaint in found
    assert bool(found) == bool(complaint)


SITE = """
[tiers.live.sources.feed]
use = "transport_zmq"
{source}
[tiers.live.outputs.out]
use = "{output}"
{options}
"""


@pytest.mark.parametrize(
    ("source", "output", "options", "complaint"),
    [
        ('subscribe = "tcp://127.0.0.1:5556"', "live_ws", 'hold = "none"', ""),
        ('subscribe = "tcp://127.0.0.1:5556"', "transport_zmq", 'hold = "none"\npublish = "tcp://127.0.0.1:5557"', ""),
        ('publish = "tcp://127.0.0.1:5556"', "live_ws", 'hold = "none"', "sources.feed: expected options that make transport_zmq"),
        ('subscribe = "tcp://127.0.0.1:5556"', "transport_zmq", 'publish = "tcp://127.0.0.1:5557"', "only publishes"),
        ('subscribe = "tcp://127.0.0.1:5556"', "transport_zmq", 'listen = "tcp://127.0.0.1:5557"', "outputs.out: expected options"),
    ],
)  # fmt: skip
def test_a_live_tier_needs_no_queue_and_a_table_in_the_wrong_place_is_told(
    tmp_path: Path, source: str, output: str, options: str, complaint: str
) -> None:
    file = tmp_path / "site.toml"
    file.write_text(SITE.format(source=source, output=output, options=options))
    if not complaint:
        assert load(file).tiers["live"].queue is None
        return
    with pytest.raises(ConfigError) as told:
        load(file)
    assert complaint in str(told.value)


def complaints(file: Path) -> str:
    return "\n".join(finding.text for finding in check(file, environ={"HEADRACE_DATA": str(file.parent)}, ports=False) if not finding.ok)


def test_check_sees_two_that_want_one_address_and_workers_that_cannot_share_it(tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    fan = 'subscribe = "tcp://127.0.0.1:5556"'
    publish = 'hold = "none"\npublish = "tcp://127.0.0.1:5557"'
    file.write_text(SITE.format(source=fan, output="transport_zmq", options=publish))
    assert complaints(file) == ""
    second = f'[tiers.live.outputs.again]\nuse = "transport_zmq"\n{publish}\n'
    file.write_text(SITE.format(source=fan, output="transport_zmq", options=publish) + second)
    assert "tiers.live.outputs.out.publish and tiers.live.outputs.again.publish want the same address" in complaints(file)
    file.write_text(
        f"""
        [tiers.site]
        workers = 2
        [tiers.site.sources.devices]
        use = "ingest_ws"
        listen = "127.0.0.1:0"
        auth = "none"
        [tiers.site.queue]
        use = "queue_pmem"
        path = "{tmp_path}/queue"
        [tiers.site.outputs.fan]
        use = "transport_zmq"
        {publish}
        """
    )
    assert "publish: one process can have that address, and the tier has 2 workers" in complaints(file)
