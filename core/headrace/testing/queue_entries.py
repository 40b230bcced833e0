"""Queues: what is appended is what is read, in order, and reads wait."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any, Final

from headrace.position import NO_ORIGINS, Origin, origin_batch, origins_of
from headrace.schema import RAW_SCHEMA
from headrace.testing.batches import event_batch, raw_batch
from headrace.testing.queue_bench import QueueBench, append, batch_of, numbers_of, read_next, read_rows

#: How long a read that must not return is waited for.
QUIET_S: Final = 0.05


class QueueEntries(QueueBench):
    """Appending and reading."""

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
            await append(hook, *batches)
            assert await read_rows(hook, "r", 0, 708) == [row for batch in batches for row in batch.to_pylist()]
            read = await read_next(hook, "r", 0)
            assert batch_of(read).schema.equals(RAW_SCHEMA, check_metadata=True), (
                f"expected RAW_SCHEMA with its metadata, got {batch_of(read).schema}"
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
            await append(hook, *batches)
            position = 0
            for batch in batches:
                rows: list[Any] = []
                while len(rows) < batch.num_rows:
                    read = await read_next(hook, "r", position, rows_max=batch.num_rows - len(rows))
                    assert batch_of(read).schema.equals(batch.schema, check_metadata=True), (
                        f"expected {batch.schema}, got {batch_of(read).schema}"
                    )
                    rows += batch_of(read).to_pylist()
                    position = read.last
                assert rows == batch.to_pylist()

        self._with(tmp_path, check)

    def test_a_read_starts_at_any_position_and_keeps_its_bounds(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            await hook.queue_reader_open(reader="r", start="oldest")
            await append(hook, *(raw_batch(10, first) for first in range(1, 101, 10)))
            for after in (0, 1, 9, 10, 55, 99):
                read = await read_next(hook, "r", after, rows_max=25)
                assert (read.first, read.last) == (after + 1, after + batch_of(read).num_rows), (
                    f"expected {after + 1}..., got {read.first}-{read.last}"
                )
                assert numbers_of(read) == list(range(after + 1, read.last + 1))
                assert 1 <= batch_of(read).num_rows <= 34, f"expected about 25 rows (entries stay whole), got {batch_of(read).num_rows}"
                tiny = await read_next(hook, "r", after, rows_max=1, bytes_max=1)
                assert batch_of(tiny).num_rows >= 1, "expected at least one row, whatever the bounds"
            again = await read_next(hook, "r", 0, rows_max=25)
            assert again.first == 1, "a read moved the cursor"
            joined = await read_next(hook, "r", 0, rows_max=1000)
            assert batch_of(joined).num_rows > 10, f"expected small entries to be joined, got {batch_of(joined).num_rows} rows of 100"

        self._with(tmp_path, check)

    def test_origins_come_back_with_their_rows(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            origins = origin_batch([Origin("a", 101, 103, 0), Origin("b/7", 5, 6, 3, note=b"x")])
            await hook.queue_reader_open(reader="r", start="oldest")
            await hook.queue_append(batch=raw_batch(5), origins=origins)
            await append(hook, raw_batch(2, 6))
            read = await read_next(hook, "r", 0, rows_max=5)
            found = {origin.id: origin for origin in origins_of(read.origins)}
            assert found["a"][:4] == ("a", 101, 103, 0), f"got {found}"
            assert found["b/7"] == Origin("b/7", 5, 6, 3, note=b"x"), f"got {found}"

        self._with(tmp_path, check)

    def test_a_read_waits_for_the_next_append(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            await hook.queue_reader_open(reader="r", start="oldest")
            for position in (0, 3):
                reading = asyncio.create_task(read_next(hook, "r", position))
                assert not (await asyncio.wait((reading,), timeout=QUIET_S))[0], "a read returned though there was nothing to read"
                await append(hook, raw_batch(3, position + 1))
                assert numbers_of(await asyncio.wait_for(reading, 5)) == [position + 1, position + 2, position + 3]

        self._with(tmp_path, check)

    def test_a_cancelled_read_loses_nothing(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            await hook.queue_reader_open(reader="r", start="oldest")
            for turn in range(5):
                reading = asyncio.create_task(read_next(hook, "r", 2 * turn))
                for _ in range(turn):
                    await asyncio.sleep(0)
                if turn % 2:
                    await append(hook, raw_batch(2, 2 * turn + 1))
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
                if not turn % 2:
                    await append(hook, raw_batch(2, 2 * turn + 1))
                assert numbers_of(await read_next(hook, "r", 2 * turn)) == [2 * turn + 1, 2 * turn + 2]

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
                await append(hook, raw_batch(1, 100 * turn + 99))
            head = hook.queue_info().head
            numbers = [json.loads(row["payload"])["n"] for row in await read_rows(hook, "r", 0, head)]
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
                    read = await asyncio.wait_for(read_next(hook, "r", position), 10)
                    numbers.extend(numbers_of(read))
                    position = read.last
                    await hook.queue_release(reader="r", upto=position)

            thread = asyncio.create_task(asyncio.to_thread(asyncio.run, follow()))
            await asyncio.to_thread(started.wait, 10)
            for first in range(1, 61, 3):
                await append(hook, raw_batch(3, first))
                await asyncio.sleep(0.001)
            await thread
            assert numbers == list(range(1, 61))

        self._with(tmp_path, check)
