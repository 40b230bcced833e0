"""What a queue says of itself, how its commits are bounded, and how many readers it has."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from headrace import NO_ORIGINS, QueueError
from headrace_queue_pmem import pmem
from headrace_queue_pmem.layout import CURSOR_CELL, READERS
from headrace_queue_pmem.probe import filesystem

sys.path.insert(0, str(Path(__file__).parent))
from conftest import rows, run


def durability(queue: Any) -> list[dict[str, str]]:
    """The labels of every headrace_durability_info."""
    found = [sample for family in queue.context.metrics.registry.collect() for sample in family.samples]
    return [sample.labels for sample in found if sample.name == "headrace_durability_info" and sample.value == 1]


def logged(caplog: pytest.LogCaptureFixture, message: str) -> list[dict[str, Any]]:
    return [record.fields for record in caplog.records if record.message == message]  # type: ignore[attr-defined]


def test_metric_log_and_info_say_what_is_really_done(make, flavour, tmp_path, caplog):
    async def body() -> None:
        queue = make(**flavour)
        await queue.open()
        medium = filesystem(tmp_path) + ("" if flavour["medium"] == "pmem" else "-file")
        method = "fdatasync" if flavour["level"] == "power" else "page-cache"
        (labels,) = durability(queue)
        assert (labels["queue"], labels["level"], labels["medium"], labels["method"]) == ("site", flavour["level"], medium, method)
        info = queue.queue_info()
        assert (info.level, info.medium, info.method) == (flavour["level"], medium, method)
        (line,) = logged(caplog, "queue open")
        assert (line["level"], line["medium"], line["method"]) == (flavour["level"], medium, method)
        if flavour["level"] == "power":
            assert 0 < line["sync_p50_us"] <= line["sync_p99_us"], "the medium was probed"
        await queue.close()

    with caplog.at_level(logging.INFO):
        run(body())


def test_without_libpmemobj_log_and_metric_say_so(make, monkeypatch, caplog, tmp_path):
    def missing() -> None:
        raise OSError("cannot load library 'libpmemobj.so.1'")

    async def body() -> None:
        queue = make(level="power")
        await queue.open()
        (labels,) = durability(queue)
        assert (labels["medium"], labels["method"]) == (filesystem(tmp_path) + "-file", "fdatasync")
        await queue.close()

    monkeypatch.setattr(pmem, "load", missing)
    with caplog.at_level(logging.INFO):
        run(body())
    (line,) = logged(caplog, "libpmemobj is missing: the queue uses preallocated files")
    assert "libpmemobj.so.1" in line["error"]


class Groups:
    """Notes how large each commit of a queue is; the first one waits until it is let go."""

    def __init__(self, queue: Any) -> None:
        self.sizes: list[list[int]] = []
        self.first, self.go = threading.Event(), threading.Event()
        self._commit = queue._ring.commit
        queue._ring.commit = self

    def __call__(self, entries: Any) -> None:
        self.sizes.append([entry.size for entry in entries])
        if len(self.sizes) == 1:
            self.first.set()
            assert self.go.wait(30)
        self._commit(entries)


def test_appends_that_come_during_a_commit_share_the_next_within_its_bytes(make):
    async def body() -> None:
        queue = make(level="power", commit_bytes_max=8192)
        await queue.open()
        groups = Groups(queue)
        calls = [asyncio.ensure_future(queue.queue_append(rows(0, 1), NO_ORIGINS))]
        await asyncio.to_thread(groups.first.wait, 30)
        calls += [asyncio.ensure_future(queue.queue_append(rows(number, 1, 1000), NO_ORIGINS)) for number in range(1, 41)]
        await asyncio.sleep(0)
        groups.go.set()
        assert await asyncio.gather(*calls) == [(number, number) for number in range(1, 42)]
        assert sum(map(len, groups.sizes)) == 41
        assert 2 < len(groups.sizes) < 20, "one commit under way, the others together behind it"
        for sizes in groups.sizes:
            assert sum(sizes[:-1]) < 8192
        for sizes in groups.sizes[1:-1]:
            assert sum(sizes) >= 8192
        await queue.close()

    run(body())


def test_a_commit_waits_for_company_until_it_has_its_bytes(make):
    async def body() -> None:
        queue = make(level="power", commit_bytes_max=8192, commit_wait_us_max=1)
        await queue.open()
        queue._committer._wait_s = 3600.0  # so long that only the bytes end it
        groups = Groups(queue)
        groups.go.set()
        calls = [asyncio.ensure_future(queue.queue_append(rows(number, 1, 1000), NO_ORIGINS)) for number in range(40)]
        assert await asyncio.to_thread(groups.first.wait, 30)
        assert sum(groups.sizes[0]) >= 8192
        await queue.close()  # and the end: what waits is committed
        assert len(await asyncio.gather(*calls)) == 40

    run(body())


def test_a_commit_waits_no_longer_than_it_may(make):
    async def body() -> None:
        queue = make(level="power", commit_wait_us_max=20_000)
        await queue.open()
        groups = Groups(queue)
        groups.go.set()
        calls = [asyncio.ensure_future(queue.queue_append(rows(number, 1), NO_ORIGINS)) for number in range(3)]
        await asyncio.gather(*calls)  # nothing else comes: the wait ends by itself
        assert sum(map(len, groups.sizes)) == 3
        await queue.close()

    run(body())


def test_a_queue_has_64_readers_by_name_each_with_a_line_of_its_own(make, flavour):
    async def body() -> None:
        assert CURSOR_CELL == 64
        queue = make(**flavour)
        await queue.open()
        await queue.queue_append(rows(0, 100), NO_ORIGINS)
        for number in range(READERS):
            await queue.queue_reader_open(f"reader {number}", "oldest")
            await queue.queue_release(f"reader {number}", number)
        with pytest.raises(QueueError, match="at most 64 readers"):
            await queue.queue_reader_open("one more", "oldest")
        await queue.queue_reader_drop("reader 7")
        assert (await queue.queue_reader_open("another", "head")).cursor == 100
        await queue.close()
        queue = make(**flavour)
        await queue.open()
        cursors = {reader.name: reader.cursor for reader in queue.queue_info().readers}
        assert cursors == {f"reader {number}": number for number in range(READERS) if number != 7} | {"another": 100}
        await queue.close()

    run(body())
