"""The contract of sinks: what is flushed is there, once, in order, whatever happened in between."""

from __future__ import annotations

import contextlib
import signal
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Final

import pyarrow as pa

from headrace.component import Component, Context
from headrace.errors import PermanentError, TransientError
from headrace.position import Missing, RangeKey, join_keys
from headrace.testing import plan
from headrace.testing.batches import QUEUE_ID, event_batch
from headrace.testing.context import living, run
from headrace.testing.contract import Contract, skip
from headrace.testing.crash import Nursery, finish, kill_at_random, rounds, test_seed
from headrace.testing.journal import Journal
from headrace.testing.sink_driver import SinkDriver, way_of

OTHER_QUEUE_ID: Final = "5f0c7e4a-0000-4000-8000-0000000000ff"


class SinkContract(Contract):
    """Subclass it as `TestMySink`, with `make(context)` and `read_back(context)`.

    The tests are those that fit what the class declares: `sink_resume`, `idempotence`, `holds`. A sink with `holds = False`
    promises nothing; only its life is tested.
    """

    role = "output"
    #: False where the store has no order of its own; else `read_back` gives each origin's events by ascending position.
    ordered: ClassVar[bool] = True
    #: Crashes at random moments in one test.
    crash_rounds: ClassVar[int] = 10
    #: Declared fault points that 2,000 events need not pass (for example one on a path that only a broken store takes).
    fault_points_rare: ClassVar[frozenset[str]] = frozenset()

    def read_back(self, context: Context) -> pa.Table | Iterable[tuple[str, int]]:
        """Everything in the store, in its order, by means of your own and not through the component.

        Either (origin, position) pairs, or a table with these columns; of the table's other columns `device`, `time`,
        `received` and `readings` are compared with what was written. Called while the component is closed.
        """
        raise NotImplementedError(f"{type(self).__name__} must define read_back(self, context)")

    def break_store(self, context: Context) -> None:
        """Optional, with `heal_store`: make every flush fail from now on, as a full disk or a dead server would."""
        skip("the contract class does not define break_store")

    def heal_store(self, context: Context) -> None:
        """Undo `break_store`."""

    def refused(self, context: Context) -> tuple[pa.RecordBatch, list[int]]:
        """Optional: an event batch of positions 1, 2, ... (`event_batch`) with rows that the store refuses for good, and which they are."""
        skip("the contract class does not define refused")
        raise AssertionError

    # --- declarations ------------------------------------------------------------------------------------------------

    def test_a_sink_that_holds_has_resume_or_idempotence(self, tmp_path: Path) -> None:
        component = type(self.make(self.context(tmp_path)))
        assert not component.holds or way_of(component) != "none", (
            f'{component.__name__} holds the queue: implement sink_resume, or declare idempotence = "key" or "event", or holds = False'
        )

    # --- what is stored ----------------------------------------------------------------------------------------------

    def test_what_is_flushed_is_stored_once_and_unchanged(self, tmp_path: Path) -> None:
        self._holding(tmp_path)
        batches = [event_batch(count, first) for count, first in ((5, 1), (1, 6), (300, 7))]
        self._store(tmp_path, batches, flush_each=True)
        self._check(tmp_path, batches)

    def test_a_flush_makes_safe_every_write_since_the_last_one(self, tmp_path: Path) -> None:
        self._holding(tmp_path)
        batches = [event_batch(20, first) for first in (1, 21, 41)]
        self._store(tmp_path, batches, flush_each=False)
        self._check(tmp_path, batches)

    def test_the_order_of_the_writes_is_kept(self, tmp_path: Path) -> None:
        self._holding(tmp_path)
        if not self.ordered:
            skip("ordered = False")
        batches = [event_batch(count, first) for count, first in ((7, 1), (2, 8), (90, 10), (1, 100), (40, 101))]
        self._store(tmp_path, batches[:3], flush_each=False)
        self._store(tmp_path, batches[3:], flush_each=True)
        positions = [position for _, position in self._stored(tmp_path)]
        assert positions == sorted(positions), f"expected the positions in order, got {_shown(positions)}"
        self._check(tmp_path, batches)

    def test_a_batch_without_rows_is_taken(self, tmp_path: Path) -> None:
        self._holding(tmp_path)
        before, after = event_batch(3, 1), event_batch(3, 11)
        keys = [RangeKey(QUEUE_ID, 1, 3), RangeKey(QUEUE_ID, 4, 10, (Missing(4, 9, "corrupt"),), (10,)), RangeKey(QUEUE_ID, 11, 13)]
        self._store(tmp_path, [before, event_batch(0), after], flush_each=True, keys=keys)
        self._check(tmp_path, [before, after])
        self._expect_resume(tmp_path, QUEUE_ID, 13)

    def test_a_range_that_ends_in_missing_and_dead_positions_counts_as_held(self, tmp_path: Path) -> None:
        self._holding(tmp_path)
        batch = event_batch(0, positions=(2, 3, 5))
        key = RangeKey(QUEUE_ID, 1, 9, (Missing(6, 9, "released"),), (1, 4))
        self._store(tmp_path, [batch], flush_each=True, keys=[key])
        self._check(tmp_path, [batch])
        self._expect_resume(tmp_path, QUEUE_ID, 9)

    def test_any_text_is_stored_unchanged(self, tmp_path: Path) -> None:
        self._holding(tmp_path)
        texts = [
            "grün",
            "дача",
            "水路",
            "🌊",
            "a/b\\c",
            "../../etc",
            "%41=?&",
            '"quoted"',
            "tab\tnew\nline",
            " ",
            "x" * 500,
            "NULL",
            "\u202e",
        ]
        batch = event_batch(len(texts), 1, devices=texts, readings={"текст =/'\"": texts, "n": [float(n) for n in range(len(texts))]})
        self._store(tmp_path, [batch], flush_each=True)
        self._check(tmp_path, [batch])

    def test_odd_numbers_and_nulls_are_stored(self, tmp_path: Path) -> None:
        self._holding(tmp_path)
        numbers = [0.0, -0.0, 1e308, 5e-324, float("inf"), float("-inf"), None, 2.0**53, None]
        flags = [None, True, False, None, None, None, True, None, None]
        batch = event_batch(len(numbers), 1, readings={"value": numbers, "flag": flags}, context={"site": ["a", None] * 4 + ["b"]})
        self._store(tmp_path, [batch], flush_each=True)
        self._check(tmp_path, [batch])

    def test_fields_may_come_and_go_between_batches(self, tmp_path: Path) -> None:
        self._holding(tmp_path)
        batches = [
            event_batch(2, 1, readings={"temperature": [1.5, 2.5]}),
            event_batch(2, 3, readings={"open": [True, False], "temperature": [None, 3.0]}, context={"site": ["a", "b"]}),
            event_batch(2, 5, readings={}),
            event_batch(2, 7, readings={"state": ["on", "off"]}, context={"latitude": [1.0, None], "site": [None, "c"]}),
            event_batch(2, 9, readings={"temperature": [4.0, 5.0]}),
        ]
        self._store(tmp_path, batches, flush_each=False)
        self._check(tmp_path, batches)

    def test_slices_of_a_batch_are_stored_as_what_they_show(self, tmp_path: Path) -> None:
        self._holding(tmp_path)
        whole = event_batch(100, 1)
        shown = [whole.slice(10, 30), whole.slice(40, 1)]
        keys = [RangeKey(QUEUE_ID, 11, 40), RangeKey(QUEUE_ID, 41, 41)]
        self._store(tmp_path, shown, flush_each=False, keys=keys)
        self._check(tmp_path, shown)

    def test_events_of_another_queue_keep_their_own_name(self, tmp_path: Path) -> None:
        self._holding(tmp_path)
        batches = [event_batch(5, 9_000_001, origin=OTHER_QUEUE_ID), event_batch(5, 6)]
        keys = [RangeKey(QUEUE_ID, 1, 5), RangeKey(QUEUE_ID, 6, 10)]
        self._store(tmp_path, batches, flush_each=True, keys=keys)
        self._check(tmp_path, batches)
        self._expect_resume(tmp_path, QUEUE_ID, 10)

    # --- again and again ---------------------------------------------------------------------------------------------

    def test_what_was_reset_is_stored_once_when_it_comes_again(self, tmp_path: Path) -> None:
        way = self._holding(tmp_path)
        first, second = event_batch(10, 1), event_batch(10, 11)
        again = [second] if way == "plan" else [event_batch(3, 11), event_batch(7, 14)]

        async def work(hook: Any) -> None:
            await _write(hook, [first])
            await _flush(hook, [first])
            await _write(hook, [second])
            await hook.sink_reset()
            await hook.sink_reset()
            await _write(hook, again)
            await _flush(hook, again)

        self._with(tmp_path, work)
        self._check(tmp_path, [first, second])

    def test_what_was_never_flushed_is_stored_once_when_it_comes_again_after_a_restart(self, tmp_path: Path) -> None:
        way = self._holding(tmp_path)
        first, second = event_batch(10, 1), event_batch(10, 11)

        async def work(hook: Any) -> None:
            await _write(hook, [first])
            await _flush(hook, [first])
            await _write(hook, [second])

        self._with(tmp_path, work)
        held = run(self._resume(tmp_path, QUEUE_ID)) if way == "resume" else 10
        assert held in (10, 20), f"expected sink_resume to say 10 (or 20, had close made the rest safe), got {held}"
        if held == 10:
            self._store(tmp_path, [second] if way == "plan" else [event_batch(4, 11), event_batch(6, 15)], flush_each=way == "plan")
        self._check(tmp_path, [first, second])

    def test_the_same_key_again_does_not_double(self, tmp_path: Path) -> None:
        if self._holding(tmp_path) != "plan":
            skip("the sink has sink_resume: the host never writes again what it holds")
        batches = [event_batch(10, 1), event_batch(10, 11)]
        self._store(tmp_path, batches, flush_each=True)
        self._store(tmp_path, batches[1:], flush_each=True)

        async def work(hook: Any) -> None:
            for _ in range(2):
                await _write(hook, batches[1:])
                await _flush(hook, batches[1:])

        self._with(tmp_path, work)
        self._check(tmp_path, batches)

    def test_the_same_events_in_other_bounds_do_not_double(self, tmp_path: Path) -> None:
        self._holding(tmp_path)
        if type(self.make(self.context(tmp_path))).idempotence != "event":
            skip('idempotence is not "event"')
        self._store(tmp_path, [event_batch(20, 1)], flush_each=True)
        again = [event_batch(7, 1), event_batch(23, 8)]
        self._store(tmp_path, again, flush_each=True)
        self._check(tmp_path, again)

    def test_resume_is_the_contiguous_prefix_that_is_flushed(self, tmp_path: Path) -> None:
        if self._holding(tmp_path) != "resume":
            skip("the sink has no sink_resume")

        async def work(hook: Any) -> None:
            assert await hook.sink_resume(queue_id=QUEUE_ID) is None, "expected None before anything was written"
            await _write(hook, [event_batch(10, 1)])
            await _flush(hook, [event_batch(10, 1)])
            assert await hook.sink_resume(queue_id=QUEUE_ID) == 10
            assert await hook.sink_resume(queue_id=OTHER_QUEUE_ID) is None, "expected None for a queue that the store has never seen"
            await _write(hook, [event_batch(5, 11)])
            await hook.sink_reset()
            held = await hook.sink_resume(queue_id=QUEUE_ID)
            assert held == 10, f"expected sink_resume to leave out what was reset, got {held}"

        self._with(tmp_path, work)
        self._expect_resume(tmp_path, QUEUE_ID, 10)

    def test_resume_tells_queues_apart(self, tmp_path: Path) -> None:
        if self._holding(tmp_path) != "resume":
            skip("the sink has no sink_resume")
        self._store(tmp_path, [event_batch(10, 1)], flush_each=True)
        later = event_batch(5, 11, origin=OTHER_QUEUE_ID)
        self._store(tmp_path, [later], flush_each=True, keys=[RangeKey(OTHER_QUEUE_ID, 11, 15)])
        self._expect_resume(tmp_path, QUEUE_ID, 10)
        self._expect_resume(tmp_path, OTHER_QUEUE_ID, 15)

    # --- errors ------------------------------------------------------------------------------------------------------

    def test_a_broken_store_is_a_transient_error_and_nothing_is_lost(self, tmp_path: Path) -> None:
        way = self._holding(tmp_path)
        context = self.context(tmp_path)
        first, second, third = event_batch(10, 1), event_batch(10, 11), event_batch(10, 21)

        async def check() -> None:
            async with living(self.make(context), "output") as hook:
                await _write(hook, [first])
                await _flush(hook, [first])
                self.break_store(context)
                for _ in range(2):
                    try:
                        await _write(hook, [second])
                        await _flush(hook, [second])
                    except TransientError:
                        pass
                    else:
                        raise AssertionError("expected TransientError from sink_write or sink_flush while the store is broken, got none")
                    with contextlib.suppress(TransientError):  # the host would restart the component; here it heals first
                        await hook.sink_reset()
                self.heal_store(context)
                await hook.sink_reset()
                again = [second] if way == "plan" else [event_batch(4, 11), event_batch(6, 15)]
                await _write(hook, again)
                await _flush(hook, again)
                await _write(hook, [third])
                await _flush(hook, [third])

        run(check())
        self._check(tmp_path, [first, second, third])

    def test_refused_rows_are_named_and_the_others_are_stored_without_them(self, tmp_path: Path) -> None:
        self._holding(tmp_path)
        context = self.context(tmp_path)
        batch, bad = self.refused(context)
        key = _key(batch)
        good = [row for row in range(batch.num_rows) if row not in bad]
        kept = batch.take(pa.array(good))
        rest = key._replace(dead=tuple(batch.column("position")[row].as_py() for row in bad))

        async def work(hook: Any) -> None:
            try:
                await hook.sink_write(batch=batch, key=key)
                await hook.sink_flush(key=key)
            except PermanentError as error:
                named = error.rows
            else:
                raise AssertionError(f"expected PermanentError for the rows {bad}, got none")
            assert named in ({}, {str(key): bad}), f"expected PermanentError to name no rows, or { ({str(key): bad}) }, got {named}"
            await hook.sink_reset()
            await hook.sink_write(batch=kept, key=rest)
            await hook.sink_flush(key=rest)

        self._with(tmp_path, work)
        self._check(tmp_path, [kept])

    # --- crashes -----------------------------------------------------------------------------------------------------

    def test_kill_9_at_random_moments_loses_and_doubles_nothing(self, tmp_path: Path) -> None:
        self._holding(tmp_path)
        seed = test_seed()
        rng, journal, killed = Random(seed), Journal(tmp_path / "journal"), 0
        with Nursery(self, tmp_path) as nursery:
            for _ in range(rounds(self.crash_rounds)):
                child = nursery.start(folder=str(tmp_path), seed=rng.getrandbits(32), goal=1_000_000)
                killed += kill_at_random(child, journal, rng, lines_max=30)
                assert child.exit_code == -signal.SIGKILL, f"seed {seed}: the process ended by itself:\n{child.log()}"
            self._finish_and_check(tmp_path, nursery, journal, seed)
        print(f"{killed} crashes, {_flushed(journal)} positions flushed")

    def test_kill_9_at_every_fault_point_loses_and_doubles_nothing(self, tmp_path: Path) -> None:
        self._holding(tmp_path)
        points = type(self.make(self.context(tmp_path))).fault_points
        if not points:
            skip("the plugin declares no fault points")
        seed = test_seed()
        rng = Random(seed)
        with Nursery(self, tmp_path) as nursery:
            for point in points:
                folder = tmp_path / point.replace("/", "_")
                folder.mkdir()
                journal, killed = Journal(folder / "journal"), 0
                for hit in (1, 1, rng.randint(2, 4)):
                    goal = _flushed(journal) + 2000
                    child = nursery.start(folder=str(folder), seed=rng.getrandbits(32), goal=goal, faults=f"{point}=kill@{hit}")
                    code = child.wait()
                    assert code in (0, -signal.SIGKILL), f"seed {seed}: the process ended with {code}:\n{child.log()}"
                    killed += code == -signal.SIGKILL
                assert killed or point in self.fault_points_rare, f"fault point {point!r} was never passed in 2,000 events"
                self._finish_and_check(folder, nursery, journal, seed)

    def child(self, request: dict[str, Any]) -> None:
        """What the forked process does: drive the sink until it is killed or has reached the goal."""
        folder = Path(request["folder"])
        context = self.context(folder, seed=request["seed"], faults=request.get("faults", ""))
        driver = SinkDriver(self.make(context), Journal(folder / "journal"), request["seed"])
        run(driver.run(request["goal"]), timeout_s=600)

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _finish_and_check(self, folder: Path, nursery: Nursery, journal: Journal, seed: int) -> None:
        goal = max((note.last for note in journal.notes()), default=0) + 100
        finish(nursery.start(folder=str(folder), seed=seed & 0xFFFFFFFF, goal=goal))
        last = _flushed(journal)
        assert last >= goal, f"seed {seed}: expected everything up to {goal} to be flushed, got {last}"
        expected = [(plan.queue_id(position), position) for position in plan.stored_positions(last)]
        _compare(expected, self._stored(folder), f"seed {seed}: ")

    def _holding(self, tmp_path: Path) -> str:
        component: type[Component] = type(self.make(self.context(tmp_path)))
        if not component.holds:
            skip("holds = False: the sink promises nothing")
        return way_of(component)

    def _with(self, tmp_path: Path, work: Any) -> None:
        async def check() -> None:
            async with living(self.make(self.context(tmp_path)), "output") as hook:
                await work(hook)

        run(check())

    def _store(self, tmp_path: Path, batches: Sequence[pa.RecordBatch], flush_each: bool, keys: Sequence[RangeKey] | None = None) -> None:
        """One life of the sink: write the batches, flush after each or once at the end."""

        async def work(hook: Any) -> None:
            given = list(keys) if keys else [_key(batch) for batch in batches]
            for batch, key in zip(batches, given, strict=True):
                await hook.sink_write(batch=batch, key=key)
                if flush_each:
                    await hook.sink_flush(key=key)
            if not flush_each:
                await hook.sink_flush(key=join_keys(given))

        self._with(tmp_path, work)

    async def _resume(self, tmp_path: Path, queue_id: str) -> int | None:
        async with living(self.make(self.context(tmp_path)), "output") as hook:
            held: int | None = await hook.sink_resume(queue_id=queue_id)
            return held

    def _expect_resume(self, tmp_path: Path, queue_id: str, position: int) -> None:
        if way_of(type(self.make(self.context(tmp_path)))) == "resume":
            held = run(self._resume(tmp_path, queue_id))
            assert held == position, f"expected sink_resume to say {position} after a restart, got {held}"

    def _stored(self, folder: Path) -> list[tuple[str, int]]:
        stored = self.read_back(self.context(folder))
        if isinstance(stored, pa.Table):
            return list(zip(stored.column("origin").to_pylist(), stored.column("position").to_pylist(), strict=True))
        return [(origin, int(position)) for origin, position in stored]

    def _check(self, tmp_path: Path, batches: Sequence[pa.RecordBatch]) -> None:
        """The store holds exactly these events, each once, with the values that were written."""
        written = {(row["origin"], row["position"]): row for batch in batches for row in batch.to_pylist()}
        _compare(list(written), self._stored(tmp_path))
        stored = self.read_back(self.context(tmp_path))
        if not isinstance(stored, pa.Table):
            return
        names = [name for name in ("device", "time", "received", "readings") if name in stored.column_names]
        for row in stored.to_pylist():
            event = written[row["origin"], row["position"]]
            for name in names:
                came, expected = _values(row[name]), _values(event[name])
                assert came == expected, f"position {row['position']}: expected {name} {expected!r}, got {came!r}"


