"""Queues: readers with their cursors and plans, and what happens when one holds everything."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

from headrace.errors import QueueFull
from headrace.hookspecs import Plan, QueueInfo, QueueRead
from headrace.position import NO_ORIGINS
from headrace.testing.batches import raw_batch
from headrace.testing.queue_bench import QueueBench, append, batch_of, numbers_of, read_next, reader_of


class QueueReaders(QueueBench):
    """Cursors, plans, release, and a full queue."""

    def test_readers_start_where_they_are_told(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            oldest = await hook.queue_reader_open(reader="oldest", start="oldest")
            await append(hook, raw_batch(10))
            await hook.queue_release(reader="oldest", upto=4)
            head = await hook.queue_reader_open(reader="head", start="head")
            after = await hook.queue_reader_open(reader="after", start="after:oldest")
            assert (oldest.cursor, head.cursor, after.cursor) == (0, 10, 4)
            assert numbers_of(await read_next(hook, "after", after.cursor)) == [5, 6, 7, 8, 9, 10]
            again = await hook.queue_reader_open(reader="head", start="oldest")
            assert again.cursor == 10, "`start` must count only for a reader that is new"
            assert {reader.name for reader in hook.queue_info().readers} == {"oldest", "head", "after"}

        self._with(tmp_path, check)

    def test_release_is_repeatable_and_never_moves_back(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            await hook.queue_reader_open(reader="r", start="oldest")
            await append(hook, raw_batch(10))
            for upto, cursor in ((3, 3), (3, 3), (1, 3), (7, 7), (0, 7), (7, 7)):
                await hook.queue_release(reader="r", upto=upto)
                came = reader_of(hook.queue_info(), "r").cursor
                assert came == cursor, f"after release({upto}): expected the cursor at {cursor}, got {came}"

        self._with(tmp_path, check)

    def test_cursors_and_plans_survive_a_restart(self, tmp_path: Path) -> None:
        plan = Plan(5, 9, 2, (6, 8))

        async def before(hook: Any) -> None:
            await hook.queue_reader_open(reader="r", start="oldest")
            await hook.queue_reader_open(reader="s", start="oldest")
            await append(hook, raw_batch(10))
            await hook.queue_release(reader="r", upto=4)
            await hook.queue_plan(reader="r", plan=Plan(5, 6, 1))
            await hook.queue_plan(reader="r", plan=plan)
            await hook.queue_plan(reader="s", plan=Plan(1, 2, 1))
            await hook.queue_plan(reader="s", plan=None)

        async def after(hook: Any) -> None:
            first, second = await hook.queue_reader_open(reader="r", start="head"), await hook.queue_reader_open(reader="s", start="head")
            assert (first.cursor, first.plan) == (4, plan), f"expected cursor 4 and {plan}, got {first}"
            assert (second.cursor, second.plan) == (0, None), f"expected cursor 0 and no plan, got {second}"
            assert numbers_of(await read_next(hook, "r", 4)) == [5, 6, 7, 8, 9, 10]

        self._with(tmp_path, before)
        self._with(tmp_path, after)

    def test_a_dropped_reader_holds_nothing(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            await hook.queue_reader_open(reader="stuck", start="oldest")
            await hook.queue_reader_open(reader="r", start="oldest")
            await append(hook, raw_batch(10))
            await hook.queue_release(reader="r", upto=10)
            assert hook.queue_info().size_events == 10, "expected the slowest reader to hold its events"
            await hook.queue_reader_drop(reader="stuck")
            await hook.queue_reader_drop(reader="stuck")
            await hook.queue_reader_drop(reader="nobody")
            assert hook.queue_info().size_events == 0, f"expected nothing to be held any more, got {hook.queue_info().size_events} events"
            assert [reader.name for reader in hook.queue_info().readers] == ["r"]

        self._with(tmp_path, check)
        self._with(tmp_path, self._expect_readers(["r"]))

    def test_a_full_queue_takes_nothing_until_something_is_released(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            await hook.queue_reader_open(reader="r", start="oldest")
            taken = await self._fill(hook)
            before: QueueInfo = hook.queue_info()
            assert before.head == taken
            for _ in range(3):
                try:
                    await hook.queue_append(batch=self._big(1), origins=NO_ORIGINS)
                except QueueFull as full:
                    assert full.size_bytes_max > 0  # noqa: PT017
                else:
                    raise AssertionError("expected QueueFull again, nothing was released in between")
            info: QueueInfo = hook.queue_info()
            assert (info.head, info.size_events) == (before.head, before.size_events), "an append that was refused left something behind"
            await hook.queue_release(reader="r", upto=taken)
            first, last = await self._append_when_there_is_room(hook, self._big(1))
            assert (first, last) == (taken + 1, taken + 1), f"expected position {taken + 1}, got {first}-{last}"

        self._with(tmp_path, check)

    def test_a_full_queue_still_reads_and_opens_again(self, tmp_path: Path) -> None:
        taken = 0

        async def fill(hook: Any) -> None:
            nonlocal taken
            await hook.queue_reader_open(reader="r", start="oldest")
            taken = await self._fill(hook)

        async def drain(hook: Any) -> None:
            reader = await hook.queue_reader_open(reader="r", start="oldest")
            position = reader.cursor
            while position < taken:
                read = await read_next(hook, "r", position, rows_max=64)
                assert read.first == position + 1
                assert not read.missing, f"positions are missing: {read.missing}"
                position = read.last
                await hook.queue_release(reader="r", upto=position)
            await self._append_when_there_is_room(hook, self._big(1))

        self._with(tmp_path, fill)
        self._with(tmp_path, drain)

    def test_a_batch_that_is_held_stays_valid_while_the_queue_goes_round(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            await hook.queue_reader_open(reader="r", start="oldest")
            await append(hook, self._big(1), self._big(2), self._big(3))
            held: list[tuple[QueueRead, list[Any]]] = []
            appended = position = 0
            while position < 3:
                read = await read_next(hook, "r", position, rows_max=1)
                held.append((read, json.loads(json.dumps(batch_of(read).to_pylist(), default=str))))
                position = read.last
            for number in range(4, 4 + 2 * self._capacity_batches(hook.queue_info())):
                await hook.queue_release(reader="r", upto=position)
                try:
                    _, position = await hook.queue_append(batch=self._big(number), origins=NO_ORIGINS)
                except QueueFull:
                    break  # the held batches pin their space: allowed, as long as they stay as they are
                appended += 1
            assert appended, "expected room for at least one more batch"
            for read, before in held:
                assert json.loads(json.dumps(batch_of(read).to_pylist(), default=str)) == before, "a held batch changed under its reader"
            held.clear()
            del read
            gc.collect()
            await self._append_when_there_is_room(hook, self._big(1))

        self._with(tmp_path, check)
