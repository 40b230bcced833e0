"""C code under sanitizers: coverage-guided with clang's libFuzzer where it is there, else gcc and the random inputs of a driver."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

#: Debian's package has the version in the program's name.
CLANGS: Final = ("clang", "clang-19", "clang-16", "clang-14")
SECONDS_VARIABLE: Final = "HEADRACE_FUZZ_S"


def survives_fuzzing(folder: Path, target: Path, include: Path, seeds: Sequence[bytes], input_bytes_max: int, seconds: int) -> None:
    """Fuzz a target for so long, in a folder of its own; HEADRACE_FUZZ_S says otherwise. Compiled with -DDRIVER it takes SECONDS SEED."""
    seconds = int(os.environ.get(SECONDS_VARIABLE, seconds))
    seed = str(int.from_bytes(os.urandom(4), "big"))
    for clang in CLANGS:
        if (program := _compiled(folder, target, include, clang, "-fsanitize=fuzzer,address,undefined")) is not None:
            corpus = folder / "corpus"
            corpus.mkdir()
            for number, one in enumerate(seeds):
                (corpus / f"seed{number}").write_bytes(one)
            options = [f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={input_bytes_max}", "-use_value_profile=1"]
            said = _run([str(program), *options, str(corpus)], folder, seconds)
            covered = [int(count) for count in re.findall(r"cov: (\d+)", said)]
            assert max(covered, default=0) > 100, "guided by coverage"
            return
    program = _compiled(folder, target, include, "gcc", "-fsanitize=address,undefined", "-DDRIVER")
    if program is None:
        pytest.skip("neither clang with libFuzzer nor gcc with sanitizers is here")
    _run([str(program), str(seconds), seed], folder, seconds)


def _compiled(folder: Path, target: Path, include: Path, compiler: str, *flags: str) -> Path | None:
    """The target as this compiler makes it; None when it cannot."""
    program = folder / "fuzz"
    command = [compiler, *flags, "-g", "-O1", "-fno-sanitize-recover=all", "-I", str(include), "-o", str(program), str(target)]
    if not shutil.which(compiler) or subprocess.run(command, capture_output=True).returncode != 0:
        return None
    return program


def _run(command: list[str], folder: Path, seconds: int) -> str:
    done = subprocess.run(
        ["nice", "-n", "10", *command], cwd=folder, capture_output=True, text=True, errors="replace", timeout=seconds + 60
    )
    print(*command, done.stdout[-2000:], done.stderr[-6000:], sep="\n")
    assert done.returncode == 0
    return done.stderr  # whole: a dictionary of thousands of bytes may stand behind the last line on coverage
