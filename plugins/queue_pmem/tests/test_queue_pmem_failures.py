"""What a queue does when its surroundings fail: full disks, missing rights, other versions, a failing device."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace import NO_ORIGINS, ConfigError, Origin, QueueFormatError, QueueFull, TransientError, origin_batch
from headrace_queue_pmem import pmem
from headrace_queue_pmem import upkeep as upkeep_module
from headrace_queue_pmem.layout import HEADER, HEADER_AT, HEADER_CELL
from headrace_queue_pmem.marks import Note, pack, unpack
from headrace_queue_pmem.medium import FileMedium, WrittenArea
from headrace_queue_pmem.recovery import MARKS

sys.path.insert(0, str(Path(__file__).parent))
from conftest import MIB, FailingDevice, failure_seen, numbers, rows, run


@pytest.fixture(params=["tmpfs"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A real filesystem of 40 MiB: tmpfs, or ext4 in a file."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small filesystem")
    place = tmp_path / "small"
    place.mkdir()
    if request.param == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(place)]
    else:
        image = tmp_path / "image"
        image.touch()
        os.truncate(image, 40 * MIB)
        if subprocess.run(["mkfs.ext4", "-q", str(image)], capture_output=True).returncode:
            pytest.skip("no mkfs.ext4 here")
        command = ["mount", "-o", "loop,errors=remount-ro", str(image), str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount {request.param} here: {mounted.stderr}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


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


def test_missing_directories_are_made(make, tmp_path):
    async def body() -> None:
        queue = make(path=str(tmp_path / "a" / "b" / "queue"))
        await queue.open()
        await queue.close()
        assert (tmp_path / "a" / "b" / "queue" / "head").exists()

    run(body())


def test_path_that_cannot_be_used_is_transient_and_named(make, tmp_path):
    async def body() -> None:
        (tmp_path / "file").write_text("not a directory")
        with pytest.raises(TransientError, match="file/queue"):
            await make(path=str(tmp_path / "file" / "queue")).open()

    run(body())


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A directory that every user may enter (pytest's own are its user's alone)."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """As nobody, where the tests run as root: root may write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("medium", ["pmem", "file"])
def test_directory_without_rights_is_transient_and_named(make, open_to_all, unprivileged, medium):
    async def body() -> None:
        if os.geteuid() == open_to_all.stat().st_uid:
            open_to_all.chmod(0o500)
        with pytest.raises(TransientError, match=r"queue.*Permission denied"):
            await make(path=str(open_to_all / "queue"), medium=medium).open()

    run(body())


@pytest.mark.parametrize("medium", ["pmem", "file"])
def test_files_without_rights_are_transient_and_left_as_they_are(make, open_to_all, medium):
    async def fill() -> None:
        queue = make(path=str(open_to_all / "queue"), medium=medium)
        await queue.open()
        await queue.queue_append(rows(1, 3), NO_ORIGINS)
        await queue.close()

    async def refused() -> None:
        with pytest.raises(TransientError, match="Permission denied"):
            await make(path=str(open_to_all / "queue"), medium=medium).open()

    async def still_there() -> None:
        queue = make(path=str(open_to_all / "queue"), medium=medium)
        await queue.open()
        assert queue.queue_info().head == 3
        await queue.close()

    if os.geteuid() != 0:
        pytest.skip("needs two users")
    run(fill())
    (open_to_all / "queue").chmod(0o777)
    (open_to_all / "queue" / "lock").chmod(0o666)
    names = sorted(path.name for path in (open_to_all / "queue").iterdir())
    os.seteuid(65534)
    try:
        run(refused())
    finally:
        os.seteuid(0)
    assert sorted(path.name for path in (open_to_all / "queue").iterdir()) == names
    run(still_there())


