"""A real PostgreSQL server for tests, which they may kill and start again.

    from headrace.testing.postgres import postgres, postgres_server  # noqa: F401  in a conftest: two fixtures

Needs psycopg and pytest, and the server's programs (Debian: apt install postgresql); where these are missing, the tests skip. Give
them the mark `xdist_group("postgres")`: all tests of one process share one server.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

PASSWORD = "not-to-be-printed"
START_TIMEOUT_S = 30.0


def find_programs() -> Path | None:
    """The folder with `initdb` and `postgres`, or None."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


class PostgresServer:
    """One cluster in a folder of its own below the temporary directory, on a free port of the loopback."""

    def __init__(self, programs: Path, folder: Path, run_as: dict[str, Any]) -> None:
        self._programs, self._run_as = programs, run_as
        self._process: subprocess.Popen[bytes] | None = None
        #: belongs to the user that the server runs as
        self.folder = folder
        self.port = free_port()

    @classmethod
    def create(cls, programs: Path) -> PostgresServer:
        folder = Path(tempfile.mkdtemp(prefix="headrace-pg-"))
        run_as: dict[str, Any] = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            user = next((name for name in ("postgres", "nobody") if _exists(name)), "nobody")
            shutil.chown(folder, user)
            run_as = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
        password_file = folder / "password"
        password_file.write_text(PASSWORD)
        password_file.chmod(0o644)
        server = cls(programs, folder, run_as)
        server._run("initdb", "-D", folder / "data", "-U", "site", "-A", "scram-sha-256", "--pwfile", password_file, "-E", "UTF8", "-N")
        return server

    @property
    def url(self) -> str:
        """What goes into `database`, password included."""
        return f"postgresql+psycopg://site:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start the server unless it runs; return when it takes connections."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._process is None or self._process.poll() is not None:
                # After a SIGKILL the old server's children may hold its memory for a moment; it is started again then.
                self._process = self._spawn()
            if time.monotonic() > deadline:
                raise TimeoutError(f"PostgreSQL did not start:\n{(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL, as when the machine dies."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """An immediate stop, connections cut."""
        self._end(signal.SIGQUIT)

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

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(host="127.0.0.1", port=self.port, user="site", password=PASSWORD, dbname="postgres", connect_timeout=5)

    def _answers(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError), self._connect():
            return True
        return False

    def _spawn(self) -> subprocess.Popen[bytes]:
        settings = ["fsync=off", "listen_addresses=127.0.0.1", f"unix_socket_directories={self.folder}", "max_connections=20"]
        options = [part for setting in settings for part in ("-c", setting)]
        command: list[str | Path] = [self._programs / "postgres", "-D", self.folder / "data", "-p", str(self.port), *options]
        with (self.folder / "log").open("ab") as log:
            process: subprocess.Popen[bytes] = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, **self._run_as)
            return process

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None

    def _run(self, program: str, *arguments: str | Path) -> None:
        command = [self._programs / program, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, check=False, **self._run_as)
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stdout}{done.stderr}")


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


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True
