"""Kill a writing and reading process again and again: `python crash_rounds.py DIRECTORY LEVEL MEDIUM ROUNDS SEED`.

Each round forks a child that opens the queue, sends numbered events from the queue's mark on (as a link does), reads them
into a file (its "store") and releases what the file has. The parent kills it 0 to 20 ms after its first acknowledgement.
Prints one JSON object: what was acknowledged, and what the store has in the end.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from conftest import MIB, context, numbers, rows

from headrace import Origin, QueueFull, origin_batch
from headrace_queue_pmem import QueuePmem

SENDER = "upstream/0"


def build(directory: Path, level: str, medium: str) -> QueuePmem:
    config = QueuePmem.Config(
        path=str(directory / "queue"), level=level, medium=medium, segment_bytes=8 * MIB, size_bytes_max=24 * MIB, cursor_interval_ms=10
    )
    return QueuePmem(config, context(directory))


async def work(directory: Path, level: str, medium: str, tell: int, events_max: int | None) -> None:
    """Write and read for ever, or until the store has `events_max` events."""
    queue = build(directory, level, medium)
    await queue.open()
    await queue.queue_reader_open("store", "oldest")
    writing = asyncio.ensure_future(write(queue, tell)) if events_max is None else None
    reading = asyncio.ensure_future(read(queue, directory / "store", events_max))
    done, _ = await asyncio.wait([task for task in (writing, reading) if task], return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    await queue.close()


async def write(queue: QueuePmem, tell: int) -> None:
    sent = await queue.queue_origin_position(SENDER) or 0
    while True:
        calls = []
        for count in (1, 3, 50):
            batch = rows(sent + 1, count, 200)
            calls.append(queue.queue_append(batch, origin_batch([Origin(SENDER, sent + 1, sent + count)])))
            sent += count
        try:
            results = await asyncio.gather(*calls)
        except QueueFull:
            await asyncio.sleep(0.001)
            sent = await queue.queue_origin_position(SENDER) or 0
            continue
        os.write(tell, b"%d\n" % results[-1][1])
        await asyncio.sleep(0)


async def read(queue: QueuePmem, store: Path, events_max: int | None) -> None:
    descriptor = os.open(store, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    # One line of eight bytes per event; a torn line is no event, as a sink's resume would find.
    held = os.fstat(descriptor).st_size // 8
    os.ftruncate(descriptor, held * 8)
    while events_max is None or held < events_max:
        part = await queue.queue_read("store", held, 500, 1 << 20)
        assert not part.missing, part.missing
        os.write(descriptor, b"".join(b"%07d\n" % number for number in numbers(part.batch)))
        held = part.last
        await queue.queue_release("store", held)


def main() -> None:
    directory, level, medium, rounds, seed = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
    chance = random.Random(seed)
    acked = 0
    for _ in range(rounds):
        ear, tell = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(ear)
            status = 1
            try:
                asyncio.run(work(directory, level, medium, tell, None))
            finally:
                os._exit(status)
        os.close(tell)
        heard = os.read(ear, 1 << 16)
        time.sleep(chance.random() * 0.02)
        os.kill(child, signal.SIGKILL)
        while more := os.read(ear, 1 << 16):
            heard += more
        os.close(ear)
        if not heard.endswith(b"\n"):
            raise SystemExit(f"the child died by itself: {os.waitpid(child, 0)}")
        os.waitpid(child, 0)
        acked = max(acked, int(heard.split()[-1]))
    asyncio.run(work(directory, level, medium, 0, acked))
    result: dict[str, Any] = {"rounds": rounds, "acked": acked, **verdict((directory / "store").read_bytes())}
    print(json.dumps(result))


def verdict(store: bytes) -> dict[str, int]:
    """How many events the store has, and how many it should not have, or have twice, or not in order."""
    found = [int(line) for line in store.split()]
    return {"stored": len(found), "wrong": sum(1 for place, number in enumerate(found, 1) if number != place)}


if __name__ == "__main__":
    main()
