"""The contract of fan-outs: a good one in memory passes, and each bad one is caught."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from headrace import Component, Config, Context, Deliver, Origin, PermanentError, QueueFull, TransientError, hookimpl, origin_batch
from headrace.testing import FanOutContract, failures

KEPT_MAX = 8


class Options(Config, frozen=True, kw_only=True):
    port: int


class Subscriber(Component):
    """The subscribing half: a bounded queue that the publisher of its port finds."""

    Config = Options
    places: ClassVar[dict[int, list[Subscriber]]] = {}

    async def open(self) -> None:
        self.kept: asyncio.Queue[pa.RecordBatch] = asyncio.Queue(KEPT_MAX)
        Subscriber.places.setdefault(self.config.port, []).append(self)

    @hookimpl
    async def transport_subscribe(self, deliver: Deliver) -> None:
        while True:
            await self.take(await self.kept.get(), deliver)

    async def take(self, batch: pa.RecordBatch, deliver: Deliver) -> None:
        while True:
            try:
                await deliver(batch)
                return
            except QueueFull:
                await deliver.room()
            except (TransientError, PermanentError):
                return

    async def close(self) -> None:
        if self in Subscriber.places.get(self.config.port, []):
            Subscriber.places[self.config.port].remove(self)


class Publisher(Component):
    """The publishing half: who has no room loses."""

    Config = Options

    @hookimpl
    async def transport_publish(self, batch: pa.RecordBatch, topic: str) -> None:
        for subscriber in Subscriber.places.get(self.config.port, []):
            await self.give(subscriber, batch)
        await asyncio.sleep(0)

    async def give(self, subscriber: Subscriber, batch: pa.RecordBatch) -> None:
        if not subscriber.kept.full():
            subscriber.kept.put_nowait(batch)


class Good(FanOutContract):
    batches = 3 * KEPT_MAX
    publisher: ClassVar[type[Publisher]] = Publisher
    subscriber: ClassVar[type[Subscriber]] = Subscriber

    def make(self, context: Context) -> Component:
        return self.publisher(Options(port=self.port), context)

    def make_subscriber(self, context: Context) -> Component:
        return self.subscriber(Options(port=self.port), context)


class WaitsForAll(Publisher):
    """Bad: who hangs holds everybody up."""

    async def give(self, subscriber: Subscriber, batch: pa.RecordBatch) -> None:
        await subscriber.kept.put(batch)


class NeedsSomebody(Publisher):
    """Bad: nobody who listens is an error."""

    @hookimpl
    async def transport_publish(self, batch: pa.RecordBatch, topic: str) -> None:
        if not Subscriber.places.get(self.config.port):
            raise TransientError("nobody is there")
        await super().transport_publish(batch, topic)


class Renames(Subscriber):
    """Bad: counts the events itself."""

    async def take(self, batch: pa.RecordBatch, deliver: Deliver) -> None:
        column = pa.array([position + 1 for position in batch.column("position").to_pylist()], pa.uint64())
        await super().take(batch.set_column(batch.num_columns - 1, batch.schema.field("position"), column), deliver)


class NamesOrigins(Subscriber):
    """Bad: says where the events came from, as links do."""

    async def take(self, batch: pa.RecordBatch, deliver: Deliver) -> None:
        await deliver(batch, origin_batch([Origin("publisher/0", 1, batch.num_rows)]))


class Hammers(Subscriber):
    """Bad: asks a full queue again and again."""

    async def take(self, batch: pa.RecordBatch, deliver: Deliver) -> None:
        while True:
            try:
                await deliver(batch)
                return
            except QueueFull:
                await asyncio.sleep(0)


class Fragile(Subscriber):
    """Bad: ends at the first batch that is not taken."""

    async def take(self, batch: pa.RecordBatch, deliver: Deliver) -> None:
        try:
            await deliver(batch)
        except QueueFull:
            await deliver.room()


def bad(**halves: Any) -> type[FanOutContract]:
    return type("TestBad", (Good,), halves)


def test_a_good_fan_out_passes() -> None:
    assert failures(Good) == {}


HANGS = "test_a_subscriber_that_hangs_holds_up_neither_the_publisher_nor_others"


@pytest.mark.parametrize(
    ("halves", "name"),
    [
        ({"publisher": WaitsForAll}, HANGS),
        ({"publisher": NeedsSomebody}, "test_nobody_who_listens_is_fine"),
        ({"subscriber": Renames}, "test_events_come_as_they_were_published_and_in_order"),
        ({"subscriber": NamesOrigins}, "test_events_come_as_they_were_published_and_in_order"),
        ({"subscriber": Hammers}, "test_a_full_queue_holds_a_subscriber_until_there_is_room"),
        ({"subscriber": Fragile}, "test_a_batch_that_is_not_taken_ends_nothing"),
    ],
)
def test_a_bad_one_is_caught(halves: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.testing.fanouts.PUBLISH_WAIT_S", 1.0)  # what hangs is not waited for
    assert failures(bad(**halves), name).keys() == {name}
