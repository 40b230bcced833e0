"""One enricher at work: its errors answered, its result checked, its fields merged into `context`.

A plugin gives only the fields that it adds; the host merges them, so that it cannot reorder, drop or alter events.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pyarrow as pa

from headrace.component import Clock
from headrace.config import Engine
from headrace.engine.supervisor import Supervised, call_plugin
from headrace.errors import HookError, PermanentError, TransientError
from headrace.hookspecs import EnrichHooks
from headrace.log import describe
from headrace.retry import Backoff
from headrace.schema import WORDS_TYPE, event_schema

#: Why rows are refused, by row index.
Refused = dict[int, str]


class Enricher:
    """One enricher of a tier, in the order of the config."""

    def __init__(self, unit: Supervised, engine: Engine, clock: Clock, backoff: Backoff) -> None:
        self._unit, self._engine, self._clock, self._backoff = unit, engine, clock, backoff
        self.id = unit.entry.id
        self._fields: pa.Schema = unit.hook.enrich_fields()

    async def add_context(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, Refused]:
        """The events with this enricher's fields in `context`, all rows; and the rows that it refuses for good."""
        if not batch.num_rows:
            return batch, {}
        while True:
            await self._unit.is_open()
            fields = self._fields = self._fields_now()
            added, refused = await self._enrich(batch, 0)
            if self._fields.equals(fields):
                return merge_context(batch, added), refused

    def _fields_now(self) -> pa.Schema:
        """What the component that is in place now adds; what it said last when it fails to say."""
        try:
            fields = self._unit.hook.enrich_fields()
        except Exception as error:
            self._unit.failed("enrich_fields", error)
            return self._fields
        return fields if isinstance(fields, pa.Schema) else self._fields

    def holding(self, reason: str | None) -> None:
        """The dead letters refuse what this enricher refused (a reason), or take it again (None)."""
        self._unit.status("degraded" if reason else "ok", reason or "")

    async def _enrich(self, batch: pa.RecordBatch, offset: int) -> tuple[pa.RecordBatch, Refused]:
        """As long as it takes; a bug that survives `attempts_max` restarts is narrowed down to its rows by halving."""
        bugs = 0
        refused: Refused = {}
        while True:
            kept: Sequence[int] = range(batch.num_rows)
            if refused:
                kept = [row for row in kept if row not in refused]
            if not kept:
                return self._nulls(batch.num_rows), _shifted(refused, offset)
            rest = batch if not refused else batch.take(pa.array(kept))
            try:
                added = await self._call(rest)
            except TransientError as error:
                self._unit.failed("enrich", error)
                self._unit.status("degraded", describe(error))
                await self._clock.sleep(self._backoff.next_s(error.retry_after_s))
                continue
            except PermanentError as error:
                self._unit.failed("enrich", error)
                if named := [row for row in error.rows.get("", []) if isinstance(row, int) and 0 <= row < len(kept)]:
                    refused |= {kept[row]: describe(error) for row in named}
                    continue
                added, more = await self._halve(rest, describe(error))
            except Exception as error:
                bugs += 1
                self._unit.failed("enrich", error)
                self._unit.log.exception("enricher failed", error, rows=rest.num_rows, attempt=bugs)
                await self._unit.restart(describe(error))
                if bugs < self._engine.attempts_max:
                    await self._clock.sleep(self._backoff.next_s())
                    continue
                added, more = await self._halve(rest, f"bug: {describe(error)}")
            else:
                more = {}
                if self._backoff.attempts:
                    self._backoff.reset()
                    self._unit.status("ok")
            refused_now = refused | {kept[row]: why for row, why in more.items()}
            return self._spread(added, kept, batch.num_rows), _shifted(refused_now, offset)

    async def _call(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        await self._unit.is_open()
        if self._unit.plugins.has("enrich_prepare"):
            try:
                async with asyncio.timeout(self._engine.prepare_wait_ms_max / 1000):
                    await call_plugin(self._unit.hook.enrich_prepare, batch=batch)
            except TimeoutError:
                self._unit.log.warning("enrich_prepare cut off", wait_ms_max=self._engine.prepare_wait_ms_max)
        await self._unit.is_open()  # `enrich` is for the instance that is open now
        added = self._unit.hook.enrich(batch=batch)
        self._fields = self._fields_now()
        check_added(self._unit.entry.use, batch, added, self._fields)
        return added

    async def _halve(self, batch: pa.RecordBatch, reason: str) -> tuple[pa.RecordBatch, Refused]:
        if batch.num_rows == 1:
            return self._nulls(1), {0: reason}
        half = batch.num_rows // 2
        first, first_refused = await self._enrich(batch.slice(0, half), 0)
        second, second_refused = await self._enrich(batch.slice(half), half)
        if not fits(first.schema, self._fields) or not fits(second.schema, self._fields):
            # restarted with another config in between: the caller begins again
            return self._nulls(batch.num_rows), {}
        return pa.concat_batches([_typed(first, self._fields), _typed(second, self._fields)]), first_refused | second_refused

    def _spread(self, added: pa.RecordBatch, kept: Sequence[int], rows: int) -> pa.RecordBatch:
        """Every kept row with its own result, the refused ones with nulls."""
        if len(kept) == rows:
            return added
        source = {row: index for index, row in enumerate(kept)}
        indexes = pa.array([source.get(row) for row in range(rows)], pa.int64())
        return pa.RecordBatch.from_arrays([column.take(indexes) for column in added.columns], schema=added.schema)

    def _nulls(self, rows: int) -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays([pa.nulls(rows, field.type) for field in self._fields], schema=self._fields)


def _shifted(refused: Refused, offset: int) -> Refused:
    return {offset + row: reason for row, reason in refused.items()}


def check_added(plugin: str, batch: pa.RecordBatch, added: object, fields: pa.Schema) -> None:
    """What `enrich` returned fits its contract, or HookError."""
    contract = f"{EnrichHooks.enrich.__name__} must return"
    if not isinstance(added, pa.RecordBatch):
        raise HookError(plugin, f"{contract} a RecordBatch, got {type(added).__name__}")
    if added.num_rows != batch.num_rows:
        raise HookError(plugin, f"{contract} one row for each of the {batch.num_rows} events, got {added.num_rows}")
    if not fits(added.schema, fields):
        raise HookError(plugin, f"{contract} exactly the fields of enrich_fields ({_names(fields)}), got {_names(added.schema)}")


def fits(given: pa.Schema, fields: pa.Schema) -> bool:
    """Whether these are the fields, texts as strings or as dictionaries of them."""
    return given.names == fields.names and all(
        one.equals(field) or (one.type == WORDS_TYPE and one.with_type(pa.string()).equals(field))
        for one, field in zip(given, fields, strict=True)
    )


def _typed(added: pa.RecordBatch, fields: pa.Schema) -> pa.RecordBatch:
    pairs = zip(added.columns, fields, strict=True)
    return pa.RecordBatch.from_arrays(
        [column if column.type == field.type else column.dictionary_decode() for column, field in pairs], schema=fields
    )


def _names(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema) or "none"


def merge_context(batch: pa.RecordBatch, added: pa.RecordBatch) -> pa.RecordBatch:
    """The events with `added` in their context; a field that is there already is replaced."""
    context = batch.column("context")
    # flatten, not field: a null context has no values below it
    merged: dict[str, pa.Array] = dict(zip((field.name for field in context.type), context.flatten(), strict=True))
    merged.update(zip(added.schema.names, added.columns, strict=True))
    if not merged:
        return batch
    fields = [pa.field(name, column.type) for name, column in merged.items()]
    array = pa.StructArray.from_arrays(list(merged.values()), fields=fields)
    schema = event_schema(batch.schema.field("readings").type, array.type)
    return pa.RecordBatch.from_arrays([array if name == "context" else batch.column(name) for name in schema.names], schema=schema)


def check_fields(enrichers: Mapping[str, object]) -> str | None:
    """What is wrong with the fields of a tier's enrichers, by their ids: the complaint, or None."""
    owners: dict[str, str] = {}
    for enricher, schema in enrichers.items():
        if not isinstance(schema, pa.Schema):
            return f"enricher {enricher!r}: enrich_fields must return a pyarrow.Schema, got {type(schema).__name__}"
        for name in schema.names:
            if name in owners:
                return f"enrichers {owners[name]!r} and {enricher!r} both add the field {name!r}; rename it in one of them"
            owners[name] = enricher
    return None
