"""The JSON reader in C under sanitizers: coverage-guided with clang's libFuzzer where it is there, else gcc and random events."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "tests" / "fuzz" / "fuzz_json_columns.c"
#: Done in what other tests leave idle.
SECONDS = int(os.environ.get("HEADRACE_FUZZ_S", "30"))
#: Debian's package has the version in the program's name.
CLANGS = ("clang", "clang-19", "clang-16", "clang-14")
SEEDS = (
    b'{"n":1.25,"i":7,"s":"a\\u00e9\\ud83d\\ude00","b":true,"o":{"":1e5,"o":{"s":""}},"ts":1795435200.5}\xff{"n":1}\xff',
    b'{"ts":"2026"}\xff{"s":"\xe2\x82\xac\xf0\x9f\x98\x80","n":-12345678901234567.89e-5}\xff',
    b'{"n":1,"n":2}\xff{"s":"\\ud800"}\xff{"o":null,"b":false}\xff {"i":-9223372036854775808}\n\xff',
)


def compiled(folder: Path, compiler: str, *flags: str) -> Path | None:
    """The fuzz target as this compiler makes it; None when it cannot."""
    program = folder / "fuzz"
    command = [compiler, *flags, "-g", "-O1", "-fno-sanitize-recover=all", "-I", ROOT / "core" / "headrace", "-o", program, TARGET]
    if not shutil.which(compiler) or subprocess.run(command, capture_output=True).returncode != 0:
        return None
    return program


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        ["nice", "-n", "10", *command], cwd=folder, capture_output=True, text=True, errors="replace", timeout=SECONDS + 60
    )
    print(*command, done.stdout[-2000:], done.stderr[-6000:], sep="\n")
    assert done.returncode == 0
    return done.stderr  # whole: a dictionary of thousands of bytes may stand behind the last line on coverage


def test_the_c_reader_survives_fuzzing_under_sanitizers(tmp_path: Path) -> None:
    seed = str(int.from_bytes(os.urandom(4), "big"))
    for clang in CLANGS:
        if (program := compiled(tmp_path, clang, "-fsanitize=fuzzer,address,undefined")) is not None:
            corpus = tmp_path / "corpus"
            corpus.mkdir()
            for number, stream in enumerate(SEEDS):
                (corpus / f"seed{number}").write_bytes(stream)
            options = [f"-max_total_time={SECONDS}", f"-seed={seed}", "-max_len=1024", "-use_value_profile=1"]
            said = run([str(program), *options, str(corpus)], tmp_path)
            covered = [int(count) for count in re.findall(r"cov: (\d+)", said)]
            assert max(covered) > 100, "guided by coverage"
            return
    program = compiled(tmp_path, "gcc", "-fsanitize=address,undefined", "-DDRIVER")
    if program is None:
        pytest.skip("neither clang with libFuzzer nor gcc with sanitizers is here")
    run([str(program), str(SECONDS), seed], tmp_path)
