"""The head of a queue: what is rewritten in place. Its header, the readers with cursor and plan, and the table of queue ids."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from headrace import PermanentError, Plan, QueueError
from headrace_queue_pmem.area import Area
from headrace_queue_pmem.cell import Cell
from headrace_queue_pmem.layout import (
    CURSOR,
    CURSOR_CELL,
    CURSORS_AT,
    HEAD_MAGIC,
    HEAD_OWNER,
    HEADER,
    HEADER_AT,
    HEADER_CELL,
    MAGIC_AT,
    OPEN,
    OWNER_CELL,
    OWNER_CELL_AT,
    PLAN,
    PLAN_CELL,
    PLAN_EXCLUDED,
    PLANS_AT,
    READER,
    READER_CELL,
    READER_NAME_BYTES,
    READERS,
    READERS_AT,
    SPAN,
    SPAN_CELL,
    SPANS,
    SPANS_AT,
    VERSION,
)

HEAD: Final = "head"
_READER_LENGTH: Final = READER.size + READER_NAME_BYTES
_PLAN_LENGTH: Final = PLAN.size + 4 * (PLAN_EXCLUDED - 1)
assert _PLAN_LENGTH + 12 <= PLAN_CELL


@dataclass(slots=True)
class Span:
    """One queue id: the generation that its frames carry and its positions. last is None while it is in use."""

    generation: int
    first: int
    last: int | None
    id: uuid.UUID


@dataclass(slots=True)
class Reader:
    """One reader in slot `slot`. `durable` is the cursor as it is on the medium."""

    slot: int
    name: str
    start: int
    cursor: int
    durable: int
    plan: Plan | None = None


class Head:
    """The head file over its area. Calls write to the medium: never make them under the ring's lock."""

    def __init__(self, area: Area) -> None:
        self.area = area
        self._header = Cell(area, HEADER_AT, HEADER_CELL)
        self._owner = Cell(area, OWNER_CELL_AT, OWNER_CELL)
        self._cursors = [Cell(area, CURSORS_AT + 2 * CURSOR_CELL * slot, CURSOR_CELL, mirrored=False) for slot in range(READERS)]
        self._readers = [Cell(area, READERS_AT + 2 * READER_CELL * slot, READER_CELL) for slot in range(READERS)]
        self._plans = [Cell(area, PLANS_AT + 2 * PLAN_CELL * slot, PLAN_CELL) for slot in range(READERS)]
        self._spans: dict[int, Cell] = {}  # made when needed: all 4096 would cost 12 ms at every open
        self.secret = b""
        self.owner = b""  # whose all files of this queue are; empty while it is not known
        self.owned_from = 0  # every segment from this number on says whose it is
        self.version = VERSION
        self.segment_bytes = 0
        self.readers: dict[str, Reader] = {}
        self.spans: list[Span] = []
        self.damage: list[str] = []
        self._changed: set[Cell] = set()

    def format(self, segment_bytes: int, created_us: int, secret: bytes | None = None) -> None:
        """Make a fresh head in a zeroed area."""
        self.secret, self.segment_bytes = secret or secrets.token_bytes(16), segment_bytes
        for at in MAGIC_AT:
            self.area.write(at, HEAD_MAGIC, len(HEAD_MAGIC))
        self.area.persist(0, MAGIC_AT[-1] + len(HEAD_MAGIC))
        self._header.store(HEADER.pack(VERSION, created_us, self.secret, segment_bytes))
        self._header.mirror()

    def load(self) -> bool:
        """Read everything; False when the header is gone. What had to be repaired or given up stands in `damage`."""
        header = self._header.load(HEADER.size)
        self._note(self._header, "header")
        if owner := self._owner.load(HEAD_OWNER.size):
            self.owner, self.owned_from = HEAD_OWNER.unpack(owner)
        self._note(self._owner, "owner")
        for slot in self._written(READERS_AT, READERS, READER_CELL):
            self._load_reader(slot)
        for slot in self._written(SPANS_AT, SPANS, SPAN_CELL):
            cell = self._span_cell(slot)
            if value := cell.load(SPAN.size):
                generation, first, last, name = SPAN.unpack(value)
                self.spans.append(Span(generation, first, None if last == OPEN else last, uuid.UUID(bytes=name)))
            self._note(cell, "span")
        self.spans.sort(key=lambda span: span.generation)
        if header is None:
            return False
        self.version, _created, self.secret, self.segment_bytes = HEADER.unpack(header)
        return True

    def mirror(self) -> None:
        """Bring all second copies up to date."""
        while self._changed:
            self._changed.pop().mirror()

    def rewrite(self) -> None:
        """Write again what readers and the newest queue id rest on. The page cache may hold changes whose sync failed, and
        which the kernel takes for clean: nothing may be built on them before the medium has them."""
        for reader in self.readers.values():
            self.store_cursor(reader, reader.cursor)
            self.store_plan(reader, reader.plan)
        if self.spans:
            self.store_span(self.spans[-1])
        self.mirror()

    def store_owner(self, owner: bytes, owned_from: int) -> None:
        """Say whose this head is, and from which segment number on every segment says it too; durable on return."""
        self._store(self._owner, HEAD_OWNER.pack(owner, owned_from))
        self._owner.mirror()
        self.owner, self.owned_from = owner, owned_from

    # --- readers ---

    def add_reader(self, name: str, start: int, cursor: int) -> Reader:
        """Register a reader; durable on return."""
        encoded = name.encode()
        if not 0 < len(encoded) <= READER_NAME_BYTES:
            raise QueueError(f"reader name {name!r}: expected 1 to {READER_NAME_BYTES} bytes of UTF-8, got {len(encoded)}")
        taken = {reader.slot for reader in self.readers.values()}
        slot = next((slot for slot in range(READERS) if slot not in taken), None)
        if slot is None:
            raise QueueError(
                f"reader {name!r}: all {READERS} readers of this queue are in use; drop one of {', '.join(sorted(self.readers))}"
            )
        reader = Reader(slot, name, start, cursor, cursor)
        # The cursor first: a name in the table must never come with the cursor of a predecessor in the slot.
        for _ in range(2):
            self._cursors[slot].store(CURSOR.pack(cursor))
        self._store(self._plans[slot], _pack_plan(None))
        self._store(self._readers[slot], _pack_reader(1, start, encoded))
        self._readers[slot].mirror()
        self.readers[name] = reader
        return reader

    def drop_reader(self, name: str) -> None:
        """Forget a reader; durable on return."""
        reader = self.readers[name]
        self._store(self._readers[reader.slot], _pack_reader(0, 0, b""))
        self._readers[reader.slot].mirror()
        del self.readers[name]

    def store_cursor(self, reader: Reader, cursor: int) -> None:
        """Make a cursor durable."""
        self._store(self._cursors[reader.slot], CURSOR.pack(cursor))
        reader.durable = cursor

    def store_plan(self, reader: Reader, plan: Plan | None) -> None:
        """Make a reader's plan durable."""
        self._store(self._plans[reader.slot], _pack_plan(plan))
        reader.plan = plan

    # --- queue ids ---

    def span_slot_free(self, tail: int) -> bool:
        """Whether a further queue id finds room: the one that it replaces in the table holds no position any more."""
        generation = self.generation + 1
        old = next((span for span in self.spans if span.generation == generation - SPANS), None)
        return old is None or (old.last is not None and old.last < tail)

    @property
    def generation(self) -> int:
        """The newest generation that was ever in use; 0 before the first append."""
        return self.spans[-1].generation if self.spans else 0

    def store_span(self, span: Span) -> None:
        """Make one row of the table durable, replacing the one of its generation."""
        last = OPEN if span.last is None else span.last
        self._store(self._span_cell(span.generation % SPANS), SPAN.pack(span.generation, span.first, last, span.id.bytes))
        self.spans = [old for old in self.spans if old.generation % SPANS != span.generation % SPANS] + [span]
        self.spans.sort(key=lambda one: one.generation)

    def copy_from(self, readers: Iterable[Reader], spans: Iterable[Span]) -> None:
        """Write readers and spans of another head into this one."""
        for span in spans:
            self.store_span(span)
        for reader in readers:
            copy = self.add_reader(reader.name, reader.start, reader.cursor)
            if reader.plan:
                self.store_plan(copy, reader.plan)

    # --- inside ---

    def _span_cell(self, slot: int) -> Cell:
        return self._spans.setdefault(slot, Cell(self.area, SPANS_AT + 2 * SPAN_CELL * slot, SPAN_CELL))

    def _written(self, at: int, count: int, size: int) -> list[int]:
        """Which cells of a table were ever written."""
        table = np.frombuffer(self.area.view[at : at + 2 * count * size], np.uint64).reshape(count, -1)
        slots: list[int] = np.flatnonzero(table.any(axis=1)).tolist()
        return slots

    def _load_reader(self, slot: int) -> None:
        value = self._readers[slot].load(_READER_LENGTH)
        self._note(self._readers[slot], f"reader {slot}")
        cursor = self._cursors[slot].load(CURSOR.size)
        plan = self._plans[slot].load(_PLAN_LENGTH)
        if value is None:
            return
        state, start, length = READER.unpack_from(value)
        if not state:
            return
        name = value[READER.size : READER.size + length].decode(errors="replace")
        self._note(self._cursors[slot], f"cursor of reader {name}")
        self._note(self._plans[slot], f"plan of reader {name}")
        if cursor is None:
            self.damage.append(f"cursor of reader {name} is lost: it starts again from where it began")
        position = CURSOR.unpack(cursor)[0] if cursor else start
        self.readers[name] = Reader(slot, name, start, position, position, _unpack_plan(plan) if plan else None)

    def _store(self, cell: Cell, value: bytes) -> None:
        cell.store(value)
        self._changed.add(cell)

    def _note(self, cell: Cell, what: str) -> None:
        if cell.value is not None:
            self._changed.add(cell)
        if cell.damaged:
            self.damage.append(f"{what}: one copy is damaged" if cell.value is not None else f"{what}: both copies are damaged")


