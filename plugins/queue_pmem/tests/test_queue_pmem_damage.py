"""Flipped bits, overwritten stretches and cut-off files: the queue opens, gives all that is undamaged, and nothing wrong.

`HEADRACE_SEED` repeats a run, `HEADRACE_DAMAGE_ROUNDS` makes more of them.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from headrace import NO_ORIGINS
from headrace_queue_pmem import reading, upkeep
from headrace_queue_pmem.frame import encode
from headrace_queue_pmem.layout import HEAD_BYTES, PAGE
from headrace_queue_pmem.marks import Marks
from headrace_queue_pmem.medium import FileMedium, Medium
from headrace_queue_pmem.pmem import PmemMedium
from headrace_queue_pmem.recovery import recover
from headrace_queue_pmem.ring import Ring
from headrace_queue_pmem.state import Options

sys.path.insert(0, str(Path(__file__).parent))
from conftest import MIB, rows
from shadow import ShadowMedium

ROUNDS = int(os.environ.get("HEADRACE_DAMAGE_ROUNDS", "2000"))
SEGMENT = 32 << 10


@dataclass
class Built:
    """A queue as it was left: where each frame lies, and what must come out of it."""

    frames: list[tuple[str, int, int, int, int]]  # file, offset, size, first, last
    begins: set[int]  # positions with which a commit began
    payloads: dict[int, bytes]
    cursor: int
    tail: int


def open_ring(medium: Medium, options: Options) -> Ring:
    return recover("sim", "queue", medium, options, Marks(8, 8, 8))[0]


def append(ring: Ring, chance: random.Random, payloads: dict[int, bytes], groups: int) -> set[int]:
    begins = set()
    for _ in range(groups):
        entries = []
        for _ in range(chance.choice((1, 1, 2))):
            entry = encode(rows(ring.next, chance.randrange(1, 6), chance.choice((20, 100, 900))), NO_ORIGINS, 1)
            ring.reserve(entry)
            entries.append(entry)
        ring.commit(entries)
        begins.add(entries[0].first)
    part = reading.read(ring, "check", min(begins) - 1, 10_000, 1 << 24)
    while part is not None:
        assert part.batch is not None
        payloads.update(enumerate(part.batch["payload"].to_pylist(), part.first))
        part = reading.read(ring, "check", part.last, 10_000, 1 << 24)
    return begins


def build(medium: Medium, options: Options, chance: random.Random, closed: bool, groups: int = 14) -> Built:
    """Two lives of a queue with several segments, one reader in the middle."""
    payloads: dict[int, bytes] = {}
    begins: set[int] = set()
    for life in range(2):
        ring = open_ring(medium, options)
        ring.open_reader("lake", "oldest")
        begins |= append(ring, chance, payloads, groups)
        ring.release("lake", ring.upto // 3)
        upkeep.upkeep(ring)
        if closed or life == 0:
            upkeep.close(ring)
        if life == 0:
            ring.close()
    frames = []
    for segment in ring.segments:
        area = reading.area_for_reading(ring, segment)
        offset = 2 * PAGE
        while offset < segment.end:
            header = reading.read_header(area.view, offset, segment.header.nonce)
            assert header is not None
            frames.append((segment.name, offset, header.size, header.first, header.last))
            offset += header.size
    cursor, tail = ring.head.readers["lake"].cursor, ring.tail
    ring.close()
    return Built(frames, begins, payloads, cursor, tail)


def must_come(built: Built, file: str, start: int, end: int, closed: bool) -> set[int]:
    """The positions that damage of bytes start..end of a file's usable part leaves whole."""
    hit = [
        number for number, (name, offset, size, _, _) in enumerate(built.frames) if name == file and offset < end and offset + size > start
    ]
    lost = {position for number in hit for position in range(built.frames[number][3], built.frames[number][4] + 1)}
    if hit and not closed:
        # Nothing says that the last commit was ever acknowledged: where it is damaged the log may end before it.
        last_begin = max(built.begins)
        lost |= {position for position in built.payloads if position >= last_begin} if max(lost, default=0) >= last_begin else set()
    return {position for position in built.payloads if position >= built.tail} - lost


