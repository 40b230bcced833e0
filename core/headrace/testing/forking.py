"""Starts `headrace run` by a fork of a process that has imported everything: a tenth of the time of a new Python.

For test suites with hundreds of starts. What is forked has no threads of ours, no loop and nothing open; from there on the
process lives and dies as any other. `headrace run` started as users start it is for fewer tests, and for benchmarks.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, NoReturn

from headrace.discovery import PLUGINS

#: What a running site needs besides its plugins; some of it is imported late, so that commands start fast.
MODULES: Final = (
    "headrace.admin",
    "headrace.cli",
    "headrace.config",
    "headrace.host",
    "headrace.workers.supervisor",
    "pyarrow.compute",
    "pyarrow.parquet",
    "uvloop",
)

_context: Any = None


def _forkserver() -> Any:
    """The one server of this process."""
    global _context
    if _context is None:
        _context = multiprocessing.get_context("forkserver")
        _context.set_forkserver_preload(["headrace.testing.forked"])
    return _context


def import_all() -> None:
    """Import what a site may need; what cannot be imported is the site's to say."""
    for name in (*MODULES, *(point.module for point in entry_points(group=PLUGINS))):
        try:
            importlib.import_module(name)
        except ImportError:
            continue


class Forked:
    """A process with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, words: Sequence[str], environ: Mapping[str, str], log: Path) -> None:
        """Run `headrace WORDS...`; stdout and stderr go to the end of `log`."""
        self._words = list(words)
        self._process = _forkserver().Process(target=_run, args=(self._words, dict(environ), str(log)))
        self._process.start()
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
            raise subprocess.TimeoutExpired(["headrace", *self._words], timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(words: list[str], environ: dict[str, str], log: str) -> NoReturn:
    """In the fork."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv[:] = ["headrace", *words]
    from headrace.cli import main

    sys.exit(main())
