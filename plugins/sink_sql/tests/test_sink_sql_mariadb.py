"""A real MariaDB, whose own settings are as bad as they can be: MyISAM, latin1, another time zone, and values cut to fit."""

from __future__ import annotations

import asyncio
import os
import random
import re
from pathlib import Path

import pyarrow as pa
import pytest
from mariadb_server import DATABASE, PASSWORD, MariadbServer
from sql_driver import patiently, refused, sink_of, store

from headrace import TransientError
from headrace.testing import QUEUE_ID, event_batch, run
from headrace.testing.crash import test_seed
from headrace.testing.sink_bench import key_of
from headrace_sink_sql.config import Column

pytestmark = pytest.mark.xdist_group("mariadb")

TABLE = """create table events (device varchar(9) not null, time timestamp(6) not null, received datetime(6) not null,
    origin varchar(64) not null, position bigint not null, readings json, level float, small smallint, note varchar(20) unique,
    constraint positive check (level >= 0), unique (origin, position)) engine = InnoDB"""
COLUMNS = {
    "level": Column(source="readings.level"),
    "small": Column(source="readings.small"),
    "note": Column(source="readings.note", type="text"),
}


def stored(server: MariadbServer) -> list[int]:
    return [row[0] for row in server.execute("select position from events order by position")]


def test_the_table_is_made_with_transactions_and_takes_every_character_whatever_the_server_prefers(
    mariadb: MariadbServer, tmp_path: Path
) -> None:
    columns = {name: Column(source=f"readings.{name}", type=kind) for name, kind in (("on", "boolean"), ("note", "text"))}  # type: ignore[arg-type]
    sink, context = sink_of(mariadb.url, tmp_path, columns=columns)
    notes = ["\U0001f30a", "x" * 70_000]

    async def main() -> None:
        await sink.open()
        await store(sink, event_batch(2, 1, readings={"t": [1.5, None], "on": [True, False], "note": notes}, context={"a": ["b", "B"]}))
        await sink.close()

    run(main())
    asked = "select json_value(readings, '$.t'), `on`, note, json_value(context, '$.a') from events order by position"
    assert mariadb.execute(asked) == [("1.5", 1, notes[0], "b"), (None, 0, notes[1], "B")]
    made = f"select distinct engine, table_collation from information_schema.tables where table_schema = '{DATABASE}'"
    assert mariadb.execute(made) == [("InnoDB", "utf8mb4_bin")]
    assert context.statuses == []


def test_nothing_is_cut_clipped_or_shifted_and_what_is_never_taken_is_told_without_its_values(
    mariadb: MariadbServer, tmp_path: Path
) -> None:
    mariadb.execute(TABLE)
    sink, _ = sink_of(mariadb.url, tmp_path, documents=("readings",), columns=COLUMNS)
    good = event_batch(4, 1, devices=["d"], readings={"level": [1.0, 2.0, 3.0, 4.0]})
    key = str(key_of(good))

    async def main() -> None:
        await sink.open()
        for readings, rows, reason in (
            ({"level": [1.0, float("nan"), float("-inf"), 3.0]}, [1, 2], "not a finite number"),
            ({"small": [1.0, 2.0, 3.0, 70_000.0]}, [3], "not an integer of 16 bits"),
            ({"note": ["a", "b" * 21, "c", "d"]}, [1], "longer than 20 characters"),
            ({"level": [1.0, 2.0, 1e300, 3.0]}, None, "Out of range value for column 'level'"),
            ({"note": ["a", "secret", "c", "secret"]}, None, "Duplicate entry '...' for key 'note' [23000]"),
            ({"level": [1.0, -2.0, 1.0, 3.0]}, None, "CONSTRAINT `positive` failed"),
            # the table is latin1, as the server prefers
            ({"note": ["a", "\U0001f30a", "c", "d"]}, None, "Incorrect string value: '...' for column"),
        ):
            error = await refused(sink, event_batch(4, 1, devices=["d"], readings=readings))
            assert (error.rows or None) == (rows and {key: rows}), error
            assert reason in str(error)
        await store(sink, good)
        await sink.close()

    run(main())
    times = [time.replace(tzinfo=None) for time in good.column("time").to_pylist()]
    rows = mariadb.execute("set time_zone = '+00:00'", "select time, received, level from events order by position")
    assert [row[0] for row in rows] == times
    received = [time.replace(tzinfo=None) for time in good.column("received").to_pylist()]
    assert [row[1:] for row in rows] == [*zip(received, [1.0, 2.0, 3.0, 4.0], strict=True)]


def test_a_table_without_transactions_is_waited_for(mariadb: MariadbServer, tmp_path: Path) -> None:
    mariadb.execute(TABLE.replace("InnoDB", "MyISAM"))
    sink, context = sink_of(mariadb.url, tmp_path, documents=("readings",), columns=COLUMNS)

    async def main() -> None:
        with pytest.raises(TransientError, match="has no transactions, its engine is MyISAM") as caught:
            await sink.open()
        (ddl,) = str(caught.value).rpartition("(")[2].split(")")[:1]
        await sink.close()
        mariadb.execute(ddl)
        await sink.open()
        await store(sink, event_batch(1, 1, devices=["d"]))
        await sink.close()

    run(main())
    assert context.statuses[-1] == ("ok", "")


