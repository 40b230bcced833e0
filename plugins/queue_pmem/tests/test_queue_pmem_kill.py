"""kill -9 of a real process that writes and reads, 200 times: nothing lost, nothing doubled."""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

import pytest

from headrace.testing.forking import Forked

sys.path.insert(0, str(Path(__file__).parent))
import crash_rounds

ROUNDS = int(os.environ.get("HEADRACE_KILL_ROUNDS", "200"))
FLAVOURS = [("process", "pmem"), ("power", "pmem"), ("process", "file"), ("power", "file")]


@pytest.mark.parametrize(("level", "medium"), FLAVOURS)
def test_nothing_is_lost_or_doubled_when_the_process_is_killed(tmp_path, level, medium):
    seed = int(os.environ.get("HEADRACE_SEED") or random.SystemRandom().randrange(1 << 30))
    words = [str(tmp_path), level, medium, str(ROUNDS // len(FLAVOURS)), str(seed)]
    process = Forked(crash_rounds.main, words, log=tmp_path / "log", stdout=True)
    with process.stdout as stdout:
        out = stdout.read()
    assert process.wait(250) == 0, (tmp_path / "log").read_text()[-3000:]
    result = json.loads(out)
    print(f"HEADRACE_SEED={seed} {level} {medium}: {result}")
    assert result["wrong"] == 0
    assert result["stored"] >= result["acked"] > 0
