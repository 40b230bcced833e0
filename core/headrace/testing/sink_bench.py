"""What the author of a sink gives, and what the tests of sinks share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import pyarrow as pa

from headrace.component import Component, Context
from headrace.position import RangeKey, join_keys
from headrace.testing.batches import QUEUE_ID
from headrace.testing.context import living, run
from headrace.testing.contract import Contract, skip
from headrace.testing.sink_driver import way_of

OTHER_QUEUE_ID: Final = "5f0c7e4a-0000-4000-8000-0000000000ff"


class SinkBench(Contract):
    """A sink under test."""

    role = "output"
    #: False where the store has no order of its own; else `read_back` gives each origin's events by ascending position.
    ordered: ClassVar[bool] = True

    def read_back(self, context: Context) -> pa.Table | Iterable[tuple[str, int]]:
        """Everything in the store, in its order, by means of your own and not through the component.

        Either (origin, position) pairs, or a table with these columns; of the table's other columns `device`, `time`,
        `received` and `readings` are compared with what was written. Called while the component is closed.
        """
        raise NotImplementedError(f"{type(self).__name__} must define read_back(self, context)")

    def break_store(self, context: Context) -> None:
        """Optional, with `heal_store`: make every flush fail from now on, as a full disk or a dead server would.

        Called while the component is open: renaming a folder does not break files that it holds open.
        """
        skip("the contract class does not define break_store")

    def heal_store(self, context: Context) -> None:
        """Undo `break_store`."""

    def refused(self, context: Context) -> tuple[pa.RecordBatch, list[int]]:
        """Optional: an event batch of positions 1, 2, ... (`event_batch`) with rows that the store refuses for good, and which they are."""
        skip("the contract class does not define refused")
        raise AssertionError

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
            given = list(keys) if keys else [key_of(batch) for batch in batches]
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
        compare(list(written), self._stored(tmp_path))
        stored = self.read_back(self.context(tmp_path))
        if not isinstance(stored, pa.Table):
            return
        names = [name for name in ("device", "time", "received", "readings") if name in stored.column_names]
        for row in stored.to_pylist():
            event = written[row["origin"], row["position"]]
            for name in names:
                came, expected = values_of(row[name]), values_of(event[name])
                assert came == expected, f"position {row['position']}: expected {name} {expected!r}, got {came!r}"


async def write(hook: Any, batches: Sequence[pa.RecordBatch]) -> None:
    for batch in batches:
        await hook.sink_write(batch=batch, key=key_of(batch))


async def flush(hook: Any, batches: Sequence[pa.RecordBatch]) -> None:
    await hook.sink_flush(key=join_keys([key_of(batch) for batch in batches]))


def key_of(batch: pa.RecordBatch) -> RangeKey:
    positions = batch.column("position")
    return RangeKey(QUEUE_ID, positions[0].as_py(), positions[-1].as_py())


def compare(expected: Sequence[tuple[str, int]], stored: Sequence[tuple[str, int]], prefix: str = "") -> None:
    counts = Counter(stored)
    lost = [event for event in expected if not counts[event]]
    doubled = [event for event, count in counts.items() if count > 1]
    wanted = set(expected)
    strange = [event for event in counts if event not in wanted]
    problems = [
        f"{len(events)} {what}: {shown(events)}"
        for what, events in (("lost", lost), ("doubled", doubled), ("never written", strange))
        if events
    ]
    assert not problems, f"{prefix}of {len(expected)} events (origin, position) " + "; ".join(problems)


def values_of(value: Any) -> Any:
    """A struct without its nulls: a store may or may not keep a column for what a row does not have."""
    return {name: child for name, child in value.items() if child is not None} if isinstance(value, dict) else value


def shown(events: Sequence[Any]) -> str:
    return ", ".join(map(str, events[:8])) + (", ..." if len(events) > 8 else "")
