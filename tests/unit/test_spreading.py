"""Outputs that share a tier's events by device: who takes what from where on, and that nobody takes it twice or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headrace import NO_ORIGINS, Component, QueueInfo, RangeKey, TransientError, hookimpl
from headrace.batching import RawBatchBuilder
from headrace.config import Engine, changed, load
from headrace.engine import spreading
from headrace.engine.output_sending import SendingOutput
from headrace.engine.reading import RawReading
from headrace.engine.spreading import STAGES_MAX, Groups, Stage, regroup
from headrace.errors import ConfigError
from headrace.hookspecs import ReaderInfo
from headrace.host import refuse_untakeable
from headrace.tables import OutputKeys
from headrace.testing import fake_context
from headrace_queue_pmem import QueuePmem

HISTORIES = 3 if "HEADRACE_FULL" not in os.environ else 300
LIVES = 6
PLACE = "tiers.edge.outputs"
UP, OTHER = "tiers.site.outputs.up", "tiers.site.outputs.other"
SITE = """
[tiers.site.sources.devices]
use = "ingest_ws"
auth = "none"
[tiers.site.queue]
use = "queue_pmem"
path = "q"
[tiers.site.outputs.up]
use = "transport_zmq"
connect = "tcp://127.0.0.1:1"
spread = "g"
[tiers.site.outputs.other]
use = "transport_zmq"
connect = "tcp://127.0.0.1:2"
spread = "g"
"""


def info(head: int, tail: int = 1, **cursors: int) -> QueueInfo:
    readers = tuple(ReaderInfo(name, 0, cursor, None, head - cursor, 0, None) for name, cursor in cursors.items())
    return QueueInfo("q", "id", "process", "m", "m", head, tail, 0, 0, 1, None, readers, ())


def outputs(*names: str, retired: str = "", alone: str = "") -> dict[str, OutputKeys]:
    keys = {name: OutputKeys(use="x", spread="g", spread_retired=name in retired) for name in names}
    return {**keys, **({alone: OutputKeys(use="x")} if alone else {})}


def stages(groups: Groups, *names: str, at: QueueInfo, retired: str = "", alone: str = "") -> list[Stage]:
    return regroup(groups, outputs(*names, retired=retired, alone=alone), at, PLACE).get("g", [])


# --- who takes what ------------------------------------------------------------------------------------------------------


def test_a_new_group_shares_everything_from_the_beginning() -> None:
    assert stages({}, "b", "a", at=info(0)) == [Stage(1, ("a", "b"))]
    assert stages({}, "b", "a", at=info(500)) == [Stage(1, ("a", "b"))]


def test_what_an_output_sent_before_it_had_a_group_was_everything() -> None:
    assert stages({}, "a", "b", at=info(500, a=300)) == [Stage(1, (), ("a",)), Stage(501, ("a", "b"))]


def test_several_that_have_sent_are_a_group_whose_file_is_gone() -> None:
    assert stages({}, "a", "b", at=info(500, a=300, b=200)) == [Stage(1, ("a", "b"))]


def test_a_change_begins_behind_the_last_event_there_was() -> None:
    known = {"g": [Stage(1, ("a", "b"))]}
    assert stages(known, "a", "b", at=info(500, a=300, b=300)) == known["g"]
    more = stages(known, "a", "b", "c", at=info(500, a=300, b=300))
    assert more == [Stage(1, ("a", "b")), Stage(501, ("a", "b", "c"))]
    assert stages({"g": more}, "a", "b", "d", at=info(500, a=300, b=300)) == [Stage(1, ("a", "b")), Stage(501, ("a", "b", "d"))]


def test_stages_are_kept_as_long_as_the_queue_holds_something_of_them() -> None:
    known = {"g": [Stage(1, ("a",)), Stage(100, ("a", "b")), Stage(200, ("a", "b", "c"))]}
    assert stages(known, "a", "b", "c", at=info(500, 199)) == known["g"][1:]
    assert stages(known, "a", "b", "c", at=info(500, 200)) == known["g"][2:]
    assert stages(known, "a", "b", "c", at=info(500, 501)) == known["g"][2:]


def test_who_leaves_has_to_have_sent_its_own() -> None:
    known = {"g": [Stage(1, ("a", "b"))]}
    with pytest.raises(ConfigError, match=r"tiers.edge.outputs.b: expected the output that has 20 positions of spread = .* spread_retired"):
        stages(known, "a", at=info(500, a=300, b=480))
    retired = stages(known, "a", "b", retired="b", at=info(500, a=300, b=480))
    assert retired == [Stage(1, ("a", "b")), Stage(501, ("a",))]
    with pytest.raises(ConfigError, match="20 positions"):
        stages({"g": retired}, "a", at=info(600, a=300, b=480))
    left = stages({"g": retired}, "a", at=info(600, a=300, b=500))
    assert left == retired
    assert spreading.gone({"g": left}, outputs("a"), info(600, a=300, b=500)) == ["b"]
    assert stages(known, "a", at=info(500, a=300))[1:] == [Stage(501, ("a",))], "somebody gave it up: it has no cursor"


def test_the_last_one_is_alone_again_without_a_group() -> None:
    known = {"g": [Stage(1, ("a", "b"))]}
    alone = stages(known, alone="a", at=info(500, a=300, b=500))
    assert alone == [Stage(1, ("a", "b")), Stage(501, (), ("a",))]
    assert stages({"g": alone}, "a", "b", at=info(700, a=300)) == [*alone, Stage(701, ("a", "b"))]
    assert regroup({"g": alone}, {}, info(700, a=700), PLACE) == {}


def test_one_that_is_retired_takes_nothing_even_where_no_stage_names_it() -> None:
    wanted = outputs("a", "d", retired="d")
    groups = regroup({"g": [Stage(1, ("a", "b")), Stage(501, ("a", "d"))]}, wanted, info(500, a=500, b=500, d=500), PLACE)
    assert groups == {"g": [Stage(1, ("a", "b")), Stage(501, ("a",))]}
    assert spreading.shares(groups, wanted).keys() == {"a", "d"}


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="nobody would take the events"):
        stages({}, "a", "b", retired="ab", at=info(0))
    moved = {"a": OutputKeys(use="x", spread="other"), "b": OutputKeys(use="x", spread="g")}
    with pytest.raises(ConfigError, match=r'outputs.a.spread: expected "g", or none'):
        regroup({"g": [Stage(1, ("a", "b"))]}, moved, info(500, a=500, b=500), PLACE)
    many = {"g": [Stage(1 + number, ("a", str(number))) for number in range(STAGES_MAX)]}
    with pytest.raises(ConfigError, match="at most 64 changes"):
        stages(many, "a", *map(str, range(STAGES_MAX)), at=info(500))


def test_it_is_kept_for_each_queue_and_damage_is_told(tmp_path: Path) -> None:
    one, two = {"g": [Stage(1, ("a", "b")), Stage(9, (), ("a",))]}, {"h": [Stage(4, ("c",))]}
    assert spreading.load(tmp_path, "q1") == {}
    spreading.keep(tmp_path / "new", "q1", one)
    spreading.keep(tmp_path / "new", "q2", two)
    assert (spreading.load(tmp_path / "new", "q1"), spreading.load(tmp_path / "new", "q2")) == (one, two)
    for number in range(100):
        spreading.keep(tmp_path / "new", f"other-{number}", one)
    assert len(json.loads((tmp_path / "new" / spreading.FILE).read_bytes())["queues"]) == spreading.QUEUES_MAX
    for damaged in (b"{", b"[]", b'{"version": 2}', b'{"version": 1, "queues": {"q1": {"g": [{"first": 1}]}}}'):
        (tmp_path / spreading.FILE).write_bytes(damaged)
        with pytest.raises(ConfigError, match="restore it, or remove it, at the risk of doubles"):
            spreading.load(tmp_path, "q1")


def test_a_stage_waits_for_everything_of_the_one_before() -> None:
    share = spreading.Share("c", [Stage(1, ("a", "b")), Stage(101, ("b", "c"))])
    assert share.waits_for(50, info(200, a=0, b=0)) == []
    assert share.waits_for(100, info(200, a=99, b=100)) == ["a"]
    assert share.waits_for(150, info(200, a=100, b=99)) == ["b"]
    assert share.waits_for(100, info(200, b=100)) == [], "a was given up"
    assert share.rows(50, 1000) == 50
    assert share.rows(100, 1000) == 1000


@pytest.mark.parametrize(
    "change",
    [
        (f"{UP}.spread=other", f"{OTHER}.spread=other"),
        (f"{OTHER}.spread_retired=true",),
        (f"{OTHER}.enabled=false",),
        (
            "tiers.site.outputs.third.use=transport_zmq",
            "tiers.site.outputs.third.connect=tcp://127.0.0.1:3",
            "tiers.site.outputs.third.spread=g",
        ),
    ],
)
def test_a_reload_does_not_take_a_change_of_who_shares(tmp_path: Path, change: tuple[str, ...]) -> None:
    file = tmp_path / "site.toml"
    file.write_text(SITE)
    before, after = load(file, [], {}), load(file, list(change), {})
    with pytest.raises(ConfigError, match="a change of who shares the events; restart the process"):
        refuse_untakeable(before, after, changed(before, after))
    elsewhere = load(file, [f"{OTHER}.connect=tcp://127.0.0.1:4"], {})
    refuse_untakeable(before, elsewhere, changed(before, elsewhere))


# --- at work -------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for kill -9: nothing of the engine may catch it."""


