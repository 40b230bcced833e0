"""One enricher at work: its errors answered, its result checked, its fields merged into `context`.

A plugin gives only the fields that it adds; the host merges them, so that it cannot reorder, drop or alter events.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pyarrow as pa

from headrace.component import Clock
from headrace.config import Engine
from headrace.engine.supervisor import Supervised
from headrace.errors import HookError, PermanentError, TransientError
from headrace.hookspecs import EnrichHooks
from headrace.log import describe
from headrace.retry import Backoff
from headrace.schema import event_schema

#: Why rows are refused, by row index.
Refused = dict[int, str]


class Enricher:
    """One enricher of a tier, in the order of the config."""

    def __init__(self, unit: Supervised, engine: Engine, clock: Clock, backoff: Backoff) -> None:
        self._unit, self._engine, self._clock, self._backoff = unit, engine, clock, backoff
        self.id = unit.entry.id

    @property
    def fields(self) -> pa.Schema:
        """What the component that is in place now adds."""
        return self._unit.hook.enrich_fields()

    async def add_context(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, Refused]:
        """The events with this enricher's fields in `context`, all rows; and the rows that it refuses for good."""
        if not batch.num_rows:
            return batch, {}
        added, refused = await self._enrich(batch, 0)
        return merge_context(batch, added), refused

    def holding(self, reason: str | None) -> None:
        """The dead letters refuse what this enricher refused (a reason), or take it again (None)."""
        self._unit.status("degraded" if reason else "ok", reason or "")

    async def _enrich(self, batch: pa.RecordBatch, offset: int) -> tuple[pa.RecordBatch, Refused]:
        """As long as it takes; a bug that survives `attempts_max` restarts is narrowed down to its rows by halving."""
        bugs = 0
        while True:
            try:
                added = await self._call(batch)
            except TransientError as error:
                self._unit.failed("enrich", error)
                self._unit.status("degraded", describe(error))
                await self._clock.sleep(self._backoff.next_s(error.retry_after_s))
            except PermanentError as error:
                self._unit.failed("enrich", error)
                if rows := error.rows.get("", []):
                    return await self._enrich_without(batch, offset, rows, describe(error))
                return await self._halve(batch, offset, describe(error))
            except Exception as error:
                bugs += 1
                self._unit.failed("enrich", error)
                self._unit.log.exception("enricher failed", error, rows=batch.num_rows, attempt=bugs)
                await self._unit.restart(describe(error))
                if bugs >= self._engine.attempts_max:
                    return await self._halve(batch, offset, f"bug: {describe(error)}")
                await self._clock.sleep(self._backoff.next_s())
            else:
                if self._backoff.attempts:
                    self._backoff.reset()
                    self._unit.status("ok")
                return added, {}

    async def _call(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if self._unit.plugins.has("enrich_prepare"):
            try:
                async with asyncio.timeout(self._engine.prepare_wait_ms_max / 1000):
                    await self._unit.hook.enrich_prepare(batch=batch)
            except TimeoutError:
                self._unit.log.warning("enrich_prepare cut off", wait_ms_max=self._engine.prepare_wait_ms_max)
        added = self._unit.hook.enrich(batch=batch)
        check_added(self._unit.entry.use, batch, added, self.fields)
        return added

    async def _halve(self, batch: pa.RecordBatch, offset: int, reason: str) -> tuple[pa.RecordBatch, Refused]:
        if batch.num_rows == 1:
            return self._nulls(1), {offset: reason}
        half = batch.num_rows // 2
        first, first_refused = await self._enrich(batch.slice(0, half), offset)
        second, second_refused = await self._enrich(batch.slice(half), offset + half)
        return pa.concat_batches([first, second]), first_refused | second_refused

    async def _enrich_without(self, batch: pa.RecordBatch, offset: int, rows: Sequence[int], reason: str) -> tuple[pa.RecordBatch, Refused]:
        """The refused rows get nulls; the others are enriched without them."""
        refused = set(rows)
        kept = [row for row in range(batch.num_rows) if row not in refused]
        added, more = await self._enrich(batch.take(pa.array(kept, pa.int64())), 0) if kept else (self._nulls(0), {})
        # every row takes its own result; the refused ones take a null behind the last
        source = {row: index for index, row in enumerate(kept)}
        indexes = pa.array([source.get(row) for row in range(batch.num_rows)], pa.int64())
        columns = [column.take(indexes) for column in added.columns]
        spread = pa.RecordBatch.from_arrays(columns, schema=self.fields)
        all_refused = {offset + row: reason for row in refused} | {offset + kept[row]: why for row, why in more.items()}
        return spread, all_refused

    def _nulls(self, rows: int) -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays([pa.nulls(rows, field.type) for field in self.fields], schema=self.fields)


def check_added(plugin: str, batch: pa.RecordBatch, added: object, fields: pa.Schema) -> None:
    """What `enrich` returned fits its contract, or HookError."""
    contract = f"{EnrichHooks.enrich.__name__} must return"
    if not isinstance(added, pa.RecordBatch):
        raise HookError(plugin, f"{contract} a RecordBatch, got {type(added).__name__}")
    if added.num_rows != batch.num_rows:
        raise HookError(plugin, f"{contract} one row for each of the {batch.num_rows} events, got {added.num_rows}")
    if not added.schema.equals(fields):
        raise HookError(plugin, f"{contract} exactly the fields of enrich_fields ({_names(fields)}), got {_names(added.schema)}")


def _names(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema) or "none"


def merge_context(batch: pa.RecordBatch, added: pa.RecordBatch) -> pa.RecordBatch:
    """The events with `added` in their context; a field that is there already is replaced."""
    context = batch.column("context")
    merged: dict[str, pa.Array] = {field.name: context.field(index) for index, field in enumerate(context.type)}
    merged.update(zip(added.schema.names, added.columns, strict=True))
    if not merged:
        return batch
    fields = [pa.field(name, column.type) for name, column in merged.items()]
    array = pa.StructArray.from_arrays(list(merged.values()), fields=fields)
    schema = event_schema(batch.schema.field("readings").type, array.type)
    return pa.RecordBatch.from_arrays([array if name == "context" else batch.column(name) for name in schema.names], schema=schema)


def check_fields(enrichers: Mapping[str, pa.Schema]) -> str | None:
    """Two enrichers that add one name: the complaint, or None."""
    owners: dict[str, str] = {}
    for enricher, schema in enrichers.items():
        for name in schema.names:
            if name in owners:
                return f"enrichers {owners[name]!r} and {enricher!r} both add the field {name!r}; rename it in one of them"
            owners[name] = enricher
    return None
