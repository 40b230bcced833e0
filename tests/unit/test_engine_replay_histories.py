"""Random histories in which letters are replayed while the queue's events go on, both killed at any point: each event is stored once."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path
from typing import Any

import pytest
from tests.unit.test_engine_histories import History, RandomFaults, store_types

from headrace import NO_ORIGINS
from headrace.config import Engine
from headrace.dead.store import DeadStore, Filter
from headrace.engine.output_planned import PlannedOutput
from headrace.engine.output_streaming import StreamingOutput
from headrace.testing import fake_context
from headrace_queue_pmem import QueuePmem

HISTORIES = 4 if "HEADRACE_FULL" not in os.environ else 300
LIVES = 7


def want(bench: Any, first: int, last: int | None = None) -> None:
    """`headrace dead replay --seq FIRST-LAST`."""
    store = DeadStore("t", bench.letters.path)
    store.queue(Filter(seqs=((first, last or first),)))
    store.close()


def mend(history: History) -> None:
    """Somebody put right why the stores refused some of the events."""
    for refused in (history.named, history.unnamed):
        refused -= {number for number in refused if history.rng.random() < 0.3}


async def live(bench: Any, history: History, stores: Any, folder: Path, last: bool) -> None:
    rng = history.rng
    history.calm = last
    bench.services.faults.kills = 0.0 if last else rng.choice((0.0, 0.02, 0.1))
    options = QueuePmem.Config(path=str(folder / "q"), medium="file", segment_bytes=8 << 20, size_bytes_max=32 << 20)
    queue = QueuePmem(options, fake_context(folder / "c"))
    await queue.open()
    bench.buffer = queue
    pipeline = bench.pipeline()
    kinds = [(StreamingOutput, stores[0]), (PlannedOutput, stores[1])]
    outputs = bench.outputs(pipeline, [(kind, bench.unit(store, flush_rows=rng.choice((5, 40)))) for kind, store in kinds])
    by_id = {output.id: output for output in outputs}
    replaying = bench.replaying()
    replays: set[asyncio.Task[None]] = set()

    async def look() -> None:
        while True:
            await replaying.look(by_id, queue.queue_info())
            replays.update(task for task, _, _ in replaying._under_way.values())
            await asyncio.sleep(0.002)

    def killed(tasks: list[asyncio.Task[Any]]) -> bool:
        return any(task.done() and not task.cancelled() and task.exception() for task in (*tasks, *replays))

    try:
        async with bench.running(pipeline):
            for _ in range(rng.randint(0, 5)):
                await queue.queue_append(bench.batch(rng.randint(1, 60), history.payload), NO_ORIGINS)
            tasks = [asyncio.ensure_future(work) for work in (*(output.run() for output in outputs), look())]
            for _ in range(rng.randint(1, 4)):
                await asyncio.wait(tasks, timeout=0.03 * rng.random(), return_when=asyncio.FIRST_EXCEPTION)
                mend(history)
                want(bench, rng.choice((1, rng.randint(1, 20))), 10**6)
            if last:
                history.named.clear()
                history.unnamed.clear()
                await settled(bench, queue, replaying, tasks, outputs)
            for task in (*tasks, *replays):
                task.cancel()
            results = await asyncio.gather(*tasks, *replays, return_exceptions=True)
            wrong = [result for result in results if isinstance(result, Exception)]
            assert not wrong, wrong
            assert not (last and killed(tasks))
    finally:
        await queue.close()


async def settled(bench: Any, queue: Any, replaying: Any, tasks: list[asyncio.Task[Any]], outputs: list[Any]) -> None:
    """Until the stores have all that the queue has, and nothing is on its way again."""

    def open_letters() -> int:
        asked = "select count(*) from letters where state = 'queued' or payload != x'62726f6b656e'"
        return int(bench.letters.db.execute(asked).fetchone()[0])

    deadline = asyncio.get_running_loop().time() + 60
    while queue.queue_info().size_events or replaying._under_way or open_letters():
        for (seq,) in bench.letters.db.execute("select seq from letters where state = 'dead' and payload != x'62726f6b656e'").fetchall():
            want(bench, seq)  # not those that never decode: they would be on their way for ever
        assert not any(task.done() for task in tasks), [task for task in tasks if task.done()]
        assert asyncio.get_running_loop().time() < deadline, (
            [(output.id, output.activity, output.flushed, output.attempted, output.unit.turn._holder) for output in outputs],
            [
                (driver.id, driver.activity, driver.flushed, driver.attempted)
                for _, _, each in replaying._under_way.values()
                for driver in each
            ],
            queue.queue_info().readers,
            *(bench.letters.db.execute(f"select * from {table}").fetchall() for table in ("replay_readers", "replays", "letters")),
        )
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("number", range(HISTORIES))
def test_every_event_is_stored_once_or_dead_whatever_is_replayed_and_killed(
    tmp_path: Path, engine_bench: Any, stores: Any, number: int
) -> None:
    seed = int(os.environ.get("HEADRACE_SEED", random.randrange(2**32)))
    print(f"seed {seed}")
    history = History(seed)
    bench = engine_bench(tmp_path, Engine(read_wait_ms_max=0, retry_base_ms=1, retry_max_ms=2, attempts_max=100))
    bench.services.faults = RandomFaults(history.rng)
    types = store_types(stores, history)
    for life in range(LIVES):
        asyncio.run(live(bench, history, types, tmp_path, last=life == LIVES - 1))
    keyed = [row for rows in types[1].ranges.values() for row in rows]
    assert {row[0] for row in bench.letters.db.execute("select position from letters")} == history.undecodable
    for rows in (types[0].rows, keyed):
        assert sorted(rows) == [event for event in range(1, bench._count + 1) if event not in history.undecodable]
