"""The C parser under sanitizers: coverage-guided with clang's libFuzzer where it is there, else gcc and random streams."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parent / "src" / "headrace_ingest_ws"
TARGET = HERE / "fuzz" / "fuzz_wsframes.c"
SECONDS = 60 if os.environ.get("HEADRACE_FULL") else 4


def build(folder: Path) -> tuple[list[str], str] | None:
    """The command that fuzzes, and by which tool; None when nothing here can build it."""
    program = str(folder / "fuzz")
    common = ["-g", "-O1", "-fno-sanitize-recover=all", "-I", str(SOURCES), "-o", program, str(TARGET)]
    seed = str(int.from_bytes(os.urandom(4), "big"))
    corpus = folder / "corpus"
    corpus.mkdir()
    builds = [
        (
            "clang",
            ["-fsanitize=fuzzer,address,undefined"],
            [program, f"-max_total_time={SECONDS}", f"-seed={seed}", "-max_len=4096", str(corpus)],
        ),
        ("gcc", ["-fsanitize=address,undefined", "-DDRIVER"], [program, str(SECONDS), seed]),
    ]
    for compiler, flags, command in builds:
        if shutil.which(compiler) and subprocess.run([compiler, *flags, *common], capture_output=True).returncode == 0:
            return command, compiler
    return None


def test_the_c_parser_survives_fuzzing_under_sanitizers(tmp_path: Path) -> None:
    built = build(tmp_path)
    if built is None:
        pytest.skip("neither clang with libFuzzer nor gcc with sanitizers is here")
    command, compiler = built
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS + 60)
    print(compiler, run.stdout[-2000:], run.stderr[-4000:])
    assert run.returncode == 0
