"""The contracts of enrichers, decoders and sources: a good plugin passes each, and each bad one is caught."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from headrace import ENCODING_JSON, Component, Context, Deliver, QueueFull, TransientError, hookimpl
from headrace.batching import RawBatchBuilder
from headrace.testing import DEVICES, Contract, DecoderContract, EnricherContract, Sender, SourceContract, failures

# --- enrichers -------------------------------------------------------------------------------------------------------

SITES = {DEVICES[0]: "harbour", DEVICES[1]: "hill-works", DEVICES[2]: None}
FIELDS = pa.schema([pa.field("site", pa.string()), pa.field("floor", pa.float64())])


class Sites(Component):
    """Good: looks the site up in a table."""

    @hookimpl
    def enrich_fields(self) -> pa.Schema:
        return FIELDS

    @hookimpl
    def enrich(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        names = [SITES.get(device) for device in batch.column("device").to_pylist()]
        return self.answer([{"site": name, "floor": len(name) / 2 if name else None} for name in names])

    def answer(self, rows: list[dict[str, Any]]) -> pa.RecordBatch:
        return pa.RecordBatch.from_pylist(rows, schema=FIELDS)


class DropsRows(Sites):
    """Bad: gives no row for a device that it does not know."""

    def answer(self, rows: list[dict[str, Any]]) -> pa.RecordBatch:
        return super().answer([row for row in rows if row["site"]])


class AddsMore(Sites):
    """Bad: a field that it does not declare."""

    def answer(self, rows: list[dict[str, Any]]) -> pa.RecordBatch:
        return super().answer(rows).append_column("colour", pa.array(["red"] * len(rows), pa.string()))


class SortsRows(Sites):
    """Bad: its rows are in an order of their own."""

    def answer(self, rows: list[dict[str, Any]]) -> pa.RecordBatch:
        return super().answer(sorted(rows, key=lambda row: row["site"] or ""))


class GuessesUnknown(Sites):
    """Bad: fills in for devices that it does not know."""

    def answer(self, rows: list[dict[str, Any]]) -> pa.RecordBatch:
        return super().answer([{**row, "site": row["site"] or "somewhere"} for row in rows])


class CountsUp(Sites):
    """Bad: says something else each time."""

    calls = 0

    def answer(self, rows: list[dict[str, Any]]) -> pa.RecordBatch:
        self.calls += 1
        return super().answer([{**row, "floor": row["floor"] and row["floor"] + self.calls} for row in rows])


class Raises(Sites):
    """Bad: an unknown device is a KeyError."""

    @hookimpl
    def enrich(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        return self.answer([{"site": SITES[device]} for device in batch.column("device").to_pylist()])


class SitesKit(EnricherContract):
    component: ClassVar[type[Component]] = Sites

    def make(self, context: Context) -> Component:
        return self.component(self.component.Config(), context)


class TestSites(SitesKit):
    """A good enricher."""


# --- decoders --------------------------------------------------------------------------------------------------------


class KeyValue(Component):
    """Good: `name=number;name=number`."""

    @hookimpl
    def decode_encodings(self) -> Mapping[str, int]:
        return {"key_value": 200}

    @hookimpl
    def decode(self, payloads: pa.BinaryArray, encoding: int) -> tuple[pa.StructArray, Sequence[int]]:
        rows: list[dict[str, float]] = []
        bad: list[int] = []
        for index, payload in enumerate(payloads.to_pylist()):
            try:
                pairs = [item.split("=") for item in payload.decode().split(";")]
                rows.append({name: float(number) for name, number in pairs})
            except ValueError as error:
                rows.append({})
                self.failed(error, index, bad)
        names = sorted({name for row in rows for name in row})
        return pa.array(rows, pa.struct([pa.field(name, pa.float64()) for name in names])), bad

    def failed(self, error: ValueError, index: int, bad: list[int]) -> None:
        bad.append(index)


class RaisesOnBadBytes(KeyValue):
    """Bad: one payload that does not decode costs the whole batch."""

    def failed(self, error: ValueError, index: int, bad: list[int]) -> None:
        raise error


class HidesBadBytes(KeyValue):
    """Bad: what does not decode looks like an event without readings."""

    def failed(self, error: ValueError, index: int, bad: list[int]) -> None:
        pass


class TakesJsonsNumber(KeyValue):
    """Bad: an encoding number that is the core's."""

    @hookimpl
    def decode_encodings(self) -> Mapping[str, int]:
        return {"key_value": ENCODING_JSON}


class KeyValueKit(DecoderContract):
    component: ClassVar[type[Component]] = KeyValue

    def make(self, context: Context) -> Component:
        return self.component(self.component.Config(), context)

    def good_payloads(self) -> Sequence[tuple[bytes, dict[str, Any]]]:
        return [(b"t=1.5;h=40", {"t": 1.5, "h": 40.0}), (b"t=2", {"t": 2.0})]

    def bad_payloads(self) -> Sequence[bytes]:
        return [b"", b"t", b"t=warm", b"\xff"]


class TestKeyValue(KeyValueKit):
    """A good decoder."""


# --- sources ---------------------------------------------------------------------------------------------------------


