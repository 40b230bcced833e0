"""`headrace devices token`."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from headrace.cli import main as headrace
from headrace_ingest_ws.auth.rereading import Unreadable
from headrace_ingest_ws.auth.token_database import TokenDatabase
from headrace_ingest_ws.auth.token_file import TokenFile
from headrace_ingest_ws.auth.tokens import TokenSet, new_token


@pytest.fixture(params=["file", "sqlite", pytest.param("postgres", marks=pytest.mark.xdist_group("postgres"))])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    if request.param == "file":
        return "--file", str(tmp_path / "tokens.csv")
    if request.param == "sqlite":
        return "--database", f"sqlite:///{tmp_path}/tokens.db"
    return "--database", request.getfixturevalue("postgres").url


def token(*words: str) -> int:
    return headrace(["devices", "token", *words])


def opened(place: tuple[str, str]) -> TokenFile | TokenDatabase:
    return TokenFile(Path(place[1])) if place[0] == "--file" else TokenDatabase(place[1], 5)


def test_add_list_revoke(place: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert token("add", "pump-7", "pump 8", *place) == 0
    assert token("add", "gw", "--writes-for", "meter-*", "--writes-for", "valve", *place) == 0
    out, err = capsys.readouterr()
    made = dict(line.rsplit(" ", 1) for line in out.splitlines())
    assert list(made) == ["pump-7", "pump 8", "gw"]
    assert "this once" in err
    held = opened(place).read()
    assert {held.identify(text).name for text in made.values()} == set(made)
    gateway = held.identify(made["gw"]).gateway
    assert gateway is not None
    assert gateway.text == "meter-*/valve"

    assert token("list", *place) == 0
    listed = capsys.readouterr().out
    assert "itself, meter-*, valve" in listed
    assert not [text for text in made.values() if text.rpartition("_")[2] in listed]
    assert token("list", "--device", "gw", "--json", *place) == 0
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (row["name"], row["devices"]) == ("gw", "meter-*/valve")
    assert row["created"].endswith("Z")
    assert "sha256" not in row

    assert token("revoke", row["id"], *place) == 0
    assert token("revoke", "--device", "pump 8", *place) == 0
    assert [record.name for record in opened(place).records()] == ["pump-7"]
    assert token("revoke", made["pump-7"], *place) == 0, "the token itself will do"
    assert opened(place).records() == []
    assert len(opened(place).read()) == 0


def test_what_is_not_there_cannot_be_revoked_and_nothing_is(place: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert token("add", "d1", *place) == 0
    known = opened(place).records()[0].id
    assert token("revoke", known, "abc", *place) == 1
    assert "no token with the id abc; nothing was changed" in capsys.readouterr().err
    assert len(opened(place).records()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["add", "a/b", "--file", "F"],
        ["add", "d1"],
        ["add", "d1", "--file", "F", "--database", "sqlite://"],
        ["add", "d1", "--writes-for", "/", "--file", "F"],
        ["revoke", "--file", "F"],
        ["revoke", "a", "--device", "b", "--file", "F"],
        ["list", "--database", "no url, with a pass:word@"],
        [],
    ],
)
def test_wrong_usage_is_told_in_a_line(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert token(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert "pass:word" not in err
    assert list(tmp_path.iterdir()) == []


def test_names_come_from_stdin_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("d1\n\n d2 \n"))
    assert token("add", "-", "d3", "--file", str(tmp_path / "t")) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["d1", "d2", "d3"]


def test_the_file_is_its_owners_only_and_keeps_what_mode_it_was_given(tmp_path: Path) -> None:
    file = tmp_path / "t"
    assert token("add", "d1", "--file", str(file)) == 0
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(file)
    assert token("add", "d2", "--file", str(link)) == 0
    assert file.stat().st_mode & 0o777 == 0o640
    assert link.is_symlink()
    assert [record.name for record in TokenFile(file).records()] == ["d1", "d2"]


def test_many_who_add_at_once_lose_nothing(tmp_path: Path) -> None:
    file = tmp_path / "t"
    threads = [
        threading.Thread(target=lambda number=number: [TokenFile(file).add([new_token(f"d{number}")[1]]) for _ in range(5)])
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(TokenFile(file).records()) == 40


def test_a_broken_file_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "t"
    file.write_text("id,sha256,name,devices,created\nbroken\n")
    assert token("add", "d1", "--file", str(file)) == 1
    assert f"{file}:2: expected 5 columns, got 1" in capsys.readouterr().err
    assert file.read_text().endswith("broken\n")


def test_a_database_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert token("list", "--database", f"sqlite:///{tmp_path}/none.db") == 1
    assert "no such file; make it with: headrace devices token add" in capsys.readouterr().err
    (tmp_path / "empty.db").touch()
    assert token("list", "--database", f"sqlite:///{tmp_path}/empty.db") == 1
    assert "make it with: headrace devices token add" in capsys.readouterr().err
    assert token("list", "--database", "postgresql+psycopg://u:hushhush@127.0.0.1:1/db") == 1
    err = capsys.readouterr().err
    assert "***" in err
    assert "hushhush" not in err
    with pytest.raises(Unreadable, match="no driver"):
        TokenDatabase("nothing://x", 5).read()


def test_the_stamp_of_a_database_moves_with_any_change(place: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    if place[0] == "--file":
        return  # its stamp is its size and times
    database = TokenDatabase(place[1], 5)
    assert token("add", "d1", "d2", *place) == 0
    assert database.stamp() is None, "never read: read it"
    database.read()
    first = database.stamp()
    assert first is not None
    assert database.stamp() == first
    assert token("revoke", "--device", "d1", *place) == 0
    assert token("add", "d3", *place) == 0
    assert database.stamp() != first, "as many as before, and yet others"
    monkeypatch.setattr("headrace_ingest_ws.auth.token_database.READ_ALL_S", -1.0)
    assert database.stamp() is None, "what was changed by hand is found now and then"


def test_a_file_needs_no_library(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['sqlalchemy'] = None; sys.modules['jwt'] = None; sys.modules['cryptography'] = None\n"
        "from headrace.cli import main\n"
        "assert main(['devices', 'token', 'add', 'd1', '--file', sys.argv[1]]) == 0\n"
        "assert main(['devices', 'token', 'list', '--database', 'sqlite://']) == 2\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "t")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--database needs SQLAlchemy" in done.stderr


def test_thousands_of_records_are_read_back(tmp_path: Path) -> None:
    records = [new_token(f"device-{number}")[1] for number in range(2000)]
    TokenFile(tmp_path / "t").add(records)
    assert TokenFile(tmp_path / "t").read() == TokenSet(records)
