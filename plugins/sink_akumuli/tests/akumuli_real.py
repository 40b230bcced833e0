"""A real akumulid, started by deploy/akumuli/start.sh in a folder of its own, killed and stopped."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from headrace_sink_akumuli.wire import Questions

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "deploy" / "akumuli" / "start.sh"
CONFIG = ROOT / "deploy" / "akumuli" / "akumuli.conf"
WAIT_S = 60


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Akumulid:
    """`with Akumulid(folder) as server:` runs it. `program`: what to run in place of akumulid."""

    def __init__(self, folder: Path, program: Path | None = None) -> None:
        self.connect, self.query = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        self.folder, self.log = folder, folder / "akumulid.log"
        folder.mkdir(parents=True, exist_ok=True)
        self.config = folder / "akumuli.conf"
        text = CONFIG.read_text().replace("path=~/.akumuli", f"path={folder}/db").replace("volume_size=4GB", "volume_size=64MB")
        self.config.write_text(
            text.replace("=8181", f"={self.query.partition(':')[2]}").replace("=8282", f"={self.connect.partition(':')[2]}")
        )
        self.environ = {**os.environ, **({"PATH": f"{program.parent}:{os.environ['PATH']}"} if program else {})}
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Akumulid:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.running:
            self.kill()

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """In two phases; returns when it is up."""
        with self.log.open("ab") as log:
            begin = log.tell()
            self.process = subprocess.Popen([str(SCRIPT), str(self.config)], env=self.environ, stdout=log, stderr=log)
        self._wait(lambda: b"start.sh: akumulid is up" in self.log.read_bytes()[begin:])

    def start_once(self) -> None:
        """As nobody should: without the script."""
        program = shutil.which("akumulid", path=self.environ["PATH"])
        assert program is not None
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([program, "--config", str(self.config)], env=self.environ, stdout=log, stderr=log)
        self._wait(self._answers)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(WAIT_S)

    def kill(self) -> None:
        """SIGKILL to the server, whoever started it."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for pid in children or [str(self.process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        self.process.wait(WAIT_S)

    def series_with_leaves(self) -> int:
        """How many series have parts that the server's own files know, and that it will find after a kill."""
        with contextlib.closing(sqlite3.connect(f"file:{self.folder}/db/db.akumuli?mode=ro", uri=True)) as database:
            (rows,) = database.execute("select count(addr0) from akumuli_rescue_points").fetchone()
        return int(rows)

    def forget_where_points_are(self) -> int:
        """Take from the server's files the rows of series that have no such parts; how many there were. While it is not running."""
        with contextlib.closing(sqlite3.connect(f"{self.folder}/db/db.akumuli")) as database, database:
            return database.execute("delete from akumuli_rescue_points where addr0 is null").rowcount

    def count(self, metric: str) -> int:
        """How many points of a metric are stored."""
        rows = Questions(self.query, WAIT_S).query({"aggregate": {metric: "count"}, "output": {"format": "csv"}}).decode().splitlines()
        return sum(int(float(row.rpartition(",")[2])) for row in rows)

    def points(self, metric: str) -> dict[str, list[tuple[int, float]]]:
        """What is stored of a metric, by the series' names."""
        question = {
            "select": metric,
            "range": {"from": 0, "to": 2**62},
            "output": {"format": "csv", "timestamp": "raw"},
            "order-by": "series",
        }
        questions = Questions(self.query, WAIT_S)
        if metric not in questions.metrics():
            return {}  # a kill may cost even the names
        found: dict[str, list[tuple[int, float]]] = {}
        for line in questions.query(question).decode().splitlines():
            name, stamp, value = line.rsplit(",", 2)
            found.setdefault(name, []).append((int(stamp.removeprefix("ts=")), float(value)))
        return found

    def _answers(self) -> bool:
        try:
            return bool(Questions(self.query, 1).version())
        except OSError:
            return False

    def _wait(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not done():
            assert self.running, f"akumulid ended:\n{self.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"akumulid does not start:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.02)