@pytest.mark.parametrize("version", [0, 2])
def test_queue_of_another_version_is_refused_with_what_to_do(make, tmp_path, version):
    async def body() -> None:
        queue = make(medium="file")
        await queue.open()
        await queue.close()
        from headrace_queue_pmem.cell import Cell

        area = FileMedium(tmp_path / "queue", "process").open("head")
        cell = Cell(area, HEADER_AT, HEADER_CELL)
        value = cell.load(HEADER.size)
        assert value is not None
        cell.store(version.to_bytes(4, "little") + value[4:])
        cell.mirror()
        area.close()
        before = sorted(path.name for path in (tmp_path / "queue").iterdir())
        with pytest.raises(QueueFormatError, match=f"version {version}.*another path"):
            await make(medium="file").open()
        assert sorted(path.name for path in (tmp_path / "queue").iterdir()) == before

    run(body())


def test_queue_without_libpmemobj_runs_on_files(make, monkeypatch, tmp_path):
    async def body() -> None:
        def missing() -> None:
            raise OSError("cannot load library 'libpmemobj.so.1'")

        monkeypatch.setattr(pmem, "load", missing)
        queue = make()
        await queue.open()
        await queue.queue_append(rows(1, 3), NO_ORIGINS)
        assert queue.queue_info().medium.endswith("-file")
        assert queue.queue_info().method == "page-cache"
        await queue.close()
        with pytest.raises(ConfigError, match="libpmemobj1"):
            await make(medium="pmem", path=str(tmp_path / "other")).open()

    run(body())


def test_a_queue_changes_its_medium_both_ways(make):
    async def body() -> None:
        for number, medium in enumerate(["file", "pmem", "file", "pmem"]):
            queue = make(medium=medium)
            await queue.open()
            await queue.queue_reader_open("lake", "oldest")
            await queue.queue_append(rows(number, 1), NO_ORIGINS)
            await queue.close()
        queue = make()
        await queue.open()
        found: list[int] = []
        while len(found) < 4:
            found += numbers((await queue.queue_read("lake", len(found), 10, 1 << 20)).batch)
        assert found == [0, 1, 2, 3]
        await queue.close()

    run(body())


def test_failed_sync_moves_the_batch_to_a_new_segment(make, flavour, monkeypatch):
    async def body() -> None:
        device = FailingDevice(monkeypatch)
        queue = make(**flavour)
        await queue.open()
        await queue.queue_reader_open("lake", "oldest")
        await queue.queue_append(rows(0, 5), NO_ORIGINS)
        device.failures = 1
        assert await queue.queue_append(rows(5, 5), NO_ORIGINS) == (6, 10)
        assert [segment.writable for segment in queue._ring.segments] == [False, True]
        await queue.queue_append(rows(10, 5), NO_ORIGINS)
        assert numbers((await queue.queue_read("lake", 0, 100, 1 << 20)).batch) == list(range(15))
        await queue.close()
        queue = make(**flavour)
        await queue.open()
        assert numbers((await queue.queue_read("lake", 0, 100, 1 << 20)).batch) == list(range(15))
        await queue.close()

    run(body())


def test_dead_device_fails_appends_takes_marks_back_and_recovers(make, flavour, monkeypatch):
    async def body() -> None:
        device = FailingDevice(monkeypatch)
        queue = make(**flavour)
        await queue.open()
        await queue.queue_append(rows(0, 5), origin_batch([Origin("up/0", 1, 5)]))
        device.dead = True
        results = await asyncio.gather(
            queue.queue_append(rows(5, 5), origin_batch([Origin("up/0", 6, 10)])),
            queue.queue_append(rows(5, 5), origin_batch([Origin("up/0", 6, 10)])),
            return_exceptions=True,
        )
        assert all(isinstance(result, TransientError) for result in results), results
        assert await queue.queue_origin_position("up/0") == 5
        assert queue.queue_info().head == 5
        device.dead = False
        await failure_seen()
        assert await queue.queue_append(rows(5, 5), origin_batch([Origin("up/0", 6, 10)])) == (6, 10)
        await queue.queue_reader_open("lake", "oldest")
        assert numbers((await queue.queue_read("lake", 0, 100, 1 << 20)).batch) == list(range(10))
        await queue.close()

    run(body())


