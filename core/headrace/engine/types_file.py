"""The types of a tier's readings on disk: one file for all workers of the tier, so that no two of them disagree."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from headrace.decoding import ARROW_TYPES
from headrace.locked import locked, replace_durably
from headrace.log import Log, describe


class TypesFile:
    """Reads and extends one tier's file. What the site declares holds, whatever the file says."""

    def __init__(self, path: Path, names_max: int, declared: Mapping[str, str] | None = None) -> None:
        self.path, self._names_max = path, names_max
        self.declared = declared or {}

    def load(self, log: Log) -> dict[str, str]:
        """What is known; a file that cannot be read is set aside."""
        try:
            known = self._read()
        except ValueError as error:
            aside = self.path.with_suffix(".corrupt")
            if self.path.exists():  # else another worker has set it aside
                self.path.replace(aside)
            log.error("types of readings are unreadable: set aside, they are learned anew", path=str(aside), error=describe(error))
            return {}
        for name, kind in self.declared.items():
            if known.get(name, kind) != kind:
                log.warning("a reading changes its type: it is declared now", reading=name, before=known[name], now=kind)
        return known

    def extend(self, types: Mapping[str, str]) -> dict[str, str]:
        """Add what is new in `types`, and return what holds now, durable: of a name that is there already the file's type counts.

        Raises OSError; BlockingIOError while another worker is at it.
        """
        with locked(self.path, wait=False):
            try:
                known = self._read()
            except ValueError:
                known = {}  # broken since it was loaded: what we know is all that is known
            held = {**known, **self.declared}
            for name, kind in types.items():
                if len(held) < self._names_max:
                    held.setdefault(name, kind)
            if held != known:
                replace_durably(self.path, json.dumps(held).encode())
        return held

    def _read(self) -> dict[str, str]:
        try:
            types = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        if not isinstance(types, dict) or not set(types.values()) <= set(ARROW_TYPES):
            raise ValueError(f"expected an object of {', '.join(ARROW_TYPES)}")
        return types
