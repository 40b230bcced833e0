"""The C parser under sanitizers: coverage-guided with clang's libFuzzer where it is there, else gcc and random streams."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parent / "src" / "headrace_ingest_ws"
TARGET = HERE / "fuzz" / "fuzz_wsframes.c"
#: A minute's work, done in what other tests leave idle.
SECONDS = int(os.environ.get("HEADRACE_FUZZ_S", "100"))
#: Debian's package has the version in the program's name.
CLANGS = ("clang", "clang-19", "clang-16", "clang-14")


def compiled(folder: Path, compiler: str, *flags: str) -> Path | None:
    """The fuzz target as this compiler makes it; None when it cannot."""
    program = folder / "fuzz"
    command = [compiler, *flags, "-g", "-O1", "-fno-sanitize-recover=all", "-I", str(SOURCES), "-o", str(program), str(TARGET)]
    if not shutil.which(compiler) or subprocess.run(command, capture_output=True).returncode != 0:
        return None
    return program


def seeds(frame: Callable[..., bytes]) -> list[bytes]:
    """Streams from which the fuzzer starts, each behind the four bytes that choose pieces and limits."""
    texts = [b"{}", b'{"a":[1]}', b"{\n}", "ä€😀".encode(), b"\xed\xa0\x80", b"{" * 17, b"x" * 126, b""]
    whole = [frame(kind, text) for text in texts for kind in (1, 2)]
    parts = [frame(1, text[:3], fin=False) + frame(9, b"ping") + frame(0, text[3:]) for text in texts]
    close = [frame(8, b"\x03\xe8bye"), frame(2, b"x" * 300)]
    broken = [frame(kind, b"x" * 200) for kind in (8, 9, 3, 0x41)] + [frame(9, b"", fin=False), b"\x81\x01a"]
    streams = [*whole, *parts, *close, *broken, b"".join(whole), b"".join(parts + close), frame(1, b"", announced=1 << 40)]
    return [bytes((piece, 3, limit, 200)) + stream for piece, limit in ((0, 1), (6, 0)) for stream in streams]


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        ["nice", "-n", "10", *command], cwd=folder, capture_output=True, text=True, errors="replace", timeout=SECONDS + 60
    )
    print(*command, done.stdout[-2000:], done.stderr[-6000:], sep="\n")
    assert done.returncode == 0
    return done.stderr  # whole: a dictionary of thousands of bytes may stand behind the last line on coverage


def test_the_c_parser_survives_fuzzing_under_sanitizers(tmp_path: Path, kit: SimpleNamespace) -> None:
    seed = str(int.from_bytes(os.urandom(4), "big"))
    for clang in CLANGS:
        if (program := compiled(tmp_path, clang, "-fsanitize=fuzzer,address,undefined")) is not None:
            corpus = tmp_path / "corpus"
            corpus.mkdir()
            for number, stream in enumerate(seeds(kit.frame)):
                (corpus / f"seed{number}").write_bytes(stream)
            options = [f"-max_total_time={SECONDS}", f"-seed={seed}", "-max_len=4096", "-use_value_profile=1"]
            said = run([str(program), *options, str(corpus)], tmp_path)
            covered = [int(count) for count in re.findall(r"cov: (\d+)", said)]
            assert max(covered) > 100, "guided by coverage"
            return
    program = compiled(tmp_path, "gcc", "-fsanitize=address,undefined", "-DDRIVER")
    if program is None:
        pytest.skip("neither clang with libFuzzer nor gcc with sanitizers is here")
    run([str(program), str(SECONDS), seed], tmp_path)