def test_what_mends_a_table_is_told_in_the_words_of_the_server(mariadb: MariadbServer, tmp_path: Path) -> None:
    mariadb.execute(
        TABLE.replace("level float, ", "").replace("constraint positive check (level >= 0), unique (origin, position)", "x int")
    )
    mariadb.execute("alter table events modify received varchar(40) not null")
    sink, _ = sink_of(mariadb.url, tmp_path, documents=("readings",), columns=COLUMNS)

    async def main() -> None:
        with pytest.raises(TransientError) as caught:
            await sink.open()
        for part in str(caught.value).partition("does not fit: ")[2].split("; "):
            mariadb.execute(part[re.search(r"\((ALTER|CREATE) ", part).start() + 1 : -1])  # type: ignore[union-attr]
        await sink.close()
        await sink.open()
        await store(sink, event_batch(1, 1, devices=["d"]))
        await sink.close()

    run(main())
    assert stored(mariadb) == [1]


def test_events_that_are_there_are_merged_and_of_two_writers_one_wins(mariadb: MariadbServer, tmp_path: Path) -> None:
    (one, context), (other, _) = sink_of(mariadb.url, tmp_path / "1"), sink_of(mariadb.url, tmp_path / "2")

    async def main() -> None:
        await one.open()
        await store(one, event_batch(10, 1))
        mariadb.execute("delete from headrace_positions")
        await one.sink_reset()
        (said,) = await patiently(one, event_batch(15, 1))
        assert "merged" in said
        await other.open()
        assert await other.sink_resume(queue_id=QUEUE_ID) == 15
        await store(one, event_batch(5, 16))
        batch = event_batch(5, 21)  # the other one does not know of 16-20
        with pytest.raises(TransientError, match="another writer"):
            await store(other, batch)
        await other.sink_reset()
        assert await other.sink_resume(queue_id=QUEUE_ID) == 20
        await store(other, batch)
        await one.close()
        await other.close()

    run(main())
    assert stored(mariadb) == [*range(1, 26)]
    assert context.metric("sql_duplicate_events_total") == 10


def test_a_server_that_is_killed_again_and_again_loses_and_doubles_nothing(mariadb: MariadbServer, tmp_path: Path) -> None:
    seed = test_seed()
    rng = random.Random(seed)
    sink, _ = sink_of(mariadb.url, tmp_path)

    async def flush(batch: pa.RecordBatch) -> None:
        """As the host does it, with a server that comes back."""
        while True:
            try:
                held = await sink.sink_resume(queue_id=QUEUE_ID) or 0
                if held < batch.column("position")[-1].as_py():
                    await store(sink, batch)
            except TransientError:
                await asyncio.to_thread(mariadb.start)
                await sink.sink_reset()
            else:
                return

    async def main() -> None:
        await sink.open()
        for number in range(20):
            work = asyncio.create_task(flush(event_batch(200, 1 + 200 * number)))
            if number % 5 == 4:
                await asyncio.sleep(rng.random() * 0.03)
                await asyncio.to_thread(mariadb.kill)
            await work
        mariadb.start()
        await sink.close()

    run(main())
    assert stored(mariadb) == [*range(1, 4001)], f"seed {seed}"


def test_a_lock_and_a_server_that_hangs_are_waited_out(mariadb: MariadbServer, tmp_path: Path) -> None:
    sink, context = sink_of(mariadb.url, tmp_path, unanswered_s=2)

    async def main() -> None:
        await sink.open()
        await store(sink, event_batch(5, 1))
        mariadb.pause()
        try:
            with pytest.raises(TransientError, match="timed out"):
                await store(sink, event_batch(5, 6))
        finally:
            mariadb.go_on()
        await sink.sink_reset()
        await store(sink, event_batch(5, 6))
        await sink.close()

    run(main())
    assert stored(mariadb) == [*range(1, 11)]
    assert context.statuses[-1] == ("ok", "")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_table_that_fills_its_disk_is_waited_for(mariadb: MariadbServer, tmp_path: Path) -> None:
    small = Path(f"/tmp/headrace-small-{os.getpid()}")
    small.mkdir()
    if os.system(f"mount -t tmpfs -o size=12m,mode=777 tmpfs {small} 2>/dev/null") != 0:
        small.rmdir()
        pytest.skip("tmpfs cannot be mounted here")
    try:
        mariadb.execute(f"{TABLE} data directory = '{small}'")
        sink, context = sink_of(mariadb.url, tmp_path, documents=("readings",), columns=COLUMNS)
        batches = [event_batch(2_000, 1 + 2_000 * number, devices=["d"], readings={"text": ["x" * 200] * 2_000}) for number in range(20)]

        async def main() -> None:
            await sink.open()
            number, said = 0, ""
            while number < len(batches):
                try:
                    await store(sink, batches[number])
                    number += 1
                except TransientError as error:
                    said = str(error)
                    assert await asyncio.to_thread(os.system, f"mount -o remount,size=256m {small}") == 0
                    await sink.sink_reset()
                    held = await sink.sink_resume(queue_id=QUEUE_ID)
                    assert (held or 0) == 2_000 * number
            assert "is full" in said
            await sink.close()

        run(main())
        assert stored(mariadb) == [*range(1, 40_001)]
        assert context.statuses[-1] == ("ok", "")
    finally:
        mariadb.execute("drop table if exists events")
        os.system(f"umount {small}")
        small.rmdir()


def test_a_password_is_in_no_message(mariadb: MariadbServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sink, context = sink_of(mariadb.url.replace(PASSWORD, "secret-word"), tmp_path)

    async def main() -> None:
        with pytest.raises(TransientError, match="Access denied") as caught:
            await sink.open()
        assert "secret-word" not in str(caught.value) + repr(caught.value.__cause__) + repr(sink.config)
        await sink.close()

    run(main())
    assert "secret-word" not in caplog.text + str(context.statuses)
