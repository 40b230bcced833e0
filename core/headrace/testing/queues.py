"""The contract of queues: durable on return, in the order of the calls, and nothing forgotten that a reader still needs."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Final

import pyarrow as pa

from headrace.errors import QueueFull
from headrace.hookspecs import Plan, QueueInfo, QueueRead, ReaderInfo
from headrace.position import NO_ORIGINS, Origin, origin_batch, origins_of
from headrace.schema import RAW_SCHEMA
from headrace.testing.batches import event_batch, raw_batch
from headrace.testing.context import living, run
from headrace.testing.contract import Contract, skip
from headrace.testing.crash import Nursery, kill_at_random, rounds, test_seed
from headrace.testing.journal import Journal
from headrace.testing.queue_driver import ORIGIN, READER, QueueDriver

#: How long a read that must not return is waited for.
QUIET_S: Final = 0.05
#: A release may become durable a second late: the points on that way take as long to reach.
LAZY_S: Final = 1.5


class QueueContract(Contract):
    """Subclass it as `TestMyQueue`, with `make(context)` of a small queue: a few MiB, so that the tests can fill it."""

    role = "queue"
    #: Crashes at random moments in one test.
    crash_rounds: ClassVar[int] = 10
    #: Declared fault points that 4,000 events need not pass.
    fault_points_rare: ClassVar[frozenset[str]] = frozenset()
    #: Payload bytes of one batch in the tests that fill the queue, and how many such batches must be too many.
    fill_batch_bytes: ClassVar[int] = 64 * 1024
    fill_batches_max: ClassVar[int] = 2_000

    # --- positions ---------------------------------------------------------------------------------------------------

    def test_positions_count_events_without_a_hole_in_the_order_of_the_calls(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            calls = [hook.queue_append(batch=raw_batch(count), origins=NO_ORIGINS) for count in (3, 1, 10, 2, 1)]
            answers = [tuple(answer) for answer in await asyncio.gather(*calls)]
            assert answers == [(1, 3), (4, 4), (5, 14), (15, 16), (17, 17)], f"expected positions in the order of the calls, got {answers}"
            assert hook.queue_info().head == 17

        self._with(tmp_path, check)

    def test_what_is_read_is_what_was_appended(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            batches = [raw_batch(5, 1), raw_batch(1, 6, devices=["水路 🌊"]), raw_batch(700, 7), raw_batch(2, 707, payload_bytes=100_000)]
            await hook.queue_reader_open(reader="r", start="oldest")
            await _append(hook, *batches)
            assert await _read_rows(hook, "r", 0, 708) == [row for batch in batches for row in batch.to_pylist()]
            read = await _read(hook, "r", 0)
            assert _batch(read).schema.equals(RAW_SCHEMA, check_metadata=True), (
                f"expected RAW_SCHEMA with its metadata, got {_batch(read).schema}"
            )
            assert read.queue_id == hook.queue_info().queue_id

        self._with(tmp_path, check)

    def test_event_batches_and_slices_pass_through(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            batches = [
                event_batch(5),
                raw_batch(30, 100).slice(10, 5),
                event_batch(3, 20, readings={"t": [1.0, None, 2.0]}, context={"s": ["a"] * 3}),
            ]
            await hook.queue_reader_open(reader="r", start="oldest")
            await _append(hook, *batches)
            position = 0
            for batch in batches:
                rows: list[Any] = []
                while len(rows) < batch.num_rows:
                    read = await _read(hook, "r", position, rows_max=batch.num_rows - len(rows))
                    assert _batch(read).schema.equals(batch.schema, check_metadata=True), (
                        f"expected {batch.schema}, got {_batch(read).schema}"
                    )
                    rows += _batch(read).to_pylist()
                    position = read.last
                assert rows == batch.to_pylist()

        self._with(tmp_path, check)

    def test_a_read_starts_at_any_position_and_keeps_its_bounds(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            await hook.queue_reader_open(reader="r", start="oldest")
            await _append(hook, *(raw_batch(10, first) for first in range(1, 101, 10)))
            for after in (0, 1, 9, 10, 55, 99):
                read = await _read(hook, "r", after, rows_max=25)
                assert (read.first, read.last) == (after + 1, after + _batch(read).num_rows), (
                    f"expected {after + 1}..., got {read.first}-{read.last}"
                )
                assert _numbers(read) == list(range(after + 1, read.last + 1))
                assert 1 <= _batch(read).num_rows <= 34, f"expected about 25 rows (whole entries may be given), got {_batch(read).num_rows}"
                tiny = await _read(hook, "r", after, rows_max=1, bytes_max=1)
                assert _batch(tiny).num_rows >= 1, "expected at least one row, whatever the bounds"
            again = await _read(hook, "r", 0, rows_max=25)
            assert again.first == 1, "a read moved the cursor"
            joined = await _read(hook, "r", 0, rows_max=1000)
            assert _batch(joined).num_rows > 10, f"expected small entries to be joined, got {_batch(joined).num_rows} rows of 100"

        self._with(tmp_path, check)

    def test_origins_come_back_with_their_rows(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            origins = origin_batch([Origin("a", 101, 103, 0), Origin("b/7", 5, 6, 3, note=b"x")])
            await hook.queue_reader_open(reader="r", start="oldest")
            await hook.queue_append(batch=raw_batch(5), origins=origins)
            await _append(hook, raw_batch(2, 6))
            read = await _read(hook, "r", 0, rows_max=5)
            found = {origin.id: origin for origin in origins_of(read.origins)}
            assert found["a"][:4] == ("a", 101, 103, 0), f"got {found}"
            assert found["b/7"] == Origin("b/7", 5, 6, 3, note=b"x"), f"got {found}"

        self._with(tmp_path, check)

    # --- waiting -----------------------------------------------------------------------------------------------------

    def test_a_read_waits_for_the_next_append(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            await hook.queue_reader_open(reader="r", start="oldest")
            for position in (0, 3):
                reading = asyncio.create_task(_read(hook, "r", position))
                assert not (await asyncio.wait((reading,), timeout=QUIET_S))[0], "a read returned though there was nothing to read"
                await _append(hook, raw_batch(3, position + 1))
                assert _numbers(await asyncio.wait_for(reading, 5)) == [position + 1, position + 2, position + 3]

        self._with(tmp_path, check)

    def test_a_cancelled_read_loses_nothing(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            await hook.queue_reader_open(reader="r", start="oldest")
            for turn in range(5):
                reading = asyncio.create_task(_read(hook, "r", 2 * turn))
                for _ in range(turn):
                    await asyncio.sleep(0)
                if turn % 2:
                    await _append(hook, raw_batch(2, 2 * turn + 1))
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
                if not turn % 2:
                    await _append(hook, raw_batch(2, 2 * turn + 1))
                assert _numbers(await _read(hook, "r", 2 * turn)) == [2 * turn + 1, 2 * turn + 2]

        self._with(tmp_path, check)

    def test_a_cancelled_append_is_there_whole_or_not_at_all(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            await hook.queue_reader_open(reader="r", start="oldest")
            for turn in range(6):
                appending = asyncio.create_task(hook.queue_append(batch=raw_batch(4, 100 * turn + 1), origins=NO_ORIGINS))
                for _ in range(turn):
                    await asyncio.sleep(0)
                appending.cancel()
                await asyncio.gather(appending, return_exceptions=True)
                await _append(hook, raw_batch(1, 100 * turn + 99))
            head = hook.queue_info().head
            numbers = [json.loads(row["payload"])["n"] for row in await _read_rows(hook, "r", 0, head)]
            assert len(numbers) == head, f"expected {head} events, got {len(numbers)}"
            for turn in range(6):
                part = [number for number in numbers if number // 100 == turn]
                whole = [100 * turn + index for index in (1, 2, 3, 4, 99)]
                assert part in (whole, whole[-1:]), f"turn {turn}: expected the cancelled batch whole or not at all, got {part}"

        self._with(tmp_path, check)

    def test_a_reader_on_another_loop_is_woken(self, tmp_path: Path) -> None:
        """Sources append on one loop, outputs read on another, in another thread."""

        async def check(hook: Any) -> None:
            started, numbers = threading.Event(), list[int]()

            async def follow() -> None:
                await hook.queue_reader_open(reader="r", start="oldest")
                started.set()
                position = 0
                while position < 60:
                    read = await asyncio.wait_for(_read(hook, "r", position), 10)
                    numbers.extend(_numbers(read))
                    position = read.last
                    await hook.queue_release(reader="r", upto=position)

            thread = asyncio.create_task(asyncio.to_thread(asyncio.run, follow()))
            await asyncio.to_thread(started.wait, 10)
            for first in range(1, 61, 3):
                await _append(hook, raw_batch(3, first))
                await asyncio.sleep(0.001)
            await thread
            assert numbers == list(range(1, 61))

        self._with(tmp_path, check)

    # --- readers -----------------------------------------------------------------------------------------------------

    def test_readers_start_where_they_are_told(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            oldest = await hook.queue_reader_open(reader="oldest", start="oldest")
            await _append(hook, raw_batch(10))
            await hook.queue_release(reader="oldest", upto=4)
            head = await hook.queue_reader_open(reader="head", start="head")
            after = await hook.queue_reader_open(reader="after", start="after:oldest")
            assert (oldest.cursor, head.cursor, after.cursor) == (0, 10, 4)
            assert _numbers(await _read(hook, "after", after.cursor)) == [5, 6, 7, 8, 9, 10]
            again = await hook.queue_reader_open(reader="head", start="oldest")
            assert again.cursor == 10, "`start` must count only for a reader that is new"
            assert {reader.name for reader in hook.queue_info().readers} == {"oldest", "head", "after"}

        self._with(tmp_path, check)

    def test_release_is_repeatable_and_never_moves_back(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            await hook.queue_reader_open(reader="r", start="oldest")
            await _append(hook, raw_batch(10))
            for upto, cursor in ((3, 3), (3, 3), (1, 3), (7, 7), (0, 7), (7, 7)):
                await hook.queue_release(reader="r", upto=upto)
                came = _reader(hook.queue_info(), "r").cursor
                assert came == cursor, f"after release({upto}): expected the cursor at {cursor}, got {came}"

        self._with(tmp_path, check)

    def test_cursors_and_plans_survive_a_restart(self, tmp_path: Path) -> None:
        plan = Plan(5, 9, 2, (6, 8))

        async def before(hook: Any) -> None:
            await hook.queue_reader_open(reader="r", start="oldest")
            await hook.queue_reader_open(reader="s", start="oldest")
            await _append(hook, raw_batch(10))
            await hook.queue_release(reader="r", upto=4)
            await hook.queue_plan(reader="r", plan=Plan(5, 6, 1))
            await hook.queue_plan(reader="r", plan=plan)
            await hook.queue_plan(reader="s", plan=Plan(1, 2, 1))
            await hook.queue_plan(reader="s", plan=None)

        async def after(hook: Any) -> None:
            first, second = await hook.queue_reader_open(reader="r", start="head"), await hook.queue_reader_open(reader="s", start="head")
            assert (first.cursor, first.plan) == (4, plan), f"expected cursor 4 and {plan}, got {first}"
            assert (second.cursor, second.plan) == (0, None), f"expected cursor 0 and no plan, got {second}"
            assert _numbers(await _read(hook, "r", 4)) == [5, 6, 7, 8, 9, 10]

        self._with(tmp_path, before)
        self._with(tmp_path, after)

    def test_a_dropped_reader_holds_nothing(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            await hook.queue_reader_open(reader="stuck", start="oldest")
            await hook.queue_reader_open(reader="r", start="oldest")
            await _append(hook, raw_batch(10))
            await hook.queue_release(reader="r", upto=10)
            assert hook.queue_info().size_events == 10, "expected the slowest reader to hold its events"
            await hook.queue_reader_drop(reader="stuck")
            await hook.queue_reader_drop(reader="stuck")
            await hook.queue_reader_drop(reader="nobody")
            assert hook.queue_info().size_events == 0, f"expected nothing to be held any more, got {hook.queue_info().size_events} events"
            assert [reader.name for reader in hook.queue_info().readers] == ["r"]

        self._with(tmp_path, check)
        self._with(tmp_path, self._expect_readers(["r"]))

    # --- full --------------------------------------------------------------------------------------------------------

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
                read = await _read(hook, "r", position, rows_max=64)
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
            await _append(hook, self._big(1), self._big(2), self._big(3))
            held: list[tuple[QueueRead, list[Any]]] = []
            appended = position = 0
            while position < 3:
                read = await _read(hook, "r", position, rows_max=1)
                held.append((read, json.loads(json.dumps(_batch(read).to_pylist(), default=str))))
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
                assert json.loads(json.dumps(_batch(read).to_pylist(), default=str)) == before, "a held batch changed under its reader"
            held.clear()
            del read
            gc.collect()
            await self._append_when_there_is_room(hook, self._big(1))

        self._with(tmp_path, check)

    # --- identity ----------------------------------------------------------------------------------------------------

    def test_every_open_takes_a_new_id_at_its_first_append(self, tmp_path: Path) -> None:
        ids: list[str] = []

        async def one_life(hook: Any) -> None:
            head = hook.queue_info().head
            assert hook.queue_info().queue_id is None, "expected no queue id before the first append of this open"
            assert head == 10 * len(ids), f"expected the numbering to continue at {10 * len(ids)}, got {head}"
            await hook.queue_reader_open(reader="r", start="oldest")
            first, last = await hook.queue_append(batch=raw_batch(10, head + 1), origins=NO_ORIGINS)
            assert (first, last) == (head + 1, head + 10)
            ids.append(hook.queue_info().queue_id)
            assert len(set(ids)) == len(ids), f"a queue id was used again: {ids}"

        for _ in range(3):
            self._with(tmp_path, one_life)
        self._with(tmp_path, self._expect_ids(ids))

    def test_origins_that_were_held_are_dropped(self, tmp_path: Path) -> None:
        async def first_life(hook: Any) -> None:
            await hook.queue_reader_open(reader="r", start="oldest")
            assert await hook.queue_origin_position(origin=ORIGIN) is None
            calls = [(1, 10), (1, 10), (6, 15), (3, 5), (16, 20)]
            answers = await asyncio.gather(*(self._append_origin(hook, first, last) for first, last in calls))
            assert answers == [(1, 10), (11, 10), (11, 15), (16, 15), (16, 20)], f"got {answers}"
            assert await hook.queue_origin_position(origin=ORIGIN) == 20
            assert await self._origin_numbers(hook, 20) == list(range(1, 21))

        async def second_life(hook: Any) -> None:
            assert await hook.queue_origin_position(origin=ORIGIN) == 20, "the origin's mark did not survive the restart"
            assert await self._append_origin(hook, 15, 22) == (21, 22)
            assert await self._origin_numbers(hook, 22) == list(range(1, 23))

        self._with(tmp_path, first_life)
        self._with(tmp_path, second_life)

    def test_the_rows_of_several_origins_are_dropped_each_by_its_own_mark(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            await hook.queue_reader_open(reader="r", start="oldest")
            await hook.queue_append(batch=raw_batch(3, 1), origins=origin_batch([Origin("a", 1, 3)]))
            both = origin_batch([Origin("a", 2, 5, 0), Origin("b", 1, 3, 4)])
            answer = await hook.queue_append(batch=raw_batch(7, 101), origins=both)
            assert tuple(answer) == (4, 8), f"expected the two events of `a` that were new and three of `b` as 4-8, got {answer}"
            rows = await _read_rows(hook, "r", 3, 8)
            assert [json.loads(row["payload"])["n"] for row in rows] == [103, 104, 105, 106, 107]
            assert (await hook.queue_origin_position(origin="a"), await hook.queue_origin_position(origin="b")) == (5, 3)

        self._with(tmp_path, check)

    def test_info_tells_the_facts_from_any_thread(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            await hook.queue_reader_open(reader="r", start="oldest")
            await _append(hook, raw_batch(10))
            await hook.queue_release(reader="r", upto=4)
            info: QueueInfo = await asyncio.to_thread(hook.queue_info)
            assert info.level in ("process", "power")
            assert info.head == 10, f"got {info}"
            assert 1 <= info.tail <= 5, f"expected what is held to begin at 5, or at the start of its entry, got {info.tail}"
            assert 6 <= info.size_events <= 10, f"got {info}"
            assert 0 < info.size_bytes <= info.size_bytes_max
            assert info.oldest_event_s is not None
            assert (_reader(info, "r").lag_events, _reader(info, "r").cursor) == (6, 4)
            assert info.medium
            assert info.method

        self._with(tmp_path, check)

    # --- crashes -----------------------------------------------------------------------------------------------------

    def test_kill_9_at_random_moments_keeps_what_was_acked(self, tmp_path: Path) -> None:
        seed = test_seed()
        rng, journal, killed = Random(seed), Journal(tmp_path / "journal"), 0
        with Nursery(self, tmp_path) as nursery:
            for _ in range(rounds(self.crash_rounds)):
                child = nursery.start(folder=str(tmp_path), seed=rng.getrandbits(32), goal=10_000_000)
                killed += kill_at_random(child, journal, rng, lines_max=200)
                assert child.exit_code == -signal.SIGKILL, f"seed {seed}: the process ended by itself:\n{child.log()}"
                self._check_after_crash(tmp_path, journal, seed)
        assert killed
        print(f"{killed} crashes, {sum(note.last - note.first + 1 for note in journal.notes() if note.kind == 'acked')} events acked")

    def test_kill_9_at_every_fault_point_keeps_what_was_acked(self, tmp_path: Path) -> None:
        points = type(self.make(self.context(tmp_path))).fault_points
        if not points:
            skip("the plugin declares no fault points")
        seed = test_seed()
        rng = Random(seed)
        with Nursery(self, tmp_path) as nursery:
            for point in points:
                folder = tmp_path / point.replace("/", "_")
                folder.mkdir()
                journal, killed = Journal(folder / "journal"), 0
                for hit in (1, 1, rng.randint(2, 4)):
                    goal = max((note.last for note in journal.notes() if note.kind == "sent"), default=0) + 4000
                    child = nursery.start(
                        folder=str(folder), seed=rng.getrandbits(32), goal=goal, seconds_min=LAZY_S, faults=f"{point}=kill@{hit}"
                    )
                    code = child.wait()
                    assert code in (0, -signal.SIGKILL), f"seed {seed}, {point}: the process ended with {code}:\n{child.log()}"
                    killed += code == -signal.SIGKILL
                    self._check_after_crash(folder, journal, seed)
                assert killed or point in self.fault_points_rare, f"fault point {point!r} was never passed in 4,000 events"

    def child(self, request: dict[str, Any]) -> None:
        """What the forked process does: append and release until it is killed or has reached the goal."""
        folder = Path(request["folder"])
        context = self.context(folder, seed=request["seed"], faults=request.get("faults", ""))
        driver = QueueDriver(self.make(context), Journal(folder / "journal"), request["seed"])
        run(driver.run(request["goal"], request.get("seconds_min", 0.0)), timeout_s=600)

    def _check_after_crash(self, folder: Path, journal: Journal, seed: int) -> None:
        notes = journal.notes()
        acked = [note for note in notes if note.kind == "acked"]
        places = {note.last: note.first for note in notes if note.kind == "at"}
        asked = max((note.first for note in notes if note.kind == "release"), default=0)
        mark = max((note.first for note in notes if note.kind == "mark"), default=0)
        sent = max((note.last for note in notes if note.kind == "sent"), default=0)

        async def check(hook: Any) -> None:
            reader = await hook.queue_reader_open(reader=READER, start="oldest")
            assert reader.cursor <= asked, f"seed {seed}: cursor {reader.cursor} is newer than the last release, {asked}"
            info: QueueInfo = hook.queue_info()
            at: dict[int, int] = {}
            seen: set[int] = set()
            position = reader.cursor
            while position < info.head:
                read = await _read(hook, READER, position)
                assert not read.missing, f"seed {seed}: positions are missing after kill -9: {read.missing}"
                assert read.first == position + 1, f"seed {seed}: a hole before {read.first}, behind {position}"
                for offset, number in enumerate(_numbers(read)):
                    assert number <= sent, f"seed {seed}: event {number} was never sent"
                    assert number not in seen, f"seed {seed}: event {number} stands twice, at {at[number]} and {read.first + offset}"
                    seen.add(number)
                    at[number] = read.first + offset
                position = read.last
            for note in acked:
                start = places.get(note.first)
                if start is None:
                    continue  # killed between two notes
                for number in range(note.first, note.last + 1):
                    place = start + number - note.first
                    if place > reader.cursor:
                        came = at.get(number)
                        assert came == place, (
                            f"seed {seed}: event {number} was acked at {place}, found {'nowhere' if came is None else f'at {came}'}"
                        )
            held = await hook.queue_origin_position(origin=ORIGIN)
            assert (held or 0) >= mark, f"seed {seed}: the origin's mark is {held}, events up to {mark} were acked"

        self._with(folder, check)

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _with(self, tmp_path: Path, check: Any) -> None:
        async def work() -> None:
            async with living(self.make(self.context(tmp_path)), self.role) as hook:
                await check(hook)

        run(work())

    def _big(self, number: int) -> pa.RecordBatch:
        return raw_batch(1, number, payload_bytes=self.fill_batch_bytes)

    def _capacity_batches(self, info: QueueInfo) -> int:
        return min(self.fill_batches_max, info.size_bytes_max // self.fill_batch_bytes + 2)

    async def _fill(self, hook: Any) -> int:
        for number in range(1, self.fill_batches_max + 1):
            try:
                await hook.queue_append(batch=self._big(number), origins=NO_ORIGINS)
            except QueueFull:
                assert number > 1, "expected room for at least one batch"
                return number - 1
        raise AssertionError(
            f"expected QueueFull within {self.fill_batches_max} batches of {self.fill_batch_bytes} bytes; make() a smaller queue"
        )

    async def _append_when_there_is_room(self, hook: Any, batch: pa.RecordBatch) -> tuple[int, int]:
        """Space may come back a little after the release (it has to be durable first)."""
        for _ in range(200):
            try:
                first, last = await hook.queue_append(batch=batch, origins=NO_ORIGINS)
                return first, last
            except QueueFull:
                await asyncio.sleep(0.01)
        raise AssertionError("expected room within 2 s after everything was released, still QueueFull")

    async def _append_origin(self, hook: Any, first: int, last: int) -> tuple[int, int]:
        answer = await hook.queue_append(batch=raw_batch(last - first + 1, first), origins=origin_batch([Origin(ORIGIN, first, last)]))
        return answer[0], answer[1]

    async def _origin_numbers(self, hook: Any, last: int) -> list[int]:
        rows = await _read_rows(hook, "r", 0, last)
        return [json.loads(row["payload"])["n"] for row in rows]

    @staticmethod
    def _expect_readers(names: list[str]) -> Any:
        async def check(hook: Any) -> None:
            assert [reader.name for reader in hook.queue_info().readers] == names

        return check

    @staticmethod
    def _expect_ids(ids: list[str]) -> Any:
        """Every span under its own id, and no read across two of them."""

        async def check(hook: Any) -> None:
            spans = [(span.queue_id, span.first) for span in hook.queue_info().spans]
            assert spans == [(queue_id, 1 + 10 * index) for index, queue_id in enumerate(ids)], f"got {hook.queue_info().spans}"
            await hook.queue_reader_open(reader="r", start="oldest")
            position = 0
            while position < 10 * len(ids):
                read = await _read(hook, "r", position)
                assert (read.first - 1) // 10 == (read.last - 1) // 10, f"the read {read.first}-{read.last} spans two queue ids"
                assert read.queue_id == ids[(read.first - 1) // 10]
                position = read.last

        return check


async def _append(hook: Any, *batches: pa.RecordBatch) -> None:
    for batch in batches:
        await hook.queue_append(batch=batch, origins=NO_ORIGINS)


async def _read(hook: Any, reader: str, after: int, rows_max: int = 10_000, bytes_max: int = 1 << 24) -> QueueRead:
    read: QueueRead = await asyncio.wait_for(hook.queue_read(reader=reader, after=after, rows_max=rows_max, bytes_max=bytes_max), 20)
    return read


async def _read_rows(hook: Any, reader: str, after: int, last: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    while after < last:
        read = await _read(hook, reader, after)
        assert read.first == after + 1, f"expected a read from {after + 1}, got {read.first}-{read.last}"
        rows += _batch(read).to_pylist()
        after = read.last
    return rows


def _batch(read: QueueRead) -> pa.RecordBatch:
    assert read.batch is not None, f"expected rows, all of {read.first}-{read.last} is missing: {read.missing}"
    return read.batch


def _numbers(read: QueueRead) -> list[int]:
    return [json.loads(payload)["n"] for payload in read.batch.column("payload").to_pylist()] if read.batch is not None else []


def _reader(info: QueueInfo, name: str) -> ReaderInfo:
    found: Sequence[ReaderInfo] = [reader for reader in info.readers if reader.name == name]
    assert len(found) == 1, f"expected one reader {name!r}, got {info.readers}"
    return found[0]