def judge(medium: Medium, options: Options, built: Built, wanted: set[int], chance: random.Random) -> None:
    """Open, read all, append, and open again: what is delivered is right, and what is whole is delivered."""
    payloads = dict(built.payloads)
    for life in range(2):
        ring = open_ring(medium, options)
        if "lake" in ring.head.readers:
            assert ring.head.readers["lake"].cursor <= built.cursor
        after, got = ring.tail - 1, set()
        while (part := reading.read(ring, "lake", after, 64, 1 << 20)) is not None:
            assert part.first == after + 1
            assert part.last > after
            gone = {position for hole in part.missing for position in range(hole.first, hole.last + 1)}
            here = [position for position in range(part.first, part.last + 1) if position not in gone]
            bodies = part.batch["payload"].to_pylist() if part.batch is not None else []
            assert len(bodies) == len(here)
            for position, body in zip(here, bodies, strict=True):
                assert body == payloads[position], f"position {position} came out as {body!r}"
            got |= set(here)
            after = part.last
        assert wanted <= got, f"whole but not delivered: {sorted(wanted - got)[:10]} of {ring.upto}"
        if life == 0:
            start = ring.next
            payloads = {position: body for position, body in payloads.items() if position < start}
            append(ring, chance, payloads, 3)
            # What the reader had released may be given back now.
            wanted = {position for position in wanted if position > built.cursor} | set(range(start, ring.next))
            upkeep.upkeep(ring)
            upkeep.close(ring)
        ring.close()


def damage(memory: np.ndarray, chance: random.Random, used: int) -> tuple[int, int]:
    """Flip a bit, overwrite a stretch, or zero one. Returns the bytes that may have changed."""
    at = chance.randrange(used)
    kind = chance.random()
    if kind < 0.6:
        memory[at] ^= 1 << chance.randrange(8)
        return at, at + 1
    length = min(chance.randrange(1, 65), len(memory) - at)
    memory[at : at + length] = 0 if kind < 0.7 else np.frombuffer(chance.randbytes(length), np.uint8)
    return at, at + length


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "crashed"])
def test_damage_costs_what_it_hit_and_nothing_else(closed):
    seed = int(os.environ.get("HEADRACE_SEED") or random.SystemRandom().randrange(1 << 30))
    print(f"HEADRACE_SEED={seed}")
    chance = random.Random(seed)
    options = Options(SEGMENT, 12 * SEGMENT)
    medium = ShadowMedium(seed)
    built = build(medium, options, chance, closed)
    kept = {name: file.memory.copy() for name, file in medium.files.items()}
    notes = dict(medium.notes)
    for number in range(ROUNDS // 2):
        trial = ShadowMedium(seed, level="power")
        trial.notes = dict(notes)
        name = chance.choice(["head", *(file for file in kept if file != "head"), *(file for file in kept if file != "head")])
        for file, memory in kept.items():
            trial.add(file, memory.copy())
        used = HEAD_BYTES if name == "head" else SEGMENT
        if name == "head" and chance.random() < 0.7:
            used = 16 * PAGE  # header, cursors and the first readers
        if chance.random() < 0.1:
            cut = chance.randrange(used) // PAGE * PAGE
            trial.add(name, kept[name][:cut].copy())
            start, end = cut, 1 << 40
        else:
            start, end = damage(trial.files[name].memory, chance, used)
        try:
            judge(trial, options, built, must_come(built, name, start, end, closed), chance)
        except Exception as error:
            raise AssertionError(f"round {number} of HEADRACE_SEED={seed}: {name} bytes {start}-{end}: {error!r}") from error
    print(f"{ROUNDS // 2} rounds over {len(built.frames)} frames, {len(built.payloads)} events")


@pytest.mark.parametrize("kind", [PmemMedium, FileMedium])
def test_damaged_files_on_disk(tmp_path, kind):
    seed = int(os.environ.get("HEADRACE_SEED") or random.SystemRandom().randrange(1 << 30))
    print(f"HEADRACE_SEED={seed}")
    chance = random.Random(seed)
    options = Options(8 * MIB, 32 * MIB)
    (tmp_path / "built").mkdir()
    built = build(kind(tmp_path / "built", "process"), options, chance, True, groups=40)
    files = [path for path in (tmp_path / "built").iterdir() if path.stat().st_size >= 8 * MIB]
    for number in range(20):
        trial = tmp_path / "trial"
        shutil.rmtree(trial, ignore_errors=True)
        shutil.copytree(tmp_path / "built", trial)
        path = trial / chance.choice(files).name
        size = path.stat().st_size
        # libpmemobj's own header is at the front, ours where its root object begins.
        at = chance.choice((chance.randrange(64), chance.randrange(8192), chance.randrange(3584 << 10, 4096 << 10), chance.randrange(size)))
        if number % 5 == 0:
            os.truncate(path, at)
        else:
            with path.open("r+b") as out:
                out.seek(at)
                out.write(chance.randbytes(8))
        wanted: set[int] = set() if path.name != "head" else {position for position in built.payloads if position >= built.tail}
        try:
            judge(kind(trial, "process"), options, built, wanted, chance)
        except Exception as error:
            raise AssertionError(f"round {number} of HEADRACE_SEED={seed}: {path.name} at {at}: {error!r}") from error
