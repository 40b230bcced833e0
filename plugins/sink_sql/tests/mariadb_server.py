"""A real MariaDB or MySQL server for tests, which they may kill and start again. Needs its programs and pymysql; else the tests skip."""

from __future__ import annotations

import atexit
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from headrace.testing.postgres import free_port

PASSWORD = "not-to-be-printed"
START_TIMEOUT_S = 60.0
DATABASE = "plant"
OTHERS = "select concat('kill ', id) from information_schema.processlist where user = 'site' and id <> connection_id()"
#: Where Debian has it when it is not on the PATH.
SBIN = ("/usr/sbin", "/usr/libexec")


def find_program() -> str | None:
    """`mariadbd` or `mysqld`, or None."""
    path = os.pathsep.join([os.environ.get("PATH", ""), *SBIN])
    return shutil.which("mariadbd", path=path) or shutil.which("mysqld", path=path)


_shared: list[MariadbServer] = []


class MariadbServer:
    """One server in a folder of its own below the temporary directory, on a free port of the loopback."""

    def __init__(self, program: str, folder: Path, run_as: dict[str, Any]) -> None:
        self._program, self._run_as, self.folder = program, run_as, folder
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @classmethod
    def create(cls, program: str) -> MariadbServer:
        folder = Path(tempfile.mkdtemp(prefix="headrace-my-"))
        run_as: dict[str, Any] = {}
        if os.geteuid() == 0:  # it refuses to run as root
            user = "mysql" if _exists("mysql") else "nobody"
            shutil.chown(folder, user)
            run_as = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
        install = shutil.which("mariadb-install-db")
        made = (
            [install, "--no-defaults", f"--datadir={folder}/data", "--auth-root-authentication-method=normal", "--skip-test-db"]
            if install
            else [program, "--no-defaults", f"--datadir={folder}/data", "--initialize-insecure"]
        )
        done = subprocess.run(made, capture_output=True, text=True, cwd=folder, check=False, **run_as)
        if done.returncode:
            raise RuntimeError(f"{made[0]}: {done.stdout}{done.stderr}")
        server = cls(program, folder, run_as)
        _shared.append(server)
        atexit.register(server.remove)
        server.start(f"CREATE USER 'site'@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'", "GRANT ALL ON *.* TO 'site'@'127.0.0.1'")
        return server

    @property
    def url(self) -> str:
        """What goes into `database`, password included."""
        return f"mysql+pymysql://site:{PASSWORD}@127.0.0.1:{self.port}/{DATABASE}"

    def start(self, *first: str) -> None:
        """Start the server unless it runs, with these statements; return when it takes connections."""
        deadline = time.monotonic() + START_TIMEOUT_S
        (self.folder / "first.sql").write_text("".join(f"{statement};\n" for statement in first))
        while not self._answers():
            if self._process is None or self._process.poll() is not None:
                self._process = self._spawn()
            if time.monotonic() > deadline:
                raise TimeoutError(f"MariaDB did not start:\n{(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL, as when the machine dies."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """It neither answers nor closes anything, until `go_on`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

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

    def _answers(self) -> bool:
        with contextlib.suppress(sa.exc.DBAPIError):
            self.execute("select 1", database="")
            return True
        return False

    def _spawn(self) -> subprocess.Popen[bytes]:
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
        options += [f"--init-file={self.folder}/first.sql"]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen([self._program, "--no-defaults", *options], stdout=log, stderr=log, cwd=self.folder, **self._run_as)  # type: ignore[no-any-return]

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None


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


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True
