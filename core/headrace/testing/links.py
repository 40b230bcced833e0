"""The contract of links: what the sending half reports is durable at the far side, once, in order, whatever happens between."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

import pyarrow as pa

from headrace.component import Component, Context
from headrace.errors import TransientError
from headrace.hookspecs import QueueInfo
from headrace.plugins import ComponentPlugins
from headrace.position import NO_ORIGINS, ORIGIN_MISSING, ORIGIN_QUEUE, Missing, RangeKey, origins_of
from headrace.testing.batches import QUEUE_ID, raw_batch
from headrace.testing.context import has, living, run
from headrace.testing.contract import HalvesContract
from headrace.testing.crash import test_seed
from headrace.testing.deliver import ScriptedDeliver

#: How long a report that must not come is waited for.
NO_REPORT_WAIT_S: Final = 0.3
#: How long `close` may take to end the calls under way.
CLOSE_WAIT_S: Final = 1.0
#: Appends to a full queue after which a receiver does not wait for room.
CALLS_MAX: Final = 20
INFO: Final = QueueInfo("scripted", QUEUE_ID, "process", "memory", "none", 0, 1, 0, 0, 1 << 30, None, (), ())
SECRET: Final = b"a secret of 16 B"


class LinkContract(HalvesContract):
    """Subclass it as `TestMyLink`, with `make(context)` of the sending half and `make_receiver(context)` of the receiving one.

    Both over `self.port`, a free port on loopback. Make them impatient: a far side that is away must be tried again within
    tenths of a second. Nothing here kills processes: that needs a real queue at both ends, see `headrace.testing.site`.
    """

    role = "output"
    #: Batches per test.
    batches: ClassVar[int] = 12
    #: Times that either half is replaced in the random test.
    replacements: ClassVar[int] = 6

    def make_receiver(self, context: Context) -> Component:
        """Build the receiving half, not yet open."""
        raise NotImplementedError(f"{type(self).__name__} must define make_receiver(self, context)")

    def test_the_receiving_halfs_hooks_fit_the_hookspecs(self, tmp_path: Path) -> None:
        component = self.make_receiver(self.context(tmp_path / "far"))
        ComponentPlugins(component, "source", type(component).__name__)

    def test_batches_arrive_once_in_order_and_are_resumed_behind(self, tmp_path: Path) -> None:
        async def check() -> None:
            deliver, last = ScriptedDeliver(info=INFO), 10 * self.batches
            async with self._far(tmp_path, deliver):
                async with self._near(tmp_path) as hook:
                    assert await self._resume(hook) is None, "expected None from a far side that holds nothing"
                    await asyncio.gather(*(self._send(hook, first, first + 9) for first in range(1, last, 10)))
                    assert await self._resume(hook) == last
                async with self._near(tmp_path) as hook:
                    assert await self._resume(hook) == last, "another instance gets the same answer"
            assert accounted(deliver) == {position: position for position in range(1, last + 1)}

        run(check())

    def test_nothing_is_reported_before_deliver_returned(self, tmp_path: Path) -> None:
        async def check() -> None:
            deliver = ScriptedDeliver(then="hold", info=INFO)
            async with self._far(tmp_path, deliver), self._near(tmp_path) as hook:
                sending = asyncio.create_task(self._send(hook, 1, 10))
                await deliver.until_held()
                await asyncio.wait((sending,), timeout=NO_REPORT_WAIT_S)
                assert not sending.done(), "expected no report while the commit is under way"
                await _let_go_until(deliver, sending)
            assert accounted(deliver) == {position: position for position in range(1, 11)}

        run(check())

    def test_a_commit_that_failed_or_was_cancelled_is_not_reported_and_comes_again(self, tmp_path: Path) -> None:
        async def check() -> None:
            deliver = ScriptedDeliver("transient", "cancel", info=INFO)
            async with self._far(tmp_path, deliver), self._near(tmp_path) as hook:
                sending = asyncio.create_task(self._send(hook, 1, 10))
                await _first(deliver.until_held(), sending)
                assert not sending.done(), "expected no report after a commit that failed"
                deliver.cancel_held()
                await sending
            assert accounted(deliver) == {position: position for position in range(1, 11)}, "reported, and not there"

        run(check())

    def test_a_full_queue_holds_the_link_until_there_is_room(self, tmp_path: Path) -> None:
        async def check() -> None:
            deliver = ScriptedDeliver("full", info=INFO)
            async with self._far(tmp_path, deliver), self._near(tmp_path) as hook:
                sending = asyncio.create_task(self._send(hook, 1, 10))
                await _first(deliver.until_room_awaited(), deliver.until_called(CALLS_MAX))
                calls = deliver.calls
                assert calls < CALLS_MAX, "expected it to wait for room instead of asking again"
                await asyncio.wait((sending,), timeout=NO_REPORT_WAIT_S)
                assert not sending.done(), "expected no report while the queue is full"
                assert deliver.calls <= calls + 1, f"expected it to wait for room, got {deliver.calls - calls} more calls"
                deliver.make_room()
                await sending
            assert accounted(deliver) == {position: position for position in range(1, 11)}

        run(check())

    def test_missing_and_dead_positions_travel_as_declared_gaps(self, tmp_path: Path) -> None:
        async def check() -> None:
            deliver = ScriptedDeliver(info=INFO)
            async with self._far(tmp_path, deliver), self._near(tmp_path) as hook:
                await self._resume(hook)
                await self._send(hook, 1, 10, missing=(Missing(3, 4, "corrupt"),), dead=(7,))
                await self._send(hook, 11, 20, missing=(Missing(11, 20, "window"),))
                await self._send(hook, 21, 22)
            held = accounted(deliver)
            gaps = [position for position in held if held[position] is None]
            assert gaps == [3, 4, 7, *range(11, 21)]
            assert all(held[position] in (None, position) for position in held)
            assert list(held) == list(range(1, 23))

        run(check())

    def test_close_ends_the_calls_under_way(self, tmp_path: Path) -> None:
        async def check() -> None:
            component = self.make(self.context(tmp_path))
            plugins = ComponentPlugins(component, self.role, type(component).__name__)
            await component.open()
            waiting = [asyncio.ensure_future(self._resume(plugins.hook)), asyncio.ensure_future(self._send(plugins.hook, 1, 3))]
            await asyncio.sleep(0)
            await component.close()
            done, late = await asyncio.wait(waiting, timeout=CLOSE_WAIT_S)
            assert not late, "expected `close` to end the calls under way"
            assert all(isinstance(task.exception(), TransientError) for task in done)
            component.context.close()

        run(check())

    def test_halves_that_are_replaced_at_any_moment_lose_and_double_nothing(self, tmp_path: Path) -> None:
        """Answers are lost, what was under way comes again in other bounds: positions decide."""
        seed = test_seed()

        async def check() -> None:
            rng, deliver = random.Random(seed), ScriptedDeliver(info=INFO)
            reported = 0
            for _ in range(self.replacements):
                async with self._far(tmp_path, deliver):
                    for _ in range(rng.randint(1, 2)):
                        async with self._near(tmp_path) as hook:
                            position = await self._resume(hook) or 0
                            assert position >= reported, f"reported up to {reported}, and holds {position}"
                            sending = []
                            for _ in range(rng.randint(2, 8)):
                                last = position + rng.randint(1, 20)
                                sending.append((asyncio.create_task(self._send(hook, position + 1, last)), last))
                                position = last
                            ends = [await self._end_of(task, last) for task, last in self._awaited(rng, sending)]
                        reported = max([reported, *ends])
                        await asyncio.wait([task for task, _ in sending])  # closing ended them
            held = accounted(deliver)
            assert list(held) == list(range(1, len(held) + 1)), f"seed {seed}: expected positions without a hole"
            assert all(number == position for position, number in held.items()), f"seed {seed}: expected each row at its position"

        run(check())

    def _awaited(self, rng: random.Random, sending: list[tuple[asyncio.Task[None], int]]) -> list[tuple[asyncio.Task[None], int]]:
        """The first few: those behind them are left under way."""
        return sending[: rng.randint(0, len(sending))]

    async def _end_of(self, task: asyncio.Task[None], last: int) -> int:
        await task
        return last

    # --- small things ------------------------------------------------------------------------------------------------

    async def _resume(self, hook: Any) -> int | None:
        held: int | None = await hook.transport_resume(queue_id=QUEUE_ID)
        return held

    async def _send(self, hook: Any, first: int, last: int, missing: tuple[Missing, ...] = (), dead: tuple[int, ...] = ()) -> None:
        gone = {*dead, *(position for hole in missing for position in range(hole.first, hole.last + 1))}
        rows = [raw_batch(1, position) for position in range(first, last + 1) if position not in gone]
        batch = raw_batch(0) if not rows else raw_batch(last - first + 1, first) if not gone else pa.concat_batches(rows)
        await hook.transport_send(batch=batch, origins=NO_ORIGINS, key=RangeKey(QUEUE_ID, first, last, missing, dead))

    @asynccontextmanager
    async def _near(self, folder: Path) -> AsyncIterator[Any]:
        async with living(self.make(self.context(folder / "near")), self.role) as hook:
            if has(hook.transport_queue):
                await hook.transport_queue(queue=INFO, secret=SECRET)
            yield hook

    @asynccontextmanager
    async def _far(self, folder: Path, deliver: ScriptedDeliver) -> AsyncIterator[None]:
        """The receiving half, served as the host does: started anew with a fresh instance when it fails."""

        async def serve() -> None:
            while True:
                async with living(self.make_receiver(self.context(folder / "far")), "source") as hook:
                    try:
                        await hook.transport_serve(deliver=deliver)
                        return
                    except Exception:
                        await asyncio.sleep(0.01)

        serving = asyncio.create_task(serve())
        try:
            yield
        finally:
            deliver.let_go()
            serving.cancel()
            await asyncio.wait((serving,), timeout=5)


def accounted(deliver: ScriptedDeliver) -> dict[int, int | None]:
    """What a queue behind `deliver` would hold, by position: the row's number, or None for a declared gap.

    Drops what is held already, as a queue does; AssertionError for a hole that was not declared.
    """
    held: dict[int, int | None] = {}
    mark = 0
    for taken in deliver.committed:
        payloads = taken.batch.column("payload").to_pylist()
        for origin in origins_of(taken.origins):
            if origin.kind not in (ORIGIN_QUEUE, ORIGIN_MISSING):
                continue
            assert origin.id.partition("/")[0] == QUEUE_ID, f"expected origins that name the sender's queue id, got {origin.id!r}"
            assert origin.first <= mark + 1, f"expected position {mark + 1} or what is held, got {origin.first}: an undeclared gap"
            for position in range(max(origin.first, mark + 1), origin.last + 1):
                row = origin.row_offset + position - origin.first
                held[position] = None if origin.kind == ORIGIN_MISSING else int(payloads[row][5:-1])
            mark = max(mark, origin.last)
    return held


async def _first(*awaited: Any) -> None:
    """Return when one of them has come to its end."""
    tasks = [asyncio.ensure_future(one) for one in awaited]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task, one in zip(tasks, awaited, strict=True):
        if task is not one:  # a task of the caller's goes on
            task.cancel()


async def _let_go_until(deliver: ScriptedDeliver, task: asyncio.Task[None]) -> None:
    while not task.done():
        deliver.let_go()
        await asyncio.wait((task,), timeout=0.01)
    await task
