"""An open that fails leaves nothing behind: neither files that keep the next one out, nor a queue that is open by half."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from headrace import NO_ORIGINS, QueueError, TransientError
from headrace_queue_pmem import component, recovery
from headrace_queue_pmem.head import Head

sys.path.insert(0, str(Path(__file__).parent))
from conftest import MIB, rows, run

MEDIA = pytest.mark.parametrize("medium", ["pmem", "file"])


def fails_once(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, number: int) -> None:
    """The first call of a function fails with this error."""
    function, failed = getattr(owner, name), []

    def call(*args: object) -> object:
        if not failed:
            failed.append(number)
            raise OSError(number, os.strerror(number))
        return function(*args)

    monkeypatch.setattr(owner, name, call)


@MEDIA
@pytest.mark.parametrize("part", [(os, "eventfd", errno.EMFILE), (component, "upkeep", errno.EIO), (recovery, "resync", errno.EIO)])
def test_an_open_that_fails_is_transient_and_keeps_no_later_one_out(make, monkeypatch, medium, part):
    async def body() -> None:
        queue = make(medium=medium)
        await queue.open()
        await queue.queue_append(rows(1, 3), NO_ORIGINS)
        await queue.close()
        queue = make(medium=medium)
        fails_once(monkeypatch, *part)
        with pytest.raises(TransientError, match="cannot be opened") as caught:
            await queue.open()
        with pytest.raises(QueueError, match="is not open"):
            await queue.queue_append(rows(4, 1), NO_ORIGINS)
        await queue.open()
        assert await queue.queue_append(rows(4, 1), NO_ORIGINS) == (4, 4)
        await queue.close()
        assert caught.value.__cause__ is not None, "held until here, as a host that tells of it may do"

    run(body())


def test_a_reader_whose_removal_did_not_reach_the_disk_is_removed_by_the_next_try(make, monkeypatch):
    async def body() -> None:
        queue = make(medium="file")
        await queue.open()
        await queue.queue_reader_open("lake", "oldest")
        monkeypatch.setattr("headrace_queue_pmem.component.ANSWER_S", 0.01)
        fails_once(monkeypatch, Head, "_store", errno.EIO)
        await queue.queue_reader_drop("lake")
        await queue.close()
        queue = make(medium="file")
        await queue.open()
        assert queue.queue_info().readers == ()
        await queue.close()

    run(body())


@MEDIA
def test_segments_of_an_odd_size_are_whole_pages(make, medium, tmp_path):
    async def body() -> None:
        queue = make(medium=medium, segment_bytes=8 * MIB + 100)
        await queue.open()
        await queue.queue_append(rows(1, 3), NO_ORIGINS)
        assert {path.stat().st_size for path in (tmp_path / "queue").glob("segment-*")} == {8 * MIB}
        await queue.close()

    run(body())


def test_what_comes_to_a_closed_queue_writes_nothing(make):
    """A call from another loop may wait for the committer while the queue is closed."""

    async def body() -> None:
        queue = make(medium="file")
        await queue.open()
        ring, committer = queue._ring, queue._committer
        await queue.close()
        queue._ring, queue._committer = ring, committer
        with pytest.raises(QueueError, match="closed"):
            await queue.queue_append(rows(1, 1), NO_ORIGINS)
        committer.wake()
        queue._ring = None

    run(body())
