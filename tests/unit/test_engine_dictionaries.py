"""A text that an enricher gives as a dictionary comes as strings to every output that does not ask for it as it is."""

from __future__ import annotations

import asyncio
from typing import Any

import pyarrow as pa
import pytest

from headrace import NO_ORIGINS, Component, PermanentError, QueueRead, RangeKey, event_schema, hookimpl
from headrace.engine.output_loose import LooseOutput
from headrace.engine.output_planned import PlannedOutput
from headrace.engine.output_publishing import PublishingOutput
from headrace.engine.output_streaming import StreamingOutput
from headrace.schema import WORDS_TYPE, plain_context
from headrace.testing.batches import event_batch


class Words(Component):
    """Adds `site`, of few words; refuses what `refused` names."""

    refused: tuple[float, ...] = ()

    @hookimpl
    def enrich_fields(self) -> pa.Schema:
        return pa.schema([("site", pa.string()), ("floor", pa.int64())])

    @hookimpl
    def enrich(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if any(row["n"] in self.refused for row in batch.column("readings").to_pylist()):
            raise PermanentError("odd")
        sites = pa.array([f"site of {device}" for device in batch.column("device").to_pylist()]).dictionary_encode()
        return pa.RecordBatch.from_arrays([sites, pa.array([1] * batch.num_rows)], ["site", "floor"])


async def stored(bench: Any, kind: Any, store: Any, enricher: type[Component] = Words) -> None:
    unit = bench.unit(enricher, "enricher")
    await unit.open()
    pipeline = bench.pipeline([unit])
    async with bench.running(pipeline) as tasks:
        await bench.feed(tasks, [6])
        await bench.drain(bench.outputs(pipeline, [(kind, bench.unit(store))]))


@pytest.mark.parametrize("kind", [StreamingOutput, PlannedOutput])
@pytest.mark.parametrize("declared", [False, True])
def test_only_who_declares_it_sees_the_dictionary(bench: Any, stores: Any, kind: Any, declared: bool) -> None:
    seen: list[pa.RecordBatch] = []

    class Store(stores[1]):
        takes_dictionaries = declared
        idempotence = "key"

        @hookimpl
        async def sink_write(self, batch: pa.RecordBatch, key: RangeKey) -> None:
            seen.append(batch)

    asyncio.run(stored(bench, kind, Store))
    expected = pa.struct({"site": WORDS_TYPE if declared else pa.string(), "floor": pa.int64()})
    assert {batch.schema.field("context").type for batch in seen} == {expected}
    rows = [row for batch in seen for row in batch.column("context").to_pylist()]
    assert rows == [{"site": f"site of d{number % 3}", "floor": 1} for number in range(1, 7)]


def test_a_feed_and_a_publisher_see_strings(bench: Any, stores: Any) -> None:
    given: list[pa.RecordBatch] = []

    class Feed(stores[0]):
        holds = False

        @hookimpl
        async def sink_write(self, batch: pa.RecordBatch, key: RangeKey) -> None:
            given.append(batch)

    class Publisher(Component):
        @hookimpl
        async def transport_publish(self, batch: pa.RecordBatch, topic: str) -> None:
            given.append(batch)

    async def main() -> None:
        enricher = bench.unit(Words, "enricher")
        await enricher.open()
        pipeline = bench.pipeline([enricher])
        events = await pipeline.events(QueueRead("q", 1, 3, bench.batch(3), NO_ORIGINS, ()))
        assert events.batch.schema.field("context").type.field("site").type == WORDS_TYPE
        for kind, plugin in ((LooseOutput, Feed), (PublishingOutput, Publisher)):
            output = kind(bench.unit(plugin, hold="none"), bench.shared(pipeline))
            await output.unit.open()
            await output._put(events)

    asyncio.run(main())
    assert [batch.schema.field("context").type.field("site").type for batch in given] == [pa.string()] * 2
    assert [row["site"] for row in given[1].column("context").to_pylist()] == [f"site of d{number}" for number in (1, 2, 0)]


def test_rows_refused_by_the_enricher_leave_the_words_of_the_others_alone(bench: Any, stores: Any) -> None:
    class Picky(Words):
        refused = (2, 5)

    seen: list[Any] = []

    class Store(stores[1]):
        takes_dictionaries = True

        @hookimpl
        async def sink_write(self, batch: pa.RecordBatch, key: RangeKey) -> None:
            seen.extend(batch.column("context").to_pylist())

    asyncio.run(stored(bench, StreamingOutput, Store, Picky))
    assert seen == [{"site": f"site of d{number % 3}", "floor": 1} for number in (1, 3, 4, 6)]
    assert bench.letters.count == 2


def test_plain_context_keeps_null_contexts_and_what_is_no_dictionary() -> None:
    batch = event_batch(3)
    children = [pa.array(["a", None, "b"]).dictionary_encode(), pa.array([[1], None, []])]
    context = pa.StructArray.from_arrays(children, ["site", "list"], mask=pa.array([False, False, True]))
    schema = event_schema(batch.schema.field("readings").type, context.type)
    given = pa.RecordBatch.from_arrays([context if name == "context" else batch.column(name) for name in schema.names], schema=schema)
    plain = plain_context(given)
    assert plain.column("context").to_pylist() == [{"site": "a", "list": [1]}, {"site": None, "list": None}, None]
    assert plain.schema.field("context").type.field("site").type == pa.string()
    assert plain.schema.metadata == batch.schema.metadata
    assert plain_context(plain) is plain
