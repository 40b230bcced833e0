"""The contract of sinks, against SQLite and a real PostgreSQL, TimescaleDB and MariaDB."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
import sqlalchemy as sa
from mariadb_server import MariadbServer
from sql_driver import refused
from sqlalchemy.pool import NullPool
from timescale_server import TimescaleServer

from headrace import Context
from headrace.config import Secret
from headrace.testing import SinkContract, event_batch, fake_context, run
from headrace.testing.postgres import PostgresServer
from headrace.testing.sink_bench import key_of
from headrace_sink_sql import SinkSql, SqlConfig
from headrace_sink_sql.config import Column


def odd_numbers(document: dict[str, Any]) -> dict[str, Any]:
    """What JSON cannot say stands there as text."""
    odd = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
    return {name: odd.get(value, value) if isinstance(value, str) else value for name, value in document.items()}


class SqlContract(SinkContract):
    crash_rounds = 3

    def url(self, context: Context) -> str:
        raise NotImplementedError

    def table(self, context: Context) -> str:
        return "events"

    def make(self, context: Context) -> SinkSql:
        columns = {"level": Column(source="readings.level", type="integer")}
        config = SqlConfig(database=Secret(self.url(context)), table=self.table(context), columns=columns)
        return SinkSql(config, context)

    def read_back(self, context: Context) -> Any:
        engine = sa.create_engine(self.url(context), poolclass=NullPool)
        if not sa.inspect(engine).has_table(self.table(context)):
            return []
        table = sa.Table(self.table(context), sa.MetaData(), autoload_with=engine)
        with engine.connect() as connection:
            rows = [row._asdict() for row in connection.execute(sa.select(table).order_by(table.c.origin, table.c.position))]
        texts = [json.loads(row["readings"]) if isinstance(row["readings"], str) else row["readings"] for row in rows]
        readings = [odd_numbers(text) for text in texts]
        if any(len({type(row.get(name)) for row in readings} - {type(None)}) > 1 for row in readings for name in row):
            return [(row["origin"], row["position"]) for row in rows]
        utc = pa.timestamp("us", "UTC")
        return pa.table(
            {
                "device": [row["device"] for row in rows],
                "time": pa.array([row["time"] for row in rows], utc),
                "received": pa.array([row["received"] for row in rows], utc),
                "origin": pa.array([row["origin"] for row in rows], pa.string()),
                "position": pa.array([row["position"] for row in rows], pa.uint64()),
                "readings": pa.array(readings) if readings else pa.array([], pa.struct([])),
            }
        )

    def refused(self, context: Context) -> tuple[pa.RecordBatch, list[int]]:
        return event_batch(4, 1, readings={"level": [1.0, 2.5, 3.0, 1e300]}), [1, 3]

    def test_of_times_that_no_database_keeps_only_their_rows_are_refused(self, tmp_path: Path) -> None:
        """From year 0 on Arrow and PostgreSQL misread one another: 36,534 years before our time became the year 30971."""
        context = fake_context(tmp_path / "data")
        sink = self.make(context)
        batch = event_batch(6, 1)
        times = pa.array([1_790_000_000_000_000, -(2**60), -62_135_596_800_000_001, 253_402_300_799_999_999, 2**60, 0])
        place = batch.schema.get_field_index("time")
        batch = batch.set_column(place, batch.schema.field(place), times.view(batch.schema.field(place).type))

        async def main() -> None:
            await sink.open()
            error = await refused(sink, batch)
            assert error.rows == {str(key_of(batch)): [1, 2, 4]}
            assert "outside the years" in str(error)
            await sink.close()

        run(main())
        assert len(self.read_back(context)) == 0


class TestSqlite(SqlContract):
    if "HEADRACE_FULL" not in os.environ:  # the same points of the same code as over PostgreSQL
        test_kill_9_at_every_fault_point_loses_and_doubles_nothing = None  # type: ignore[assignment]

    def url(self, context: Context) -> str:
        return f"sqlite:///{context.data_dir}/events.db"

    def break_store(self, context: Context) -> None:
        (context.data_dir / "events.db").rename(context.data_dir / "away")
        (context.data_dir / "events.db").mkdir()

    def heal_store(self, context: Context) -> None:
        (context.data_dir / "events.db").rmdir()
        (context.data_dir / "away").rename(context.data_dir / "events.db")


class ServerContract(SqlContract):
    """Against a server that is killed and started again. `variable` names it to the processes that are killed."""

    variable: ClassVar[str]
    server: ClassVar[PostgresServer | MariadbServer | None] = None

    def use(self, server: PostgresServer | MariadbServer, monkeypatch: pytest.MonkeyPatch) -> None:
        type(self).server = server
        monkeypatch.setenv(self.variable, server.url)

    def url(self, context: Context) -> str:
        return os.environ[self.variable]

    def table(self, context: Context) -> str:
        return "t" + hashlib.sha256(str(context.data_dir).encode()).hexdigest()[:20]

    def break_store(self, context: Context) -> None:
        assert self.server is not None
        self.server.kill()

    def heal_store(self, context: Context) -> None:
        assert self.server is not None
        self.server.start()


@pytest.mark.xdist_group("postgres")
class TestPostgres(ServerContract):
    variable = "HEADRACE_TEST_POSTGRES"

    @pytest.fixture(autouse=True)
    def _server(self, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.use(postgres, monkeypatch)


@pytest.mark.xdist_group("postgres")
class TestTimescale(ServerContract):
    variable = "HEADRACE_TEST_TIMESCALE"
    if "HEADRACE_FULL" not in os.environ:  # the same points of the same code as over PostgreSQL
        test_kill_9_at_every_fault_point_loses_and_doubles_nothing = None  # type: ignore[assignment]

    @pytest.fixture(autouse=True)
    def _server(self, timescale: TimescaleServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.use(timescale, monkeypatch)


@pytest.mark.xdist_group("mariadb")
class TestMariadb(ServerContract):
    variable = "HEADRACE_TEST_MARIADB"
    if "HEADRACE_FULL" not in os.environ:  # the same points of the same code as over PostgreSQL
        test_kill_9_at_every_fault_point_loses_and_doubles_nothing = None  # type: ignore[assignment]
        test_kill_9_at_random_moments_loses_and_doubles_nothing = None  # type: ignore[assignment]

    @pytest.fixture(autouse=True)
    def _server(self, mariadb: MariadbServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.use(mariadb, monkeypatch)
