"""A tier without a queue that links lead to: positions of the sending queues go through it unchanged, whatever dies when."""

from __future__ import annotations

import asyncio
import os
import random

import pyarrow as pa
import pytest

from headrace import NO_ORIGINS, Missing, Origin, PermanentError, QueueFull, RangeKey, TransientError, origin_batch
from headrace.component import SystemClock
from headrace.engine import buffer
from headrace.engine.buffer import Buffer
from headrace.engine.passing import passed_id, stretches, told, told_id
from headrace.position import ORIGIN_MISSING, ORIGIN_SESSION
from headrace.testing import raw_batch, run

HISTORIES = 40 if "HEADRACE_FULL" not in os.environ else 2_000


def test_a_range_is_told_in_the_names_of_the_queue_that_sent_it() -> None:
    name = passed_id("edge", -95)
    assert told_id(name) == ("edge", -95)
    assert told(RangeKey(name, 100, 110, (Missing(101, 102, "corrupt"),), (110,))) == RangeKey(
        "edge", 5, 15, (Missing(6, 7, "corrupt"),), (15,)
    )
    own = RangeKey("00000000-0000-4000-8000-000000000001", 1, 2)
    assert told(own) is own


def test_a_batch_of_several_links_is_one_stretch_for_each_queue() -> None:
    origins = origin_batch(
        [
            Origin("a/up.1", 5, 6, 0),
            Origin("b/up.1", 1, 3, 2),
            Origin("a/up.1", 7, 8, 5, ORIGIN_MISSING, b"corrupt"),
            Origin("a/up.1", 9, 9, 5),
        ]
    )
    held = {"b": 2}
    first, second = stretches(raw_batch(6), origins, held.get)
    assert (first.queue_id, first.first, first.last, first.missing) == ("a", 5, 9, (Missing(7, 8, "corrupt"),))
    assert first.batch.column("payload").to_pylist() == raw_batch(6).take(pa.array([0, 1, 5])).column("payload").to_pylist()
    assert (second.queue_id, second.first, second.last, second.batch.num_rows) == ("b", 3, 3, 1), "what is held is left out"


@pytest.mark.parametrize(
    ("origin", "error"),
    [
        (Origin("a/up.1", 7, 9), TransientError),  # 6 never came
        (Origin("a/up.1", 6, 7), PermanentError),  # three rows, two positions
        (Origin("a/up.1", 6, 8, 1), PermanentError),
        (Origin("a/up.1", 6, 8, 0, ORIGIN_SESSION), PermanentError),
    ],
)
def test_what_would_leave_a_hole_is_not_taken(origin: Origin, error: type[Exception]) -> None:
    with pytest.raises(error):
        list(stretches(raw_batch(3), origin_batch([origin, Origin("b/up.1", 1, 1, 3, ORIGIN_MISSING, b"x")]), {"a": 5}.get))


class Store:
    """What a flush makes safe: for each queue id one range without a hole, as the lake keeps it."""

    def __init__(self) -> None:
        self.ends: dict[str, int] = {}
        self.rows: dict[str, list[bytes]] = {}

    async def end(self, queue_id: str) -> int | None:
        await asyncio.sleep(0)
        return self.ends.get(queue_id)

    def commit(self, key: RangeKey, payloads: list[bytes]) -> None:
        end = self.ends.get(key.queue_id)
        assert end is None or key.first == end + 1, f"{key} behind {end}"
        assert len(payloads) == key.size - sum(hole.size for hole in key.missing)
        self.rows.setdefault(key.queue_id, []).extend(payloads)
        self.ends[key.queue_id] = key.last


class Sender:
    """A queue with a link: sends again from where it is told, in any bounds."""

    def __init__(self, rng: random.Random, number: int) -> None:
        self.rng, self.id = rng, f"{number:08d}-0000-4000-8000-000000000000"
        self.first = self.next = rng.randint(1, 50)
        self.head, self.acked = self.first - 1, self.first - 1
        self.holes: set[int] = set()

    def grow(self) -> None:
        for _ in range(self.rng.randint(1, 9)):
            self.head += 1
            if self.rng.random() < 0.1:
                self.holes.add(self.head)

    def frame(self) -> tuple[list[bytes], list[Origin]]:
        last = min(self.head, self.next + self.rng.randint(0, 7))
        payloads, origins = [], []
        for position in range(self.next, last + 1):
            if position in self.holes:
                origins.append(Origin(f"{self.id}/up.1", position, position, len(payloads), ORIGIN_MISSING, b"corrupt"))
            else:
                origins.append(Origin(f"{self.id}/up.1", position, position, len(payloads)))
                payloads.append(self.payload(position))
        self.next = last + 1
        return payloads, origins

    def payload(self, position: int) -> bytes:
        return f"{self.id}/{position}".encode()


async def consume(held: Buffer, store: Store, rng: random.Random) -> None:
    """As the engine: reads, writes, and flushes before the queue id changes; after an error again from what the store holds."""
    await held.queue_reader_open("lake", "oldest")
    cursor = held.queue_info().readers[0].cursor
    while True:
        pending, at = [], cursor
        flush_after = rng.randint(1, 4)
        while len(pending) < flush_after:
            read = await held.queue_read("lake", at, rng.randint(1, 20), rng.choice((1, 1 << 20)))
            assert read.first == at + 1
            if pending and pending[0].queue_id != read.queue_id:
                break
            pending.append(read)
            at = read.last
            if at == held.queue_info().head:
                break
        if rng.random() < 0.2:
            continue  # it failed: nothing of it counts
        key = RangeKey(pending[0].queue_id, pending[0].first, pending[-1].last, tuple(hole for read in pending for hole in read.missing))
        await asyncio.sleep(0)
        batches = [read.batch for read in pending if read.batch is not None]
        store.commit(told(key), [payload for batch in batches for payload in batch.column("payload").to_pylist()])
        await asyncio.sleep(0)  # a crash here: stored, and nobody was told
        await held.queue_release("lake", key.last)
        cursor = key.last