async def _write(hook: Any, batches: Sequence[pa.RecordBatch]) -> None:
    for batch in batches:
        await hook.sink_write(batch=batch, key=_key(batch))


async def _flush(hook: Any, batches: Sequence[pa.RecordBatch]) -> None:
    await hook.sink_flush(key=join_keys([_key(batch) for batch in batches]))


def _key(batch: pa.RecordBatch) -> RangeKey:
    positions = batch.column("position")
    return RangeKey(QUEUE_ID, positions[0].as_py(), positions[-1].as_py())


def _flushed(journal: Journal) -> int:
    return max((note.last for note in journal.notes() if note.kind == "done"), default=0)


def _compare(expected: Sequence[tuple[str, int]], stored: Sequence[tuple[str, int]], prefix: str = "") -> None:
    counts = Counter(stored)
    lost = [event for event in expected if not counts[event]]
    doubled = [event for event, count in counts.items() if count > 1]
    wanted = set(expected)
    strange = [event for event in counts if event not in wanted]
    problems = [
        f"{len(events)} {what}: {_shown(events)}"
        for what, events in (("lost", lost), ("doubled", doubled), ("never written", strange))
        if events
    ]
    assert not problems, f"{prefix}of {len(expected)} events (origin, position) " + "; ".join(problems)


def _values(value: Any) -> Any:
    """A struct without its nulls: a store may or may not keep a column for what a row does not have."""
    return {name: child for name, child in value.items() if child is not None} if isinstance(value, dict) else value


def _shown(events: Sequence[Any]) -> str:
    return ", ".join(map(str, events[:8])) + (", ..." if len(events) > 8 else "")
