"""A real MariaDB or MySQL server for tests, which they may kill and start again. Needs its programs and pymysql; else the tests skip."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from headrace.testing.server_process import ServerProcess, new_folder

PASSWORD = "not-to-be-printed"
DATABASE = "plant"
OTHERS = "select concat('kill ', id) from information_schema.processlist where user = 'site' and id <> connection_id()"
#: Where Debian has it when it is not on the PATH.
SBIN = ("/usr/sbin", "/usr/libexec")


def find_program() -> str | None:
    """`mariadbd` or `mysqld`, or None."""
    path = os.pathsep.join([os.environ.get("PATH", ""), *SBIN])
    return shutil.which("mariadbd", path=path) or shutil.which("mysqld", path=path)


_shared: list[MariadbServer] = []


class MariadbServer(ServerProcess):
    """One server."""

    name = "MariaDB"
    start_timeout_s = 60.0

    def __init__(self, program: str, folder: Path, run_as: dict[str, Any]) -> None:
        super().__init__(folder, run_as)
        self._program = program
        self._first = folder / "first.sql"

    @classmethod
    def create(cls, program: str) -> MariadbServer:
        folder, run_as = new_folder("headrace-my-", ("mysql", "nobody"))
        server = cls(program, folder, run_as)
        if install := shutil.which("mariadb-install-db"):
            server.run(install, "--no-defaults", f"--datadir={folder}/data", "--auth-root-authentication-method=normal", "--skip-test-db")
        else:
            server.run(program, "--no-defaults", f"--datadir={folder}/data", "--initialize-insecure")
        _shared.append(server)
        atexit.register(server.remove)
        server._first.write_text(f"CREATE USER 'site'@'127.0.0.1' IDENTIFIED BY '{PASSWORD}';\nGRANT ALL ON *.* TO 'site'@'127.0.0.1';\n")
        server.start()
        server._first.write_text("")
        return server

    @property
    def url(self) -> str:
        """What goes into `database`, password included."""
        return f"mysql+pymysql://site:{PASSWORD}@127.0.0.1:{self.port}/{DATABASE}"

    def pause(self) -> None:
        """It neither answers nor closes anything, until `go_on`."""
        self.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.signal(signal.SIGCONT)

    def execute(self, *statements: str, database: str = DATABASE) -> list[tuple[Any, ...]]:
        """Run statements in one transaction; the rows of the last one."""
        engine = sa.create_engine(sa.make_url(self.url).set(database=database), poolclass=NullPool)
        with engine.begin() as connection:
            for statement in statements:
                found = connection.exec_driver_sql(statement)
            return [tuple(row) for row in found] if found.returns_rows else []

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def answers(self) -> bool:
        with contextlib.suppress(sa.exc.DBAPIError):
            self.execute("select 1", database="")
            return True
        return False

    def command(self) -> Sequence[str]:
        options = [
            "--bind-address=127.0.0.1",
            f"--port={self.port}",
            "--skip-name-resolve",
            f"--socket={self.folder}/socket",
            f"--datadir={self.folder}/data",
        ]
        # what was committed is with the kernel, which a kill of the server does not take
        options += ["--innodb-flush-log-at-trx-commit=2", "--skip-log-bin", f"--pid-file={self.folder}/pid"]
        # as bad as a server's own settings may be: the sink must not rely on them
        options += ["--sql-mode=", "--character-set-server=latin1", "--default-storage-engine=MyISAM", "--default-time-zone=+05:00"]
        return [self._program, "--no-defaults", *options, f"--init-file={self._first}"]


@pytest.fixture(scope="session")
def mariadb_server() -> MariadbServer:
    """A server of this test run's own, removed at its end."""
    if not _shared:
        pytest.importorskip("pymysql")
        program = find_program()
        if program is None:
            pytest.skip("neither mariadbd nor mysqld is installed (Debian: apt install mariadb-server)")
        MariadbServer.create(program)
    return _shared[0]


@pytest.fixture
def mariadb(mariadb_server: MariadbServer) -> MariadbServer:
    """The server, running, with an empty database."""
    mariadb_server.start()
    for (statement,) in mariadb_server.execute(OTHERS, database=""):  # a test that failed may have left a transaction, with its locks
        with contextlib.suppress(sa.exc.DBAPIError):
            mariadb_server.execute(statement, database="")
    mariadb_server.execute(f"DROP DATABASE IF EXISTS {DATABASE}", f"CREATE DATABASE {DATABASE}", database="")
    return mariadb_server
