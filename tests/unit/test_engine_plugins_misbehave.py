"""Decoders, enrichers and side files that misbehave: their events wait or are set aside, and the tier goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from headrace import Component, PermanentError, TransientError, hookimpl
from headrace.batching import RawBatchBuilder
from headrace.engine.dead_letters import DeadLetters, Letter
from headrace.engine.enrichment import merge_context
from headrace.engine.window import AgeWindow
from headrace.schema import event_schema


class Decoding(Component):
    """Decodes encoding 200; tests override `readings`."""

    def readings(self, payloads: list[bytes]) -> Any:
        return pa.array([{"n": float(payload)} for payload in payloads], pa.struct([("n", pa.float64())])), []

    @hookimpl
    def decode_encodings(self) -> dict[str, int]:
        return {"test": 200}

    @hookimpl
    def decode(self, payloads: pa.BinaryArray, encoding: int) -> Any:
        return self.readings(payloads.to_pylist())


async def decoded(bench: Any, decoder: type[Component], count: int) -> Any:
    pipeline = bench.pipeline(decoders=[bench.unit(decoder, "decoder")])
    await pipeline._decoders[200]._unit.open()
    builder = RawBatchBuilder(1 << 20, 1 << 30)
    for number in range(1, count + 1):
        builder.add("d", 1_794_000_000_000_000, 200, b"%d" % number)
    async with bench.running(pipeline) as tasks:
        appending = tasks.create_task(bench.buffer.queue_append(builder.take(), bench.no_origins))
        async with asyncio.timeout(20):
            events = await pipeline.after("reader", 0)
        appending.cancel()
    return events


def _numbers(payloads: list[bytes], kind: pa.DataType, convert: Callable[[bytes], Any]) -> Any:
    return pa.array([{"n": convert(payload)} for payload in payloads], pa.struct([("n", kind)]))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda payloads: 1 / 0,
        lambda payloads: None,
        lambda payloads: _numbers(payloads, pa.float64(), float),
        lambda payloads: (_numbers(payloads[1:], pa.float64(), float), []),
        lambda payloads: (_numbers(payloads, pa.float64(), float), [99]),
        lambda payloads: (_numbers(payloads, pa.binary(), bytes), []),
        lambda payloads: (_ for _ in ()).throw(PermanentError("odd")),
    ],
    ids=["raises", "None", "no pair", "too few rows", "bad row out of range", "a type that no reading has", "refuses all"],
)
def test_what_a_decoder_fails_on_is_set_aside_and_the_rest_is_decoded(bench: Any, wrong: Any) -> None:
    class Failing(Decoding):
        def readings(self, payloads: list[bytes]) -> Any:
            return wrong(payloads) if b"3" in payloads else super().readings(payloads)

    events = asyncio.run(decoded(bench, Failing, 5))
    assert [row["n"] for row in events.batch.column("readings").to_pylist()] == [1, 2, 4, 5]
    assert bench.letters.count == 1


def test_a_decoder_that_is_not_ready_is_asked_again(bench: Any) -> None:
    class Slow(Decoding):
        tries = 0

        def readings(self, payloads: list[bytes]) -> Any:
            Slow.tries += 1
            if Slow.tries < 3:
                raise TransientError("no schema yet")
            return super().readings(payloads)

    assert asyncio.run(decoded(bench, Slow, 2)).batch.num_rows == 2


class Enriching(Component):
    @hookimpl
    def enrich_fields(self) -> pa.Schema:
        return pa.schema([("site", pa.string())])

    @hookimpl
    def enrich(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        self.refuse([row["n"] for row in batch.column("readings").to_pylist()])
        return pa.RecordBatch.from_arrays([pa.array(["here"] * batch.num_rows, pa.string())], schema=self.enrich_fields())


async def enriched(bench: Any, enricher: type[Component], count: int) -> Any:
    unit = bench.unit(enricher, "enricher")
    await unit.open()
    pipeline = bench.pipeline([unit])
    async with bench.running(pipeline) as tasks:
        appending = tasks.create_task(bench.buffer.queue_append(bench.batch(count), bench.no_origins))
        async with asyncio.timeout(20):
            events = await pipeline.after("reader", 0)
        appending.cancel()
    return events


def test_an_enricher_may_name_its_refused_rows_one_at_a_time(bench: Any) -> None:
    class Picky(Enriching):
        def refuse(self, numbers: list[float]) -> None:
            if bad := [row for row, number in enumerate(numbers) if number > 3]:
                raise PermanentError("odd", {"": bad[:1]})

    events = asyncio.run(enriched(bench, Picky, 500))
    assert events.batch.num_rows == 3
    assert bench.letters.count == 497


def test_rows_that_an_enricher_cannot_have_refused_are_searched_for(bench: Any) -> None:
    class Confused(Enriching):
        def refuse(self, numbers: list[float]) -> None:
            if 3.0 in numbers:
                raise PermanentError("odd", {"": [4711]})

    events = asyncio.run(enriched(bench, Confused, 5))
    assert events.batch.num_rows == 4
    assert bench.letters.count == 1


def test_an_enricher_that_cancels_itself_is_a_bug(bench: Any) -> None:
    class Cancelling(Enriching):
        tries = 0

        def refuse(self, numbers: list[float]) -> None:
            """All are fine."""

        @hookimpl
        async def enrich_prepare(self, batch: pa.RecordBatch) -> None:
            Cancelling.tries += 1
            if Cancelling.tries == 1:
                raise asyncio.CancelledError

    assert asyncio.run(enriched(bench, Cancelling, 2)).batch.num_rows == 2


def test_a_null_context_gives_no_values(bench: Any) -> None:
    """Upstream may send events without a context: what lies below the null is not theirs."""
    context = pa.StructArray.from_arrays([pa.array(["x", "y"])], names=["site"], mask=pa.array([False, True]))
    schema = event_schema(pa.struct([]), context.type)
    empty = pa.array([{}, {}], pa.struct([]))
    times = pa.array([1, 2], schema.field("time").type)
    origin = pa.array(["q", "q"]).dictionary_encode().cast(schema.field("origin").type)
    columns = [pa.array(["a", "b"]), times, times, empty, context, origin, pa.array([1, 2], pa.uint64())]
    batch = pa.RecordBatch.from_arrays(columns, schema=schema).slice(1)
    merged = merge_context(batch, pa.RecordBatch.from_pydict({"more": [1]}))
    assert merged.column("context").to_pylist() == [{"site": None, "more": 1}]


# --- side files ---


def test_unreadable_types_are_set_aside(bench: Any) -> None:
    (bench.folder / "readings.json").write_bytes(b'{"n": "number", "s"')
    bench.pipeline()
    assert (bench.folder / "readings.corrupt").exists()


def test_types_that_cannot_be_saved_hold_the_decoding(bench: Any, monkeypatch: Any) -> None:
    tries = 0

    def failing(*_: Any) -> None:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise OSError(28, "no space left on device")

    monkeypatch.setattr("headrace.engine.types_file.replace_durably", failing)

    async def main() -> int:
        pipeline = bench.pipeline()
        async with bench.running(pipeline) as tasks:
            appending = tasks.create_task(bench.buffer.queue_append(bench.batch(3), bench.no_origins))
            events = await pipeline.after("reader", 0)
            appending.cancel()
        return int(events.batch.num_rows)

    assert asyncio.run(main()) == 3
    assert tries == 4


def letter(position: int) -> Letter:
    return Letter("q", position, "", "decode", "decode", "odd", 1, "d", 1, 1, b"x" * 1000)


def test_full_dead_letters_take_again_what_they_have(tmp_path: Any) -> None:
    letters = DeadLetters(tmp_path / "dead.db", 1 << 10)
    letters.size_bytes_max = 1 << 20
    letters.add([letter(1)])
    letters.size_bytes_max = 1 << 10
    assert letters.add([letter(1)]) == 0
    with pytest.raises(TransientError, match="full"):
        letters.add([letter(2)])


def test_corrupt_dead_letters_are_set_aside_at_the_start(tmp_path: Any) -> None:
    (tmp_path / "dead.db").write_bytes(b"not a database" * 1000)
    letters = DeadLetters(tmp_path / "dead.db", 1 << 20)
    assert letters.add([letter(1)]) == 1
    assert (tmp_path / "dead.db.corrupt").exists()


# --- windows ---


def test_a_window_of_a_week_is_kept(tmp_path: Any) -> None:
    window = AgeWindow(7 * 86_400)
    passed = [window.passed(float(hour * 3600), hour) for hour in range(24 * 14)]
    assert passed[24 * 7] == 0
    assert 24 * 7 - 3 <= passed[-1] <= 24 * 7
    assert len(window._samples) <= 258
