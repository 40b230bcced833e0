"""Named points at which a test makes the process die, fail or wait.

`HEADRACE_FAULTS` holds a comma-separated list of `NAME=ACTION[@HIT]`. ACTION is `kill` (SIGKILL to this very process, as
`kill -9` would), `error` (raise TransientError), `bug` (raise RuntimeError, an exception that nobody foresaw), or
`sleep:SECONDS` (hold this thread). HIT says at which pass, counted from 1 (default 1); `@*` is every pass.
Without the variable a point costs one dictionary lookup.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from typing import Final, NamedTuple

from headrace.errors import ConfigError, TransientError

VARIABLE: Final = "HEADRACE_FAULTS"


class Fault(NamedTuple):
    """What happens at one point; `hit` is None for every pass."""

    action: str
    hit: int | None


class Faults:
    """The faults that are armed in this process."""

    def __init__(self, spec: str = "") -> None:
        self._armed = dict(_parse(item) for item in spec.split(",") if item.strip())
        self._passes: dict[str, int] = {}

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Faults:
        return cls(environ.get(VARIABLE, ""))

    def __bool__(self) -> bool:
        return bool(self._armed)

    def hit(self, name: str) -> None:
        """Pass the point `name`."""
        fault = self._armed.get(name)
        if fault is None:
            return
        self._passes[name] = passes = self._passes.get(name, 0) + 1
        if fault.hit is not None and passes != fault.hit:
            return
        if fault.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.action == "error":
            raise TransientError(f"fault point {name}")
        if fault.action == "bug":
            raise RuntimeError(f"fault point {name}")
        time.sleep(float(fault.action.removeprefix("sleep:")))


def _parse(item: str) -> tuple[str, Fault]:
    name, _, rest = item.strip().partition("=")
    action, _, hit = rest.partition("@")
    if action not in ("kill", "error", "bug") and not _is_sleep(action):
        raise ConfigError(VARIABLE, name, "kill, error, bug or sleep:SECONDS", repr(action))
    if hit not in ("", "*") and not hit.isdecimal():
        raise ConfigError(VARIABLE, name, "a pass number or * behind @", repr(hit))
    return name, Fault(action, None if hit == "*" else int(hit or 1))


def _is_sleep(action: str) -> bool:
    kind, _, seconds = action.partition(":")
    return kind == "sleep" and seconds.replace(".", "", 1).isdecimal()
