"""`make run` as the first command in a fresh clone: events move, Ctrl-C drains and says how many, and running again continues."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import duckdb
import pytest

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The committed tree, without anything that lies beside it."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout: there is nothing to clone")
    folder = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(folder)], check=True)
    return folder


class Demo:
    """`make run`, in a process group of its own, as a terminal would start it."""

    def __init__(self, clone: Path, folder: Path) -> None:
        self.clone, self.data, self.log = clone, folder / "data", folder / "run.log"
        self.devices, self.live, self.admin = free_port(), free_port(), free_port()
        # the Makefile's own set-up must do everything: nothing of this test's environment leads to our packages
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "MAKE", "MFLAGS"))}
        listen = (f"--set admin.listen=127.0.0.1:{self.admin}", f"--set tiers.site.sources.devices.listen=127.0.0.1:{self.devices}",
                  f"--set tiers.site.outputs.live.listen=127.0.0.1:{self.live}")  # fmt: skip
        kept["PIP_NO_COMPILE"] = "1"  # what is not imported needs no bytecode
        self.environ = {**kept, "HEADRACE_DATA": str(self.data), "SITE_ARGS": " ".join(listen), "URL": f"ws://127.0.0.1:{self.devices}"}

    def start(self) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["make", "run"], cwd=self.clone, env=self.environ, stdout=log, stderr=log, start_new_session=True
            )

    def stored(self) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=5) as answer:
                found = re.search(r"^headrace_ingest_acked_events_total\{.*\} (\S+)$", answer.read().decode(), re.MULTILINE)
                return int(float(found[1])) if found else 0
        except OSError:
            return 0

    def wait_for_events(self, count: int, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self.stored() < count:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)

    def interrupt(self) -> tuple[int, int, int]:
        """Ctrl-C; received, acked and stored of its last words."""
        os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait(60)
        found = re.search(r"received ([\d,]+) events, acked ([\d,]+), stored: lake ([\d,]+)", self.log.read_text())
        assert found, self.log.read_text()
        received, acked, stored = (int(number.replace(",", "")) for number in found.groups())
        return received, acked, stored

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)


@pytest.mark.packaging
@pytest.mark.timeout(400)
def test_make_run_works_as_the_first_command_and_again(clone: Path, tmp_path: Path) -> None:
    demo = Demo(clone, tmp_path)
    totals = 0
    try:
        for install_s in (300.0, 60.0):
            demo.start()
            demo.wait_for_events(300, install_s)
            with urllib.request.urlopen(f"http://127.0.0.1:{demo.live}/", timeout=5) as page:
                assert b"<!doctype html>" in page.read().lower()
            received, acked, stored = demo.interrupt()
            assert received == acked == stored >= 300
            totals += stored
    finally:
        demo.kill()
    (rows,) = duckdb.sql(f"select count(*), count(distinct (origin, position)) from '{demo.data}/lake/class=*/date=*/*.parquet'").fetchall()
    assert rows == (totals, totals)