def test_cancelled_append_leaves_the_queue_in_order(make):
    async def body() -> None:
        queue = make(level="power")
        await queue.open()
        await queue.queue_reader_open("lake", "oldest")
        calls = [asyncio.ensure_future(queue.queue_append(rows(n, 1), NO_ORIGINS)) for n in range(20)]
        await asyncio.sleep(0)
        for call in calls[::3]:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await queue.queue_append(rows(99, 1), NO_ORIGINS)
        found = numbers((await queue.queue_read("lake", 0, 100, 1 << 20)).batch)
        assert found[-1] == 99
        assert found[:-1] == sorted(found[:-1])
        await queue.close()

    run(body())


def test_check_reports_damage_of_a_stopped_queue(make, tmp_path):
    async def body() -> None:
        queue = make(medium="file")
        assert queue.check() == []
        await queue.open()
        await queue.queue_append(rows(1, 5), NO_ORIGINS)
        assert queue.check() == []
        await queue.close()
        segment = next((tmp_path / "queue").glob("segment-*"))
        content = bytearray(segment.read_bytes())
        content[content.rindex(b" 3")] ^= 1
        segment.write_bytes(content)
        assert any("positions 1-5" in problem for problem in make(medium="file").check())
        assert make(size_bytes_max=16 * MIB, segment_bytes=16 * MIB).check()

    run(body())


def test_damage_is_counted_once_though_the_open_and_each_reader_meet_it(make, tmp_path):
    async def body() -> None:
        queue = make(path=str(tmp_path / "queue"))
        await queue.open()
        for reader in ("lake", "live"):
            await queue.queue_reader_open(reader, "oldest")
        for first in (0, 10, 20):
            await queue.queue_append(rows(first, 10), NO_ORIGINS)
        part = await queue.queue_read("lake", 10, 10, 1 << 20)
        payload = part.batch["payload"][0].as_buffer().to_pybytes()
        await queue.close()
        del part
        (segment,) = (tmp_path / "queue").glob("segment-*")
        content = bytearray(segment.read_bytes())
        content[content.index(payload)] ^= 0xFF
        segment.write_bytes(content)
        queue = make(path=str(tmp_path / "queue"))
        await queue.open()
        for reader in ("lake", "live"):
            missing = [hole for at in (0, 10, 20) for hole in (await queue.queue_read(reader, at, 10, 1 << 20)).missing]
            assert sum(hole.size for hole in missing) == 10
        counted = queue.context.metrics.registry.get_sample_value
        assert counted("headrace_queue_quarantined_records_total", {"queue": "site", "reason": "body"}) == 10
        assert counted("headrace_queue_recovered_events", {"queue": "site"}) == 20
        for reader in ("lake", "live"):
            await queue.queue_release(reader, 30)
        await queue.close()
        # passed by all readers it is no news at the next start
        queue = make(path=str(tmp_path / "queue"))
        await queue.open()
        counted = queue.context.metrics.registry.get_sample_value
        assert counted("headrace_queue_quarantined_records_total", {"queue": "site", "reason": "body"}) is None
        assert counted("headrace_queue_recovered_events", {"queue": "site"}) == 0
        await queue.close()

    run(body())


@pytest.mark.parametrize("name", ["segment-00000001", "segment-00000007"])
def test_a_segment_of_another_queue_is_set_aside_and_never_delivered(make, tmp_path, name):
    async def body():
        for number, directory in enumerate(("queue", "other")):
            queue = make(path=str(tmp_path / directory))
            await queue.open()
            await queue.queue_reader_open("lake", "oldest")
            await queue.queue_append(rows(1000 * number, 50), NO_ORIGINS)
            await queue.close()
        shutil.copy(tmp_path / "other" / "segment-00000001", tmp_path / "queue" / name)
        queue = make()
        await queue.open()
        part = await queue.queue_read("lake", 0, 1000, 1 << 20)
        if name == "segment-00000001":  # in the place of ours
            assert [(gap.first, gap.last) for gap in part.missing] == [(1, 50)]
            assert numbers(part.batch) == []
        else:
            assert numbers(part.batch) == list(range(50))
        counted = queue.context.metrics.registry.get_sample_value
        assert counted("headrace_queue_quarantined_files_total", {"queue": "site"}) == 1
        assert counted("headrace_queue_quarantined_records_total", {"queue": "site", "reason": "segment"}) is None
        await queue.close()
        assert (tmp_path / "queue" / f"foreign-{name}").exists()

    run(body())


