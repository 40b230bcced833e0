"""Every error that headrace raises on purpose.

    HeadraceError
    +-- ConfigError            the config file is wrong: file, key path, what was expected, what came
    +-- PluginError            a plugin cannot be used
    |   +-- PluginNotFound     no plugin of that name is installed
    |   +-- PluginClash        two distributions offer the same name
    |   +-- PluginBroken       it is installed but cannot be imported
    |   +-- HookError          its hooks do not fit the hookspecs
    +-- QueueError             a queue cannot be used
    |   +-- QueueFull          no room: stop reading until `deliver.room()`
    |   +-- QueueLocked        another process holds it
    |   +-- QueueFormatError   the files are not a queue of a version that we read
    +-- TransientError         the same call may succeed later
    +-- PermanentError         the same call will never succeed

An error that crosses a plugin's boundary is Transient or Permanent; anything else is taken for a bug of the plugin.
Messages are lower case without a full stop, and the facts in them are attributes too.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence


class HeadraceError(Exception):
    """The root: catch it to catch all that headrace raises on purpose."""


class ConfigError(HeadraceError):
    """The config is wrong at one key.

    `file` is the config file, `path` the dotted key, `expected` and `came` say what should stand there and what does.
    """

    def __init__(self, file: str, path: str, expected: str, came: str, hint: str = "") -> None:
        self.file, self.path, self.expected, self.came, self.hint = file, path, expected, came, hint
        where = f"{file}: {path}" if path else file
        super().__init__(f"{where}: expected {expected}, got {came}" + (f"; {hint}" if hint else ""))


class PluginError(HeadraceError):
    """A plugin cannot be used."""


class PluginNotFound(PluginError):
    """No plugin of that name is installed."""

    def __init__(self, name: str, installed: Iterable[str]) -> None:
        self.name, self.installed = name, sorted(installed)
        near = did_you_mean(name, self.installed)
        have = ", ".join(self.installed) or "none"
        super().__init__(f"no plugin named {name!r}{near}; installed: {have}")


class PluginClash(PluginError):
    """Two distributions offer a plugin of the same name; one of them has to be uninstalled."""

    def __init__(self, name: str, distributions: Iterable[str]) -> None:
        self.name, self.distributions = name, sorted(distributions)
        super().__init__(
            f"plugin {name!r} is offered by {len(self.distributions)} distributions: {', '.join(self.distributions)}; uninstall all but one"
        )


class PluginBroken(PluginError):
    """A plugin is installed but cannot be imported."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason
        super().__init__(f"plugin {name!r} cannot be imported: {reason}")


class HookError(PluginError):
    """A plugin's hooks do not fit the hookspecs."""

    def __init__(self, plugin: str, problem: str) -> None:
        self.plugin, self.problem = plugin, problem
        super().__init__(f"plugin {plugin!r}: {problem}")


class QueueError(HeadraceError):
    """A queue cannot be used."""


class QueueFull(QueueError):
    """The queue took nothing, because it has no room; await `deliver.room()` before the next try."""

    def __init__(self, queue: str, size_bytes: int, size_bytes_max: int, reason: str = "") -> None:
        self.queue, self.size_bytes, self.size_bytes_max, self.reason = queue, size_bytes, size_bytes_max, reason
        why = f" ({reason})" if reason else ""
        super().__init__(f"queue {queue!r} is full: {size_bytes} of {size_bytes_max} bytes{why}")


class QueueLocked(QueueError):
    """Another process has the queue open. drains: it only empties it, and will let go of it by itself."""

    def __init__(self, path: str, holder: str, drains: bool = False) -> None:
        self.path, self.holder, self.drains = path, holder, drains
        super().__init__(f"queue at {path} is held by {holder}; stop it, or give this tier a path of its own")


class QueueFormatError(QueueError):
    """The files are not a queue of a version that this program reads."""

    def __init__(self, path: str, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"queue at {path}: {problem}")


class TransientError(HeadraceError):
    """The same call may succeed later: the host waits (at least `retry_after_s`, when given) and calls again."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class PermanentError(HeadraceError):
    """The same call will never succeed.

    `rows` maps `str(key)` of a written batch to the indexes of the refused rows in it. For hooks without a key
    (`enrich`, `decode`) the one entry has the key `""`. Empty: the range is refused, and the host finds the rows by halving.
    """

    def __init__(self, message: str, rows: Mapping[str, Sequence[int]] | None = None) -> None:
        self.rows: dict[str, list[int]] = {key: list(indexes) for key, indexes in (rows or {}).items()}
        super().__init__(message)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest known name, or nothing when none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
