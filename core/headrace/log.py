"""Structured logs: a constant message and fields; JSON when not on a terminal; repeats are counted, not printed.

The message is the stable id of the event ("sink write failed"); what varies goes into fields, never into the message.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
import time
from dataclasses import dataclass
from typing import Any, Final, TextIO

ROOT: Final = "headrace"

#: A message of one logger and component is printed at most REPEATS_MAX times in REPEATS_WINDOW_S seconds; the next one printed says how
#: many were left out. While it goes on like that, each window is twice as long as the one before: what is wrong for a
#: night must not fill the log of a night.
REPEATS_MAX: Final = 5
REPEATS_WINDOW_S: Final = 10.0
REPEATS_WINDOW_S_MAX: Final = 640.0


class Log:
    """A logger whose methods take fields as keywords."""

    def __init__(self, name: str, **fields: Any) -> None:
        self._logger = logging.getLogger(f"{ROOT}.{name}" if name else ROOT)
        self._fields = fields

    def bind(self, **fields: Any) -> Log:
        """The same logger with more preset fields."""
        other = Log("", **{**self._fields, **fields})
        other._logger = self._logger
        return other

    def debug(self, message: str, /, **fields: Any) -> None:
        self._log(logging.DEBUG, message, fields)

    def info(self, message: str, /, **fields: Any) -> None:
        self._log(logging.INFO, message, fields)

    def warning(self, message: str, /, **fields: Any) -> None:
        self._log(logging.WARNING, message, fields)

    def error(self, message: str, /, **fields: Any) -> None:
        self._log(logging.ERROR, message, fields)

    def exception(self, message: str, error: BaseException, /, **fields: Any) -> None:
        """An error with its traceback: for bugs, not for conditions that were foreseen."""
        if self._logger.isEnabledFor(logging.ERROR):
            self._logger.error(message, exc_info=error, extra={"fields": {**self._fields, **fields, "error": describe(error)}})

    def _log(self, level: int, message: str, fields: dict[str, Any]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, message, extra={"fields": {**self._fields, **fields}})


def describe(error: BaseException) -> str:
    """An error in one line: its text, or its type where it has none."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class RepeatFilter(logging.Filter):
    """Lets a component's message through REPEATS_MAX times per window and tells how many it held back."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[Any, ...], _Repeats] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        fields = getattr(record, "fields", {})
        # a component that goes up and down must not hide what another one says
        key, now = (record.name, str(record.msg), fields.get("tier"), fields.get("component")), time.monotonic()
        if len(self._seen) > 1000:
            self._seen.clear()
        seen = self._seen.setdefault(key, _Repeats(now, REPEATS_WINDOW_S))
        if now - seen.since >= seen.window_s:
            if seen.count > REPEATS_MAX:
                record.repeats_left_out = seen.count - REPEATS_MAX
            goes_on = seen.count > REPEATS_MAX and now - seen.since < 2 * seen.window_s
            seen.window_s = min(2 * seen.window_s, REPEATS_WINDOW_S_MAX) if goes_on else REPEATS_WINDOW_S
            seen.since, seen.count = now, 0
        seen.count += 1
        return seen.count <= REPEATS_MAX


@dataclass
class _Repeats:
    """A message's present window: when it began, how long it is, and how often the message came in it."""

    since: float
    window_s: float
    count: int = 0


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        # a field never hides what every line has: `level` of a queue becomes `level_`
        line.update({f"{key}_" if key in line else key: value for key, value in _fields(record).items()})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """For people: time, level, message, `key=value`."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{key}={value}" for key, value in _fields(record).items())
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{clock} {record.levelname.lower():<7} {record.getMessage()}" + (f"  {fields}" if fields else "")
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = dict(getattr(record, "fields", {}))
    if left_out := getattr(record, "repeats_left_out", 0):
        fields["repeats_left_out"] = left_out
    return fields


def set_up(level: str = "info", stream: TextIO | None = None) -> None:
    """Send headrace's logs to `stream` (stderr): text on a terminal, JSON elsewhere."""
    out = stream or sys.stderr
    handler = logging.StreamHandler(out)
    handler.setFormatter(TextFormatter() if out.isatty() else JsonFormatter())
    handler.addFilter(RepeatFilter())
    logger = logging.getLogger(ROOT)
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