def _pack_reader(state: int, start: int, name: bytes) -> bytes:
    return READER.pack(state, start, len(name)) + name.ljust(READER_NAME_BYTES, b"\0")


def _pack_plan(plan: Plan | None) -> bytes:
    if plan is None:
        return bytes(_PLAN_LENGTH)
    if len(plan.excluded) >= PLAN_EXCLUDED:
        raise PermanentError(
            f"plan {plan.first}-{plan.last} leaves out {len(plan.excluded)} positions, "
            f"expected at most {PLAN_EXCLUDED - 1}; plan a smaller range"
        )
    if not 0 < plan.first <= plan.last or plan.last - plan.first >= 2**32 or not 0 <= plan.attempts < 2**32:
        raise PermanentError(f"plan {plan.first}-{plan.last}, attempts {plan.attempts}: expected 1 <= first <= last < first + 2**32")
    offsets = np.array(plan.excluded, dtype=np.int64) - plan.first
    if len(offsets) and (offsets.min() < 0 or offsets.max() > plan.last - plan.first):
        raise PermanentError(f"plan {plan.first}-{plan.last} leaves out positions that do not lie in it")
    packed = PLAN.pack(1, plan.first, plan.last, plan.attempts, len(plan.excluded)) + offsets.astype("<u4").tobytes()
    return packed.ljust(_PLAN_LENGTH, b"\0")


def _unpack_plan(value: bytes) -> Plan | None:
    state, first, last, attempts, count = PLAN.unpack_from(value)
    if not state:
        return None
    offsets = np.frombuffer(value, dtype="<u4", count=count, offset=PLAN.size).astype(np.int64)
    return Plan(first, last, attempts, tuple((offsets + first).tolist()))
