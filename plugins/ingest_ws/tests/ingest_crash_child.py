"""A process for crash tests: ingest_ws over a file that is its queue. Arguments: folder, faults. Prints its URL."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pyarrow as pa

from headrace import NO_ORIGINS, QueueInfo
from headrace.component import SystemClock
from headrace.testing import fake_context
from headrace_ingest_ws import IngestWs


class FileDeliver:
    """One line per event, synced before it returns."""

    def __init__(self, path: Path) -> None:
        self._path, self._order = path, asyncio.Lock()

    async def __call__(self, batch: pa.RecordBatch, origins: pa.RecordBatch = NO_ORIGINS) -> tuple[int, int]:
        lines = b"".join(payload + b"\n" for payload in batch.column("payload").to_pylist())
        async with self._order:
            await asyncio.to_thread(self._append, lines)
        return 0, 0

    def _append(self, lines: bytes) -> None:
        with self._path.open("ab") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())

    async def room(self) -> None:
        return

    async def position(self, origin: str) -> int | None:
        return None

    def queue_info(self) -> QueueInfo | None:
        return None


async def main(folder: Path, faults: str) -> None:
    component = IngestWs(IngestWs.Config(auth="none", listen="127.0.0.1:0"), fake_context(folder, clock=SystemClock(), faults=faults))
    await component.open()
    print(component.url, flush=True)
    await component.ingest_serve(FileDeliver(folder / "durable"))


def run() -> None:
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
