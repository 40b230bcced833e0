"""Random histories of failures and kills over the real queue: every event is stored once, or is a dead letter, per output.

The conservation law of the design (appended = stored + queued + dead letters + missing), at the end of each history.
"""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path
from typing import Any

import pytest

from headrace import NO_ORIGINS, PermanentError, RangeKey, TransientError
from headrace.config import Engine
from headrace.engine.output_planned import PlannedOutput
from headrace.engine.output_streaming import StreamingOutput
from headrace.testing import fake_context
from headrace_queue_pmem import QueuePmem

HISTORIES = 4 if "HEADRACE_FULL" not in os.environ else 300
LIVES = 6


class Killed(BaseException):
    """Stands for kill -9: nothing of the engine may catch it."""


class RandomFaults:
    """Kills at some of the engine's fault points."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.kills = rng, 0.0

    def hit(self, name: str) -> None:
        if self.rng.random() < self.kills:
            raise Killed(name)


class History:
    """What the stores do in one history, and what they must hold at its end."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.calm = False
        self.undecodable: set[int] = set()
        self.named: set[int] = set()
        self.unnamed: set[int] = set()

    def payload(self, number: int) -> bytes:
        draw = self.rng.random()
        for share, kind in ((0.01, self.undecodable), (0.02, self.named), (0.03, self.unnamed)):
            if draw < share:
                kind.add(number)
                break
        return b"broken" if number in self.undecodable else b'{"n":%d}' % number

    def fail(self, numbers: list[float], key: RangeKey) -> None:
        if bad := [row for row, number in enumerate(numbers) if number in self.named]:
            raise PermanentError("named", {str(key): bad[: self.rng.randint(1, 2)]})
        if self.unnamed & {int(number) for number in numbers}:
            raise PermanentError("unnamed")
        self.trip()

    def trip(self) -> None:
        draw = self.rng.random()
        if self.calm or draw > 0.1:
            return
        raise (TransientError("down"), ZeroDivisionError("bug"), Killed("store"))[int(draw * 30)]


def store_types(base: Any, history: History) -> tuple[Any, Any]:
    class Resuming(base[1]):
        def refuse(self, at: str, numbers: list[float], key: RangeKey) -> None:
            if at == "write":
                history.fail(numbers, key)

        async def sink_flush(self, key: RangeKey) -> None:
            history.trip()
            await super().sink_flush(key)
            history.trip()  # it took it, and nobody heard

        sink_flush.headrace_impl = base[1].sink_flush.headrace_impl  # type: ignore[attr-defined]

    class Keyed(base[0]):
        idempotence = "key"
        ranges: dict[str, list[float]] = {}  # noqa: RUF012

        def refuse(self, at: str, numbers: list[float], key: RangeKey) -> None:
            if at == "write":
                history.fail(numbers, key)

        async def sink_flush(self, key: RangeKey) -> None:
            history.trip()
            assert Keyed.ranges.setdefault(str(key), self._taken) == self._taken, f"{key} came again with other events"
            self._taken = []
            history.trip()

        sink_flush.headrace_impl = base[0].sink_flush.headrace_impl  # type: ignore[attr-defined]

    return Resuming, Keyed


async def live(bench: Any, history: History, stores: Any, folder: Path, last: bool) -> None:
    """One life of the process: until it is killed, or drained."""
    rng = history.rng
    history.calm = last
    bench.services.faults.kills = 0.0 if last else rng.choice((0.0, 0.02, 0.1))
    queue = QueuePmem(
        QueuePmem.Config(path=str(folder / "q"), medium="file", segment_bytes=8 << 20, size_bytes_max=32 << 20), fake_context(folder / "c")
    )
    await queue.open()
    bench.buffer = queue
    pipeline = bench.pipeline()
    outputs = bench.outputs(
        pipeline,
        [
            (StreamingOutput, bench.unit(stores[0], flush_rows=rng.choice((5, 40)))),
            (PlannedOutput, bench.unit(stores[1], flush_rows=rng.choice((5, 40)))),
        ],
    )
    try:
        async with bench.running(pipeline):
            for _ in range(rng.randint(0, 6)):
                await queue.queue_append(bench.batch(rng.randint(1, 60), history.payload), NO_ORIGINS)
            tasks = [asyncio.ensure_future(output.run()) for output in outputs]
            await asyncio.wait(tasks, timeout=0.02 * rng.random(), return_when=asyncio.FIRST_EXCEPTION)
            for output in outputs:
                output.drain()
            async with asyncio.timeout(30):
                await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            killed = any(task.done() and not task.cancelled() and task.exception() for task in tasks)
            for task in tasks:
                if not task.done():
                    task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            wrong = [result for result in results if isinstance(result, Exception)]
            assert not wrong, wrong
            assert not (last and killed)
    finally:
        await queue.close()


@pytest.mark.parametrize("number", range(HISTORIES))
def test_every_event_is_stored_once_or_set_aside_once(tmp_path: Path, engine_bench: Any, stores: Any, number: int) -> None:
    seed = int(os.environ.get("HEADRACE_SEED", random.randrange(2**32)))
    print(f"seed {seed}")
    history = History(seed)
    bench = engine_bench(tmp_path, Engine(read_wait_ms_max=0, retry_base_ms=1, retry_max_ms=2, attempts_max=100))
    bench.services.faults = RandomFaults(history.rng)
    types = store_types(stores, history)
    for life in range(LIVES):
        asyncio.run(live(bench, history, types, tmp_path, last=life == LIVES - 1))
    keyed = [row for rows in types[1].ranges.values() for row in rows]
    for store, rows in ((types[0], types[0].rows), (types[1], keyed)):
        letters = bench.letters.db.execute("select position from letters where output in ('', ?)", (store.__name__.lower(),)).fetchall()
        dead = {position for (position,) in letters}
        assert dead == history.undecodable | history.named | history.unnamed
        assert sorted(rows) == [event for event in range(1, bench._count + 1) if event not in dead]
