"""What a queue does on a disk without room, of which it takes what it needs beforehand."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace import NO_ORIGINS, ConfigError, QueueFull
from headrace_queue_pmem.marks import Note, pack, unpack
from headrace_queue_pmem.medium import FileMedium
from headrace_queue_pmem.recovery import MARKS

sys.path.insert(0, str(Path(__file__).parent))
from conftest import MIB, numbers, rows, run
from disks import call, mount, mount_image


@pytest.fixture(params=["tmpfs"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A real filesystem of 40 MiB: tmpfs, or ext4 in a file."""
    place = tmp_path / "small"
    place.mkdir()
    if request.param == "tmpfs":
        mount("-t", "tmpfs", "-o", "size=40m", "tmpfs", str(place))
    else:
        mount_image(tmp_path / "image", place, 40 * MIB)
    yield place
    call("umount", "-l", str(place))


DISKS = pytest.mark.parametrize(("small_disk", "level"), [("tmpfs", "process"), ("ext4", "power")], indirect=["small_disk"])


async def fill(queue: Any, start: int = 0) -> tuple[int, QueueFull]:
    """Append until the queue is full; returns how many rows it has and the error."""
    number = start
    try:
        while True:
            await queue.queue_append(rows(number, 100, 2000), NO_ORIGINS)
            number += 100
    except QueueFull as full:
        return number, full


def fill_disk(place: Path, name: str = "other") -> None:
    """Take what is left of a filesystem."""
    try:
        with (place / name).open("wb", buffering=0) as other:
            while other.write(bytes(4096)):
                pass
    except OSError:
        return


@DISKS
@pytest.mark.parametrize("medium", ["pmem", "file"])
def test_full_disk_is_queue_full_and_ends_when_space_is_given_back(make, small_disk, medium, level):
    async def body() -> None:
        queue = make(path=str(small_disk / "queue"), medium=medium, level=level, size_bytes_max=512 * MIB)
        await queue.open()
        await queue.queue_reader_open("lake", "oldest")
        number, full = await fill(queue)
        assert "no room on the disk" in str(full)
        assert queue.queue_info().head == number
        await queue.queue_release("lake", number)
        while True:
            try:
                await queue.queue_append(rows(number, 100, 2000), NO_ORIGINS)
                break
            except QueueFull:
                await asyncio.sleep(0.001)  # the upkeep gives the segments back
        part = await queue.queue_read("lake", number, 1000, 1 << 20)
        assert numbers(part.batch) == list(range(number, number + 100))
        await queue.close()
        queue = make(path=str(small_disk / "queue"), medium=medium, level=level, size_bytes_max=512 * MIB)
        await queue.open()
        assert queue.queue_info().head == number + 100
        await queue.close()

    run(body())


@DISKS
@pytest.mark.parametrize("medium", ["pmem", "file"])
def test_disk_filled_by_others_costs_no_queued_event(make, small_disk, medium, level):
    async def body() -> None:
        queue = make(path=str(small_disk / "queue"), medium=medium, level=level, size_bytes_max=512 * MIB)
        await queue.open()
        await queue.queue_reader_open("lake", "oldest")
        await queue.queue_append(rows(0, 100), NO_ORIGINS)
        fill_disk(small_disk)
        # Everything that the queue has is allocated: it goes on to the end of its segment.
        await queue.queue_append(rows(100, 100, 10_000), NO_ORIGINS)
        await queue.queue_release("lake", 50)
        part = await queue.queue_read("lake", 50, 1000, 4 << 20)
        assert numbers(part.batch) == list(range(50, 200))
        await queue.close()

    run(body())


