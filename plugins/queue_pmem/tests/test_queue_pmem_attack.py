"""Random attacks on a queue's files: bits flipped, stretches and pages zeroed or overwritten, files cut off, lengthened, swapped,
copied, deleted, zeroed, and replaced by another queue's; several at once, on segments, head and marks.

Never a crash, a hang or a wrong event; what is whole in some file of ours is delivered, each position once; what is not is declared.
`HEADRACE_SEED` repeats a run, `HEADRACE_ATTACK_ROUNDS` (or HEADRACE_FULL=1) makes more of them.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from headrace import NO_ORIGINS
from headrace_queue_pmem import reading, upkeep
from headrace_queue_pmem.frame import encode, read_header
from headrace_queue_pmem.layout import (
    CELL_CRC,
    HEAD_BYTES,
    KIND_SPAN,
    PAGE,
    SEGMENT_COPY_AT,
    SEGMENT_DATA_AT,
    SPAN_CELL,
    SPANS,
    SPANS_AT,
)
from headrace_queue_pmem.layout import SEGMENT as SEGMENT_HEADER
from headrace_queue_pmem.marks import Marks
from headrace_queue_pmem.recovery import recover
from headrace_queue_pmem.ring import Ring
from headrace_queue_pmem.state import Options

sys.path.insert(0, str(Path(__file__).parent))
from conftest import rows
from shadow import ShadowMedium

ROUNDS = int(os.environ.get("HEADRACE_ATTACK_ROUNDS") or ("5000" if os.environ.get("HEADRACE_FULL") == "1" else "25"))
SEGMENT = 32 << 10
OPTIONS = Options(SEGMENT, 24 * SEGMENT)
Files = dict[str, np.ndarray[Any, Any]]


@dataclass
class Queue:
    """A queue as it was left, and what is known of it."""

    tag: bytes
    directory: int
    files: Files
    notes: dict[str, bytes]
    payloads: dict[int, bytes]
    frames: list[tuple[str, int, int, int, int]]  # file, offset, size, first, last
    generations: dict[tuple[str, int], int]  # by file and offset
    naming: dict[int, tuple[str, int]]  # the frame that names a generation's queue id
    cursors: dict[str, int]
    last_commit: int  # the position with which it began
    closed: bool


def opened(medium: ShadowMedium) -> Ring:
    return recover("sim", "queue", medium, OPTIONS, Marks(8, 8, 8))[0]


def append(ring: Ring, chance: random.Random, tag: bytes, payloads: dict[int, bytes]) -> int:
    """One commit; returns its first position."""
    entries = []
    for _ in range(chance.choice((1, 1, 2, 3))):
        batch = rows(ring.next, chance.randrange(1, 6), chance.choice((20, 100, 900)))
        bodies = [tag + body for body in batch["payload"].to_pylist()]
        place = batch.schema.get_field_index("payload")
        entry = encode(batch.set_column(place, batch.schema.field(place), pa.array(bodies, pa.binary())), NO_ORIGINS, 1)
        ring.reserve(entry)
        payloads.update(enumerate(bodies, entry.first))
        entries.append(entry)
    ring.commit(entries)
    return entries[0].first


def build(seed: int, tag: bytes) -> Queue:
    """Some lives of a queue, with one reader or two, closed or left as a crash leaves it."""
    chance = random.Random(seed)
    medium, payloads, last, closed = ShadowMedium(seed), dict[int, bytes](), 1, False
    lives = chance.randrange(1, 5)
    for life in range(lives):
        ring = opened(medium)
        ring.open_reader("lake", "oldest")
        if chance.random() < 0.4:
            ring.open_reader("live", "head")
        for _ in range(chance.randrange(3, 16)):
            last = append(ring, chance, tag, payloads)
            if chance.random() < 0.1:
                upkeep.upkeep(ring)
        ring.release("lake", int(ring.upto * chance.choice((0, 0, 0.3, 0.6))))
        if "live" in ring.head.readers:
            ring.release("live", ring.upto)
        upkeep.upkeep(ring)
        closed = life < lives - 1 or chance.random() < 0.5
        if closed:
            upkeep.close(ring)
    frames, generations, naming = [], dict[tuple[str, int], int](), dict[int, tuple[str, int]]()
    for segment in ring.segments:
        area, offset = reading.area_for_reading(ring, segment), SEGMENT_DATA_AT
        while offset < segment.end:
            header = read_header(area.view, offset, segment.header.nonce)
            assert header is not None
            frames.append((segment.name, offset, header.size, header.first, header.last))
            generations[segment.name, offset] = header.generation
            if header.kind == KIND_SPAN:
                naming[header.generation] = segment.name, offset
            offset += header.size
    cursors = {name: reader.cursor for name, reader in ring.head.readers.items()}
    files = {name: file.memory.copy() for name, file in medium.files.items()}
    return Queue(tag, medium.directory, files, dict(medium.notes), payloads, frames, generations, naming, cursors, last, closed)


@dataclass
class Attack:
    """What is done to a copy of a queue's files. `other` is another queue whose files may come in."""

    chance: random.Random
    files: Files
    notes: dict[str, bytes]
    other: Queue
    done: list[tuple[Any, ...]] = field(default_factory=list)

    def run(self) -> None:
        ways: list[Callable[[str], object]] = [self.flip, self.flip, self.overwrite, self.zero_pages, self.cut, self.lengthen]
        ways += [self.swap, self.copy, self.delete, self.zero, self.note, self.foreign_segment, self.foreign_head]
        for _ in range(self.chance.choice((1, 1, 1, 2, 2, 3, 4))):
            names = [name for name in self.files if len(self.files[name])]
            if names:
                way, name = self.chance.choice(ways), self.chance.choice(names)
                self.done.append((way.__name__, name, way(name)))  # type: ignore[attr-defined]

    def flip(self, name: str) -> int:
        memory = self.files[name]
        used = 16 * PAGE if name == "head" and self.chance.random() < 0.7 else HEAD_BYTES
        at = self.chance.randrange(min(used, len(memory)))
        memory[at] ^= 1 << self.chance.randrange(8)
        return at

    def overwrite(self, name: str) -> tuple[int, int]:
        memory = self.files[name]
        at = self.chance.randrange(len(memory))
        length = min(self.chance.choice((8, 64, 512, 4096)), len(memory) - at)
        memory[at : at + length] = 0 if self.chance.random() < 0.5 else np.frombuffer(self.chance.randbytes(length), np.uint8)
        return at, length

    def zero_pages(self, name: str) -> int:
        at = self.chance.randrange(len(self.files[name])) // PAGE * PAGE
        self.files[name][at : at + PAGE * self.chance.randrange(1, 5)] = 0
        return at

    def cut(self, name: str) -> int:
        length = self.chance.randrange(len(self.files[name])) // PAGE * PAGE
        self.files[name] = self.files[name][:length].copy()
        return length

    def lengthen(self, name: str) -> None:
        self.files[name] = np.concatenate([self.files[name], np.frombuffer(self.chance.randbytes(PAGE), np.uint8)])

    def swap(self, name: str) -> str:
        other = self.chance.choice([one for one in self.files if (one == "head") == (name == "head")])
        self.files[name], self.files[other] = self.files[other], self.files[name]
        return other

    def copy(self, name: str) -> str:
        new = f"segment-{self.chance.randrange(1, 60):08d}"
        if name != "head" and new not in self.files:
            self.files[new] = self.files[name].copy()
        return new

    def delete(self, name: str) -> None:
        del self.files[name]

    def zero(self, name: str) -> None:
        self.files[name][:] = 0

    def note(self, _name: str) -> tuple[Any, ...]:
        if not self.notes:
            return ()
        name, kind = self.chance.choice(sorted(self.notes)), self.chance.choice(("flip", "delete", "cut", "foreign"))
        content = self.notes.pop(name)
        if kind == "flip" and content:
            at = self.chance.randrange(len(content))
            content = content[:at] + bytes([content[at] ^ 1 << self.chance.randrange(8)]) + content[at + 1 :]
        elif kind == "cut":
            content = content[: self.chance.randrange(len(content) + 1)]
        elif kind == "foreign":
            content = self.other.notes[name]
        if kind != "delete":
            self.notes[name] = content
        return name, kind

    def foreign_segment(self, _name: str) -> str:
        name = self.chance.choice(sorted(self.other.files.keys() - {"head"}))
        new = self.chance.choice((name, f"segment-{self.chance.randrange(1, 60):08d}"))
        self.files[new] = self.other.files[name].copy()
        return new

    def foreign_head(self, _name: str) -> None:
        if self.chance.random() < 0.3:
            self.files["head"] = self.other.files["head"].copy()

    def whole(self, queue: Queue) -> set[int]:
        """Positions whose frame stands whole, where it belongs, in some file with a copy of its segment's header, and whose queue
        id is named somewhere: under another one they would be stored a second time."""
        size = SEGMENT_HEADER.size + CELL_CRC.size
        found: set[int] = set()
        stands: set[tuple[str, int]] = set()
        for name, offset, length, _, _ in queue.frames:
            was = queue.files[name]
            for file, now in self.files.items():
                headed = any(np.array_equal(now[at : at + size], was[at : at + size]) for at in SEGMENT_COPY_AT)
                if file != "head" and headed and np.array_equal(now[offset : offset + length], was[offset : offset + length]):
                    stands.add((name, offset))
        named = {generation for generation, place in queue.naming.items() if place in stands or self._in_head(queue, generation)}
        for name, offset, _, first, last in queue.frames:
            began = queue.generations[name, SEGMENT_DATA_AT]  # what the segment's header says
            if (name, offset) in stands and (queue.generations[name, offset] in named or queue.generations[name, offset] == began):
                found |= set(range(first, last + 1))
        return found

    def _in_head(self, queue: Queue, generation: int) -> bool:
        at = SPANS_AT + 2 * SPAN_CELL * (generation % SPANS)
        now, was = self.files.get("head", np.zeros(0, np.uint8)), queue.files["head"]
        copies = (slice(at, at + SPAN_CELL), slice(at + SPAN_CELL, at + 2 * SPAN_CELL))
        return any(was[copy].any() and np.array_equal(now[copy], was[copy]) for copy in copies)


