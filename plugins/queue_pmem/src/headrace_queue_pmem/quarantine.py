"""What damage leaves: the bytes as they are, and a report beside them, for a person to look into."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

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
        side = ""
        if damage.length and self._bytes + damage.length <= BYTES_MAX and damage.content is not None:
            path = self._path(damage)
            path.write_bytes(damage.content)
            self._bytes += damage.length
            side = str(path)
        record = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "segment": damage.segment,
            "offset": damage.offset,
            "bytes": damage.length,
            "first": damage.first,
            "last": damage.last,
            "reason": damage.reason,
            "kept": side,
        }
        report = self._directory / "report.ndjson"
        if not report.exists() or report.stat().st_size < REPORTS_BYTES_MAX:
            with report.open("ab") as out:
                out.write(msgspec.json.encode(record) + b"\n")
        return side
