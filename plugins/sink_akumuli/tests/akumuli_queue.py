"""A queue that holds everything, and the engine's way with an output that resumes: for tests in which the server dies."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pyarrow as pa

from headrace import RangeKey, TransientError
from headrace.testing import event_batch, living
from headrace.testing.batches import QUEUE_ID

RETRIES_MAX = 500


def events(first: int, last: int, devices: int) -> pa.RecordBatch:
    """Positions first..last: devices take turns, each tick shares its time; readings that come rarely, and ones that come always."""
    positions = range(first, last + 1)
    batch = event_batch(
        len(positions),
        positions=positions,
        devices=[f"d{number}" for number in range(devices)],
        readings={
            "n": [float(position) for position in positions],
            "rare": [position / 4 if position % 97 == 0 else None for position in positions],
        },
    )
    # every device sends two events of one microsecond, one behind the other in the queue
    times = [1_795_000_000_000_000 + (position // devices // 2) * 1000 for position in positions]
    field = batch.schema.field("time")
    return batch.set_column(1, field, pa.array(times, pa.int64()).cast(field.type))


def expected(last: int, devices: int) -> dict[tuple[str, str], list[float]]:
    """By reading and device the values in order."""
    found: dict[tuple[str, str], list[float]] = {}
    for position in range(1, last + 1):
        device = f"d{position % devices}"
        found.setdefault(("n", device), []).append(float(position))
        if position % 97 == 0:
            found.setdefault(("rare", device), []).append(position / 4)
    return found


async def feed(
    make: Callable[[], Any], goal: int, devices: int, rng: random.Random, revive: Callable[[], Awaitable[None]], oldest: int = 1
) -> None:
    """Feed the events up to `goal` as the engine would, whatever happens; `revive` sees to the server after an error."""
    async with living(make(), "output") as hook:
        failures = 0
        position = None
        while position is None or position < goal:
            try:
                if position is None:
                    held = await hook.sink_resume(queue_id=QUEUE_ID)
                    position = max(oldest - 1, held or 0)
                position = await _one_flush(hook, position, goal, devices, rng)
                failures = 0
            except TransientError:
                failures += 1
                if failures > RETRIES_MAX:
                    raise
                await revive()
                await asyncio.sleep(0.005)
                await hook.sink_reset()
                position = None


async def _one_flush(hook: Any, position: int, goal: int, devices: int, rng: random.Random) -> int:
    first = position + 1
    for _ in range(rng.randint(1, 4)):
        if position < goal:
            last = min(goal, position + rng.randint(1, 900))
            await hook.sink_write(batch=events(position + 1, last, devices), key=RangeKey(QUEUE_ID, position + 1, last))
            position = last
    await hook.sink_flush(key=RangeKey(QUEUE_ID, first, position))
    return position
