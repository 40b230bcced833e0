"""The crash harness: real processes that run a component and die by SIGKILL.

One process per test imports the author's test module and forks a child per round, so that a round costs milliseconds and
not a start of Python. The parent kills the child, by its pid, at a random moment; or the child kills itself at a fault point.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

from headrace.testing import crash_child, forking
from headrace.testing.journal import Journal

SEED_VARIABLE: Final = "HEADRACE_SEED"
ROUNDS_VARIABLE: Final = "HEADRACE_CRASH_ROUNDS"
FULL_VARIABLE: Final = "HEADRACE_FULL"
#: A round that takes longer hangs.
ROUND_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.000_5


def test_seed() -> int:
    """The seed of a random test: HEADRACE_SEED, or a new one; printed, so that a failure can be repeated."""
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(1 << 32))
    print(f"{SEED_VARIABLE}={seed}")
    return seed


test_seed.__test__ = False  # type: ignore[attr-defined]


def rounds(default: int) -> int:
    """How many crashes a test makes: HEADRACE_CRASH_ROUNDS, or the contract's own number (20 times that with HEADRACE_FULL=1)."""
    return int(os.environ.get(ROUNDS_VARIABLE) or default * (20 if os.environ.get(FULL_VARIABLE) else 1))


class Child:
    """One forked process at work."""

    def __init__(self, pid: int, answers: Iterator[dict[str, Any]], log: Path) -> None:
        self.pid, self._answers, self._log = pid, answers, log
        self.started = time.monotonic()
        self.exit_code: int | None = None

    def kill(self) -> None:
        """SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Its exit code; minus the signal's number when it was killed. AssertionError when it does not end."""
        while self.exit_code is None and self.running():
            if time.monotonic() - self.started > ROUND_TIMEOUT_S:
                self.kill()
                raise AssertionError(f"the process did not end within {ROUND_TIMEOUT_S:g} s:\n{self.log()}")
            time.sleep(POLL_S * 4)
        if self.exit_code is None:
            self.exit_code = int(next(self._answers)["exit"])
        return self.exit_code

    def running(self) -> bool:
        """Whether it has not ended: a zombie has."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_bytes()
        except OSError:
            return False
        return stat.rpartition(b")")[2].split()[0] != b"Z"

    def log(self) -> str:
        """What it and its predecessors wrote to stderr."""
        return self._log.read_text(errors="replace")[-8000:]


class Nursery:
    """Starts children that run `contract.child(request)`; use it as a context manager."""

    def __init__(self, contract: object, folder: Path) -> None:
        cls = type(contract)
        if "<locals>" in cls.__qualname__:
            raise TypeError(f"{cls.__qualname__}: crash tests import the contract class in another process; define it at the module's top")
        self._log = folder / "child.log"
        self._file: IO[bytes] = self._log.open("ab")
        words = [inspect.getfile(cls), cls.__qualname__]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "HEADRACE_FAULTS": ""}
        self._process: subprocess.Popen[str] | forking.Forked
        if forking.enabled():
            self._process = forking.Forked(crash_child.run, words, environ, log=self._log, stdin=True, stdout=True)
        else:
            command = [sys.executable, "-m", "headrace.testing.crash_child", *words]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._file}
            self._process = subprocess.Popen(command, **pipes, text=True, env=environ)
        self._child: Child | None = None

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._child is not None and self._child.exit_code is None:
            self._child.kill()
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(ROUND_TIMEOUT_S)
        assert self._process.stdout
        self._process.stdout.close()
        self._file.close()

    def start(self, **request: Any) -> Child:
        """Fork a child that does `request`, once the one before has ended."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            pid = int(next(self._answers())["pid"])
        except (BrokenPipeError, StopIteration):
            raise AssertionError(f"the process that imports the tests ended:\n{self._log.read_text()[-8000:]}") from None
        self._child = Child(pid, self._answers(), self._log)
        return self._child

    def _answers(self) -> Iterator[dict[str, Any]]:
        assert self._process.stdout
        for line in self._process.stdout:
            yield json.loads(line)


def kill_at_random(child: Child, journal: Journal, rng: random.Random, lines_max: int) -> bool:
    """Kill the child at a random moment within its next `lines_max` notes; False when it ended before."""
    start = journal.lines
    target = start + rng.randint(1, lines_max)
    while journal.lines < target:
        if not child.running():
            return child.wait() == -signal.SIGKILL
        if time.monotonic() - child.started > ROUND_TIMEOUT_S:
            child.kill()
            raise AssertionError(
                f"the component made no progress for {ROUND_TIMEOUT_S:g} s; its process was at {journal.notes()[-1:]}\n{child.log()}"
            )
        time.sleep(POLL_S)
    # anywhere within the step that follows, not just at its beginning
    time.sleep(rng.random() * (time.monotonic() - child.started) / (target - start))
    child.kill()
    return child.wait() == -signal.SIGKILL


def finish(child: Child) -> None:
    """Wait for a child that must come to its end by itself."""
    code = child.wait()
    if code != 0:
        raise AssertionError(f"the process ended with {code}:\n{child.log()}")
