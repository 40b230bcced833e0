"""FORMAT.md and the code say the same: every offset and size of the page is checked against `layout`, and a queue is read by
a program that knows nothing but the page."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from crc32c import crc32c

from headrace import NO_ORIGINS, RAW_SCHEMA
from headrace_queue_pmem import layout

sys.path.insert(0, str(Path(__file__).parent))
from conftest import rows, run

PAGE = (Path(__file__).parent.parent / "FORMAT.md").read_text()


def test_offsets_and_sizes_on_the_page_are_those_of_the_code():
    for at, what in [
        (layout.HEADER_AT, "| header |"),
        (layout.OWNER_CELL_AT, "| owner |"),
        (layout.CURSORS_AT, "cursor of reader"),
        (layout.READERS_AT, "name of reader"),
        (layout.PLANS_AT, "plan of reader"),
        (layout.SPANS_AT, "queue ids"),
    ]:
        assert any(line.startswith(f"| {at} |") and what.strip("| ") in line for line in PAGE.splitlines()), (at, what)
    assert layout.SEGMENT_OWNER_AT == (192, 4096 + 192)
    assert layout.SEGMENT_COPY_AT[0] + layout.SEGMENT.size + 4 <= layout.SEGMENT_OWNER_AT[0]
    assert layout.SEGMENT_OWNER_AT[0] + layout.OWNER.size + 4 <= layout.POOL_AT[0]
    assert (layout.FRAME.size, layout.SEGMENT.size, layout.SEGMENT_DATA_AT) == (64, 64, 8192)
    assert f"padded with zeros to {layout.PLAN.size + 4 * (layout.PLAN_EXCLUDED - 1)} bytes" in PAGE


@pytest.mark.parametrize("medium", ["pmem", "file"])
def test_another_program_can_read_the_frames(make, tmp_path, medium):
    async def body() -> None:
        queue = make(medium=medium)
        await queue.open()
        for number in range(3):
            await queue.queue_append(rows(number, 1), NO_ORIGINS)
        await queue.close()

    run(body())
    content = next((tmp_path / "queue").glob("segment-*")).read_bytes()
    area = next(at for at in range(0, 8 << 20, 4096) if content[at : at + 8] == b"HRQSEGM1")
    version, number, nonce, base = struct.unpack_from("<IQQQ", content, area + 64)
    assert (version, number, base) == (1, 1, 1)
    found = []
    at = area + 8192
    while content[at : at + 4] == b"HRF1":
        header = content[at : at + 64]
        (crc,) = struct.unpack_from("<I", header, 4)
        assert crc == crc32c(header[8:])
        frame_nonce, first, count, _generation, _upto, _time, origins, payload, body_crc, kind, _flags = struct.unpack_from(
            "<QQIIQqIIIHH", header, 8
        )
        assert frame_nonce == nonce
        start = at + 64 + -(-origins // 64) * 64
        data = content[start : start + payload]
        assert body_crc == crc32c(content[at + 64 : at + 64 + origins] + data)
        if kind == 0:
            found.append((first, count, pa.ipc.read_record_batch(pa.py_buffer(data), RAW_SCHEMA)["payload"][0].as_py().strip()))
        at = start + -(-payload // 64) * 64
    assert found == [(1, 1, b"0"), (2, 1, b"1"), (3, 1, b"2")]
