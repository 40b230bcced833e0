"""Starts processes by a fork of one that has imported everything: a quarter of the time of a new Python.

For test suites with hundreds of starts: `enable()` in a conftest.py, and sites and crash tests start in this way. What is forked
has no threads of ours, no loop and nothing open; from there on the process lives and dies as any other. Started as users start
it is the default, and what benchmarks do.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, Final, NoReturn

from headrace.discovery import PLUGINS

#: What a site or a crash test needs besides its plugins; some of it is imported late, so that commands start fast.
MODULES: Final = (
    "headrace.admin",
    "headrace.cli",
    "headrace.config",
    "headrace.host",
    "headrace.testing",
    "headrace.testing.crash_child",
    "headrace.workers.supervisor",
    "pyarrow.compute",
    "pyarrow.parquet",
    "pytest",
    "uvloop",
)

_context: Any = None


def enable() -> None:
    """Start by forks from now on in this process."""
    global _context
    if _context is None:
        _context = multiprocessing.get_context("forkserver")
        _context.set_forkserver_preload(["headrace.testing.forked"])


def enabled() -> bool:
    return _context is not None


def import_all() -> None:
    """Import what may be needed; what cannot be imported is for the process that needs it to say."""
    for name in (*MODULES, *(point.module for point in entry_points(group=PLUGINS))):
        try:
            importlib.import_module(name)
        except ImportError:
            continue


class Forked:
    """A process with those methods of `subprocess.Popen` that tests use."""

    def __init__(
        self,
        main: Callable[[], object],
        words: Sequence[str],
        environ: Mapping[str, str] | None = None,
        *,
        log: Path | None = None,
        stdin: bool = False,
        stdout: bool = False,
    ) -> None:
        """Run `main`, a function at the top of a module, with `words` as its arguments in sys.argv.

        log: where stderr goes, and stdout too. stdin, stdout: as a pipe, which the attribute of the same name is then.
        """
        self.args = [main.__module__, *words]
        self.stdin: IO[str] | None = None
        self.stdout: IO[str] | None = None
        pipes: list[Connection | None] = [None, None]
        if stdin:
            pipes[0], ours = _context.Pipe(duplex=False)
            self.stdin = _file(ours, "w")
        if stdout:
            ours, pipes[1] = _context.Pipe(duplex=False)
            self.stdout = _file(ours, "r")
        environ = dict(os.environ if environ is None else environ)
        self._process = _context.Process(target=_run, args=(main, list(words), environ, log and str(log), *pipes))
        self._process.start()
        for pipe in pipes:
            if pipe is not None:
                pipe.close()
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        """The exit code, minus the signal's number when one ended it; None while it runs."""
        code: int | None = self._process.exitcode
        return code

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has one. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _file(ours: Connection, mode: str) -> IO[str]:
    """Our end as a text file."""
    file = os.fdopen(os.dup(ours.fileno()), mode)
    ours.close()
    return file


def _run(
    main: Callable[[], object],
    words: list[str],
    environ: dict[str, str],
    log: str | None,
    stdin: Connection | None,
    stdout: Connection | None,
) -> NoReturn:
    """In the fork."""
    if log is not None:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)
    if stdin is not None:
        os.dup2(stdin.fileno(), 0)
        stdin.close()
        sys.stdin = os.fdopen(0, "r", closefd=False)
    if stdout is not None:
        os.dup2(stdout.fileno(), 1)
        stdout.close()
    os.environ.clear()
    os.environ.update(environ)
    sys.argv[:] = ["", *words]
    sys.exit(main())  # type: ignore[arg-type]
