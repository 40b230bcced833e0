"""A real PostgreSQL server for tests, which they may kill and start again.

    from headrace.testing.postgres import postgres, postgres_server  # noqa: F401  in a conftest: two fixtures

Needs psycopg and pytest, and the server's programs (Debian: apt install postgresql); where these are missing, the tests skip. Give
them the mark `xdist_group("postgres")`: all tests of one process share one server.
"""

from __future__ import annotations

import atexit
import contextlib
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from headrace.testing.server_process import ServerProcess, new_folder

PASSWORD = "not-to-be-printed"


def find_programs() -> Path | None:
    """The folder with `initdb` and `postgres`, or None."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


class PostgresServer(ServerProcess):
    """One cluster."""

    name = "PostgreSQL"

    def __init__(self, programs: Path, folder: Path, run_as: dict[str, Any]) -> None:
        super().__init__(folder, run_as)
        self._programs = programs

    @classmethod
    def create(cls, programs: Path) -> PostgresServer:
        folder, run_as = new_folder("headrace-pg-", ("postgres", "nobody"))
        password_file = folder / "password"
        password_file.write_text(PASSWORD)
        password_file.chmod(0o644)
        server = cls(programs, folder, run_as)
        data = ("-D", folder / "data", "-U", "site", "-A", "scram-sha-256", "--pwfile", password_file, "-E", "UTF8", "-N")
        server.run(programs / "initdb", *data)
        return server

    @property
    def url(self) -> str:
        """What goes into `database`, password included."""
        return f"postgresql+psycopg://site:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def stop(self) -> None:
        """An immediate stop, connections cut."""
        self.end(signal.SIGQUIT)

    def execute(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements in one transaction; the rows of the last one."""
        with self._connect() as connection:
            cursor = connection.cursor()
            for statement in statements:
                cursor.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def command(self) -> Sequence[str | Path]:
        settings = ["fsync=off", "listen_addresses=127.0.0.1", f"unix_socket_directories={self.folder}", "max_connections=20"]
        options = [part for setting in settings for part in ("-c", setting)]
        return [self._programs / "postgres", "-D", self.folder / "data", "-p", str(self.port), *options]

    def answers(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError), self._connect():
            return True
        return False

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(host="127.0.0.1", port=self.port, user="site", password=PASSWORD, dbname="postgres", connect_timeout=5)


_shared: list[PostgresServer] = []


@pytest.fixture(scope="session")
def postgres_server() -> PostgresServer:
    """A PostgreSQL server of this test run's own, removed at its end."""
    if not _shared:
        programs = find_programs()
        if programs is None:
            pytest.skip("PostgreSQL is not installed: no initdb on the PATH or under /usr/lib/postgresql (Debian: apt install postgresql)")
        _shared.append(PostgresServer.create(programs))
        atexit.register(_shared[0].remove)
    return _shared[0]


@pytest.fixture
def postgres(postgres_server: PostgresServer) -> PostgresServer:
    """The server, running, with an empty database."""
    postgres_server.start()
    postgres_server.execute("DROP SCHEMA IF EXISTS public CASCADE", "CREATE SCHEMA public", "DROP SCHEMA IF EXISTS plant CASCADE")
    return postgres_server
