"""Errors: stores that fail and heal, writers that meet, batches that cannot be stored, calls that are cancelled."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from lake_driver import START_US, events, held, make_lake, positions, store

from headrace import Missing, PermanentError, RangeKey, TransientError
from headrace_sink_lake import CommitRecord, SinkLake

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs")


def span(first: int, last: int, **more: Any) -> RangeKey:
    return RangeKey("q", first, last, **more)


def statuses(lake: SinkLake) -> list[tuple[str, str]]:
    return lake.context.statuses  # type: ignore[attr-defined, no-any-return]


def value(lake: SinkLake, name: str) -> float:
    return lake.context.metrics.registry.get_sample_value(f"headrace_{name}", {"component": "lake"}) or 0.0


def leftovers(path: Path) -> list[str]:
    return [entry.name for entry in (path / "_tmp").iterdir()]


def commit(path: Path, first: int) -> CommitRecord:
    return msgspec.json.decode((path / f"_commits/q/{first:020}.json").read_bytes(), type=CommitRecord)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=True)
    yield folder
    unmount(folder)


def fill(path: Path) -> None:
    """Write until the disk is full, to the last page."""
    with path.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass


def bind(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", str(source), str(target)], check=True)


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], check=True)


def names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


def remount(folder: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


def test_no_new_lake_is_begun_where_the_one_that_was_opened_is_gone(tmp_path: Path) -> None:
    # what would lie in a mount point is out of sight as soon as the filesystem is mounted again
    async def run() -> None:
        path, away = tmp_path / "lake", tmp_path / "away"
        lake = make_lake(path)
        await lake.open()
        await store(lake, span(1, 5))
        path.rename(away)
        path.mkdir()
        for _ in range(2):
            with pytest.raises(TransientError, match="is gone; mount it or move it back"):
                await store(lake, span(6, 9))
            await lake.sink_reset()
        with pytest.raises(TransientError, match="is gone"):
            await lake.sink_resume("q")
        assert statuses(lake)[-1][0] == "degraded"
        assert names(path) == []
        path.rmdir()
        away.rename(path)
        await store(lake, span(6, 9))
        assert statuses(lake)[-1] == ("ok", "")
        await lake.close()

    asyncio.run(run())
    assert positions(tmp_path / "lake") == [*range(1, 10)]


@needs_root
def test_a_lake_whose_filesystem_is_unmounted_waits_for_it(small_disk: Path, tmp_path: Path) -> None:
    async def run() -> None:
        lake = make_lake(small_disk)
        await lake.open()
        await store(lake, span(1, 5))
        unmount(small_disk)
        with pytest.raises(TransientError, match="is gone"):
            await store(lake, span(6, 9))
        await lake.sink_reset()
        assert names(small_disk) == []
        bind(other, small_disk)
        await store(lake, span(6, 9))
        await lake.close()

    other = tmp_path / "other"  # a second view keeps what is unmounted, so that it can be mounted again
    bind(small_disk, other)
    try:
        asyncio.run(run())
    finally:
        unmount(other)
    assert positions(small_disk) == [*range(1, 10)]


def test_a_lake_that_cannot_be_opened_is_transient_and_heals(tmp_path: Path) -> None:
    async def run() -> None:
        (tmp_path / "data").write_text("a file where the folder should be")
        lake = make_lake(tmp_path / "data" / "lake", data=tmp_path / "own")
        with pytest.raises(TransientError, match="ENOTDIR"):
            await lake.open()
        assert statuses(lake)[-1][0] == "degraded"
        (tmp_path / "data").unlink()
        await lake.open()
        await store(lake, span(1, 5))
        assert statuses(lake)[-1] == ("ok", "")
        await lake.close()

    asyncio.run(run())
    assert positions(tmp_path / "data" / "lake") == [1, 2, 3, 4, 5]


def test_a_folder_that_vanishes_is_transient_and_heals(tmp_path: Path) -> None:
    path = tmp_path / "lake"

    async def run() -> None:
        lake = make_lake(path)
        await lake.open()
        await store(lake, span(1, 5))
        path.rename(tmp_path / "away")
        path.write_text("in the way")
        with pytest.raises(TransientError, match=str(path)):
            await store(lake, span(6, 9))
        await lake.sink_reset()
        with pytest.raises(TransientError):
            await lake.sink_resume("q")
        path.unlink()
        (tmp_path / "away").rename(path)
        await lake.sink_reset()
        assert await lake.sink_resume("q") == 5
        await store(lake, span(6, 9))
        await lake.close()

    asyncio.run(run())
    assert positions(path) == list(range(1, 10))
    assert leftovers(path) == []


@needs_root
def test_a_full_disk_is_transient_loses_nothing_and_heals(small_disk: Path) -> None:
    path = small_disk / "lake"

    async def run() -> None:
        lake = make_lake(path, data=small_disk.parent / "own")
        await lake.open()
        await store(lake, span(1, 100))
        hog = small_disk / "hog"
        with pytest.raises(OSError, match="No space"):
            fill(hog)
        for _ in range(2):
            with pytest.raises(TransientError, match="ENOSPC"):
                await store(lake, span(101, 200))
            assert statuses(lake)[-1][0] == "degraded"
            await lake.sink_reset()
            assert leftovers(path) == []
            assert positions(path) == list(range(1, 101))
        hog.unlink()
        assert await lake.sink_resume("q") == 100
        await store(lake, span(101, 200))
        await lake.close()

    asyncio.run(run())
    assert positions(path) == list(range(1, 201))


@needs_root
def test_a_disk_that_turns_read_only_is_transient_and_heals(small_disk: Path) -> None:
    path = small_disk / "lake"

    async def run() -> None:
        lake = make_lake(path, data=small_disk.parent / "own")
        await lake.open()
        await lake.sink_write(events(span(1, 10)), span(1, 10))
        remount(small_disk, "ro")
        with pytest.raises(TransientError, match="EROFS"):
            await lake.sink_flush(span(1, 10))
        await lake.sink_reset()
        remount(small_disk, "rw")
        await store(lake, span(1, 10))
        await lake.close()

    asyncio.run(run())
    assert positions(path) == list(range(1, 11))


def test_of_two_writers_one_wins_and_the_other_resumes_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "lake"

    async def run() -> None:
        one, two = make_lake(path), make_lake(path)
        await one.open()
        await one.sink_write(events(span(1, 20)), span(1, 20))
        await two.open()
        await store(two, span(1, 12))
        with pytest.raises(TransientError, match="another writer"):
            await one.sink_flush(span(1, 20))
        await one.sink_reset()
        assert value(one, "lake_orphan_files_removed_total") > 0
        assert await one.sink_resume("q") == 12
        await store(one, span(13, 20))
        await one.close()
        await two.close()

    asyncio.run(run())
    assert positions(path) == list(range(1, 21))
    assert leftovers(path) == []


def test_opening_leaves_the_files_of_a_writer_that_may_be_alive(tmp_path: Path) -> None:
    path = tmp_path / "lake"
    two = make_lake(path)

    def meanwhile(name: str) -> None:
        if name == "sink_lake.after_fsync":
            asyncio.run(two.open())
            asyncio.run(two.sink_resume("q"))

    async def run() -> None:
        one = make_lake(path, meanwhile)
        await one.open()
        await store(one, span(1, 20))
        await one.close()

    asyncio.run(run())
    assert positions(path) == list(range(1, 21))


def test_another_writer_publishes_what_a_dead_one_committed(tmp_path: Path) -> None:
    path = tmp_path / "lake"

    def die(name: str) -> None:
        if name == "sink_lake.after_commit":
            raise OSError(5, "died here")

    async def run() -> None:
        one, two = make_lake(path, die), make_lake(path)
        await one.open()
        await two.open()
        with pytest.raises(TransientError):
            await store(one, span(1, 20))
        assert positions(path) == []
        assert await two.sink_resume("q") == 20
        assert positions(path) == list(range(1, 21))
        await one.sink_reset()
        await store(one, span(1, 20))
        assert value(one, "lake_duplicate_events_total") == 20
        await one.close()
        await two.close()

    asyncio.run(run())
    assert positions(path) == list(range(1, 21))


def test_opening_publishes_what_was_committed_for_queues_that_nobody_resumes(tmp_path: Path) -> None:
    path = tmp_path / "lake"

    def die(name: str) -> None:
        if name == "sink_lake.after_commit":
            raise OSError(5, "died here")

    async def run() -> None:
        one, two = make_lake(path, die), make_lake(path)
        await one.open()
        with pytest.raises(TransientError):
            await store(one, span(1, 20))
        await two.open()
        await two.close()

    asyncio.run(run())
    assert positions(path) == list(range(1, 21))


def test_an_error_behind_the_commit_keeps_the_roll(tmp_path: Path) -> None:
    path = tmp_path / "lake"
    broken = [True]

    def fail(name: str) -> None:
        if name == "sink_lake.mid_rename" and broken[0]:
            raise OSError(5, "i/o error")

    async def run() -> None:
        lake = make_lake(path, fail)
        await lake.open()
        with pytest.raises(TransientError, match="EIO"):
            await store(lake, span(1, 20))
        await lake.sink_reset()
        with pytest.raises(TransientError):
            await lake.sink_resume("q")
        broken[0] = False
        assert await lake.sink_resume("q") == 20
        await lake.close()

    asyncio.run(run())
    assert positions(path) == list(range(1, 21))
    assert leftovers(path) == []


def test_a_cancelled_flush_ends_before_the_reset_and_doubles_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lake"
    reached, go_on = threading.Event(), threading.Event()

    def hold(name: str) -> None:
        if name == "sink_lake.before_commit" and not reached.is_set():
            reached.set()
            assert go_on.wait(30)

    async def run() -> None:
        lake = make_lake(path, hold)
        await lake.open()
        flush = asyncio.ensure_future(store(lake, span(1, 20)))
        assert await asyncio.to_thread(reached.wait, 30), "the flush came to its commit"
        flush.cancel()
        with pytest.raises(asyncio.CancelledError):
            await flush
        reset = asyncio.ensure_future(lake.sink_reset())
        go_on.set()
        await reset
        await store(lake, span(1, 15))  # the same range, cut differently, without asking where to resume
        await store(lake, span(16, 30))
        await lake.close()

    asyncio.run(run())
    assert positions(path) == list(range(1, 31))
    assert leftovers(path) == []


def test_the_same_range_again_is_taken_once(tmp_path: Path) -> None:
    path = tmp_path / "lake"
    hole = (Missing(3, 4, "corrupt"),)

    async def run() -> None:
        lake = make_lake(path)
        await lake.open()
        await store(lake, span(1, 10, missing=hole, dead=(7,)))
        await store(lake, span(1, 10, missing=hole, dead=(7,)))
        assert value(lake, "lake_duplicate_events_total") == 7
        await store(lake, span(1, 15, missing=(*hole, Missing(11, 12, "released")), dead=(7, 14)))
        await lake.close()

    asyncio.run(run())
    assert held(path, "q") == ([1, 2, 5, 6, 8, 9, 10, 13, 15], [3, 4, 7, 11, 12, 14])
    assert commit(path, 11).missing == (Missing(11, 12, "released"),)


def test_what_is_written_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "lake"

    async def run() -> None:
        lake = make_lake(path)
        await lake.open()
        await store(lake, span(1, 50))
        files = list(path.glob("class=*/date=*/*.parquet"))
        assert value(lake, "sink_files_total") == len(files)
        assert value(lake, "sink_written_bytes_total") == sum(file.stat().st_size for file in files)
        assert sum(file.rows for file in commit(path, 1).files) == 50
        await lake.close()

    asyncio.run(run())


def test_ranges_without_any_row_are_recorded(tmp_path: Path) -> None:
    path = tmp_path / "lake"

    async def run() -> None:
        lake = make_lake(path)
        await lake.open()
        await store(lake, span(1, 4, missing=(Missing(1, 4, "corrupt"),)))
        dead = span(5, 6, dead=(5, 6))
        await lake.sink_flush(dead)  # with no write before it
        await store(lake, span(7, 9))
        assert await lake.sink_resume("q") == 9
        await lake.close()

    asyncio.run(run())
    assert held(path, "q") == ([7, 8, 9], [1, 2, 3, 4, 5, 6])
    assert commit(path, 5).dead == ((5, 6),)
    assert commit(path, 5).files == ()


def test_positions_that_a_host_skips_are_told_as_missing(tmp_path: Path) -> None:
    path = tmp_path / "lake"

    async def run() -> None:
        lake = make_lake(path)
        await lake.open()
        await store(lake, span(101, 110))
        await store(lake, span(121, 130))
        assert value(lake, "lake_skipped_positions_total") == 10
        assert await lake.sink_resume("q") == 130
        await lake.close()

    asyncio.run(run())
    assert commit(path, 111).missing == (Missing(111, 120, "skipped"),)
    assert positions(path) == [*range(101, 111), *range(121, 131)]


def test_reset_forgets_what_is_unflushed(tmp_path: Path) -> None:
    path = tmp_path / "lake"

    async def run() -> None:
        lake = make_lake(path)
        await lake.open()
        await lake.sink_write(events(span(1, 10)), span(1, 10))
        await lake.sink_reset()
        await store(lake, span(1, 3))
        await lake.close()
        await lake.close()

    asyncio.run(run())
    assert positions(path) == [1, 2, 3]


def test_close_before_open_and_reset_before_open_do_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        lake = make_lake(tmp_path / "lake")
        await lake.sink_reset()
        await lake.close()

    asyncio.run(run())
    assert not (tmp_path / "lake").exists()


def broken_text(rows: list[bytes]) -> pa.StringArray:
    offsets = pa.array([0, *(sum(map(len, rows[: n + 1])) for n in range(len(rows)))], pa.int32())
    return pa.StringArray.from_buffers(len(rows), offsets.buffers()[1], pa.py_buffer(b"".join(rows)))


def test_rows_that_no_reader_could_read_are_refused_by_index(tmp_path: Path) -> None:
    path = tmp_path / "lake"

    async def run() -> None:
        lake = make_lake(path)
        await lake.open()
        key = span(1, 5)
        batch = events(key, {"note": broken_text([b"good", b"\xff\xfe", b"fine", b"\xc3", b"last"])})
        with pytest.raises(PermanentError) as caught:
            await lake.sink_write(batch, key)
        assert caught.value.rows == {"q/1-5": [1, 3]}
        await lake.sink_reset()
        kept = span(1, 5, dead=(2, 4))
        await store(lake, kept, (kept, batch.take(pa.array([0, 2, 4]))))
        await lake.close()

    asyncio.run(run())
    assert held(path, "q") == ([1, 3, 5], [2, 4])


def test_a_row_without_its_time_is_refused_by_index(tmp_path: Path) -> None:
    async def run() -> None:
        lake = make_lake(tmp_path / "lake")
        await lake.open()
        key = span(1, 3)
        with pytest.raises(PermanentError) as caught:
            await lake.sink_write(events(key, times=[START_US, None, START_US]), key)
        assert caught.value.rows == {"q/1-3": [1]}
        await lake.close()

    asyncio.run(run())


def test_types_that_parquet_has_not_are_refused_for_good(tmp_path: Path) -> None:
    async def run() -> None:
        lake = make_lake(tmp_path / "lake")
        await lake.open()
        key = span(1, 1)
        interval = pa.array([pa.MonthDayNano([1, 2, 3])])
        with pytest.raises(PermanentError):
            await store(lake, key, (key, events(key, {"age": interval})))
        await lake.sink_reset()
        await store(lake, key)
        await lake.close()

    asyncio.run(run())
    assert leftovers(tmp_path / "lake") == []
    assert positions(tmp_path / "lake") == [1]


def test_batches_that_do_not_fit_their_key_are_a_bug_and_change_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        lake = make_lake(tmp_path / "lake")
        await lake.open()
        with pytest.raises(ValueError, match="expected 4 rows"):
            await lake.sink_write(events(span(1, 5)), span(1, 4))
        await lake.sink_write(events(span(1, 5)), span(1, 5))
        with pytest.raises(ValueError, match="begins at q/6"):
            await lake.sink_write(events(span(7, 8)), span(7, 8))
        with pytest.raises(ValueError, match="expected a flush"):
            await lake.sink_flush(span(1, 8))
        await lake.close()

    asyncio.run(run())
    assert positions(tmp_path / "lake") == []
    assert leftovers(tmp_path / "lake") == []
