"""deploy/akumuli/start.sh, with a fake in place of akumulid."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from akumuli_real import SCRIPT, Akumulid

FAKE = Path(__file__).parent / "akumulid_fake.py"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


@pytest.fixture
def server(tmp_path: Path) -> Akumulid:
    program = tmp_path / "bin" / "akumulid"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
    program.chmod(0o755)
    return Akumulid(tmp_path / "akumuli", program)


def notes(server: Akumulid) -> list[str]:
    file = server.folder / "db" / "notes"
    return file.read_text().splitlines() if file.exists() else []


def wait_for(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_start_is_two_phases_and_a_mark_and_a_stop_is_clean(server: Akumulid) -> None:
    with server:
        wait_for(lambda: len(notes(server)) == 5)
        assert notes(server)[:4] == ["create", "start HTTP", "clean stop", "start HTTP+TCP"]
        assert notes(server)[4].startswith("received +headrace.start host=")
        assert server.stop() == 0
        assert notes(server)[5:] == ["clean stop"]
        server.start()
        wait_for(lambda: len(notes(server)) == 10)
        assert notes(server)[6:9] == ["start HTTP", "clean stop", "start HTTP+TCP"]


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="no sqlite3")
def test_a_series_that_a_kill_left_in_name_only_is_given_the_row_that_it_lacks(server: Akumulid) -> None:
    with server:
        server.kill()
        with contextlib.closing(sqlite3.connect(server.folder / "db" / "db.akumuli")) as database, database:
            database.execute("create table akumuli_series (id integer primary key, series_id text, storage_id integer unique)")
            database.execute("create table akumuli_rescue_points (storage_id integer primary key unique, addr0 integer)")
            database.execute("insert into akumuli_series values (1, 'n device=a', 1024), (2, 'n device=b', 1025)")
            database.execute("insert into akumuli_rescue_points values (1024, 77)")
        server.start()
        with contextlib.closing(sqlite3.connect(server.folder / "db" / "db.akumuli")) as database:
            assert database.execute("select * from akumuli_rescue_points order by 1").fetchall() == [(1024, 77), (1025, None)]
    assert b"1 series" in server.log.read_bytes()


def test_a_signal_that_the_server_lost_is_sent_again(server: Akumulid) -> None:
    server.environ["FAKE_TROUBLE"] = "deaf"
    with server:
        assert notes(server)[:5] == ["create", "start HTTP", "missed a signal", "clean stop", "start HTTP+TCP"]


def test_a_first_phase_that_did_not_end_cleanly_is_repeated(server: Akumulid) -> None:
    server.environ["FAKE_TROUBLE"] = "unclean"
    with server:
        assert notes(server)[:5] == ["create", "start HTTP", "start HTTP", "clean stop", "start HTTP+TCP"]


def test_a_server_that_does_not_start_ends_the_script_with_its_code(server: Akumulid) -> None:
    server.environ["FAKE_TROUBLE"] = "dies"
    ended = subprocess.run([str(SCRIPT), str(server.config)], env=server.environ, timeout=60, check=False, capture_output=True)
    assert ended.returncode == 7


def test_sections_that_lose_points_are_refused(server: Akumulid) -> None:
    for section in ("[UDP]\nport=8383", "[WAL]\npath=/tmp"):
        config = server.folder / "other.conf"
        config.write_text(f"{server.config.read_text()}\n{section}\n")
        ended = subprocess.run([str(SCRIPT), str(config)], env=server.environ, timeout=60, check=False, capture_output=True)
        assert ended.returncode == 78
        assert b"take it out" in ended.stderr
    assert notes(server) == []
