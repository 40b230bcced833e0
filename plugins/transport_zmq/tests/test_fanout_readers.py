"""The readers in examples/ that are not Python. They skip where a compiler, libzmq's headers, Node or its packages are missing."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest
from test_fanout_sockets import Fan, subscribed

from headrace.testing import event_batch, run

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
def fan(tmp_path: Path) -> Fan:
    return Fan(tmp_path)


async def lines_of(fan: Fan, program: list[str], lines: int, environ: dict[str, str] | None = None) -> list[str]:
    """What the reader prints of two batches published under `pump` and one under `door`."""
    async with fan.publisher() as publisher:
        reader = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE, env={**os.environ, **(environ or {})})
        assert reader.stdout is not None
        try:
            await subscribed(publisher)
            for first, topic in ((1, "pump"), (100, "door"), (4, "pump")):
                await publisher.transport_publish(event_batch(3, first, context={"class": [topic] * 3}), topic)
            return [(await reader.stdout.readline()).decode() for _ in range(lines)]
        finally:
            if reader.returncode is None:
                reader.kill()
            await reader.wait()


def test_the_reader_in_c_reads(fan: Fan, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    program = tmp_path / "reader"
    built = subprocess.run(
        [compiler, "-Wall", "-Werror", str(EXAMPLES / "fanout_reader.c"), "-lzmq", "-o", str(program)], capture_output=True
    )
    if built.returncode and (b"zmq.h" in built.stderr or b"-lzmq" in built.stderr):
        pytest.skip("no libzmq with headers (libzmq3-dev)")
    assert not built.returncode, built.stderr.decode()
    first, second = run(lines_of(fan, [str(program), fan.address, "pump"], 2))
    assert first.startswith("pump rows=3 sequence=1 bytes=")
    assert second.startswith("pump rows=3 sequence=2 bytes=")
    stream = tmp_path / "events.arrows"
    run(lines_of(fan, [str(program), fan.address, "pump", str(stream)], 2))
    assert pa.ipc.open_stream(stream.read_bytes()).read_all().column("position").to_pylist() == [1, 2, 3]


def test_the_reader_for_node_reads(fan: Fan, tmp_path: Path) -> None:
    """NODE_PATH says where its packages are, as it does for `require`; an import looks beside the file."""
    node, packages = shutil.which("node"), Path(os.environ.get("NODE_PATH") or "/nowhere")
    if node is None:
        pytest.skip("no node")
    if not (packages / "zeromq").is_dir() or not (packages / "apache-arrow").is_dir():
        pytest.skip("no node packages zeromq and apache-arrow in NODE_PATH")
    (tmp_path / "node_modules").symlink_to(packages)
    reader = shutil.copy(EXAMPLES / "fanout_reader.mjs", tmp_path)
    events = [json.loads(line) for line in run(lines_of(fan, [node, str(reader), fan.address, "pump"], 6))]
    assert [event["position"] for event in events] == ["1", "2", "3", "4", "5", "6"]
    assert events[1]["device"] == "pump-3"
    assert events[1]["readings"] == {"n": 2, "even": True}
    assert events[1]["context"] == {"class": "pump"}
    assert events[1]["origin"] == event_batch(1).column("origin")[0].as_py()