class RandomFaults:
    def __init__(self, rng: random.Random) -> None:
        self.rng, self.kills = rng, 0.0

    def hit(self, name: str) -> None:
        if self.rng.random() < self.kills:
            raise Killed(name)


class World:
    """What is durable outside: the far tiers, and what was accepted of each device."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.calm = rng, False
        self.marks: dict[tuple[str, str], int] = {}
        self.came: list[tuple[str, str, int]] = []
        self.accepted: Counter[str] = Counter()
        self.away: set[str] = set()
        self.back = asyncio.Event()

    def batch(self, size: int) -> pa.RecordBatch:
        builder = RawBatchBuilder(1 << 20, 1 << 30)
        for _ in range(size):
            device = f"d{self.rng.randrange(12)}"
            self.accepted[device] += 1
            builder.add(device, 1_794_000_000_000_000, 1, b'{"n":%d}' % self.accepted[device])
        return builder.take()


def far_tier(world: World, name: str, queue: QueuePmem) -> type[Component]:
    class Far(Component):
        """Takes what follows its mark, drops what it holds, is away at times."""

        @hookimpl
        async def transport_resume(self, queue_id: str) -> int | None:
            await self._trip()
            return world.marks.get((name, queue_id))

        @hookimpl
        async def transport_send(self, batch: pa.RecordBatch, origins: pa.RecordBatch, key: RangeKey) -> None:
            await self._trip()
            mark = world.marks.get((name, key.queue_id))
            begins = min(span.first for span in queue.queue_info().spans if span.queue_id == key.queue_id)
            if key.first > (begins if mark is None else mark + 1):
                raise TransientError("a frame before it was lost")
            positions, devices = key.positions().tolist(), batch.column("device").to_pylist()
            for position, device, payload in zip(positions, devices, batch.column("payload").to_pylist(), strict=True):
                if position > (mark or 0):
                    world.came.append((name, device, json.loads(payload)["n"]))
            world.marks[name, key.queue_id] = max(mark or 0, key.last)
            await self._trip()

        async def _trip(self) -> None:
            for _ in range(world.rng.randint(0, 3)):
                await asyncio.sleep(0)
            if name in world.away:
                await world.back.wait()
            if not world.calm and world.rng.random() < 0.05:
                raise TransientError("down")

    Far.__name__ = name
    return Far


async def live(bench: Any, world: World, known: dict[str, OutputKeys], folder: Path, last: bool) -> dict[str, OutputKeys]:
    """One life of the process under the config that is wanted next, as far as it is allowed; gives the config."""
    rng = world.rng
    bench.services.faults.kills = 0.0 if last else rng.choice((0.0, 0.02, 0.05))
    config = QueuePmem.Config(path=str(folder / "q"), medium="file", segment_bytes=8 << 20, size_bytes_max=32 << 20)
    bench.buffer = queue = QueuePmem(config, fake_context(folder / "c"))
    bench.raw = RawReading(queue, bench.engine)
    await queue.open()
    try:
        wanted = outputs(*sorted(rng.sample("abcd", rng.randint(1, 3)))) if rng.random() < 0.7 else known or outputs("a", "b")
        kept, facts = spreading.load(folder, "q"), queue.queue_info()
        try:
            groups = regroup(kept, wanted, facts, PLACE)
        except ConfigError:  # who left has something to send yet: it stays, and takes nothing new
            left = {name for each in kept.values() for stage in each for name in stage.outputs} - wanted.keys()
            wanted = outputs(*wanted, *left, retired="".join(left))
            groups = regroup(kept, wanted, facts, PLACE)
        spreading.keep(folder, "q", groups)
        for name in wanted:
            await queue.queue_reader_open(name, "oldest")
        for name in spreading.gone(kept, wanted, facts):
            await queue.queue_reader_drop(name)
        world.back = asyncio.Event()
        pipeline = bench.pipeline()
        shared = bench.shared(pipeline)
        shared.shares = spreading.shares(groups, wanted)
        units = [bench.unit(far_tier(world, name, queue), send_window=rng.randint(1, 8)) for name in wanted]
        world.away = set() if last else {name for name in wanted if rng.random() < 0.3}
        driven = [SendingOutput(unit, shared) for unit in units]
        async with bench.running(pipeline):
            tasks = [asyncio.ensure_future(output.run()) for output in driven]
            for _ in range(rng.randint(0, 12)):
                await queue.queue_append(world.batch(rng.randint(1, 60)), NO_ORIGINS)
                await asyncio.sleep(0)
            await asyncio.wait(tasks, timeout=0.02 * rng.random())
            if last:
                for output in driven:
                    output.drain()
                await asyncio.wait_for(asyncio.gather(*tasks), 20)
            for task in tasks:
                task.cancel()
            for task in tasks:
                with contextlib.suppress(asyncio.CancelledError, Killed):
                    await task
    finally:
        await queue.close()
    return wanted


@pytest.mark.parametrize("number", range(HISTORIES))
def test_each_event_arrives_once_and_each_device_in_order_whoever_comes_goes_or_fails(
    tmp_path: Path, engine_bench: Any, number: int
) -> None:
    seed = int(os.environ.get("HEADRACE_SEED", random.randrange(2**32)))
    print(f"HEADRACE_SEED={seed}")
    world = World(random.Random(seed))
    bench = engine_bench(tmp_path, Engine(read_wait_ms_max=0, retry_base_ms=1, retry_max_ms=2, attempts_max=100, read_rows_max=64))
    bench.services.faults = RandomFaults(world.rng)

    async def lives() -> None:
        known: dict[str, OutputKeys] = {}
        for turn in range(LIVES):
            world.calm = turn == LIVES - 1
            known = await live(bench, world, known, tmp_path, world.calm)

    asyncio.run(lives())
    for device, count in world.accepted.items():
        assert [n for _, whose, n in world.came if whose == device] == list(range(1, count + 1)), device
    assert len(world.came) == world.accepted.total()


def test_one_that_is_away_holds_up_its_own_devices_alone(tmp_path: Path, engine_bench: Any) -> None:
    world = World(random.Random(7))
    bench = engine_bench(tmp_path, Engine(read_wait_ms_max=0))

    async def check() -> None:
        world.back = asyncio.Event()
        bench.buffer = queue = QueuePmem(QueuePmem.Config(path=str(tmp_path / "q"), medium="file"), fake_context(tmp_path / "c"))
        bench.raw = RawReading(queue, bench.engine)
        await queue.open()
        try:
            wanted = outputs("a", "b")
            pipeline = bench.pipeline()
            shared = bench.shared(pipeline)
            shared.shares = spreading.shares(regroup({}, wanted, queue.queue_info(), PLACE), wanted)
            world.away, world.calm = {"b"}, True
            driven = [SendingOutput(bench.unit(far_tier(world, name, queue)), shared) for name in wanted]
            async with bench.running(pipeline):
                tasks = [asyncio.ensure_future(output.run()) for output in driven]
                for _ in range(20):
                    await queue.queue_append(world.batch(50), NO_ORIGINS)
                await until(lambda: {reader.name: reader.cursor for reader in queue.queue_info().readers}.get("a") == 1000)
                assert {name for name, _, _ in world.came} == {"a"}
                world.away.clear()
                world.back.set()
                for output in driven:
                    output.drain()
                await asyncio.wait_for(asyncio.gather(*tasks), 20)
        finally:
            await queue.close()

    asyncio.run(check())
    takers = {device: {name for name, _, _ in group} for device, group in by_device(world.came)}
    assert all(len(names) == 1 for names in takers.values())
    assert set().union(*takers.values()) == {"a", "b"}
    assert len(world.came) == 1000


async def until(reached: Callable[[], bool]) -> None:
    """Let the loop turn until it is so."""
    for _ in range(20_000):
        if reached():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came to that")


def by_device(came: list[tuple[str, str, int]]) -> Any:
    return itertools.groupby(sorted(came, key=lambda event: event[1]), key=lambda event: event[1])
