"""Dead letters that go through again: to the output that refused them, once, whatever is killed whenever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from headrace import PermanentError, RangeKey, TransientError
from headrace.dead.store import DeadStore, Filter
from headrace.engine.dead_letter_replays import Queued
from headrace.engine.dead_letters import Letter
from headrace.engine.output_planned import PlannedOutput
from headrace.engine.output_streaming import StreamingOutput
from headrace.engine.outputs import Output
from headrace.engine.replaying import Replaying, read_of
from headrace.position import global_ids

KINDS = pytest.mark.parametrize("kind", [StreamingOutput, PlannedOutput])


def want(bench: Any) -> None:
    """What `headrace dead replay` does, from another process."""
    store = DeadStore("t", bench.letters.path)
    store.queue(Filter())
    store.close()


def letters(bench: Any) -> list[tuple[int, str, int]]:
    """Position, state and attempts of each."""
    return list(bench.letters.db.execute("select position, state, attempts from letters order by position"))


async def replayed(replaying: Replaying, output: Output, bench: Any, until: Callable[[], bool]) -> None:
    """Look, as the tier does, until that is so and nothing is under way."""
    async with asyncio.timeout(20):
        while not (until() and not replaying._under_way):
            await replaying.look({output.id: output}, bench.buffer.queue_info())
            await asyncio.sleep(0.005)


async def refused_first(bench: Any, kind: type[Output], store: Any, sizes: list[int], **feed: Any) -> Output:
    """An output that has met these events, and set aside what its store refused."""
    pipeline = bench.pipeline()
    async with bench.running(pipeline) as tasks:
        await bench.feed(tasks, sizes, **feed)
        (output,) = bench.outputs(pipeline, [(kind, bench.unit(store))])
        await bench.drain([output])
    output.draining = False  # as one that goes on
    return output


@KINDS
def test_a_letter_goes_to_its_output_under_an_identity_of_its_own(bench: Any, stores: Any, kind: Any) -> None:
    class Store(stores[1] if kind is StreamingOutput else stores[0]):
        idempotence = "key"
        refusing = True

        def refuse(self, at: str, numbers: list[float], key: RangeKey) -> None:
            if Store.refusing and {3.0, 5.0} & {*numbers}:
                raise PermanentError("odd", {str(key): [numbers.index(number) for number in (3.0, 5.0) if number in numbers]})

    async def main() -> None:
        output = await refused_first(bench, kind, Store, [8])
        assert letters(bench) == [(3, "dead", 1), (5, "dead", 1)]
        Store.refusing = False
        want(bench)
        await replayed(bench.replaying(), output, bench, lambda: letters(bench) == [])

    asyncio.run(main())
    assert sorted(Store.rows) == list(range(1, 9))
    assert Store.rows[-2:] == [3, 5]
    assert Store.keys[-1] == "1-2"
    assert bench.counted("dead_letter_replayed_events_total", component="store") == 2
    assert bench.counted("sink_written_events_total", tier="t", component="store", plugin="Store") == 6


@KINDS
def test_one_that_is_refused_again_stays_and_does_not_loop(bench: Any, stores: Any, kind: Any) -> None:
    class Store(stores[1] if kind is StreamingOutput else stores[0]):
        idempotence = "key"
        bad: ClassVar[set[float]] = {3.0, 5.0}

        def refuse(self, at: str, numbers: list[float], key: RangeKey) -> None:
            if Store.bad & {*numbers}:
                raise PermanentError("odd", {str(key): [numbers.index(number) for number in Store.bad if number in numbers]})

    async def main() -> None:
        output = await refused_first(bench, kind, Store, [8])
        replaying = bench.replaying()
        Store.bad = {5.0}
        want(bench)
        await replayed(replaying, output, bench, lambda: len(Store.rows) == 7)
        await replayed(replaying, output, bench, lambda: letters(bench) == [(5, "dead", 2)])
        before = list(Store.keys)
        for _ in range(3):
            await replaying.look({output.id: output}, bench.buffer.queue_info())
        assert Store.keys == before
        Store.bad = set()
        want(bench)
        await replayed(replaying, output, bench, lambda: letters(bench) == [])

    asyncio.run(main())
    assert sorted(Store.rows) == list(range(1, 9))
    assert letters(bench) == []


@KINDS
@pytest.mark.parametrize("dies", ["before the store has it", "before it is marked"])
def test_a_death_between_store_and_mark_neither_loses_nor_doubles(bench: Any, stores: Any, kind: Any, dies: str) -> None:
    class Store(stores[1] if kind is StreamingOutput else stores[0]):
        idempotence = "key"
        refusing = True
        seen: ClassVar[set[str]] = set()

        def refuse(self, at: str, numbers: list[float], key: RangeKey) -> None:
            if Store.refusing and 3.0 in numbers:
                raise PermanentError("odd", {str(key): [numbers.index(3.0)]})
            if at == "flush" and str(key) in Store.seen and kind is PlannedOutput:
                self._taken = []  # the store knows the key
            if at == "flush":
                Store.seen.add(str(key))

    async def main() -> None:
        output = await refused_first(bench, kind, Store, [8])
        Store.refusing = False
        want(bench)
        point = Dying("engine.before_flush" if dies == "before the store has it" else "engine.after_flush")
        output._s.faults = bench.services.faults = point
        replaying = bench.replaying()
        await replaying.look({output.id: output}, bench.buffer.queue_info())
        (task,) = [task for task, _, _ in replaying._under_way.values()]
        await asyncio.wait([task])
        assert letters(bench) == [(3, "queued", 1)]
        point.over = True
        (again,) = bench.outputs(bench.pipeline(), [(kind, bench.unit(Store))])
        await again.unit.open()
        await replayed(bench.replaying(), again, bench, lambda: letters(bench) == [])

    asyncio.run(main())
    assert sorted(Store.rows) == list(range(1, 9))


class Dying:
    """A process that stops for good at this point."""

    def __init__(self, point: str) -> None:
        self.point, self.over = point, False

    def hit(self, name: str) -> None:
        if name == self.point and not self.over:
            raise Death


class Death(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def test_what_did_not_decode_goes_to_every_output_that_takes_events_and_has_not_got_it(bench: Any, stores: Any) -> None:
    class Store(stores[1]):
        refusing: ClassVar[bool] = True

        def refuse(self, at: str, numbers: list[float], key: RangeKey) -> None:
            if Store.refusing and numbers:
                raise PermanentError("not yet", {str(key): [*range(len(numbers))]})

    class Other(stores[1]):
        pass

    async def main() -> None:
        bench.letters.add([letter(7)])
        units = [bench.unit(each) for each in (Store, Other)]
        outputs = {output.id: output for output in bench.outputs(bench.pipeline(), [(StreamingOutput, unit) for unit in units])}
        for output in outputs.values():
            await output.unit.open()
        replaying = bench.replaying()
        for refusing, left in ((True, [(7, "dead", 2)]), (False, [])):
            Store.refusing = refusing
            want(bench)
            async with asyncio.timeout(20):
                while replaying._under_way or letters(bench) != left:
                    await replaying.look(outputs, bench.buffer.queue_info())
                    await asyncio.sleep(0.005)

    asyncio.run(main())
    assert (Store.rows, Other.rows) == ([7], [7])


def test_a_letter_for_an_output_that_is_not_there_stays_dead(bench: Any) -> None:
    bench.letters.add([letter(7, output="gone")])
    want(bench)
    asyncio.run(bench.replaying().look({}, bench.buffer.queue_info()))
    assert letters(bench) == [(7, "dead", 1)]


def test_a_store_that_fails_for_a_while_takes_its_letters_when_it_can(bench: Any, stores: Any) -> None:
    class Store(stores[1]):
        failures = 0

        def refuse(self, at: str, numbers: list[float], key: RangeKey) -> None:
            if at == "flush" and Store.failures < 3:
                Store.failures += 1
                raise TransientError("down")

    async def main() -> None:
        bench.letters.add([letter(position) for position in range(1, 2500)])
        (output,) = bench.outputs(bench.pipeline(), [(StreamingOutput, bench.unit(Store))])
        await output.unit.open()
        want(bench)
        await replayed(bench.replaying(), output, bench, lambda: len(Store.rows) == 2499)

    asyncio.run(main())
    assert sorted(Store.rows) == list(range(1, 2500))


def test_a_replay_waits_until_nothing_of_the_queue_is_unflushed_there(bench: Any, stores: Any) -> None:
    class Store(stores[1]):
        pass

    async def main() -> None:
        pipeline = bench.pipeline()
        async with bench.running(pipeline) as tasks:
            await bench.feed(tasks, [5])
            (output,) = bench.outputs(pipeline, [(StreamingOutput, bench.unit(Store, flush_interval_s=600.0))])
            running = asyncio.ensure_future(output.run())
            async with asyncio.timeout(20):
                while output.attempted < 5:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            bench.letters.add([letter(99)])
            want(bench)
            await replayed(bench.replaying(), output, bench, lambda: 99 in Store.rows)
            output.drain()
            await running

    asyncio.run(main())
    assert Store.rows == [1, 2, 3, 4, 5, 99]
    assert Store.keys == ["1-5", "1-1"]


def test_replayed_letters_are_left_out_of_rewrites_while_the_queue_holds_them_and_forgotten_then(bench: Any, stores: Any) -> None:
    class Store(stores[1]):
        pass

    async def main() -> None:
        pipeline = bench.pipeline()
        async with bench.running(pipeline) as tasks:
            await bench.feed(tasks, [5])
            bench.letters.add([letter(2, queue_id=bench.buffer.queue_info().queue_id, output="store")])
            (output,) = bench.outputs(pipeline, [(StreamingOutput, bench.unit(Store))])
            await output.unit.open()
            want(bench)
            replaying = bench.replaying()
            await replayed(replaying, output, bench, lambda: Store.rows == [2])
            await replaying.look({}, bench.buffer.queue_info())
            assert bench.letters.count == 1
            assert bench.letters.add([letter(2, queue_id=bench.buffer.queue_info().queue_id, output="store")]) == 0
            await bench.drain([output])
            await replaying.look({}, bench.buffer.queue_info())
            assert bench.letters.count == 0

    asyncio.run(main())
    assert Store.rows == [2, 1, 3, 4, 5]


def test_letters_that_were_restored_from_a_backup_get_numbers_under_a_new_id(
    tmp_path: Path, bench: Any, engine_bench: Any, stores: Any
) -> None:
    """The backup knows nothing of the letter that went out as number 1: another one must not pass for it."""

    class Store(stores[1]):
        pass

    async def replay(world: Any, seq: int, rows: list[float]) -> None:
        store = DeadStore("t", world.letters.path)
        store.queue(Filter(seqs=((seq, seq),)))
        store.close()
        (output,) = world.outputs(world.pipeline(), [(StreamingOutput, world.unit(Store))])
        await output.unit.open()
        await replayed(world.replaying(), output, world, lambda: rows == Store.rows)

    bench.letters.add([letter(1), letter(2)])
    (tmp_path / "restored").mkdir()
    bench.letters.db.execute("vacuum into ?", (str(tmp_path / "restored" / "dead.db"),))
    asyncio.run(replay(bench, 1, [1]))
    asyncio.run(replay(engine_bench(tmp_path / "restored"), 2, [1, 2]))
    assert len(Store.held) == 2


def test_replayed_events_keep_their_global_id() -> None:
    far = letter(7)._replace(origin="edge", origin_position=70)
    read = read_of(1, [Queued(1, "r", letter(3)), Queued(2, "r", far), Queued(4, "r", None)], 1 << 20)
    assert (read.queue_id, read.first, read.last, [*map(tuple, read.missing)]) == ("r", 1, 4, [(3, 3, "released"), (4, 4, "released")])
    assert read.batch is not None
    names, numbers = global_ids("r", read.first + 0 * _positions(2), read.origins)
    assert [*zip(names.to_pylist(), numbers.to_pylist(), strict=True)] == [("q", 3), ("edge", 70)]


def _positions(count: int) -> Any:
    return np.arange(1, count + 1, dtype=np.uint64)


def letter(position: int, queue_id: str = "q", output: str = "") -> Letter:
    return Letter(queue_id, position, output, "decode", "decode", "no json", 1, "d", 1_794_000_000_000_000, 1, b'{"n":%d}' % position)
