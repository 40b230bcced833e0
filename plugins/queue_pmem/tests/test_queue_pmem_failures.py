"""What a queue does when its surroundings fail: missing rights, other versions, a failing device."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace import NO_ORIGINS, ConfigError, Origin, QueueFormatError, QueueFull, TransientError, origin_batch
from headrace_queue_pmem import pmem
from headrace_queue_pmem import upkeep as upkeep_module
from headrace_queue_pmem.area import WrittenArea
from headrace_queue_pmem.layout import HEADER, HEADER_AT, HEADER_CELL
from headrace_queue_pmem.medium import FileMedium

sys.path.insert(0, str(Path(__file__).parent))
from conftest import MIB, FailingDevice, failure_seen, numbers, rows, run


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
