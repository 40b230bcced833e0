"""Files that the workers of a tier share: the types of readings, and the register of queues."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace.engine.types_file import TypesFile
from headrace.locked import locked
from headrace.log import Log
from headrace.register import QueueRegister


def test_the_first_worker_to_see_a_name_gives_it_its_type(tmp_path: Path) -> None:
    one, other = (TypesFile(tmp_path / "readings.json", 10) for _ in range(2))
    assert one.extend({"t": "number"}) == {"t": "number"}
    assert other.extend({"t": "string", "open": "boolean"}) == {"t": "number", "open": "boolean"}
    assert one.load(Log("")) == {"t": "number", "open": "boolean"}


def test_names_beyond_the_bound_are_the_same_for_every_worker(tmp_path: Path) -> None:
    one, other = (TypesFile(tmp_path / "readings.json", 2) for _ in range(2))
    one.extend({"a": "number", "b": "number"})
    assert other.extend({"b": "string", "c": "number"}) == {"a": "number", "b": "number"}


def test_a_worker_decodes_again_when_another_was_first_with_a_name(bench: Any) -> None:
    def payload(number: int) -> bytes:
        return b'{"n": "text", "own": %d}' % number

    async def main() -> list[dict[str, Any]]:
        pipeline = bench.pipeline()
        TypesFile(bench.folder / "readings.json", 10).extend({"n": "number"})  # behind the pipeline's back
        async with bench.running(pipeline) as tasks:
            appending = tasks.create_task(bench.buffer.queue_append(bench.batch(2, payload), bench.no_origins))
            events = await pipeline.after("r", 0)
            appending.cancel()
            rows: list[dict[str, Any]] = events.batch.column("readings").to_pylist()
            return rows

    rows = asyncio.run(main())
    assert rows == [{"own": number, "_other": '{"n":"text"}'} for number in (1.0, 2.0)]
    assert TypesFile(bench.folder / "readings.json", 10).load(Log("")) == {"n": "number", "own": "number"}


def test_a_lock_is_for_one_process_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path / "file"), pytest.raises(BlockingIOError), locked(tmp_path / "file", wait=False):
        pass
    with locked(tmp_path / "file", wait=False):
        pass


WRITER = """
import sys
from pathlib import Path
from headrace.register import QueueRegister, Registered
register = QueueRegister(Path(sys.argv[1]))
for number in range(40):
    register.add(Registered("edge", "queue_pmem", f"/{sys.argv[2]}.{number}"))
    if number % 2:
        register.drained(f"/{sys.argv[2]}.{number}")
"""


def test_processes_that_write_the_register_at_once_lose_no_entry(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(number)]) for number in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    expected = {f"/{writer}.{number}" for writer in range(3) for number in range(0, 40, 2)}
    assert {entry.path for entry in QueueRegister(tmp_path).entries()} == expected
