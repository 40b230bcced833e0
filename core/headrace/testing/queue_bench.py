"""What the tests of queues share: a queue at work, filling it, reading all of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from headrace.errors import QueueFull
from headrace.hookspecs import QueueInfo, QueueRead, ReaderInfo
from headrace.position import NO_ORIGINS, Origin, origin_batch
from headrace.testing.batches import raw_batch
from headrace.testing.context import living, run
from headrace.testing.contract import Contract
from headrace.testing.queue_driver import ORIGIN


class QueueBench(Contract):
    """A queue under test."""

    role = "queue"
    #: Payload bytes of one batch in the tests that fill the queue, and how many such batches must be too many.
    fill_batch_bytes: ClassVar[int] = 64 * 1024
    fill_batches_max: ClassVar[int] = 2_000

    def _with(self, tmp_path: Path, check: Any) -> None:
        async def work() -> None:
            async with living(self.make(self.context(tmp_path)), self.role) as hook:
                await check(hook)

        run(work())

    def _big(self, number: int) -> pa.RecordBatch:
        return raw_batch(1, number, payload_bytes=self.fill_batch_bytes)

    def _capacity_batches(self, info: QueueInfo) -> int:
        return min(self.fill_batches_max, info.size_bytes_max // self.fill_batch_bytes + 2)

    async def _fill(self, hook: Any) -> int:
        for number in range(1, self.fill_batches_max + 1):
            try:
                await hook.queue_append(batch=self._big(number), origins=NO_ORIGINS)
            except QueueFull:
                assert number > 1, "expected room for at least one batch"
                return number - 1
        raise AssertionError(
            f"expected QueueFull within {self.fill_batches_max} batches of {self.fill_batch_bytes} bytes; make() a smaller queue"
        )

    async def _append_when_there_is_room(self, hook: Any, batch: pa.RecordBatch) -> tuple[int, int]:
        """Space may come back a little after the release (it has to be durable first)."""
        for _ in range(200):
            try:
                first, last = await hook.queue_append(batch=batch, origins=NO_ORIGINS)
                return first, last
            except QueueFull:
                await asyncio.sleep(0.01)
        raise AssertionError("expected room within 2 s after everything was released, still QueueFull")

    async def _append_origin(self, hook: Any, first: int, last: int) -> tuple[int, int]:
        answer = await hook.queue_append(batch=raw_batch(last - first + 1, first), origins=origin_batch([Origin(ORIGIN, first, last)]))
        return answer[0], answer[1]

    async def _origin_numbers(self, hook: Any, last: int) -> list[int]:
        rows = await read_rows(hook, "r", 0, last)
        return [json.loads(row["payload"])["n"] for row in rows]

    @staticmethod
    def _expect_readers(names: list[str]) -> Any:
        async def check(hook: Any) -> None:
            assert [reader.name for reader in hook.queue_info().readers] == names

        return check

    @staticmethod
    def _expect_ids(ids: list[str]) -> Any:
        """Every span under its own id, and no read across two of them."""

        async def check(hook: Any) -> None:
            spans = [(span.queue_id, span.first) for span in hook.queue_info().spans]
            assert spans == [(queue_id, 1 + 10 * index) for index, queue_id in enumerate(ids)], f"got {hook.queue_info().spans}"
            await hook.queue_reader_open(reader="r", start="oldest")
            position = 0
            while position < 10 * len(ids):
                read = await read_next(hook, "r", position)
                assert (read.first - 1) // 10 == (read.last - 1) // 10, f"the read {read.first}-{read.last} spans two queue ids"
                assert read.queue_id == ids[(read.first - 1) // 10]
                position = read.last

        return check


async def append(hook: Any, *batches: pa.RecordBatch) -> None:
    for batch in batches:
        await hook.queue_append(batch=batch, origins=NO_ORIGINS)


async def read_next(hook: Any, reader: str, after: int, rows_max: int = 10_000, bytes_max: int = 1 << 24) -> QueueRead:
    read: QueueRead = await asyncio.wait_for(hook.queue_read(reader=reader, after=after, rows_max=rows_max, bytes_max=bytes_max), 20)
    return read


async def read_rows(hook: Any, reader: str, after: int, last: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    while after < last:
        read = await read_next(hook, reader, after)
        assert read.first == after + 1, f"expected a read from {after + 1}, got {read.first}-{read.last}"
        rows += batch_of(read).to_pylist()
        after = read.last
    return rows


def batch_of(read: QueueRead) -> pa.RecordBatch:
    assert read.batch is not None, f"expected rows, all of {read.first}-{read.last} is missing: {read.missing}"
    return read.batch


def numbers_of(read: QueueRead) -> list[int]:
    return [json.loads(payload)["n"] for payload in read.batch.column("payload").to_pylist()] if read.batch is not None else []


def reader_of(info: QueueInfo, name: str) -> ReaderInfo:
    found: Sequence[ReaderInfo] = [reader for reader in info.readers if reader.name == name]
    assert len(found) == 1, f"expected one reader {name!r}, got {info.readers}"
    return found[0]
