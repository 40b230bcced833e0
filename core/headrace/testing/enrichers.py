"""The contract of enrichers: their own fields, one row per event, in the events' order, and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from headrace.component import Context
from headrace.engine.enrichment import check_added
from headrace.errors import PermanentError, TransientError
from headrace.testing.batches import event_batch
from headrace.testing.context import has, living, run
from headrace.testing.contract import Contract, skip

UNKNOWN = ("never-seen-1", "никогда", "", "../../etc", "x" * 1000)


class EnricherContract(Contract):
    """Subclass it as `TestMyEnricher`, with `make(context)`, and `known_events()` where it does not add to any event."""

    role = "enricher"
    #: False for an enricher whose fields do not depend on a device being known (a clock, a geocoder).
    nulls_for_unknown: ClassVar[bool] = True

    def known_events(self) -> pa.RecordBatch:
        """At least two events to which it adds something, different from event to event where it can be."""
        return event_batch(12)

    def break_store(self, context: Context) -> None:
        """Optional, with `heal_store`: take away what it looks things up in."""
        skip("the contract class does not define break_store")

    def heal_store(self, context: Context) -> None:
        """Undo `break_store`."""

    def test_the_declared_fields_are_constant(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with living(self.make(self.context(tmp_path)), self.role) as hook:
                before = hook.enrich_fields()
                assert isinstance(before, pa.Schema), f"expected a pyarrow.Schema from enrich_fields, got {type(before).__name__}"
                assert before.names, "expected at least one field from enrich_fields, got none"
                assert len(set(before.names)) == len(before.names), f"expected each field once, got {before.names}"
                await self._enrich(hook, self.known_events())
                assert hook.enrich_fields().equals(before), "enrich_fields changed after an enrich"

        run(check())

    def test_every_event_gets_one_row_with_exactly_the_declared_fields(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            for batch in (self.known_events(), self.known_events().slice(1), *_odd_batches()):
                await self._enrich(hook, batch)

        self._with(tmp_path, check)

    def test_known_events_get_something(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            added = await self._enrich(hook, self.known_events())
            assert any(column.null_count < len(column) for column in added.columns), (
                "expected a value for at least one of known_events(), got only nulls; override known_events() with events that it knows"
            )

        self._with(tmp_path, check)

    def test_rows_follow_their_events(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            events = self.known_events()
            assert events.num_rows >= 2, "known_events() must have at least two rows"
            rows = _rows(await self._enrich(hook, events))
            backwards = list(range(events.num_rows))[::-1]
            assert _rows(await self._enrich(hook, events.take(pa.array(backwards)))) == rows[::-1], (
                "rows do not follow their events when these are reversed"
            )
            for row in range(events.num_rows):
                alone = _rows(await self._enrich(hook, events.slice(row, 1)))
                assert alone == [rows[row]], f"row {row}: expected {rows[row]} as in the whole batch, got {alone} when it comes alone"

        self._with(tmp_path, check)

    def test_the_same_events_get_the_same_again(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            first = _rows(await self._enrich(hook, self.known_events()))
            assert _rows(await self._enrich(hook, self.known_events())) == first

        self._with(tmp_path, check)

    def test_the_events_are_left_alone(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            events = self.known_events()
            before = events.to_pylist()
            await self._enrich(hook, events)
            assert events.to_pylist() == before, "enrich changed the batch that it was given"

        self._with(tmp_path, check)

    def test_unknown_devices_get_nulls(self, tmp_path: Path) -> None:
        if not self.nulls_for_unknown:
            skip("nulls_for_unknown = False")

        async def check(hook: Any) -> None:
            added = await self._enrich(hook, event_batch(len(UNKNOWN), devices=UNKNOWN))
            for name, column in zip(added.schema.names, added.columns, strict=True):
                assert column.null_count == len(column), (
                    f"expected nulls in {name!r} for devices that nobody knows, got {column.to_pylist()}"
                )

        self._with(tmp_path, check)

    def test_known_and_unknown_devices_may_share_a_batch(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            events = self.known_events()
            rows = _rows(await self._enrich(hook, events))
            strange = events.set_column(0, events.schema.field("device"), pa.array([UNKNOWN[0]] * events.num_rows, pa.string()))
            mixed = pa.concat_batches([strange, events, strange])
            came = _rows(await self._enrich(hook, mixed))[events.num_rows : 2 * events.num_rows]
            assert came == rows, "known events get something else when unknown ones stand beside them"

        self._with(tmp_path, check)

    def test_a_broken_store_is_transient_or_leaves_what_is_known(self, tmp_path: Path) -> None:
        context = self.context(tmp_path)

        async def check() -> None:
            async with living(self.make(context), self.role) as hook:
                events = self.known_events()
                await self._enrich(hook, events)
                self.break_store(context)
                with contextlib.suppress(TransientError):
                    await self._enrich(hook, events)
                self.heal_store(context)
                await self._enrich(hook, events)

        run(check())

    async def _enrich(self, hook: Any, batch: pa.RecordBatch) -> pa.RecordBatch:
        """As the host: prepare, enrich, check what came; any error but Transient and Permanent is the plugin's bug."""
        try:
            if has(hook.enrich_prepare):
                await hook.enrich_prepare(batch=batch)
            added = hook.enrich(batch=batch)
        except (TransientError, PermanentError):
            raise
        except Exception as error:
            raise AssertionError(f"expected a batch, TransientError or PermanentError, got {type(error).__name__}: {error}") from error
        check_added(type(self).__name__, batch, added, hook.enrich_fields())
        added.validate(full=True)
        return added

    def _with(self, tmp_path: Path, check: Any) -> None:
        async def work() -> None:
            async with living(self.make(self.context(tmp_path)), self.role) as hook:
                await check(hook)

        run(work())


def _odd_batches() -> Sequence[pa.RecordBatch]:
    """Events such as the host may well hand over: none at all, no readings, nulls, every device the same, many."""
    return (
        event_batch(0),
        event_batch(3, readings={}),
        event_batch(3, readings={"temperature": [None, 1.0, None], "state": ["a", None, "b"]}),
        event_batch(4, devices=UNKNOWN, context={"site": ["a", None, "b", "c"]}),
        event_batch(50, devices=["one"]).slice(20, 10),
        event_batch(3000, devices=[f"device-{number}" for number in range(1000)]),
    )


def _rows(added: pa.RecordBatch) -> list[dict[str, Any]]:
    return list(added.to_pylist())