def read_all(ring: Ring, payloads: dict[int, bytes]) -> tuple[set[int], dict[int, str]]:
    """What is delivered, each position once and right, and what is declared with its reason."""
    got: set[int] = set()
    missing: dict[int, str] = {}
    after = 0
    while (part := reading.read(ring, "lake", after, 64, 1 << 20)) is not None:
        assert part.first == after + 1 <= part.last
        gone = {position: hole.reason for hole in part.missing for position in range(hole.first, hole.last + 1)}
        here = [position for position in range(part.first, part.last + 1) if position not in gone]
        bodies = part.batch["payload"].to_pylist() if part.batch is not None else []
        assert len(bodies) == len(here)
        for position, body in zip(here, bodies, strict=True):
            assert body == payloads.get(position), f"position {position} came out as {body!r}"
        got |= set(here)
        missing |= gone
        after = part.last
    return got, missing


def judge(queue: Queue, attack: Attack, medium: ShadowMedium) -> None:
    wanted = attack.whole(queue)
    if not queue.closed and wanted != set(queue.payloads):
        # Nothing says that the last commit was ever acknowledged: where part of it is damaged the log may end before it.
        wanted = {position for position in wanted if position < queue.last_commit}
    payloads = dict(queue.payloads)
    ring = opened(medium)
    got, missing = read_all(ring, payloads)
    assert wanted <= got, f"whole but not delivered: {sorted(wanted - got)[:10]} of {ring.upto}"
    assert got | missing.keys() == set(range(1, ring.upto + 1))
    assert all(reader.cursor <= queue.cursors[name] for name, reader in ring.head.readers.items())
    passed = min(queue.cursors.values())
    assert not [position for position, reason in missing.items() if reason == "released" and position > max(queue.cursors.values())]
    got = {position for position in got if position > passed}
    payloads = {position: body for position, body in payloads.items() if position < ring.next}
    start = ring.next
    ring.open_reader("lake", "oldest")
    for _ in range(3):
        append(ring, attack.chance, queue.tag, payloads)
    if attack.chance.random() < 0.5:
        upkeep.upkeep(ring)
    if attack.chance.random() < 0.5:
        upkeep.close(ring)
    again, _ = read_all(opened(medium), payloads)
    kept = got | set(range(start, ring.next))
    assert kept <= again, f"not there any more: {sorted(kept - again)[:10]}"


def test_random_attacks_on_the_files_cost_what_they_hit_and_nothing_else():
    seed = int(os.environ.get("HEADRACE_SEED") or random.SystemRandom().randrange(1 << 30))
    print(f"HEADRACE_SEED={seed}")
    queues = [build(seed + number, b"%d of ours:" % number) for number in range(4)]
    others = [build(seed + 100 + number, b"%d of others:" % number) for number in range(4)]
    for number in range(ROUNDS):
        chance = random.Random(f"{seed}/{number}")
        queue = chance.choice(queues)
        attack = Attack(chance, {name: file.copy() for name, file in queue.files.items()}, dict(queue.notes), chance.choice(others))
        attack.run()
        medium = ShadowMedium(number)
        medium.directory = queue.directory
        medium.notes = attack.notes
        for name, memory in attack.files.items():
            medium.add(name, memory)
        try:
            judge(queue, attack, medium)
        except Exception as error:
            raise AssertionError(f"round {number} of HEADRACE_SEED={seed}: {attack.done}: {error!r}") from error
