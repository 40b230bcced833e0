"""Queues: whose events are whose. Ids, origins, and the facts."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np

from headrace.hookspecs import QueueInfo
from headrace.position import NO_ORIGINS, ORIGIN_SESSION, Origin, OriginMark, origin_batch, row_names, rows_origin
from headrace.scattered import Scattered
from headrace.testing.batches import raw_batch
from headrace.testing.queue_bench import QueueBench, append, batch_of, read_next, read_rows, reader_of
from headrace.testing.queue_driver import ORIGIN


class QueueIdentity(QueueBench):
    """Queue ids, origins and marks."""

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
            rows = await read_rows(hook, "r", 3, 8)
            assert [json.loads(row["payload"])["n"] for row in rows] == [103, 104, 105, 106, 107]
            assert (await hook.queue_origin_position(origin="a"), await hook.queue_origin_position(origin="b")) == (5, 3)

        self._with(tmp_path, check)

    def test_scattered_rows_of_an_origin_are_dropped_by_their_positions(self, tmp_path: Path) -> None:
        def of(first: int, last: int, *positions: int) -> Any:
            return origin_batch([rows_origin(ORIGIN, first, last, 0, Scattered(np.array(positions, np.uint64)))])

        async def check(hook: Any) -> None:
            await hook.queue_reader_open(reader="r", start="oldest")
            await hook.queue_append(batch=raw_batch(3, 1), origins=of(1, 10, 2, 3, 7))
            answer = await hook.queue_append(batch=raw_batch(4, 101), origins=of(1, 20, 3, 7, 12, 15))
            assert tuple(answer) == (4, 5), f"expected the rows at 12 and 15 as 4-5, for up to 10 all is held, got {answer}"
            answer = await hook.queue_append(batch=raw_batch(0), origins=of(15, 30))
            assert tuple(answer) == (6, 5), f"expected no row, got {answer}"
            mark = await hook.queue_origin_position(origin=ORIGIN)
            assert mark == 30, f"expected 30: what is on other lanes counts as held too, got {mark}"
            rows, names = [], []
            for after in range(5):
                read = await read_next(hook, "r", after, rows_max=1)
                rows.append(json.loads(batch_of(read).column("payload")[0].as_py())["n"])
                names.append(int(row_names("own", np.array([after + 1], np.uint64), read.origins).numbers[0]))
            assert rows == [1, 2, 3, 103, 104], f"got {rows}"
            assert names == [2, 3, 7, 12, 15], f"expected each row under its own position, wherever the read begins, got {names}"

        self._with(tmp_path, check)

    def test_the_mark_of_a_session_has_the_note_of_its_last_messages(self, tmp_path: Path) -> None:
        def part(first: int, last: int, note: bytes | None) -> Any:
            return origin_batch([Origin("device/session", first, last, 0, ORIGIN_SESSION, note)])

        async def first_life(hook: Any) -> None:
            assert await hook.queue_origin_mark(origin="device/session") is None
            appends = [
                hook.queue_append(batch=raw_batch(3, 1), origins=part(1, 3, b"2: refused")),
                hook.queue_append(batch=raw_batch(2, 4), origins=part(4, 5, b"2, 4: refused")),
            ]
            mark, *_ = await asyncio.gather(hook.queue_origin_mark(origin="device/session"), *appends)
            assert mark in (None, OriginMark(3, b"2: refused"), OriginMark(5, b"2, 4: refused"))
            assert await hook.queue_origin_mark(origin="device/session") == OriginMark(5, b"2, 4: refused")
            head = hook.queue_info().head
            # all messages of a batch may have been refused
            assert tuple(await hook.queue_append(batch=raw_batch(0), origins=part(6, 6, b"6: refused"))) == (head + 1, head)
            assert await hook.queue_origin_position(origin="device/session") == 6

        async def second_life(hook: Any) -> None:
            mark = await hook.queue_origin_mark(origin="device/session")
            assert mark == OriginMark(6, b"6: refused"), f"the session's mark did not survive the restart: {mark}"
            await hook.queue_append(batch=raw_batch(1, 7), origins=part(7, 7, None))
            assert await hook.queue_origin_mark(origin="device/session") == OriginMark(7, None)

        self._with(tmp_path, first_life)
        self._with(tmp_path, second_life)

    def test_the_marks_of_origins_that_are_over_are_dropped(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            both = origin_batch([Origin("a", 1, 3, 0), Origin("b", 1, 3, 3)])
            await hook.queue_append(batch=raw_batch(6, 1), origins=both)
            await hook.queue_origin_forget(origins=["a", "nobody"])
            assert await hook.queue_origin_mark(origin="a") is None
            assert await hook.queue_origin_mark(origin="b") == OriginMark(3, None), "the mark of another origin went with it"

        self._with(tmp_path, check)

    def test_info_tells_the_facts_from_any_thread(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            await hook.queue_reader_open(reader="r", start="oldest")
            await append(hook, raw_batch(10))
            await hook.queue_release(reader="r", upto=4)
            info: QueueInfo = await asyncio.to_thread(hook.queue_info)
            assert info.level in ("process", "power")
            assert info.head == 10, f"got {info}"
            assert 1 <= info.tail <= 5, f"expected what is held to begin at 5, or at the start of its entry, got {info.tail}"
            assert 6 <= info.size_events <= 10, f"got {info}"
            assert 0 < info.size_bytes <= info.size_bytes_max
            assert info.oldest_event_s is not None
            assert (reader_of(info, "r").lag_events, reader_of(info, "r").cursor) == (6, 4)
            assert info.medium
            assert info.method

        self._with(tmp_path, check)