@DISKS
@pytest.mark.parametrize("medium", ["pmem", "file"])
def test_a_queue_whose_only_segment_is_full_and_passed_uses_it_again(make, small_disk, medium, level):
    """A disk that had room for one segment: nothing else could make room, and the queue would stay full though it is empty."""

    async def body() -> None:
        queue = make(path=str(small_disk / "queue"), medium=medium, level=level, size_bytes_max=512 * MIB)
        await queue.open()
        await queue.queue_reader_open("lake", "oldest")
        await queue.queue_append(rows(0, 100, 2000), NO_ORIGINS)
        fill_disk(small_disk)
        number = 100
        for _ in range(3):
            number, full = await fill(queue, number)
            assert "no room on the disk" in str(full)
            before = queue.queue_info().tail - 1
            part = await queue.queue_read("lake", before, 1, 1)
            await queue.queue_release("lake", number - 1)
            with pytest.raises(QueueFull):  # one event is not passed yet
                await queue.queue_append(rows(number, 100, 2000), NO_ORIGINS)
            await queue.queue_release("lake", number)
            async with asyncio.timeout(10):
                while True:
                    try:
                        await queue.queue_append(rows(number, 100, 2000), NO_ORIGINS)
                        break
                    except QueueFull:
                        await asyncio.sleep(0.001)  # the upkeep gives the segment back
                        part = None  # whoever holds a view of it holds its space
            assert part is None
            number += 100
        assert len(list((small_disk / "queue").glob("segment-*"))) == 1
        await queue.close()
        queue = make(path=str(small_disk / "queue"), medium=medium, level=level, size_bytes_max=512 * MIB)
        await queue.open()
        assert queue.queue_info().head == number
        part = await queue.queue_read("lake", number - 100, 1000, 1 << 20)
        assert numbers(part.batch) == list(range(number - 100, number))
        await queue.close()

    run(body())


def spare_made(place: Path) -> None:
    while len(list(place.glob("segment-*"))) < 2:
        time.sleep(0.01)


@DISKS
@pytest.mark.parametrize("medium", ["pmem", "file"])
def test_on_a_disk_filled_by_others_a_queue_gives_back_and_uses_again_its_own_space(make, small_disk, medium, level):
    async def passed(queue: Any, start: int) -> int:
        for number in range(start, start + 4000, 100):  # 8 MB: as much as a segment
            while True:
                try:
                    await queue.queue_append(rows(number, 100, 2000), NO_ORIGINS)
                    break
                except QueueFull:
                    await asyncio.sleep(0.005)  # the upkeep gives the segments back
            await queue.queue_release("lake", number + 100)
        return start + 4000

    async def body() -> None:
        queue = make(path=str(small_disk / "queue"), medium=medium, level=level, segment_bytes=8 * MIB, size_bytes_max=512 * MIB)
        await queue.open()
        await queue.queue_reader_open("lake", "oldest")
        number = await passed(queue, 0)
        await asyncio.to_thread(spare_made, small_disk / "queue")  # the segment in use is never given back
        fill_disk(small_disk)
        async with asyncio.timeout(30):
            for _ in range(4):
                number = await passed(queue, number)
        await queue.close()
        # what a stop lets go of is taken by others too, and the queue opens all the same, also one of an earlier version without this note
        (small_disk / "queue" / "owner").unlink()
        fill_disk(small_disk, "more")
        queue = make(path=str(small_disk / "queue"), medium=medium, level=level, segment_bytes=8 * MIB, size_bytes_max=512 * MIB)
        await queue.open()
        assert queue.queue_info().head == number
        await queue.queue_append(rows(number, 1), NO_ORIGINS)
        await queue.close()

    run(body())


def test_a_note_that_is_torn_in_its_own_place_on_a_full_disk_leaves_its_copy(small_disk):
    medium = FileMedium(small_disk, "process")
    old, new = pack(Note([], 7, b"o" * 16, 7)), pack(Note([], 9, b"o" * 16, 9))
    for name in MARKS:
        medium.save(name, old)
    fill_disk(small_disk)
    medium.save(MARKS[0], new)
    assert [unpack(medium.load(name)) for name in MARKS] == [Note([], 9, b"o" * 16, 9), Note([], 7, b"o" * 16, 7)]
    (small_disk / MARKS[0]).write_bytes(new[: len(new) // 2] + old[len(new) // 2 :])
    assert unpack(medium.load(MARKS[0])) is None
    assert not list(small_disk.glob("*.tmp"))
    with pytest.raises(OSError, match="No space left"):
        medium.save(MARKS[1], bytes(8192))  # more than it has in place
    assert unpack(medium.load(MARKS[1])) == Note([], 7, b"o" * 16, 7)


def test_level_power_on_a_filesystem_in_memory_is_refused(make, small_disk):
    async def body() -> None:
        queue = make(path=str(small_disk / "queue"), level="power")
        with pytest.raises(ConfigError, match="tmpfs"):
            await queue.open()
        await queue.close()

    run(body())
