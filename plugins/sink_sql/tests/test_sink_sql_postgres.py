"""A real PostgreSQL: what it refuses, what it loses, what others do to the table meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest
from sql_driver import patiently, refused, sink_of, store

from headrace import TransientError
from headrace.testing import QUEUE_ID, event_batch, run
from headrace.testing.postgres import PASSWORD, PostgresServer
from headrace.testing.sink_bench import key_of
from headrace_sink_sql.config import Column

pytestmark = pytest.mark.xdist_group("postgres")

TABLE = """create table events (device varchar(9) not null, time timestamptz not null, received timestamptz not null,
    origin text not null, position bigint not null, readings jsonb, level real, note text unique,
    constraint positive check (level >= 0), unique (origin, position))"""
COLUMNS = {"level": Column(source="readings.level"), "note": Column(source="readings.note", type="text")}


def stored(server: PostgresServer, what: str = "position") -> list[Any]:
    return [row[0] for row in server.execute(f"select {what} from events order by position")]


def test_the_table_is_made_and_can_be_asked(postgres: PostgresServer, tmp_path: Path) -> None:
    sink, context = sink_of(postgres.url, tmp_path, columns={"site": Column(source="context.site", type="text")})

    async def main() -> None:
        await sink.open()
        await store(sink, event_batch(2, 1, readings={"t": [1.5, None], "on": [True, False]}, context={"site": ["north", None]}))
        await sink.close()

    run(main())
    assert postgres.execute("select readings->>'t', (readings->'on')::boolean, site, context->>'site' from events order by position") == [
        ("1.5", True, "north", "north"),
        (None, False, None, None),
    ]
    assert postgres.execute("select position from headrace_positions") == [(2,)]
    assert context.statuses == []


def test_what_it_never_takes_is_named_and_the_rest_is_stored(postgres: PostgresServer, tmp_path: Path) -> None:
    postgres.execute(TABLE)
    sink, _ = sink_of(postgres.url, tmp_path, documents=("readings",), columns=COLUMNS)

    async def main() -> None:
        await sink.open()
        key = f"{QUEUE_ID}/1-4"
        for batch, rows, reason in (
            (event_batch(4, 1, devices=["a", "b", "far too long", "c"]), [1], "longer than 9 characters"),
            (event_batch(4, 1, devices=["d"], readings={"x": ["a", "b\0", "c", "d"]}), [1], "NUL"),
            (event_batch(4, 1, devices=["d"], readings={"level": [1.0, 2.0, 1e300, 3.0]}), [2], "out of range"),
            (event_batch(4, 1, devices=["d"], readings={"note": ["a", "b", "c", "b"]}), [3], "duplicate key"),
            (event_batch(4, 1, devices=["d"], readings={"level": [1.0, -2.0, 1.0, 3.0]}), [1], "positive"),
        ):
            error = await refused(sink, batch)
            assert error.rows == {key: rows}, error
            assert reason in str(error)
        await store(sink, event_batch(4, 1, devices=["d"], readings={"level": [1.0, 2.0, 3.0, 4.0]}))
        await sink.close()

    run(main())
    assert stored(postgres, "level") == [1, 2, 3, 4]


def test_a_table_that_does_not_fit_is_waited_for(postgres: PostgresServer, tmp_path: Path) -> None:
    postgres.execute(TABLE.replace("level real, ", "").replace("constraint positive check (level >= 0), ", ""))
    sink, context = sink_of(postgres.url, tmp_path, documents=("readings",), columns=COLUMNS)

    async def main() -> None:
        with pytest.raises(TransientError) as caught:
            await sink.open()
        (ddl,) = str(caught.value).rpartition("(")[2].split(")")[:1]
        assert ddl == "ALTER TABLE events ADD COLUMN level DOUBLE PRECISION"
        assert context.statuses[-1][0] == "degraded"
        await sink.close()
        postgres.execute(ddl)
        await sink.open()
        await store(sink, event_batch(1, 1))
        await sink.close()

    run(main())
    assert context.statuses[-1] == ("ok", "")


def test_events_that_are_there_although_no_position_says_so_are_merged(postgres: PostgresServer, tmp_path: Path) -> None:
    sink, context = sink_of(postgres.url, tmp_path)

    async def main() -> None:
        await sink.open()
        await store(sink, event_batch(10, 1))
        postgres.execute("delete from headrace_positions")
        await sink.sink_reset()
        said = await patiently(sink, event_batch(15, 1))
        assert len(said) == 1
        assert "merged" in said[0]
        await store(sink, event_batch(5, 16))
        await sink.close()

    run(main())
    assert stored(postgres) == [*range(1, 21)]
    assert context.metric("sql_duplicate_events_total") == 10


def test_events_that_are_there_are_merged_into_a_table_in_parts_too(postgres: PostgresServer, tmp_path: Path) -> None:
    """Each part has the unique key under a name of its own, by which the server tells what is doubled."""
    columns = (
        "device text not null, time timestamptz not null, received timestamptz not null, origin text not null, position bigint not null"
    )
    postgres.execute(
        f"create table events ({columns}, readings jsonb) partition by range (time)",
        "create table events_old partition of events for values from (minvalue) to ('2026-01-01')",
        "create table events_new partition of events for values from ('2026-01-01') to (maxvalue)",
    )
    sink, context = sink_of(postgres.url, tmp_path, documents=("readings",))

    async def main() -> None:
        with pytest.raises(TransientError, match=r"no unique key on \(origin, position, time\)") as caught:
            await sink.open()
        await sink.close()
        postgres.execute("CREATE " + str(caught.value).rpartition("(CREATE ")[2][:-1])
        await sink.open()
        await store(sink, event_batch(10, 1))
        postgres.execute("delete from headrace_positions")
        await sink.sink_reset()
        (said,) = await patiently(sink, event_batch(15, 1))
        assert "merged" in said
        await sink.close()

    run(main())
    assert stored(postgres) == [*range(1, 16)]
    assert context.metric("sql_duplicate_events_total") == 10


def test_of_two_writers_of_one_range_one_wins(postgres: PostgresServer, tmp_path: Path) -> None:
    (one, _), (other, _) = sink_of(postgres.url, tmp_path / "1"), sink_of(postgres.url, tmp_path / "2")

    async def main() -> None:
        await one.open()
        await other.open()
        await store(one, event_batch(5, 1))
        assert await other.sink_resume(queue_id=QUEUE_ID) == 5
        await store(one, event_batch(5, 6))
        batch = event_batch(5, 11)  # the other one does not know of 6-10: its view of the end is old
        with pytest.raises(TransientError, match="another writer"):
            await store(other, batch)
        await other.sink_reset()
        assert await other.sink_resume(queue_id=QUEUE_ID) == 10
        await store(other, batch)
        await one.close()
        await other.close()

    run(main())
    assert stored(postgres) == [*range(1, 16)]


def test_text_that_would_end_a_copy_is_stored(postgres: PostgresServer, tmp_path: Path) -> None:
    texts = ["\\.", "a\n\\.\nb", "\r\n\\.", 'x"\n\\.\n"y']
    sink, _ = sink_of(postgres.url, tmp_path, columns={"note": Column(source="readings.note", type="text")})

    async def main() -> None:
        await sink.open()
        await store(sink, event_batch(4, 1, devices=texts, readings={"note": texts}))
        await sink.close()

    run(main())
    assert postgres.execute("select note, readings->>'note' from events order by position") == [(text,) * 2 for text in texts]
    assert {*stored(postgres, "device")} == {*texts}


def test_a_commit_in_doubt_is_looked_up_and_nothing_doubled(postgres: PostgresServer, tmp_path: Path) -> None:
    """The connection breaks while the commit is under way: with the rows there, and without."""
    sink, _ = sink_of(postgres.url, tmp_path)

    async def main() -> None:
        await sink.open()
        database = sink._database
        assert database is not None
        commit = database.commit
        for first, really in ((1, True), (11, False)):

            def lost(queue_id: str, end: int | None, last: int, really: bool = really) -> None:
                if really:
                    commit(queue_id, end, last)
                raise psycopg.OperationalError("server closed the connection unexpectedly")

            database.commit = lost  # type: ignore[method-assign]
            batch = event_batch(10, first)
            with pytest.raises(TransientError, match="closed the connection"):
                await store(sink, batch)
            database.commit = commit  # type: ignore[method-assign]
            await sink.sink_reset()
            assert await sink.sink_resume(queue_id=QUEUE_ID) == 10
            await store(sink, batch)
        await sink.close()

    run(main())
    assert stored(postgres) == [*range(1, 21)]


def test_a_lock_on_the_table_and_a_dead_backend_are_waited_out(postgres: PostgresServer, tmp_path: Path) -> None:
    sink, context = sink_of(postgres.url, tmp_path, unanswered_s=2)

    async def main() -> None:
        await sink.open()
        await store(sink, event_batch(5, 1))
        with psycopg.connect(postgres.url.replace("+psycopg", "")) as other:
            other.execute("lock table events in access exclusive mode")
            with pytest.raises(TransientError, match=r"lock timeout|no answer"):
                await store(sink, event_batch(5, 6))
            await sink.sink_reset()
        batch = event_batch(5, 6)
        await sink.sink_write(batch=batch, key=key_of(batch))
        postgres.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'headrace sink_sql'")
        with pytest.raises(TransientError):
            await sink.sink_flush(key=key_of(batch))
        await sink.sink_reset()
        await store(sink, batch)
        await sink.close()

    run(main())
    assert stored(postgres) == [*range(1, 11)]
    assert context.statuses[-1] == ("ok", "")


def test_a_password_is_in_no_message(postgres: PostgresServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wrong = postgres.url.replace(PASSWORD, "secret-word")
    sink, context = sink_of(wrong, tmp_path)

    async def main() -> None:
        with pytest.raises(TransientError, match="password authentication failed") as caught:
            await sink.open()
        assert "secret-word" not in str(caught.value) + repr(caught.value.__cause__) + repr(sink.config)
        await sink.close()

    run(main())
    assert "secret-word" not in caplog.text + str(context.statuses)