@pytest.mark.parametrize("medium", ["pmem", "file"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize("step", ["write_out", "sync", "persist"])
def test_a_segment_file_whose_making_fails_at_a_sync_is_removed_and_made_again(make, tmp_path, monkeypatch, medium, code, step):
    async def body() -> None:
        queue = make(medium=medium, level="power", size_bytes_max=64 * MIB)
        await queue.open()
        await queue.queue_append(rows(0, 5), NO_ORIGINS)
        ring = queue._ring
        before = {path.name for path in (tmp_path / "queue").iterdir()}
        with monkeypatch.context() as patch:

            def refuse(*_: Any, **__: Any) -> None:
                raise OSError(code, os.strerror(code))

            patch.setattr(WrittenArea, step, refuse)
            for _ in range(3):
                with ring.spare_lock, pytest.raises(QueueFull if code == errno.ENOSPC else OSError):
                    ring.make_spare()
                assert {path.name for path in (tmp_path / "queue").iterdir()} == before, "its space is free again"
        with ring.spare_lock:
            ring.spares.append(ring.make_spare())
        number = 5
        while len(ring.segments) < 2:
            await queue.queue_append(rows(number, 100, 2000), NO_ORIGINS)
            number += 100
        await queue.close()
        queue = make(medium=medium, level="power", size_bytes_max=64 * MIB)
        await queue.open()
        assert queue.queue_info().head == number
        await queue.close()

    run(body())


def test_a_file_that_cannot_be_removed_is_removed_later(make, tmp_path, monkeypatch):
    async def body() -> None:
        queue = make(medium="file", level="power")
        await queue.open()
        ring = queue._ring
        before = {path.name for path in (tmp_path / "queue").iterdir()}

        def refuse(*_: Any, **__: Any) -> None:
            raise OSError(errno.EROFS, "Read-only file system")

        with monkeypatch.context() as patch:
            patch.setattr(WrittenArea, "sync", refuse)
            patch.setattr(Path, "unlink", refuse)
            with ring.spare_lock, pytest.raises(OSError, match="Read-only"):
                ring.make_spare()
            await queue._upkeep.passed(10)
            assert len({path.name for path in (tmp_path / "queue").iterdir()} - before) == 1
        await queue._upkeep.passed(10)
        assert {path.name for path in (tmp_path / "queue").iterdir()} == before
        await queue.close()

    run(body())


def test_a_segment_that_is_given_back_and_cannot_be_made_ready_again_frees_its_space(make, tmp_path, monkeypatch):
    async def body() -> None:
        queue = make(medium="file", level="power", size_bytes_max=64 * MIB)
        await queue.open()
        await queue.queue_reader_open("lake", "oldest")
        number = 0
        while len(queue._ring.segments) < 3:
            await queue.queue_append(rows(number, 100, 2000), NO_ORIGINS)
            number += 100
        names = [segment.name for segment in queue._ring.segments]

        def refuse(*_: Any, **__: Any) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(upkeep_module, "prepare", refuse)
        await queue.queue_release("lake", number)
        await queue._upkeep.passed(10)
        assert [segment.name for segment in queue._ring.segments] == names[2:]
        assert [name for name in names if (tmp_path / "queue" / name).exists()] == names[2:]
        await queue.queue_append(rows(number, 5), NO_ORIGINS)
        await queue.close()

    run(body())
