"""Files of keys, and the command that makes them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import zmq

from headrace.cli import main as headrace
from headrace_transport_zmq.key_command import main
from headrace_transport_zmq.keys import KeysError, is_key, new_pair, public_key, read_allowed, read_pair, write_pair


def test_a_new_pair_is_two_files_of_which_only_the_owner_reads_the_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert headrace(["keys", "new", "edge-7", "--out", str(tmp_path / "keys")]) == 0
    said = capsys.readouterr()
    secret_file, public_file = tmp_path / "keys/edge-7.key", tmp_path / "keys/edge-7.pub"
    assert stat.S_IMODE(secret_file.stat().st_mode) == 0o600
    pair = read_pair(secret_file)
    assert zmq.curve_public(pair.secret) == pair.public
    assert public_file.read_text() == said.out == f"{pair.public.decode()} edge-7\n"
    assert pair.secret.decode() not in said.out + said.err + repr(pair)


def test_a_key_is_never_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "a", "--out", str(tmp_path)]) == 0
    before = (tmp_path / "a.key").read_bytes()
    assert main(["new", "a", "--out", str(tmp_path)]) == 1
    assert "already" in capsys.readouterr().err
    assert (tmp_path / "a.key").read_bytes() == before
    assert main(["new", "../a", "--out", str(tmp_path)]) == 2


def test_show_prints_public_halves_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = {name: new_pair() for name in ("a", "b")}
    for name, pair in pairs.items():
        write_pair(pair, name, tmp_path)
    allowed = tmp_path / "edges.keys"
    allowed.write_text("# two edges\n\n" + "".join((tmp_path / f"{name}.pub").read_text() for name in pairs))
    lines = "".join(f"{pair.public.decode()} {name}\n" for name, pair in pairs.items())
    for file, shown in ((tmp_path / "a.key", lines[:43]), (tmp_path / "b.pub", lines[43:]), (allowed, lines)):
        assert main(["show", str(file)]) == 0
        assert capsys.readouterr().out == shown
    assert main(["show", str(tmp_path / "none.pub")]) == 1
    assert "expected keys" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "got no such file"),
        ("", "got no key"),
        ('curve\n public-key = "{a}"\n', "the public half only"),
        ('curve\n public-key = "{a}"\n secret-key = "{b}"\n', "do not belong together"),
        ('curve\n public-key = "{a}"\n secret-key = "short"\n', "not 40 characters of Z85"),
    ],
)
def test_what_is_no_secret_key_is_told_with_its_path(tmp_path: Path, content: str | None, complaint: str) -> None:
    file, a, b = tmp_path / "x.key", new_pair(), new_pair()
    if content is not None:
        file.write_text(content.format(a=a.public.decode(), b=b.secret.decode()))
    with pytest.raises(KeysError, match=complaint) as told:
        read_pair(file)
    assert str(file) in str(told.value)
    assert "headrace keys new" in str(told.value)
    assert b.secret.decode() not in str(told.value)


def test_an_allowed_file_that_holds_something_else_is_refused_without_showing_it(tmp_path: Path) -> None:
    file, pair = tmp_path / "edges.keys", new_pair()
    file.write_text(f'{pair.public.decode()} ok\nsecret-key = "{pair.secret.decode()}"\n')
    with pytest.raises(KeysError, match=r"in line 2 of .*edges\.keys") as told:
        read_allowed(file)
    assert pair.secret.decode() not in str(told.value)


def test_a_public_key_is_what_stands_in_a_pub_file() -> None:
    pair = new_pair()
    assert public_key(f"{pair.public.decode()} middle") == pair.public
    for wrong in ("", "middle.pub", "x" * 39, "'" * 40):
        with pytest.raises(KeysError):
            public_key(wrong)


def test_new_keys_can_stand_in_toml_and_at_the_start_of_a_line() -> None:
    keys = [new_pair().public for _ in range(50)]
    assert all(is_key(key) and not set(key) & set(b"$#{}") and key[:1] != b"-" for key in keys)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_rights_is_told(tmp_path: Path) -> None:
    secret_file, _ = write_pair(new_pair(), "a", tmp_path)
    secret_file.chmod(0)
    with pytest.raises(KeysError, match="Permission denied"):
        read_pair(secret_file)
