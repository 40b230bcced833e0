"""The schedules of crashes and restores that break a naive queue, one test each. Torn tails, stale frames, re-sync, order of
durability and failed syncs are in the power-loss and failure tests, with mutants."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace import NO_ORIGINS, Missing, Origin, OriginMark, PermanentError, QueueFull, TransientError, origin_batch, origins_of
from headrace.position import ORIGIN_SESSION
from headrace_queue_pmem.upkeep import checkpoint, upkeep

sys.path.insert(0, str(Path(__file__).parent))
from conftest import MIB, numbers, rows, run


async def opened(make: Any, **options: Any) -> Any:
    queue = make(**options)
    await queue.open()
    await queue.queue_reader_open("lake", "oldest")
    return queue


def test_a_restored_snapshot_never_reuses_an_identity(make, flavour, tmp_path):
    async def body() -> None:
        path, snapshot = tmp_path / "queue", tmp_path / "snapshot"
        queue = await opened(make, **flavour)
        await queue.queue_append(rows(1, 3), NO_ORIGINS)
        await queue.close()
        shutil.copytree(path, snapshot)
        queue = await opened(make, **flavour)
        assert await queue.queue_append(rows(100, 3), NO_ORIGINS) == (4, 6)
        lost_id = queue.queue_info().queue_id
        await queue.close()
        shutil.rmtree(path)
        snapshot.rename(path)
        queue = await opened(make, **flavour)
        assert await queue.queue_append(rows(200, 3), NO_ORIGINS) == (4, 6)
        assert queue.queue_info().queue_id != lost_id
        assert lost_id not in {span.queue_id for span in queue.queue_info().spans}
        await queue.close()

    run(body())


def test_opens_without_an_append_take_no_queue_id(make, flavour):
    async def body() -> None:
        queue = await opened(make, **flavour)
        await queue.queue_append(rows(1, 3), NO_ORIGINS)
        await queue.close()
        for _ in range(3):
            queue = await opened(make, **flavour)
            await queue.close()
        queue = await opened(make, **flavour)
        assert len(queue.queue_info().spans) == 1
        assert queue.queue_info().queue_id is None
        await queue.close()

    run(body())


def test_a_hole_in_the_middle_is_declared_and_travels_between_the_rows(make, tmp_path):
    async def body() -> None:
        queue = await opened(make, medium="file")
        for first in (1, 11, 21):
            await queue.queue_append(rows(first, 10), origin_batch([Origin("up/0", first, first + 9)]))
        await queue.close()
        segment = next((tmp_path / "queue").glob("segment-*"))
        content = bytearray(segment.read_bytes())
        content[content.rindex(b" 15")] ^= 0xFF
        segment.write_bytes(content)
        queue = await opened(make, medium="file")
        assert queue.queue_info().head == 30
        part = await queue.queue_read("lake", 0, 100, 1 << 20)
        assert part.missing == (Missing(11, 20, "corrupt"),)
        assert (part.first, part.last, numbers(part.batch)) == (1, 30, [*range(1, 11), *range(21, 31)])
        assert origins_of(part.origins) == [Origin("up/0", 1, 10), Origin("up/0", 21, 30, 10)]
        part = await queue.queue_read("lake", 12, 100, 1 << 20)
        assert part.missing == (Missing(13, 20, "corrupt"),)
        assert await queue.queue_origin_position("up/0") == 30
        assert len(list((tmp_path / "queue" / "quarantine").glob("*.bin"))) == 1
        await queue.close()

    run(body())


def test_a_lost_head_costs_cursors_and_nothing_else(make, flavour, tmp_path):
    async def body() -> None:
        ids = []
        for life in range(3):
            queue = await opened(make, **flavour)
            await queue.queue_append(rows(10 * life + 1, 10), origin_batch([Origin("up/0", 10 * life + 1, 10 * life + 10)]))
            ids.append(queue.queue_info().queue_id)
            await queue.close()
        (tmp_path / "queue" / "head").unlink()
        queue = await opened(make, **flavour)
        info = queue.queue_info()
        assert [span.queue_id for span in info.spans] == ids
        assert (info.head, info.readers[0].cursor) == (30, 0)
        found: list[int] = []
        while len(found) < 30:
            found += numbers((await queue.queue_read("lake", len(found), 100, 1 << 20)).batch)
        assert found == list(range(1, 31))
        assert await queue.queue_append(rows(31, 1), origin_batch([Origin("up/0", 30, 30)])) == (31, 30)
        await queue.close()

    run(body())


def test_cursors_beyond_a_lost_tail_are_never_passed_by_new_events(make, tmp_path):
    """A volume came back without the newest segment: what was released stays released, new events come behind it."""

    async def body() -> None:
        queue = await opened(make, medium="file")
        await queue.queue_append(rows(1, 10), NO_ORIGINS)
        await queue.queue_release("lake", 8)
        await queue.close()
        for segment in (tmp_path / "queue").glob("segment-*"):
            segment.unlink()
        queue = await opened(make, medium="file")
        assert await queue.queue_append(rows(100, 2), NO_ORIGINS) == (11, 12)
        part = await queue.queue_read("lake", 8, 100, 1 << 20)
        assert part.missing[0].first == 9
        position = part.last
        if position < 12:
            part = await queue.queue_read("lake", position, 100, 1 << 20)
        assert numbers(part.batch) == [100, 101]
        await queue.close()

    run(body())


def test_nothing_is_appended_to_a_sealed_segment_when_the_newest_file_is_gone(make, tmp_path):
    async def body() -> None:
        queue = await opened(make, medium="file")
        for first in range(0, 10_000, 100):
            await queue.queue_append(rows(first, 100, 2000), NO_ORIGINS)
        await queue.close()
        max((tmp_path / "queue").glob("segment-*")).unlink()
        queue = await opened(make, medium="file")
        assert await queue.queue_append(rows(50_000, 5), NO_ORIGINS) == (10_001, 10_005)
        await queue.close()
        queue = await opened(make, medium="file")
        part = await queue.queue_read("lake", 10_000, 10, 1 << 20)
        assert numbers(part.batch) == list(range(50_000, 50_005))
        await queue.close()

    run(body())


@pytest.mark.parametrize("sealed", [False, True])
def test_a_mark_without_rows_at_the_end_of_a_segment_survives_a_crash(make, tmp_path, sealed):
    async def body() -> None:
        queue = await opened(make, medium="file", cursor_interval_ms=1000)
        ring = queue._ring
        for _ in range(6):
            await queue.queue_append(rows(1, 500, 2000), NO_ORIGINS)
        await asyncio.to_thread(checkpoint, ring)
        session = Origin("d/s", 1, 1, 0, ORIGIN_SESSION, b"1 refused")
        await queue.queue_append(rows(0, 0), origin_batch([session]))
        await queue.queue_append(rows(1, 2000, 2000), NO_ORIGINS)  # no room for it here
        if sealed:
            await asyncio.to_thread(upkeep, ring)
        shutil.copytree(tmp_path / "queue", tmp_path / "after a crash")
        assert ring.segments[0].sealed is sealed
        assert ring.segments[0].last == ring.checkpoint_upto
        await queue.close()
        queue = await opened(make, medium="file", path=str(tmp_path / "after a crash"))
        assert await queue.queue_origin_mark("d/s") == OriginMark(1, b"1 refused")
        await queue.close()

    run(body())


def test_a_reader_is_not_given_the_origins_of_sessions(make, flavour):
    async def body() -> None:
        queue = await opened(make, **flavour)
        await queue.queue_append(rows(1, 2), origin_batch([Origin("d/s", 1, 2, 0, ORIGIN_SESSION)]))
        await queue.queue_append(rows(0, 0), origin_batch([Origin("d/s", 3, 3, 0, ORIGIN_SESSION)]))
        await queue.queue_append(rows(3, 2), origin_batch([Origin("up/0", 7, 8)]))
        await queue.queue_append(rows(5, 1), origin_batch([Origin("d/s", 4, 4, 0, ORIGIN_SESSION)]))
        part = await queue.queue_read("lake", 0, 100, 1 << 20)
        assert (numbers(part.batch), part.missing) == ([1, 2, 3, 4, 5], ())
        assert origins_of(part.origins) == [Origin("up/0", 7, 8, 2)]
        await queue.close()

    run(body())


@pytest.mark.parametrize("bad", [Origin("d/s", 5, 4, 0, ORIGIN_SESSION), Origin("d/s", 1, 1, 9, ORIGIN_SESSION)])
def test_an_origin_of_a_session_that_cannot_be_is_refused(make, bad):
    async def body() -> None:
        queue = await opened(make)
        good = Origin("d/t", 1, 1, 1, ORIGIN_SESSION)
        for origins in ([bad], [bad, good]):
            with pytest.raises(PermanentError, match="'d/s'"):
                await queue.queue_append(rows(1, 2), origin_batch(origins))
        await queue.close()

    run(body())


def test_marks_of_very_many_origins_survive_releases_and_restarts(make):
    async def body() -> None:
        queue = await opened(make)
        count, step = 65_536, 2048
        for start in range(0, count, step):
            sessions = [Origin(f"device-{n}/s", 1, n % 9 + 1, n - start, ORIGIN_SESSION) for n in range(start, start + step)]
            await queue.queue_append(rows(start, step), origin_batch(sessions))
        await queue.queue_append(rows(0, 1), origin_batch([Origin("up/0", 1, 1)]))
        await queue.queue_release("lake", count + 1)
        while queue.queue_info().tail == 1:
            with contextlib.suppress(QueueFull):  # the upkeep is behind: it gives segments back in its own time
                await queue.queue_append(rows(0, 500, 2000), NO_ORIGINS)
            await queue.queue_release("lake", queue.queue_info().head)
            await asyncio.sleep(0.001)
        await queue.close()
        queue = await opened(make)
        for n in (0, 1, 777, 40_000, count - 1):
            assert await queue.queue_origin_position(f"device-{n}/s") == n % 9 + 1
        assert await queue.queue_origin_position("up/0") == 1
        # One more session: the oldest idle goes, queues never do.
        await queue.queue_append(rows(0, 1), origin_batch([Origin("device-new/s", 1, 4, 0, ORIGIN_SESSION)]))
        assert await queue.queue_origin_position("device-0/s") is None
        assert await queue.queue_origin_position("device-1/s") == 2
        assert await queue.queue_origin_position("up/0") == 1
        await queue.close()

    run(body())


def test_a_full_table_of_upstream_queues_refuses_new_ones_and_forgets_none(make):
    async def body() -> None:
        queue = await opened(make, queue_origins_max=2)
        for name in ("a/0", "b/0"):
            await queue.queue_append(rows(1, 1), origin_batch([Origin(name, 1, 1)]))
        with pytest.raises(TransientError, match="queue_origins_max"):
            await queue.queue_append(rows(1, 1), origin_batch([Origin("c/0", 1, 1)]))
        assert await queue.queue_append(rows(1, 1), origin_batch([Origin("a/0", 2, 2)])) == (3, 3)
        await queue.close()

    run(body())


def test_views_are_bounded_and_copies_take_over(make, flavour):
    async def body() -> None:
        queue = await opened(make, **flavour, view_bytes_max=2 * MIB)
        for first in range(0, 2000, 100):
            await queue.queue_append(rows(first, 100, 5_000), NO_ORIGINS)
        held = []
        for after in range(0, 2000, 100):
            held.append((await queue.queue_read("lake", after, 100, 1)).batch)
            assert queue._ring.view_bytes <= 2 * MIB
        assert [number for batch in held for number in numbers(batch)] == list(range(2000))
        held.clear()
        gc.collect()
        await queue.queue_read("lake", 0, 100, 1)
        assert queue._ring.view_bytes <= 2 * MIB
        assert len(queue._ring.views_freed) <= 1
        await queue.close()

    run(body())


def test_a_view_outlives_the_queue(make, flavour):
    async def body() -> Any:
        queue = await opened(make, **flavour)
        await queue.queue_append(rows(1, 100, 1000), NO_ORIGINS)
        batch = (await queue.queue_read("lake", 0, 100, 1 << 20)).batch
        await queue.close()
        return batch

    assert numbers(run(body())) == list(range(1, 101))
