"""What the tests of this plugin share: a sink over a server, events, and what went over the wire."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from akumuli_standin import StandIn

from headrace import Missing, RangeKey
from headrace.component import SystemClock
from headrace.testing import event_batch, fake_context, living, run
from headrace.testing.batches import EPOCH, QUEUE_ID
from headrace_sink_akumuli import AkumuliConfig, SinkAkumuli

T0_US = int(EPOCH.timestamp()) * 10**6
GUARD = b"+headrace.guard "


def sink(server: Any, folder: Path, faults: str = "", **options: Any) -> SinkAkumuli:
    """A new instance over the same folder. `server`: whatever has the addresses `connect` and `query`."""
    context = fake_context(folder / "data", clock=SystemClock(), id="akumuli", plugin="sink_akumuli", faults=faults)
    config = AkumuliConfig(connect=server.connect, query=server.query, **{"timeout_s": 10.0, **options})
    return SinkAkumuli(config, context)


def numbers(values: Sequence[float | None], first: int = 1, times_us: Sequence[int] | None = None, **context: str) -> pa.RecordBatch:
    """Events of the device `a` with the reading `n`, a second apart, or at these times behind the epoch."""
    batch = event_batch(
        len(values),
        first,
        devices=["a"],
        readings={"n": list(values)},
        context={name: [text] * len(values) for name, text in context.items()},
    )
    return batch if times_us is None else at(batch, [T0_US + us for us in times_us])


def count(rows: int, first: int = 1, **context: str) -> pa.RecordBatch:
    """`rows` events whose reading is their position."""
    return numbers([float(position) for position in range(first, first + rows)], first, **context)


def at(batch: pa.RecordBatch, times_us: Sequence[int]) -> pa.RecordBatch:
    """The batch with other times, in microseconds."""
    field = batch.schema.field("time")
    return batch.set_column(1, field, pa.array(times_us, pa.int64()).cast(field.type))


def key_of(batch: pa.RecordBatch, missing: tuple[Missing, ...] = ()) -> RangeKey:
    positions = batch.column("position")
    return RangeKey(QUEUE_ID, positions[0].as_py(), positions[-1].as_py(), missing)


async def store(hook: Any, *batches: pa.RecordBatch) -> None:
    for batch in batches:
        await hook.sink_write(batch=batch, key=key_of(batch))
    await hook.sink_flush(key=RangeKey(QUEUE_ID, key_of(batches[0]).first, key_of(batches[-1]).last))


def one_life(component: SinkAkumuli, *batches: pa.RecordBatch) -> None:
    """Open, write, flush, close."""

    async def work() -> None:
        async with living(component, "output") as hook:
            await store(hook, *batches)

    run(work())


def sent(server: StandIn) -> bytes:
    """What came over the wire, without the guard's points."""
    lines = bytes(server.received).splitlines(keepends=True)
    return b"".join(b"".join(lines[i : i + 3]) for i in range(0, len(lines), 3) if not lines[i].startswith(GUARD))


def series(reading: str = "n", device: str = "a", **tags: str) -> str:
    """The name of a series, with the tags of the default config."""
    tags = {"class": "unknown", "type": "unknown", "site": "unknown", "device": device, **tags}
    return " ".join([reading, *(f"{tag}={tags[tag]}" for tag in sorted(tags))])


def ns(us: int, offset: int = 0) -> int:
    """A timestamp of the server: microseconds behind the epoch, and nanoseconds."""
    return (T0_US + us) * 1000 + offset
