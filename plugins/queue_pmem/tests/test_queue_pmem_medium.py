"""The real media: that what they call durable is clean in the page cache, and what they write is seen through the map."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from headrace import NO_ORIGINS
from headrace_queue_pmem import area as module
from headrace_queue_pmem.area import SLICE_BYTES
from headrace_queue_pmem.medium import FileMedium
from headrace_queue_pmem.pmem import PmemMedium
from headrace_queue_pmem.upkeep import upkeep

sys.path.insert(0, str(Path(__file__).parent))
from cachestat import dirty_pages
from conftest import MIB, numbers, rows, run


@pytest.mark.parametrize("kind", [PmemMedium, FileMedium])
def test_what_is_made_durable_at_level_power_is_on_the_device(tmp_path, kind):
    area = kind(tmp_path, "power").create("segment-00000001", 8 * MIB)
    path = tmp_path / "segment-00000001"
    assert dirty_pages(path) == 0
    area.write(8192, b"x" * 10_000, 10_000)
    assert dirty_pages(path) == 3, "written, and not synced yet"
    area.persist(8192, 10_000)
    assert dirty_pages(path) == 0
    area.gather([(40_960, b"a" * 64), (41_088, b"b" * 5000)])
    area.sync(40_960, 6000)
    assert dirty_pages(path) == 0
    area.gather_durably([(81_920, b"c" * 64), (82_048, b"d" * 9000)])
    assert dirty_pages(path) == 0
    area.gather_durably([(122_880 + 64 * number, b"e" * 64) for number in range(1200)])
    assert dirty_pages(path) == 0
    area.close()


def test_an_append_at_level_power_leaves_nothing_for_the_kernel_to_write(make, tmp_path):
    async def body() -> None:
        for medium in ("pmem", "file"):
            queue = make(medium=medium, level="power", path=str(tmp_path / medium))
            await queue.open()
            await queue.queue_reader_open("lake", "oldest")
            for number in range(20):
                await queue.queue_append(rows(number, 10, 500), NO_ORIGINS)
                segment = queue._ring.segments[-1]
                assert dirty_pages(tmp_path / medium / segment.name) == 0
                assert dirty_pages(tmp_path / medium / "head") == 0
            await queue.close()

    run(body())


@pytest.mark.parametrize("kind", [PmemMedium, FileMedium])
def test_pieces_are_where_they_belong_however_many_there_are(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(module, "_PARTS_MAX", 7)
    for level in ("process", "power"):
        (tmp_path / level).mkdir()
        area = kind(tmp_path / level, level).create("segment-00000001", 8 * MIB)
        chance = random.Random(1)
        expected, parts, at = bytearray(area.size), [], 8192
        while len(parts) < 100:
            piece = chance.randbytes(chance.randrange(1, 300))
            expected[at : at + len(piece)] = piece
            parts.append((at, piece))
            at += len(piece) + chance.choice((0, 0, 17))
        area.gather(parts)
        assert bytes(area.view[8192:at]) == bytes(expected[8192:at])
        area.close()


def test_a_write_that_is_cut_short_goes_on(tmp_path, monkeypatch):
    area = FileMedium(tmp_path, "power").create("segment-00000001", 8 * MIB)
    real = os.pwritev

    def short(fd: int, pieces: list[Any], offset: int, flags: int) -> int:
        return real(fd, [b"".join(pieces)[:100]], offset, flags)

    monkeypatch.setattr(os, "pwritev", short)
    for at, gather in ((8192, area.gather), (16384, area.gather_durably)):
        gather([(at, b"a" * 150), (at + 192, b"b" * 70)])
        assert bytes(area.view[at : at + 262]) == b"a" * 150 + bytes(42) + b"b" * 70
    area.close()


class _Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("kind", [PmemMedium, FileMedium])
@pytest.mark.parametrize("level", ["process", "power"])
def test_an_area_is_made_in_slices_and_is_all_zero(tmp_path, kind, level):
    turns: list[int] = []
    area = kind(tmp_path, level).create("segment-00000001", 8 * MIB, lambda: turns.append(1))
    # Zeroing is one pass, writing it out another; libpmemobj keeps a part of the pool for itself.
    assert len(turns) >= (8 * MIB + (area.size if level == "power" else 0)) // SLICE_BYTES
    start = 4096 if kind is PmemMedium else 0  # behind what is noted of the pool
    assert not any(area.view[start:])
    area.close()


@pytest.mark.parametrize("medium", ["pmem", "file"])
def test_a_spare_segment_that_was_half_made_is_never_used(make, tmp_path, medium):
    async def body() -> None:
        options = {"medium": medium, "level": "power", "size_bytes_max": 64 * MIB}
        appended: list[int] = []
        for left in (0, 3, 12, 20):  # of 23 slices of a pool, 32 of a file
            queue = make(**options)
            await queue.open()
            await queue.queue_reader_open("lake", "oldest")
            await queue.queue_append(rows(left, 1), NO_ORIGINS)
            appended.append(left)
            ring = queue._ring
            kept = {segment.name for segment in ring.segments} | {name for name, _ in ring.spares}

            def pace(left: list[int] = [left]) -> None:  # noqa: B006
                if not left[0]:
                    raise _Killed
                left[0] -= 1

            with ring.spare_lock, pytest.raises(_Killed):
                ring.make_spare(pace)
            (half,) = {path.name for path in (tmp_path / "queue").glob("segment-*")} - kept
            await queue.close()
            queue = make(**options)
            await queue.open()
            assert not (tmp_path / "queue" / half).exists()
            found: list[int] = []
            while len(found) < len(appended):
                found += numbers((await queue.queue_read("lake", len(found), 100, MIB)).batch)
            assert found == appended
            await queue.close()
        assert not list((tmp_path / "queue").glob("damaged-*"))

    run(body())


def test_a_commit_that_needs_the_segment_that_is_being_made_has_it_made_at_full_speed(make, tmp_path):
    async def body() -> None:
        queue = make(medium="file", level="power", size_bytes_max=64 * MIB)
        await queue.open()
        ring = queue._ring
        queue._upkeep.stop()
        queue._upkeep = None
        ring.spares.clear()
        number = 0
        while not ring.segments or ring.segments[-1].end < ring.segments[-1].header.data_end * 0.3:
            await queue.queue_append(rows(number, 100, 2000), NO_ORIGINS)
            number += 100
        started, paced = threading.Event(), []

        def pace() -> None:
            started.set()
            paced.append(1)
            until = time.monotonic() + 30
            while not ring.hurry and time.monotonic() < until:
                time.sleep(0.001)
            # Whoever appends on fills the segment and comes to need this one; only the first slice waits for that.

        thread = threading.Thread(target=upkeep, args=(ring, pace))
        thread.start()
        assert started.wait(30)
        files = len(list((tmp_path / "queue").glob("segment-*")))
        while len(ring.segments) < 2:
            await queue.queue_append(rows(number, 100, 2000), NO_ORIGINS)
            number += 100
        thread.join()
        assert len(paced) == 1, "once a commit waits, nothing sleeps any more"
        assert len(list((tmp_path / "queue").glob("segment-*"))) == files, "no second one was made"
        await queue.close()

    run(body())