class Lines(Component):
    """Good: a line is an event, the answer to it is `ok` or `no`; one commit for all lines of a read."""

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.listening = asyncio.Event()
        self.port = 0

    @hookimpl
    async def ingest_serve(self, deliver: Deliver) -> None:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while chunk := await reader.read(65536):
                    builder = RawBatchBuilder(10_000, 1 << 20)
                    for line in chunk.splitlines():
                        builder.add("d", 0, ENCODING_JSON, line)
                    count, batch = builder.rows, builder.take()
                    answer = await self.hand_over(deliver, batch)
                    writer.write(answer * count)
                    await writer.drain()
            finally:
                writer.close()

        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self.listening.set()
        async with server:
            await server.serve_forever()

    async def hand_over(self, deliver: Deliver, batch: pa.RecordBatch) -> bytes:
        while True:
            try:
                await deliver(batch)
                return b"ok\n"
            except QueueFull:
                await deliver.room()
            except TransientError:
                return b"no\n"


class AcksFirst(Lines):
    """Bad: says ok and stores later."""

    async def hand_over(self, deliver: Deliver, batch: pa.RecordBatch) -> bytes:
        self.later = asyncio.create_task(super().hand_over(deliver, batch))
        return b"ok\n"


class PollsWhenFull(Lines):
    """Bad: asks again and again instead of waiting for room."""

    async def hand_over(self, deliver: Deliver, batch: pa.RecordBatch) -> bytes:
        room = asyncio.create_task(deliver.room())
        while True:
            try:
                await deliver(batch)
                await room
                return b"ok\n"
            except QueueFull:
                await asyncio.sleep(0.001)


class AcksWhatFailed(Lines):
    """Bad: an error of the queue is no reason to say no."""

    async def hand_over(self, deliver: Deliver, batch: pa.RecordBatch) -> bytes:
        await super().hand_over(deliver, batch)
        return b"ok\n"


class AcksWhatWasCancelled(Lines):
    """Bad: takes a cancelled commit for a finished one."""

    async def hand_over(self, deliver: Deliver, batch: pa.RecordBatch) -> bytes:
        with contextlib.suppress(asyncio.CancelledError):
            await super().hand_over(deliver, batch)
        return b"ok\n"


class DropsWhenFull(Lines):
    """Bad: throws away what the full queue did not take, and says ok."""

    async def hand_over(self, deliver: Deliver, batch: pa.RecordBatch) -> bytes:
        try:
            await deliver(batch)
        except QueueFull:
            await deliver.room()
        return b"ok\n"


class LinesKit(SourceContract):
    component: ClassVar[type[Component]] = Lines

    def make(self, context: Context) -> Component:
        return self.component(self.component.Config(), context)

    async def send(self, component: Any, first: int, count: int, sender: Sender) -> None:
        await component.listening.wait()
        reader, writer = await asyncio.open_connection("127.0.0.1", component.port)
        try:
            writer.write(b"".join(b'{"n":%d}\n' % number for number in range(first, first + count)))
            for _ in range(count):
                answer = await reader.readline()
                sender.acked += answer == b"ok\n"
                sender.refused += answer == b"no\n"
        finally:
            writer.close()


class TestLines(LinesKit):
    """A good source."""


# --- each bad one is caught ------------------------------------------------------------------------------------------


def with_component(kit: type[Contract], component: type[Component]) -> type[Contract]:
    return type(f"{component.__name__}Kit", (kit,), {"component": component})


@pytest.mark.parametrize(
    ("kit", "component", "caught_by", "said"),
    [
        (SitesKit, DropsRows, "test_every_event_gets_one_row_with_exactly_the_declared_fields", "one row for each"),
        (SitesKit, AddsMore, "test_every_event_gets_one_row_with_exactly_the_declared_fields", "exactly the fields of enrich_fields"),
        (SitesKit, SortsRows, "test_rows_follow_their_events", "do not follow their events"),
        (SitesKit, GuessesUnknown, "test_unknown_devices_get_nulls", "expected nulls in 'site'"),
        (SitesKit, CountsUp, "test_the_same_events_get_the_same_again", "AssertionError"),
        (SitesKit, Raises, "test_unknown_devices_get_nulls", "got KeyError"),
        (KeyValueKit, RaisesOnBadBytes, "test_bad_payloads_are_named_and_cost_the_others_nothing", "must name bad payloads, not raise"),
        (KeyValueKit, HidesBadBytes, "test_bad_payloads_are_named_and_cost_the_others_nothing", "expected it to be named as bad"),
        (KeyValueKit, TakesJsonsNumber, "test_its_encodings_have_numbers_of_their_own", "expected none of the core's own numbers, got 1"),
        (LinesKit, AcksFirst, "test_nothing_is_acked_before_deliver_returned", "expected no ack while the first commit is under way"),
        (LinesKit, PollsWhenFull, "test_a_full_queue_stops_the_source_until_there_is_room", "expected the source to wait for room"),
        (LinesKit, DropsWhenFull, "test_a_full_queue_stops_the_source_until_there_is_room", "expected an ack for each of 0 committed"),
        (LinesKit, AcksWhatFailed, "test_a_commit_that_failed_is_not_acked", "expected no ack for what was not stored"),
        (LinesKit, AcksWhatWasCancelled, "test_a_commit_that_was_cancelled_is_not_acked", "nobody knows whether it is durable"),
    ],
)
def test_a_bad_plugin_is_caught(kit: type[Contract], component: type[Component], caught_by: str, said: str) -> None:
    failed = failures(with_component(kit, component), caught_by)
    assert caught_by in failed
    assert said in failed[caught_by]
