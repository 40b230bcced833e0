"""A server of another project that tests start, kill and start again: its process, its folder, and whom it runs as."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar


class ServerProcess:
    """One server in a folder of its own below the temporary directory, on a free port of the loopback."""

    #: For messages, and how long a start may take.
    name: ClassVar[str]
    start_timeout_s: ClassVar[float] = 30.0

    def __init__(self, folder: Path, run_as: dict[str, Any]) -> None:
        #: belongs to the user that the server runs as; its output is in `log` there
        self.folder = folder
        self.run_as = run_as
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> Sequence[str | Path]:
        """What starts the server."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether it takes connections."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the server unless it runs; return when it takes connections."""
        deadline = time.monotonic() + self.start_timeout_s
        while not self.answers():
            if self._process is None or self._process.poll() is not None:
                # After a SIGKILL the old server's children may hold its memory for a moment; it is started again then.
                with (self.folder / "log").open("ab") as log:
                    self._process = subprocess.Popen(self.command(), stdout=log, stderr=log, cwd=self.folder, **self.run_as)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name} did not start:\n{(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL, as when the machine dies."""
        self.end(signal.SIGKILL)

    def end(self, how: signal.Signals) -> None:
        """Send this signal, and wait until the process is gone."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None

    def signal(self, what: signal.Signals) -> None:
        """Send this signal to a server that runs."""
        assert self._process is not None
        self._process.send_signal(what)

    def run(self, *command: str | Path) -> None:
        """Run another of its programs to the end. RuntimeError with what it said."""
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, check=False, **self.run_as)
        if done.returncode:
            raise RuntimeError(f"{command[0]}: {done.stdout}{done.stderr}")


def new_folder(prefix: str, users: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """A folder for a server that refuses to run as root, and how subprocess starts it: as the first of these users that there is."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    if os.geteuid() != 0:
        return folder, {}
    user = next((name for name in users if _exists(name)), "nobody")
    shutil.chown(folder, user)
    return folder, {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True
