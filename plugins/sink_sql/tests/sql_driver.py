"""A sink over a database, driven as the host would drive it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from headrace import PermanentError, TransientError
from headrace.config import Secret
from headrace.testing import FakeContext, fake_context
from headrace.testing.sink_bench import key_of
from headrace_sink_sql import SinkSql, SqlConfig


def sink_of(url: str, folder: Path, **options: Any) -> tuple[SinkSql, FakeContext]:
    context = fake_context(folder / "data")
    return SinkSql(SqlConfig(database=Secret(url), **options), context), context


async def store(sink: SinkSql, *batches: pa.RecordBatch, queue_id: str = "") -> None:
    """Write each, flush each."""
    for batch in batches:
        key = key_of(batch)
        key = key._replace(queue_id=queue_id) if queue_id else key
        await sink.sink_write(batch=batch, key=key)
        await sink.sink_flush(key=key)


async def refused(sink: SinkSql, batch: pa.RecordBatch) -> PermanentError:
    """What it says to a batch that it does not take."""
    try:
        await store(sink, batch)
    except PermanentError as error:
        await sink.sink_reset()
        return error
    raise AssertionError("expected PermanentError, got none")


async def patiently(sink: SinkSql, batch: pa.RecordBatch, **options: Any) -> list[str]:
    """As the host does it: after a transient error reset, and the same again. What it said."""
    said: list[str] = []
    while True:
        try:
            await store(sink, batch, **options)
        except TransientError as error:
            said.append(str(error))
            assert len(said) < 10, said
            await sink.sink_reset()
        else:
            return said
