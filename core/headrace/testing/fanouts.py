"""The contract of a fan-out: what is published comes as it was to whoever listens, and nobody who listens costs the publisher anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

import pyarrow as pa

from headrace.component import Component, Context
from headrace.plugins import ComponentPlugins
from headrace.testing.batches import event_batch
from headrace.testing.context import living, run
from headrace.testing.contract import HalvesContract
from headrace.testing.deliver import ScriptedDeliver

#: How long all calls of a publisher may take together when a subscriber hangs.
PUBLISH_WAIT_S: Final = 20.0
#: Appends to a full queue after which a subscriber does not wait for room.
CALLS_MAX: Final = 20
#: Batches with such a first position only find out who is there.
BEACON: Final = 1_000_000_000
TOPIC: Final = "pump"


class FanOutContract(HalvesContract):
    """Subclass it as `TestMyFanOut`, with `make(context)` of the publishing half and `make_subscriber(context)` of the subscribing one.

    Both over `self.port`, a free port on loopback; the subscriber wants every topic. Make them impatient: a publisher that is away
    must be tried again within tenths of a second. What is lost may be lost: only what comes is looked at.
    """

    role = "output"
    #: Batches that are published while a subscriber hangs; more than lie on the way.
    batches: ClassVar[int] = 300

    def make_subscriber(self, context: Context) -> Component:
        """Build the subscribing half, not yet open."""
        raise NotImplementedError(f"{type(self).__name__} must define make_subscriber(self, context)")

    def test_the_subscribing_halfs_hooks_fit_the_hookspecs(self, tmp_path: Path) -> None:
        component = self.make_subscriber(self.context(tmp_path / "far"))
        ComponentPlugins(component, "source", type(component).__name__)

    def test_events_come_as_they_were_published_and_in_order(self, tmp_path: Path) -> None:
        async def check() -> None:
            deliver = ScriptedDeliver()
            batches = [
                event_batch(5, 1, context={"class": ["pump"] * 5}),
                event_batch(1, 6),
                event_batch(300, 7, readings={"n": [1.5] * 300}),
            ]
            async with self._publisher(tmp_path) as hook, self._subscriber(tmp_path, deliver):
                await self._found(hook, deliver)
                for batch in batches:
                    await hook.transport_publish(batch=batch, topic=TOPIC)
                await _until(lambda: len(came(deliver)) == 306, "the events that were published")
            assert came(deliver) == list(range(1, 307)), "expected each event once, in order, under the position that it had"
            first = next(taken.batch for taken in deliver.committed if came_in(taken.batch)).slice(0, 1)
            assert first.equals(batches[0].slice(0, 1)), f"expected the event as it was published, got {first.to_pylist()}"
            assert all(not taken.origins.num_rows for taken in deliver.committed), "expected no origins: events bring their own names"

        run(check())

    def test_nobody_who_listens_is_fine(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with self._publisher(tmp_path) as hook, asyncio.timeout(PUBLISH_WAIT_S):
                for first in range(1, 101):
                    await hook.transport_publish(batch=event_batch(1, first), topic=TOPIC)

        run(check())

    def test_a_subscriber_that_hangs_holds_up_neither_the_publisher_nor_others(self, tmp_path: Path) -> None:
        async def check() -> None:
            hanging, quick = ScriptedDeliver(then="hold"), ScriptedDeliver()
            pad = {"text": ["x" * 20_000] * 10}
            async with (
                self._publisher(tmp_path) as hook,
                self._subscriber(tmp_path, hanging, "hanging"),
                self._subscriber(tmp_path, quick, "quick"),
            ):
                await self._found(hook, quick)
                await self._found(hook, hanging, lambda: hanging.calls > 0)
                for number in range(self.batches):
                    async with asyncio.timeout(PUBLISH_WAIT_S):
                        await hook.transport_publish(batch=event_batch(10, 10 * number + 1, readings=pad), topic=TOPIC)
                    await _until(lambda: len(came(quick)) == 10 * number + 10, "every event at the one that keeps up")  # noqa: B023
                assert came(quick) == list(range(1, 10 * self.batches + 1))

        run(check())

    def test_a_full_queue_holds_a_subscriber_until_there_is_room(self, tmp_path: Path) -> None:
        async def check() -> None:
            deliver = ScriptedDeliver("full")
            async with self._publisher(tmp_path) as hook, self._subscriber(tmp_path, deliver):
                await self._found(hook, deliver, lambda: deliver.room_waits > 0 or deliver.calls >= CALLS_MAX)
                assert deliver.room_waits, "expected it to wait for room instead of asking again"
                deliver.make_room()
                await self._found(hook, deliver)

        run(check())

    def test_a_batch_that_is_not_taken_ends_nothing(self, tmp_path: Path) -> None:
        async def check() -> None:
            deliver = ScriptedDeliver("transient", "transient")
            async with self._publisher(tmp_path) as hook, self._subscriber(tmp_path, deliver, restarts=0):
                await self._found(hook, deliver)

        run(check())

    def test_either_half_may_be_replaced(self, tmp_path: Path) -> None:
        async def check() -> None:
            deliver = ScriptedDeliver()
            async with self._subscriber(tmp_path, deliver, restarts=0):
                for first in (1, 101):
                    async with self._publisher(tmp_path) as hook:
                        await self._found(hook, deliver, lambda: _beacons(deliver) > first)  # noqa: B023
                        deliver.committed.clear()
                        await hook.transport_publish(batch=event_batch(5, first), topic=TOPIC)
                        await _until(lambda: came(deliver) == list(range(first, first + 5)), "the events of this publisher")  # noqa: B023
            async with self._publisher(tmp_path) as hook:
                for name in ("one", "two"):
                    other = ScriptedDeliver()
                    async with self._subscriber(tmp_path, other, name, restarts=0):
                        await self._found(hook, other)

        run(check())

    # --- small things ------------------------------------------------------------------------------------------------

    async def _found(self, hook: Any, deliver: ScriptedDeliver, reached: Callable[[], bool] | None = None) -> None:
        """Publish until something arrives: a subscriber that was just made may not be there yet."""
        reached = reached or (lambda: _beacons(deliver) > 0)
        number = 0

        async def knock() -> None:
            nonlocal number
            while not reached():
                number += 1
                await hook.transport_publish(batch=event_batch(1, BEACON + number), topic=TOPIC)
                await asyncio.sleep(0.01)

        try:
            await asyncio.wait_for(knock(), PUBLISH_WAIT_S)
        except TimeoutError:
            raise AssertionError("expected published events to reach the subscriber, got none") from None

    @asynccontextmanager
    async def _publisher(self, folder: Path) -> AsyncIterator[Any]:
        async with living(self.make(self.context(folder / "near")), self.role) as hook:
            yield hook

    @asynccontextmanager
    async def _subscriber(self, folder: Path, deliver: ScriptedDeliver, name: str = "far", restarts: int = 100) -> AsyncIterator[None]:
        """The subscribing half, served as the host does; at most `restarts` times anew after an error."""

        async def serve() -> None:
            for left in range(restarts, -1, -1):
                async with living(self.make_subscriber(self.context(folder / name)), "source") as hook:
                    try:
                        await hook.transport_subscribe(deliver=deliver)
                        return
                    except Exception as error:
                        if not left:
                            raise AssertionError("expected the subscriber to go on") from error
                        await asyncio.sleep(0.01)

        serving = asyncio.create_task(serve())
        try:
            yield
        finally:
            deliver.let_go()
            serving.cancel()
            await asyncio.wait((serving,), timeout=5)
        if not serving.cancelled() and (error := serving.exception()):
            raise error


def came_in(batch: pa.RecordBatch) -> list[int]:
    """The positions of its events, beacons left out."""
    return [position for position in batch.column("position").to_pylist() if position < BEACON]


def came(deliver: ScriptedDeliver) -> list[int]:
    """The positions of the events that were delivered, beacons left out."""
    return [position for taken in deliver.committed for position in came_in(taken.batch)]


def _beacons(deliver: ScriptedDeliver) -> int:
    return sum(taken.batch.num_rows - len(came_in(taken.batch)) for taken in deliver.committed)


async def _until(reached: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(PUBLISH_WAIT_S):
            while not reached():  # noqa: ASYNC110  nothing tells when an event is not lost
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"expected {what}") from None
