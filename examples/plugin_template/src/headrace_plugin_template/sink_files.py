"""A sink that writes each range of events as one file of JSON lines."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import pyarrow as pa
from msgspec import Meta

from headrace import Component, Config, Context, RangeKey, TransientError, hookimpl


class SinkFiles(Component):
    """The same key always names the same file, so a range that comes again after a crash replaces itself."""

    class Config(Config, frozen=True, kw_only=True):
        path: Annotated[str, Meta(description="Folder for the files; made when it is missing.", min_length=1)]

    idempotence = "key"
    fault_points = ("sink_files.before_rename", "sink_files.after_rename")

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self._folder = Path(config.path)
        self._taken: dict[str, pa.RecordBatch] = {}

    async def open(self) -> None:
        await self.context.call_blocking(lambda: self._folder.mkdir(parents=True, exist_ok=True))

    @hookimpl
    async def sink_write(self, batch: pa.RecordBatch, key: RangeKey) -> None:
        self._taken[f"{key.queue_id}_{key.first:020}-{key.last:020}"] = batch

    @hookimpl
    async def sink_flush(self, key: RangeKey) -> None:
        try:
            await self.context.call_blocking(self._store)
        except OSError as error:
            raise TransientError(f"{self._folder}: {error}") from error
        self._taken.clear()

    @hookimpl
    async def sink_reset(self) -> None:
        self._taken.clear()

    def _store(self) -> None:
        for name, batch in self._taken.items():
            part = self._folder / f"{name}.part"
            with part.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, default=str, ensure_ascii=False) + "\n" for row in batch.to_pylist())
                file.flush()
                os.fsync(file.fileno())  # the content first, then its name
            self.context.fault("sink_files.before_rename")
            part.rename(self._folder / f"{name}.ndjson")
            self.context.fault("sink_files.after_rename")
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
