"""A real TimescaleDB: the table is a hypertable, and a replay over its chunks doubles nothing."""

from __future__ import annotations

import asyncio
import datetime
import random
from pathlib import Path

import pyarrow as pa
import pytest
from sql_driver import patiently, sink_of, store
from timescale_server import TimescaleServer

from headrace import TransientError
from headrace.testing import QUEUE_ID, event_batch, run
from headrace.testing.crash import test_seed

pytestmark = pytest.mark.xdist_group("postgres")


def over_days(batch: pa.RecordBatch, days: float) -> pa.RecordBatch:
    """The same events, their times spread over so many days: by their positions, so that they are the same at each reading."""
    step = datetime.timedelta(days=days) / batch.num_rows
    first = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    times = pa.array([first + position * step for position in batch.column("position").to_pylist()], batch.schema.field("time").type)
    return batch.set_column(batch.schema.get_field_index("time"), batch.schema.field("time"), times)


def stored(server: TimescaleServer, table: str = "events") -> list[int]:
    return [row[0] for row in server.execute(f"select position from {table} order by position")]


def chunks(server: TimescaleServer, table: str = "events") -> int:
    return int(server.execute(f"select count(*) from show_chunks('{table}')")[0][0])


@pytest.mark.parametrize("table", ["events", "plant.events", "Events", "plant.Odd Name"])
def test_the_table_is_made_as_a_hypertable_with_the_time_in_its_key(timescale: TimescaleServer, tmp_path: Path, table: str) -> None:
    timescale.execute("create schema plant")
    sink, context = sink_of(timescale.url, tmp_path, table=table)

    async def main() -> None:
        await sink.open()
        await store(sink, over_days(event_batch(100, 1), 50))
        await sink.close()
        await sink.open()  # finds it as it made it
        await store(sink, over_days(event_batch(100, 101), 50))
        await sink.close()

    run(main())
    quoted = ".".join(f'"{part}"' for part in table.split("."))
    assert stored(timescale, quoted) == [*range(1, 201)]
    assert chunks(timescale, quoted) > 5
    key = "select string_agg(a.attname, ',' order by k.n) from pg_index i, unnest(i.indkey) with ordinality k(attnum, n), pg_attribute a"
    key += f" where i.indrelid = '{quoted}'::regclass and i.indisprimary and a.attrelid = i.indrelid and a.attnum = k.attnum"
    assert timescale.execute(key) == [("origin,position,time",)]
    assert context.statuses == []


def test_a_replay_over_many_chunks_doubles_nothing(timescale: TimescaleServer, tmp_path: Path) -> None:
    sink, context = sink_of(timescale.url, tmp_path)

    async def main() -> None:
        await sink.open()
        await store(sink, over_days(event_batch(100, 1), 100))
        timescale.execute("delete from headrace_positions")  # as when it was restored from another moment than the big one
        await sink.sink_reset()
        (said,) = await patiently(sink, over_days(event_batch(100, 1), 100))
        assert "merged" in said
        await store(sink, over_days(event_batch(50, 101), 100))
        timescale.execute("delete from headrace_positions")
        await sink.sink_reset()
        await patiently(sink, over_days(event_batch(200, 101), 400))
        await sink.close()

    run(main())
    assert stored(timescale) == [*range(1, 301)]
    assert context.metric("sql_duplicate_events_total") == 150
    assert chunks(timescale) > 10


def test_a_table_of_its_owners_own_hypertable_is_used_as_it_is(timescale: TimescaleServer, tmp_path: Path) -> None:
    timescale.execute(
        "create table events (device text not null, time timestamptz not null, received timestamptz not null, origin text not null,"
        " position bigint not null, readings jsonb)",
        "select create_hypertable('events', by_range('time', interval '1 day'))",
    )
    sink, context = sink_of(timescale.url, tmp_path, documents=("readings",))

    async def main() -> None:
        with pytest.raises(TransientError, match="no unique key") as caught:
            await sink.open()
        await sink.close()
        timescale.execute("CREATE " + str(caught.value).rpartition("(CREATE ")[2][:-1])
        await sink.open()
        await store(sink, over_days(event_batch(20, 1), 10))
        timescale.execute("delete from headrace_positions")
        await sink.sink_reset()
        await patiently(sink, over_days(event_batch(20, 1), 10))
        await sink.close()

    run(main())
    assert stored(timescale) == [*range(1, 21)]
    assert context.statuses[-1] == ("ok", "")


def test_what_makes_the_table_is_told_where_somebody_else_makes_it(timescale: TimescaleServer, tmp_path: Path) -> None:
    sink, _ = sink_of(timescale.url, tmp_path, create=False)

    async def main() -> None:
        with pytest.raises(TransientError, match="create = false") as caught:
            await sink.open()
        await sink.close()
        timescale.execute(*str(caught.value).partition("create it with: ")[2].split("; "))
        await sink.open()
        await store(sink, over_days(event_batch(20, 1), 40))
        await sink.close()

    run(main())
    assert stored(timescale) == [*range(1, 21)]
    assert chunks(timescale) > 4


def test_a_server_that_is_killed_again_and_again_loses_and_doubles_nothing(timescale: TimescaleServer, tmp_path: Path) -> None:
    seed = test_seed()
    rng = random.Random(seed)
    sink, _ = sink_of(timescale.url, tmp_path)

    async def flush(batch: pa.RecordBatch) -> None:
        """As the host does it, with a server that comes back."""
        while True:
            try:
                held = await sink.sink_resume(queue_id=QUEUE_ID) or 0
                if held < batch.column("position")[-1].as_py():
                    await store(sink, batch)
            except TransientError:
                await asyncio.to_thread(timescale.start)
                await sink.sink_reset()
            else:
                return

    async def main() -> None:
        await sink.open()
        for number in range(20):
            work = asyncio.create_task(flush(over_days(event_batch(200, 1 + 200 * number), 30)))
            if number % 5 == 4:
                await asyncio.sleep(rng.random() * 0.1)
                await asyncio.to_thread(timescale.kill)
            await work
        timescale.start()
        await sink.close()

    run(main())
    assert stored(timescale) == [*range(1, 4001)], f"seed {seed}"
    assert chunks(timescale) > 5
