"""The contract of links: a good link in memory passes, and each bad one is caught."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from headrace import Component, Config, Context, Deliver, Missing, Origin, QueueFull, RangeKey, TransientError, hookimpl, origin_batch
from headrace.position import ORIGIN_MISSING
from headrace.testing import LinkContract, failures


class Options(Config, frozen=True, kw_only=True):
    port: int


class Far(Component):
    """The receiving half: found by its port, takes one batch at a time."""

    Config = Options
    places: ClassVar[dict[int, Far]] = {}

    async def open(self) -> None:
        self.deliver: Deliver | None = None
        self.taking = asyncio.Lock()
        Far.places[self.config.port] = self

    @hookimpl
    async def transport_serve(self, deliver: Deliver) -> None:
        self.deliver = deliver
        await asyncio.Event().wait()

    async def close(self) -> None:
        if Far.places.get(self.config.port) is self:
            del Far.places[self.config.port]

    async def take(self, batch: pa.RecordBatch, origins: pa.RecordBatch) -> None:
        assert self.deliver is not None
        while True:
            try:
                await self.deliver(batch, origins)
                return
            except QueueFull:
                await self.deliver.room()


class Near(Component):
    """The sending half: one batch after the other, again until it is taken."""

    Config = Options

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.turn = asyncio.Lock()
        self.calls: set[asyncio.Task[Any]] = set()
        self.closed = False

    async def close(self) -> None:
        self.closed = True
        for call in self.calls:
            call.cancel()

    @hookimpl
    async def transport_resume(self, queue_id: str) -> int | None:
        async def ask() -> int | None:
            far = await self.far()
            assert far.deliver is not None
            return await far.deliver.position(f"{queue_id}/1")

        return await self.call(ask())

    @hookimpl
    async def transport_send(self, batch: pa.RecordBatch, key: RangeKey) -> None:
        await self.call(self.push(batch, origins_for(self.gaps(key), key)))

    def gaps(self, key: RangeKey) -> list[Missing]:
        return sorted([*key.missing, *(Missing(position, position, "dead_letter") for position in key.dead)])

    async def push(self, batch: pa.RecordBatch, origins: pa.RecordBatch) -> None:
        async with self.turn:
            while True:
                far = await self.far()
                try:
                    async with far.taking:
                        await far.take(batch, origins)
                    return
                except TransientError:
                    await asyncio.sleep(0.01)
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if task is None or task.cancelling():
                        raise

    async def far(self) -> Far:
        while (far := Far.places.get(self.config.port)) is None or far.deliver is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return far

    async def call(self, work: Any) -> Any:
        """End with TransientError when the link is closed meanwhile."""
        task = asyncio.ensure_future(work)
        self.calls.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            task.cancel()
            if not self.closed:
                raise
            raise TransientError("closed") from None
        finally:
            self.calls.discard(task)


def origins_for(gaps: list[Missing], key: RangeKey) -> pa.RecordBatch:
    origins, position, row = [], key.first, 0
    name = f"{key.queue_id}/1"
    for hole in [*gaps, Missing(key.last + 1, key.last + 1, "")]:
        if hole.first > position:
            origins.append(Origin(name, position, hole.first - 1, row))
            row += hole.first - position
        if hole.reason:
            origins.append(Origin(name, hole.first, hole.last, row, ORIGIN_MISSING, hole.reason.encode()))
        position = hole.last + 1
    return origin_batch(origins)


class Good(LinkContract):
    near: ClassVar[type[Near]] = Near
    far: ClassVar[type[Far]] = Far

    def make(self, context: Context) -> Component:
        return self.near(Options(port=self.port), context)

    def make_receiver(self, context: Context) -> Component:
        return self.far(Options(port=self.port), context)


def contract(near: type[Near] = Near, far: type[Far] = Far) -> type[LinkContract]:
    return type("TestBad", (Good,), {"near": near, "far": far})


class ReportsEarly(Near):
    """Bad: what is on its way counts as there."""

    @hookimpl
    async def transport_send(self, batch: pa.RecordBatch, key: RangeKey) -> None:
        self.calls.add(asyncio.ensure_future(self.push(batch, origins_for(self.gaps(key), key))))


class GivesUp(Far):
    """Bad: a batch that was not stored counts as taken."""

    async def take(self, batch: pa.RecordBatch, origins: pa.RecordBatch) -> None:
        try:
            await super().take(batch, origins)
        except (TransientError, asyncio.CancelledError):
            return


class Hammers(Far):
    """Bad: asks a full queue again and again."""

    async def take(self, batch: pa.RecordBatch, origins: pa.RecordBatch) -> None:
        assert self.deliver is not None
        while True:
            try:
                await self.deliver(batch, origins)
                return
            except QueueFull:
                await asyncio.sleep(0.001)


class ForgetsGaps(Near):
    """Bad: what is missing is not told."""

    def gaps(self, key: RangeKey) -> list[Missing]:
        return []

    @hookimpl
    async def transport_send(self, batch: pa.RecordBatch, key: RangeKey) -> None:
        if batch.num_rows:
            await self.call(self.push(batch, origins_for([], key._replace(last=key.first + batch.num_rows - 1))))


class KnowsNothing(Near):
    """Bad: never says what the far side holds."""

    @hookimpl
    async def transport_resume(self, queue_id: str) -> int | None:
        await self.far()
        return None


class Overtakes(Near):
    """Bad: later batches may arrive before earlier ones."""

    @hookimpl
    async def transport_send(self, batch: pa.RecordBatch, key: RangeKey) -> None:
        async def later() -> None:
            await asyncio.sleep(0.05 if key.first % 20 == 1 else 0)
            await self.push(batch, origins_for(self.gaps(key), key))

        await self.call(later())


class Hangs(Near):
    """Bad: its calls do not end with it."""

    async def close(self) -> None:
        self.closed = True


def test_a_good_link_passes() -> None:
    assert failures(Good) == {}


@pytest.mark.parametrize(
    ("near", "far", "test"),
    [
        (ReportsEarly, Far, "test_nothing_is_reported_before_deliver_returned"),
        (Near, GivesUp, "test_a_commit_that_failed_or_was_cancelled_is_not_reported_and_comes_again"),
        (Near, Hammers, "test_a_full_queue_holds_the_link_until_there_is_room"),
        (ForgetsGaps, Far, "test_missing_and_dead_positions_travel_as_declared_gaps"),
        (KnowsNothing, Far, "test_batches_arrive_once_in_order_and_are_resumed_behind"),
        (Overtakes, Far, "test_batches_arrive_once_in_order_and_are_resumed_behind"),
    ],
)
def test_a_bad_link_is_caught(near: type[Near], far: type[Far], test: str) -> None:
    assert failures(contract(near, far), test).keys() == {test}


def test_calls_that_outlive_their_link_are_caught() -> None:
    test = "test_close_ends_the_calls_under_way"
    assert failures(contract(Hangs), test).keys() == {test}
