"""kill -9 of a real process that writes and reads, 200 times: nothing lost, nothing doubled."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROUNDS = int(os.environ.get("HEADRACE_KILL_ROUNDS", "200"))
FLAVOURS = [("process", "pmem"), ("power", "pmem"), ("process", "file"), ("power", "file")]


@pytest.mark.parametrize(("level", "medium"), FLAVOURS)
def test_nothing_is_lost_or_doubled_when_the_process_is_killed(tmp_path, level, medium):
    seed = int(os.environ.get("HEADRACE_SEED") or random.SystemRandom().randrange(1 << 30))
    script = Path(__file__).with_name("crash_rounds.py")
    command = [sys.executable, str(script), str(tmp_path), level, medium, str(ROUNDS // len(FLAVOURS)), str(seed)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert run.returncode == 0, run.stderr[-3000:]
    result = json.loads(run.stdout)
    print(f"HEADRACE_SEED={seed} {level} {medium}: {result}")
    assert result["wrong"] == 0
    assert result["stored"] >= result["acked"] > 0
