"""Sinks: what comes again does not double, and what fails is not lost."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pyarrow as pa

from headrace.errors import PermanentError, TransientError
from headrace.position import RangeKey
from headrace.testing.batches import QUEUE_ID, event_batch
from headrace.testing.context import living, run
from headrace.testing.contract import skip
from headrace.testing.sink_bench import OTHER_QUEUE_ID, SinkBench, flush, key_of, write


class SinkAgain(SinkBench):
    """Resets, restarts, repetitions and errors."""

    def test_what_was_reset_is_stored_once_when_it_comes_again(self, tmp_path: Path) -> None:
        way = self._holding(tmp_path)
        first, second = event_batch(10, 1), event_batch(10, 11)
        again = [second] if way == "plan" else [event_batch(3, 11), event_batch(7, 14)]

        async def work(hook: Any) -> None:
            await write(hook, [first])
            await flush(hook, [first])
            await write(hook, [second])
            await hook.sink_reset()
            await hook.sink_reset()
            await write(hook, again)
            await flush(hook, again)

        self._with(tmp_path, work)
        self._check(tmp_path, [first, second])

    def test_what_was_never_flushed_is_stored_once_when_it_comes_again_after_a_restart(self, tmp_path: Path) -> None:
        way = self._holding(tmp_path)
        first, second = event_batch(10, 1), event_batch(10, 11)

        async def work(hook: Any) -> None:
            await write(hook, [first])
            await flush(hook, [first])
            await write(hook, [second])

        self._with(tmp_path, work)
        held = run(self._resume(tmp_path, QUEUE_ID)) if way == "resume" else 10
        assert held in (10, 20), f"expected sink_resume to say 10 (or 20, had close made the rest safe), got {held}"
        if held == 10:
            self._store(tmp_path, [second] if way == "plan" else [event_batch(4, 11), event_batch(6, 15)], flush_each=way == "plan")
        self._check(tmp_path, [first, second])

    def test_the_same_key_again_does_not_double(self, tmp_path: Path) -> None:
        if self._holding(tmp_path) != "plan":
            skip("the sink has sink_resume: the host never writes again what it holds")
        batches = [event_batch(10, 1), event_batch(10, 11)]
        self._store(tmp_path, batches, flush_each=True)
        self._store(tmp_path, batches[1:], flush_each=True)

        async def work(hook: Any) -> None:
            for _ in range(2):
                await write(hook, batches[1:])
                await flush(hook, batches[1:])

        self._with(tmp_path, work)
        self._check(tmp_path, batches)

    def test_the_same_events_in_other_bounds_do_not_double(self, tmp_path: Path) -> None:
        self._holding(tmp_path)
        if type(self.make(self.context(tmp_path))).idempotence != "event":
            skip('idempotence is not "event"')
        self._store(tmp_path, [event_batch(20, 1)], flush_each=True)
        again = [event_batch(7, 1), event_batch(23, 8)]
        self._store(tmp_path, again, flush_each=True)
        self._check(tmp_path, again)

    def test_resume_is_the_contiguous_prefix_that_is_flushed(self, tmp_path: Path) -> None:
        if self._holding(tmp_path) != "resume":
            skip("the sink has no sink_resume")

        async def work(hook: Any) -> None:
            assert await hook.sink_resume(queue_id=QUEUE_ID) is None, "expected None before anything was written"
            await write(hook, [event_batch(10, 1)])
            await flush(hook, [event_batch(10, 1)])
            assert await hook.sink_resume(queue_id=QUEUE_ID) == 10
            assert await hook.sink_resume(queue_id=OTHER_QUEUE_ID) is None, "expected None for a queue that the store has never seen"
            await write(hook, [event_batch(5, 11)])
            await hook.sink_reset()
            held = await hook.sink_resume(queue_id=QUEUE_ID)
            assert held == 10, f"expected sink_resume to leave out what was reset, got {held}"

        self._with(tmp_path, work)
        self._expect_resume(tmp_path, QUEUE_ID, 10)

    def test_resume_tells_queues_apart(self, tmp_path: Path) -> None:
        if self._holding(tmp_path) != "resume":
            skip("the sink has no sink_resume")
        self._store(tmp_path, [event_batch(10, 1)], flush_each=True)
        later = event_batch(5, 11, origin=OTHER_QUEUE_ID)
        self._store(tmp_path, [later], flush_each=True, keys=[RangeKey(OTHER_QUEUE_ID, 11, 15)])
        self._expect_resume(tmp_path, QUEUE_ID, 10)
        self._expect_resume(tmp_path, OTHER_QUEUE_ID, 15)

    def test_a_broken_store_is_a_transient_error_and_nothing_is_lost(self, tmp_path: Path) -> None:
        way = self._holding(tmp_path)
        context = self.context(tmp_path)
        first, second, third = event_batch(10, 1), event_batch(10, 11), event_batch(10, 21)

        async def check() -> None:
            async with living(self.make(context), "output") as hook:
                await write(hook, [first])
                await flush(hook, [first])
                self.break_store(context)
                for _ in range(2):
                    try:
                        await write(hook, [second])
                        await flush(hook, [second])
                    except TransientError:
                        pass
                    else:
                        raise AssertionError(
                            "expected TransientError from sink_write or sink_flush while the store is broken, got none"
                            "; either the sink promises what it did not do, or break_store does not break a store that is open"
                        )
                    with contextlib.suppress(TransientError):  # the host would restart the component; here it heals first
                        await hook.sink_reset()
                self.heal_store(context)
                await hook.sink_reset()
                again = [second] if way == "plan" else [event_batch(4, 11), event_batch(6, 15)]
                await write(hook, again)
                await flush(hook, again)
                await write(hook, [third])
                await flush(hook, [third])

        run(check())
        self._check(tmp_path, [first, second, third])

    def test_refused_rows_are_named_and_the_others_are_stored_without_them(self, tmp_path: Path) -> None:
        self._holding(tmp_path)
        context = self.context(tmp_path)
        batch, bad = self.refused(context)
        key = key_of(batch)
        good = [row for row in range(batch.num_rows) if row not in bad]
        kept = batch.take(pa.array(good))
        rest = key._replace(dead=tuple(batch.column("position")[row].as_py() for row in bad))

        async def work(hook: Any) -> None:
            try:
                await hook.sink_write(batch=batch, key=key)
                await hook.sink_flush(key=key)
            except PermanentError as error:
                named = error.rows
            else:
                raise AssertionError(f"expected PermanentError for the rows {bad}, got none")
            assert named in ({}, {str(key): bad}), f"expected PermanentError to name no rows, or { ({str(key): bad}) }, got {named}"
            await hook.sink_reset()
            await hook.sink_write(batch=kept, key=rest)
            await hook.sink_flush(key=rest)

        self._with(tmp_path, work)
        self._check(tmp_path, [kept])
