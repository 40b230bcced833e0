"""The real media: that what they call durable is clean in the page cache, and what they write is seen through the map."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace import NO_ORIGINS
from headrace_queue_pmem import medium as module
from headrace_queue_pmem.libc import ffi, libc
from headrace_queue_pmem.medium import FileMedium
from headrace_queue_pmem.pmem import PmemMedium

sys.path.insert(0, str(Path(__file__).parent))
from conftest import MIB, rows, run

ffi.cdef("long syscall(long number, ...);")
CACHESTAT = 451


def dirty_pages(path: Path) -> int:
    """Pages of a file that the kernel has yet to write to its device (dirty or being written)."""
    out, whole = ffi.new("uint64_t[5]"), ffi.new("uint64_t[2]")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        number, fd, zero = (ffi.cast("long", value) for value in (CACHESTAT, descriptor, 0))
        if libc.syscall(number, fd, whole, out, zero):
            pytest.skip("the kernel has no cachestat (it came with 6.5)")
    finally:
        os.close(descriptor)
    return int(out[1] + out[2])


@pytest.mark.parametrize("kind", [PmemMedium, FileMedium])
def test_what_is_made_durable_at_level_power_is_on_the_device(tmp_path, kind):
    area = kind(tmp_path, "power").create("segment-00000001", 8 * MIB)
    path = tmp_path / "segment-00000001"
    assert dirty_pages(path) == 0
    area.write(8192, b"x" * 10_000, 10_000)
    assert dirty_pages(path) == 3, "written, and not synced yet"
    area.persist(8192, 10_000)
    assert dirty_pages(path) == 0
    area.gather([(40_960, b"a" * 64), (41_088, b"b" * 5000)])
    area.sync(40_960, 6000)
    assert dirty_pages(path) == 0
    area.gather_durably([(81_920, b"c" * 64), (82_048, b"d" * 9000)])
    assert dirty_pages(path) == 0
    area.gather_durably([(122_880 + 64 * number, b"e" * 64) for number in range(1200)])
    assert dirty_pages(path) == 0
    area.close()


def test_an_append_at_level_power_leaves_nothing_for_the_kernel_to_write(make, tmp_path):
    async def body() -> None:
        for medium in ("pmem", "file"):
            queue = make(medium=medium, level="power", path=str(tmp_path / medium))
            await queue.open()
            await queue.queue_reader_open("lake", "oldest")
            for number in range(20):
                await queue.queue_append(rows(number, 10, 500), NO_ORIGINS)
                segment = queue._ring.segments[-1]
                assert dirty_pages(tmp_path / medium / segment.name) == 0
                assert dirty_pages(tmp_path / medium / "head") == 0
            await queue.close()

    run(body())


@pytest.mark.parametrize("kind", [PmemMedium, FileMedium])
def test_pieces_are_where_they_belong_however_many_there_are(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(module, "_PARTS_MAX", 7)
    for level in ("process", "power"):
        (tmp_path / level).mkdir()
        area = kind(tmp_path / level, level).create("segment-00000001", 8 * MIB)
        chance = random.Random(1)
        expected, parts, at = bytearray(area.size), [], 8192
        while len(parts) < 100:
            piece = chance.randbytes(chance.randrange(1, 300))
            expected[at : at + len(piece)] = piece
            parts.append((at, piece))
            at += len(piece) + chance.choice((0, 0, 17))
        area.gather(parts)
        assert bytes(area.view[8192:at]) == bytes(expected[8192:at])
        area.close()


def test_a_write_that_is_cut_short_goes_on(tmp_path, monkeypatch):
    area = FileMedium(tmp_path, "power").create("segment-00000001", 8 * MIB)
    real = os.pwritev

    def short(fd: int, pieces: list[Any], offset: int, flags: int) -> int:
        return real(fd, [b"".join(pieces)[:100]], offset, flags)

    monkeypatch.setattr(os, "pwritev", short)
    for at, gather in ((8192, area.gather), (16384, area.gather_durably)):
        gather([(at, b"a" * 150), (at + 192, b"b" * 70)])
        assert bytes(area.view[at : at + 262]) == b"a" * 150 + bytes(42) + b"b" * 70
    area.close()
