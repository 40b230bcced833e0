"""The host's register of queues that may still hold events (DELIVERY 10): no queue is forgotten because a config changed.

A small JSON file in the host's data folder, outside every queue's path. A queue enters it before its first use and leaves
it when it was closed empty. One that the config does not open any more is an *orphan*. Several processes may share one folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, NamedTuple

from headrace.locked import locked, replace_durably, sync_folder
from headrace.log import Log, describe

FILE: Final = "queues.json"


class Registered(NamedTuple):
    """One queue: the tier that used it, its plugin, and its place (the plugin's `path` option, made absolute)."""

    tier: str
    plugin: str
    path: str


class QueueRegister:
    """Reads and writes the register of one data folder."""

    def __init__(self, data_dir: Path) -> None:
        self._file = data_dir / FILE

    def entries(self) -> list[Registered]:
        """All queues that may still hold events; ValueError when the file cannot be read."""
        if not self._file.exists():
            return []
        try:
            return [Registered(**entry) for entry in json.loads(self._file.read_bytes())]
        except TypeError as error:
            raise ValueError(f"{self._file}: {error}") from error

    def set_aside_if_unreadable(self) -> None:
        """A host that does not start for a broken register would help nobody; the queues themselves are not touched."""
        try:
            self.entries()
        except ValueError as error:
            aside = self._file.replace(self._file.with_suffix(".corrupt"))
            Log("").error("register of queues is unreadable: set aside", path=str(aside), error=describe(error))

    def orphans(self, opened: set[str]) -> list[Registered]:
        """The registered queues whose path is not among those that the config opens."""
        return [entry for entry in self.entries() if entry.path not in opened]

    def add(self, entry: Registered, again: bool = True) -> None:
        """Note a queue before it takes anything; durable on return. `again`: make it so also when it is there."""
        with locked(self._file):
            if entry not in self.entries():
                self._write([*self._others(entry.path), entry])
            elif again:  # whoever wrote it may have been killed before; no rewriting, for a full disk must not keep a tier from starting
                sync_folder(self._file.parent)

    def drained(self, path: str) -> None:
        """The queue at `path` was closed empty."""
        with locked(self._file):
            self._write(self._others(path))

    def _others(self, path: str) -> list[Registered]:
        return [known for known in self.entries() if known.path != path]

    def _write(self, entries: list[Registered]) -> None:
        replace_durably(self._file, json.dumps([entry._asdict() for entry in entries], indent=1).encode())