async def life(senders: list[Sender], store: Store, rng: random.Random, steps: int, settle: bool) -> None:
    held = Buffer("storage", SystemClock(), True, "power", store.end)
    consuming = asyncio.ensure_future(consume(held, store, rng))
    appends: list[tuple[asyncio.Future[object], dict[Sender, int]]] = []

    async def hello(sender: Sender) -> None:
        mark = await held.queue_origin_position(f"{sender.id}/up.1")
        assert mark is None or mark >= sender.acked
        sender.acked = max(sender.acked, mark or 0)
        sender.next = sender.acked + 1

    def heard() -> None:
        for append, upto in list(appends):
            if append.done():
                append.result()
                appends.remove((append, upto))
                for sender, last in upto.items():
                    assert (store.ends.get(sender.id) or 0) >= last, "acknowledged before the store had it"
                    sender.acked = max(sender.acked, last)

    for sender in senders:
        await hello(sender)
    for _ in range(steps):
        if rng.random() < 0.1:
            await hello(rng.choice(senders))  # a new session while older batches are under way
        chosen = [sender for sender in senders if rng.random() < 0.6]
        payloads, origins = [], []
        upto: dict[Sender, int] = {}
        for sender in chosen:
            if not settle:
                sender.grow()
            rows, named = sender.frame()
            origins += [origin._replace(row_offset=origin.row_offset + len(payloads)) for origin in named]
            payloads += rows
            if named:
                upto[sender] = sender.next - 1
        batch = raw_batch(len(payloads)).set_column(3, raw_batch(1).schema.field(3), pa.array(payloads, pa.binary()))
        append = asyncio.ensure_future(held.queue_append(batch, origin_batch(origins) if origins else NO_ORIGINS))
        appends.append((append, upto))
        for _ in range(rng.randint(0, 6)):
            await asyncio.sleep(0)
        heard()
    while settle and any(sender.acked < sender.head for sender in senders):
        await asyncio.sleep(0)
        heard()
    consuming.cancel()
    for append, _ in appends:
        append.cancel()
    await asyncio.wait([consuming, *(append for append, _ in appends)])
    if not consuming.cancelled():
        consuming.result()


async def history(senders: list[Sender], store: Store, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 4)):
        await life(senders, store, rng, rng.randint(1, 40), settle=False)
    await life(senders, store, rng, 200, settle=True)


def test_nothing_is_lost_or_doubled_whatever_dies_when() -> None:
    base = int(os.environ.get("HEADRACE_SEED", random.randrange(2**32)))
    for seed in [base] if "HEADRACE_SEED" in os.environ else range(base, base + HISTORIES):
        rng = random.Random(seed)
        senders, store = [Sender(rng, number) for number in range(rng.randint(1, 4))], Store()
        try:
            run(history(senders, store, rng))
            for sender in senders:
                expected = [sender.payload(position) for position in range(sender.first, sender.head + 1) if position not in sender.holes]
                assert store.rows.get(sender.id, []) == expected
        except BaseException as error:
            error.add_note(f"HEADRACE_SEED={seed}")
            raise


def test_a_store_that_has_lost_what_it_told_costs_a_declared_gap() -> None:
    async def check() -> None:
        store = Store()
        held = Buffer("storage", SystemClock(), True, "power", store.end)
        appending = asyncio.ensure_future(held.queue_append(raw_batch(3), origin_batch([Origin("a/up.1", 5, 7)])))
        read = await held.queue_read("lake", 0, 100, 1 << 20)
        await held.queue_release("lake", read.last)
        await appending
        again = await held.queue_read("lake", 0, 100, 1 << 20)
        assert (again.batch, again.missing) == (None, (Missing(1, 3, "released"),))
        assert told(RangeKey(again.queue_id, again.first, again.last, again.missing)).missing == (Missing(5, 7, "released"),)

    run(check())


def test_queue_ids_are_remembered_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer, "HELD_MAX", 2)

    async def check() -> None:
        store = Store()
        store.ends = {"a": 7, "b": 8, "c": 9}
        held = Buffer("storage", SystemClock(), True, "power", store.end)
        under_way = asyncio.ensure_future(held.queue_append(raw_batch(1), origin_batch([Origin("a/up.1", 7, 7)])))
        await asyncio.sleep(0)
        assert [await held.queue_origin_position(f"{name}/up.1") for name in "abc"] == [None, 8, 9]
        assert list(held._held) == ["a", "c"], "nothing of the one that went was under way"
        under_way.cancel()

    run(check())


def test_a_full_buffer_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer, "BYTES_MAX", 200)

    async def check() -> None:
        held = Buffer("storage", SystemClock(), True, "power", Store().end)
        first = asyncio.ensure_future(held.queue_append(raw_batch(5), origin_batch([Origin("a/up.1", 1, 5)])))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await held.queue_append(raw_batch(5), origin_batch([Origin("a/up.1", 6, 10)]))
        await held.queue_release("lake", 5)
        await first
        assert await held.queue_origin_position("a/up.1") == 5

    run(check())
