"""What is read from a file or a database at the start, and again whenever it changed; a failure keeps what was read last."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

from headrace import Context
from headrace.log import describe

#: How long a change may go unnoticed.
LOOK_S: Final = 2.0
#: File systems count time in steps: a file changed within this long before it was read may change again under the same stamp.
FRESH_S: Final = 2.0

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Unreadable(Exception):
    """It cannot be read now; the text says what, why, and what to do, and holds no secret."""


class Origin(Protocol[T_co]):
    """Where something is read from. Both calls block, and raise Unreadable."""

    def stamp(self) -> object:
        """Cheap: what changes whenever the content does. None: unknown, read it."""

    def read(self) -> T_co: ...


class Rereading(Generic[T]):
    """Holds what an origin says. `refresh` is called again and again, from one task at a time."""

    def __init__(self, origin: Origin[T], what: str, context: Context, changed: Callable[[], None]) -> None:
        """what: for logs, "tokens". `changed` is called after another value came, and never else."""
        self.origin = origin
        self.value: T | None = None
        self.problem = ""
        self._what, self._context, self.changed = what, context, changed
        self._stamp: object = None

    async def refresh(self) -> None:
        """Read it if it changed, away from the loop. Does not raise: what fails stands in `problem`, and the last value stays."""
        try:
            came = await self._context.call_blocking(self._read_if_changed)
        except Unreadable as error:
            self._fails(str(error))
            return
        except Exception as error:  # a library's own surprise must not end the task that watches
            self._context.log.exception("credentials cannot be read, which is a bug", error, what=self._what)
            self._fails(describe(error))
            return
        if self.problem:
            self.problem = ""
            self._context.log.info("credentials can be read again", what=self._what)
        if came is None:
            return
        value, self._stamp = came
        if value is not self.value:
            before = [self.value]
            self.take(value)
            # a hundred thousand objects are let go of away from the loop
            await self._context.call_blocking(before.clear)

    def trial(self) -> str | None:
        """Why it cannot be read now, or None. Blocks, and changes nothing."""
        try:
            self.origin.read()
        except Unreadable as error:
            return str(error)
        return None

    def take(self, value: T) -> None:
        """Put another value in the place of the last one."""
        self.value = value
        self.changed()

    def _read_if_changed(self) -> tuple[T, object] | None:
        stamp = self.origin.stamp()  # taken first: a change in between is then seen the next time
        if stamp is not None and stamp == self._stamp:
            return None
        value = self.origin.read()
        same = self.value is not None and value == self.value  # compared here, and not on the loop
        return (self.value if same else value), stamp  # type: ignore[return-value]

    def _fails(self, problem: str) -> None:
        if problem != self.problem:
            kept = "those read last" if self.value is not None else "none"
            self._context.log.warning("credentials cannot be read", what=self._what, kept=kept, error=problem)
        self.problem = problem
        self._stamp = None


def stamp_of(*paths: Path) -> object:
    """A stamp for files; None while one of them is so fresh that another change could hide behind the same stamp."""
    try:
        stats = [path.stat() for path in paths]
    except OSError as error:
        raise Unreadable(f"{error.filename}: {error.strerror}") from error
    if time.time() - max(stat.st_mtime for stat in stats) < FRESH_S:
        return None
    return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino, stat.st_dev) for stat in stats)


def read_file(path: Path) -> bytes:
    """A file's bytes; Unreadable when they cannot be had."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error
