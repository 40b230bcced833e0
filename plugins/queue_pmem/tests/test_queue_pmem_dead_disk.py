"""A filesystem that turns read-only, is shut down, or whose device fails, under an open queue: no append is acknowledged that the
filesystem did not take, nothing is declared lost that is there, and the process lives; mounted again, everything is there."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace import NO_ORIGINS, Plan, QueueError, TransientError
from headrace_queue_pmem import component, reading
from headrace_queue_pmem import segment as segment_module
from headrace_queue_pmem.inspection import check, inspect
from headrace_queue_pmem.layout import PAGE, SEGMENT_MAGIC

sys.path.insert(0, str(Path(__file__).parent))
from conftest import MIB, failure_seen, numbers, rows, run
from disks import Disk

ADVICE = {"read-only": "the filesystem is read-only", "shut-down": "the device or its filesystem fails"}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path)
    yield made
    gc.collect()  # the errors' tracebacks hold batches, and these the files
    made.close()


async def read_all(queue, after: int = 0) -> list[int]:
    found = []
    while after < queue.queue_info().head:
        part = await asyncio.wait_for(queue.queue_read("lake", after, 1000, MIB), 5)
        assert part.missing == ()
        found += numbers(part.batch)
        after = part.last
    return found


@pytest.mark.parametrize("event", Disk.events)
def test_appends_fail_with_what_to_do_and_all_is_there_once_it_is_mounted_again(make, flavour, disk, event):
    path = str(disk.place / "queue")

    async def body() -> None:
        queue = make(path=path, **flavour)
        await queue.open()
        await queue.queue_reader_open("lake", "oldest")
        for number in range(0, 50, 10):
            await queue.queue_append(rows(number, 10), NO_ORIGINS)
        disk.happens(event)
        for _ in range(3):
            with pytest.raises(TransientError, match=f"at {path} cannot write") as caught:
                await queue.queue_append(rows(50, 10), NO_ORIGINS)
            # Of a device error the filesystem makes itself read-only, sooner or later.
            assert any(advice in str(caught.value) for advice in ([ADVICE[event]] if event in ADVICE else ADVICE.values()))
            await failure_seen()
        assert queue.queue_info().head == 50
        assert await read_all(queue) == list(range(50))
        await queue.queue_release("lake", 20)
        await queue.close()
        if event != "device-error":
            with pytest.raises(TransientError, match=f"at {path} cannot be opened.*dmesg"):
                await make(path=path, **flavour).open()

    async def mended() -> None:
        queue = make(path=path, **flavour)
        await queue.open()
        assert await read_all(queue) == list(range(50))
        assert await queue.queue_append(rows(50, 10), NO_ORIGINS) == (51, 60)
        assert await read_all(queue) == list(range(60))
        await queue.close()
        assert check(inspect(Path(path))).problems == []

    run(body())
    gc.collect()
    disk.mend()
    run(mended())


@pytest.mark.parametrize("event", ["shut-down", "device-error"])
def test_a_read_that_the_device_cannot_answer_waits_and_declares_nothing(make, flavour, disk, event, monkeypatch):
    path = str(disk.place / "queue")
    monkeypatch.setattr(component, "ANSWER_S", 0.05)

    async def body() -> int:
        queue = make(path=path, **flavour)
        await queue.open()
        await queue.queue_reader_open("lake", "oldest")
        number = 0
        while len(queue._ring.segments) < 3:
            await queue.queue_append(rows(number, 100, 2000), NO_ORIGINS)
            number += 100
        await queue._upkeep.passed(10)  # sealed, and in no map
        disk.forget()
        disk.happens(event)
        reads = asyncio.ensure_future(queue.queue_read("lake", 0, 1000, MIB))
        await asyncio.wait([reads], timeout=0.5)
        assert not reads.done()
        reads.cancel()
        plans = asyncio.ensure_future(queue.queue_plan("lake", Plan(1, 2, 1)))
        await asyncio.wait([plans], timeout=0.5)
        assert not plans.done()
        plans.cancel()
        waiting = asyncio.ensure_future(queue.queue_read("lake", 0, 1000, MIB))
        await asyncio.sleep(0)
        await queue.close()
        with pytest.raises(QueueError, match="closed"):
            await asyncio.wait_for(waiting, 5)
        return number

    async def mended(count: int) -> None:
        queue = make(path=path, **flavour)
        await queue.open()
        assert await read_all(queue) == list(range(count))
        await queue.close()

    count = run(body())
    gc.collect()
    disk.mend()
    run(mended(count))


def test_a_device_that_answers_again_is_read_on(make, tmp_path, monkeypatch):
    async def body() -> None:
        queue = make(medium="file")
        await queue.open()
        await queue.queue_reader_open("lake", "oldest")
        await queue.queue_append(rows(0, 10), NO_ORIGINS)
        monkeypatch.setattr(component, "ANSWER_S", 0.01)
        failures = [OSError(5, "Input/output error")] * 3
        read = reading.read

        def failing(*arguments):
            if failures:
                raise failures.pop()
            return read(*arguments)

        monkeypatch.setattr(reading, "read", failing)
        assert numbers((await queue.queue_read("lake", 0, 100, MIB)).batch) == list(range(10))
        assert failures == []
        await queue.close()

    run(body())


@pytest.mark.parametrize("sealed", [True, False])
def test_a_file_cut_off_under_a_reader_costs_what_is_gone_and_not_the_process(make, tmp_path, flavour, sealed, monkeypatch):
    """To look at a page that is not there is SIGBUS: as is one whose sector is bad, on a disk that is well otherwise."""
    monkeypatch.setattr(segment_module, "WARM_S", 0.0)

    async def body() -> None:
        queue = make(**flavour)
        await queue.open()
        await queue.queue_reader_open("lake", "oldest")
        count = 0
        while len(queue._ring.segments) < 2:
            await queue.queue_append(rows(count, 100, 2000), NO_ORIGINS)
            count += 100
        await queue._upkeep.passed(10)
        for _ in range(3):
            await queue.queue_append(rows(count, 100, 2000), NO_ORIGINS)
            count += 100
        segment = queue._ring.segments[0 if sealed else 1]
        assert numbers((await queue.queue_read("lake", segment.base - 1, 1, 1)).batch)[0] == segment.base - 1
        file = tmp_path / "queue" / segment.name
        begins = file.read_bytes().index(SEGMENT_MAGIC)
        os.truncate(file, (begins + segment.offsets[2]) // PAGE * PAGE)
        found, gone, after = set(), set(), 0
        while after < count:
            part = await asyncio.wait_for(queue.queue_read("lake", after, 1000, MIB), 5)
            found |= set(numbers(part.batch))
            gone |= {position - 1 for hole in part.missing for position in range(hole.first, hole.last + 1)}
            after = part.last
        of_segment = set(range(segment.base - 1, segment.last))
        assert found | gone == set(range(count))
        assert not found & gone
        assert gone <= of_segment
        assert min(gone) > min(of_segment)
        # What comes now goes to a segment whose pages are there.
        await queue.queue_append(rows(count, 100, 2000), NO_ORIGINS)
        assert numbers((await queue.queue_read("lake", count, 100, 4 * MIB)).batch) == list(range(count, count + 100))
        await queue.close()

    run(body())
