"""What damage leaves: the bytes as they are, and a report beside them, for a person to look into."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace_queue_pmem.state import Damage

#: Side files are evidence, not data: they are bounded, and the report goes on when they are full.
BYTES_MAX: Final = 64 << 20
REPORTS_BYTES_MAX: Final = 4 << 20


class Quarantine:
    """The directory `quarantine` of a queue: `report.ndjson`, and one file per damaged range."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._queue = directory / "quarantine", directory
        self._bytes = 0

    def keep(self, damage: Damage) -> str:
        """Keep a damaged range; returns the side file's path, or "" where there is nothing to keep or no room for it."""
        try:
            return self._keep(damage)
        except OSError:
            return ""  # the counter and the log line have been written in any case

    def has(self, damage: Damage) -> bool:
        """Whether the bytes of this range were kept before."""
        return self._path(damage).exists()

    def _path(self, damage: Damage) -> Path:
        return self._directory / f"{damage.segment}-{damage.offset}-{damage.first}.bin"

    def _keep(self, damage: Damage) -> str:
        self._directory.mkdir(exist_ok=True, mode=0o700)
        side, once = "", damage.length == 0
        if damage.length and self._bytes + damage.length <= BYTES_MAX and damage.content is not None:
            path = self._path(damage)
            once = path.exists()
            path.write_bytes(damage.content)
            self._bytes += damage.length
            side = str(path)
        record = {
            "segment": damage.segment,
            "offset": damage.offset,
            "bytes": damage.length,
            "first": damage.first,
            "last": damage.last,
            "reason": damage.reason,
            "kept": side,
        }
        self._report(record, once)  # every open meets the same again until the readers have passed it
        return side

    def set_aside(self, name: str, reason: str) -> None:
        """Report a file that was renamed as a whole."""
        with contextlib.suppress(OSError):
            self._directory.mkdir(exist_ok=True, mode=0o700)
            self._report({"file": name, "reason": reason})

    def _report(self, record: dict[str, Any], once: bool = False) -> None:
        report = self._directory / "report.ndjson"
        size = report.stat().st_size if report.exists() else 0
        line = msgspec.json.encode(record)[1:] + b"\n"
        if size >= REPORTS_BYTES_MAX or (once and size and line in report.read_bytes()):
            return
        when = msgspec.json.encode({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})
        with report.open("ab") as out:
            out.write(when[:-1] + b"," + line)
