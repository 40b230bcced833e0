"""A site as a real process: started on free ports, killed, stopped, asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from headrace import cli
from headrace.faults import VARIABLE as FAULTS_VARIABLE
from headrace.testing import forking

#: From the first look at a site to the next one, and the longest: looking costs both sides.
POLL_S: Final = 0.02
POLL_MAX_S: Final = 0.1


class SiteError(Exception):
    """The process did not do what was asked; the text holds the end of its log."""


class SiteProcess:
    """`headrace run FILE` in a process of its own, with its data and its log in `folder`.

    Every `listen` of the file is to be overridden with port 0; `urls` holds the real addresses by component id (and
    `admin`), read from the log. The process can be started again after `kill` or `stop`, on the same data.
    """

    def __init__(
        self, file: Path, folder: Path, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None, tiers: Sequence[str] = ()
    ) -> None:
        """tiers: those that this process runs (none: all of the file)."""
        self.file, self.folder, self.overrides, self.tiers = file, folder, list(overrides), list(tiers)
        self.environ = {**os.environ, "HEADRACE_DATA": str(folder / "data"), **(environ or {})}
        self.urls: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | forking.Forked | None = None
        self.log = folder / "site.log"
        self.log.touch()
        self._log_from = 0
        self.starts = 0
        #: False: never by a fork (see `forking`), which would run where the forked process is and not where this one is
        self.forks = True

    def start(self, faults: str = "", ready: bool = True, timeout_s: float = 60.0) -> None:
        """Start it; with `ready`, return when `/readyz` says so. `faults` as in HEADRACE_FAULTS."""
        self.starts += 1
        self.urls.clear()
        self._log_from = self.log.stat().st_size
        overrides = [word for override in self.overrides for word in ("--set", override)]
        tiers = [word for tier in self.tiers for word in ("--tier", tier)]
        words = ["run", str(self.file), *tiers, *overrides]
        environ = {**self.environ, FAULTS_VARIABLE: faults}
        if self.forks and forking.enabled():
            self.process = forking.Forked(cli.main, words, environ, log=self.log)
        else:
            with self.log.open("ab") as log:
                self.process = subprocess.Popen([sys.executable, "-m", "headrace", *words], env=environ, stdout=log, stderr=log)
        if ready:
            self._wait_for(self.is_ready, "to be ready", timeout_s)

    def _wait_for(self, done: Any, what: str, timeout_s: float) -> None:
        deadline, pause_s = time.monotonic() + timeout_s, POLL_S
        while not done():
            if self.died() is not None:
                raise SiteError(f"the site ended with code {self.died()} when it was expected {what}\n{self.log_end()}")
            if time.monotonic() > deadline:
                raise SiteError(f"waited {timeout_s:.0f} s for the site {what}\n{self.log_end()}")
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.2, POLL_MAX_S)

    def died(self) -> int | None:
        """The exit code (negative: the signal), or None while it runs."""
        assert self.process is not None
        return self.process.poll()

    def wait_until_dead(self, timeout_s: float = 60.0) -> int:
        """Wait for its end; the exit code."""
        assert self.process is not None
        return self.process.wait(timeout_s)

    def is_ready(self) -> bool:
        """Whether `/readyz` says ok."""
        return self.url("admin") is not None and self._get("/readyz")[0] == 200

    def url(self, component: str) -> str | None:
        """The address that a component listens on, or None while it does not."""
        if component not in self.urls:
            self._read_urls()
        return self.urls.get(component)

    def wait_for_url(self, component: str, timeout_s: float = 60.0) -> str:
        """The address that a component listens on, once it does: outputs open while the site is ready already."""
        self._wait_for(lambda: self.url(component) is not None, f"to have {component} listening", timeout_s)
        return self.urls[component]

    def _read_urls(self) -> None:
        for line in self.lines():
            if line.get("message") == "listening":
                self.urls[line["component"]] = line["url"]

    def lines(self) -> list[dict[str, Any]]:
        """The log lines since the last start."""
        with self.log.open("rb") as log:
            log.seek(self._log_from)
            return [json.loads(line) for line in log if line.startswith(b"{") and line.endswith(b"}\n")]

    def wait_for_line(self, message: str, component: str, timeout_s: float = 60.0) -> None:
        """Wait until the component has logged this since the last start."""
        said = (message, component)

        def done() -> bool:
            return any((line.get("message"), line.get("component")) == said for line in self.lines())

        self._wait_for(done, f"to log {message!r} for {component}", timeout_s)

    def log_end(self, lines: int = 40) -> str:
        """The last lines of the log, whole."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def kill(self) -> None:
        """SIGKILL, as `kill -9`."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self, timeout_s: float = 60.0) -> str:
        """SIGTERM; the summary that it printed. SiteError when it does not end well."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout_s)
        if code != 0:
            raise SiteError(f"the site ended with code {code}\n{self.log_end()}")
        return next((line for line in reversed(self.log.read_text().splitlines()) if line.startswith("received ")), "")

    def _get(self, path: str) -> tuple[int, str]:
        if (admin := self.url("admin")) is None:
            return 0, ""
        try:
            with urllib.request.urlopen(admin + path, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def post(self, component: str, device: str, ids: Sequence[str], timeout_s: float = 60.0) -> None:
        """POST one event for each id, once: a server that is busy is tried again under the same key."""
        body = json.dumps([{"id": one} for one in ids]).encode()
        address = f"{self.wait_for_url(component)}/v1/devices/{device}/events"
        request = urllib.request.Request(address, body, {"Idempotency-Key": f"{ids[0]}-{len(ids)}"}, method="POST")

        def taken() -> bool:
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    return bool(answer.status == 200)
            except urllib.error.HTTPError as error:
                if error.code != 503:
                    raise
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                pass  # its answer is lost; the key says that it is the same
            return False

        self._wait_for(taken, "to take events", timeout_s)

    def probe(self, path: str) -> tuple[int, str]:
        """Status and body of an admin page (0 when it does not answer)."""
        return self._get(path)

    def components(self) -> dict[str, dict[str, Any]]:
        """`/components` by component id."""
        return {row["component"]: row for row in json.loads(self._get("/components")[1])["components"]}

    def workers(self) -> dict[str, dict[str, Any]]:
        """The processes of a site with workers, by name: state, pid, starts."""
        return {row["worker"]: row for row in json.loads(self._get("/components")[1] or "{}").get("workers", [])}

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples (`headrace_` is added) that carry these labels."""
        wanted = f"headrace_{name}"
        # all lines would take some 20 ms, and a test that waits asks again and again
        lines = [line for line in self._get("/metrics")[1].splitlines() if line.startswith(wanted)]
        families = text_string_to_metric_families("\n".join(lines) + "\n")
        samples = (sample for family in families for sample in family.samples if sample.name == wanted)
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def wait_for_metric(self, name: str, at_least: float, timeout_s: float = 60.0, **labels: str) -> float:
        """Wait until the metric has grown to that; its value."""
        self._wait_for(lambda: self.metric(name, **labels) >= at_least, f"to have {name} >= {at_least}", timeout_s)
        return self.metric(name, **labels)

    def __enter__(self) -> SiteProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
