"""A PostgreSQL server with TimescaleDB. Where that extension is not installed, the tests skip."""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from pathlib import Path

import pytest

from headrace.testing.postgres import PostgresServer, find_programs

_shared: list[TimescaleServer] = []


class TimescaleServer(PostgresServer):
    """One cluster, with the extension loaded into every backend, as it wants to be."""

    name = "TimescaleDB"

    def command(self) -> Sequence[str | Path]:
        return [*super().command(), "-c", "shared_preload_libraries=timescaledb", "-c", "timescaledb.telemetry_level=off"]


@pytest.fixture(scope="session")
def timescale_server(postgres_server: PostgresServer) -> TimescaleServer:
    """A server of this test run's own, removed at its end."""
    if not _shared:
        postgres_server.start()
        if not postgres_server.execute("select 1 from pg_available_extensions where name = 'timescaledb'"):
            pytest.skip("PostgreSQL has no extension timescaledb (Timescale's packages: timescaledb-2-postgresql-15)")
        programs = find_programs()
        assert programs is not None
        _shared.append(TimescaleServer.create(programs))  # type: ignore[arg-type]
        atexit.register(_shared[0].remove)
    return _shared[0]


@pytest.fixture
def timescale(timescale_server: TimescaleServer) -> TimescaleServer:
    """The server, running, with a database that has the extension and nothing else."""
    timescale_server.start()
    timescale_server.execute("DROP SCHEMA IF EXISTS public CASCADE", "CREATE SCHEMA public", "DROP SCHEMA IF EXISTS plant CASCADE")
    timescale_server.execute("CREATE EXTENSION timescaledb")
    return timescale_server
