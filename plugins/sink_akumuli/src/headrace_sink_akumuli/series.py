"""The series that exist: number, reading, device, and the name with its tags, frozen until a rebuild.

One line of JSON each in a file that only grows, synced before the first point of the series is sent: a replay with
fresher context must find the same name, or it would make a second series (DELIVERY 22).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from headrace_sink_akumuli.render import prefix

_SHIFT: Final = 32


class Series(NamedTuple):
    """One series. reading, device: as in the events; name: as sent."""

    reading: str
    device: str
    name: str


class SeriesTable:
    """All series of one output, numbered from 0. At most `series_max`; not safe for several threads."""

    def __init__(self, path: Path, series_max: int) -> None:
        self._path, self._max = path, series_max
        self._file: Any = None
        self.clear()

    def clear(self) -> None:
        """Forget what was read; the file stays."""
        self.series: list[Series] = []
        self.readings: dict[str, int] = {}
        self._devices: dict[str, int] = {}
        self._by_name: dict[str, int] = {}
        # (reading << 32 | device) of every series, ascending, and its number: 12 bytes a series, found by halving
        self._keys = np.zeros(0, np.int64)
        self._numbers = np.zeros(0, np.int32)
        self._prefixes: pa.StringArray | None = None

    # --- the file ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Read the file. What a crash left of a line that was never synced is cut off. OSError where that cannot be."""
        whole = self.read()
        self._file = self._path.open("ab")
        if whole < self._file.tell():
            self._file.truncate(whole)

    def read(self) -> int:
        """Read the file without touching it; how many bytes of it are whole lines. OSError where it is damaged."""
        self.clear()
        whole = 0
        read: list[Series] = []
        data = self._path.read_bytes() if self._path.exists() else b""
        for line in data.splitlines(keepends=True):
            try:
                series = Series(*msgspec.json.decode(line, type=tuple[str, str, str]))
            except msgspec.MsgspecError:
                series = None
            if series is None or not line.endswith(b"\n"):
                if whole + len(line) < len(data):
                    raise OSError(f"{self._path}:{len(read) + 1}: expected a series, found none; run headrace akumuli rebuild")
                break
            read.append(series)
            whole += len(line)
        self._take(read)
        return whole

    def close(self) -> None:
        """Safe twice."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def add(self, new: Sequence[Series]) -> None:
        """Put series into the table, durably. They must be new, and there must be room."""
        assert self._file is not None, "the table of series is not open"
        start = self._file.tell()
        try:
            self._file.write(b"".join(msgspec.json.encode(series) + b"\n" for series in new))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError:
            # what came after a torn line would be read as damage
            os.ftruncate(self._file.fileno(), start)
            raise
        self._take(new)

    # --- asking ------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.series)

    @property
    def room(self) -> int:
        """How many more series there may be."""
        return max(0, self._max - len(self.series))

    @property
    def prefixes(self) -> pa.StringArray:
        """By number, the part of a message before the timestamp."""
        if self._prefixes is None or len(self._prefixes) != len(self.series):
            self._prefixes = pa.array([prefix(series.name) for series in self.series], pa.string())
        return self._prefixes

    def devices(self, names: Iterable[str]) -> Any:
        """The devices' numbers (int64), -1 for those without a series."""
        known = self._devices
        return np.array([known.get(name, -1) for name in names], np.int64)

    def find(self, reading: str, devices: Any) -> Any:
        """The numbers (int32) of a reading's series of these devices (numbers, as `devices` gives), -1 where there is none."""
        number = self.readings.get(reading)
        if number is None or not len(self._keys):
            return np.full(len(devices), -1, np.int32)
        wanted = (number << _SHIFT) | devices
        places = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return np.where((self._keys[places] == wanted) & (devices >= 0), self._numbers[places], np.int32(-1))

    def number_of(self, name: str) -> int | None:
        """The number of the series of that name."""
        return self._by_name.get(name)

    def _take(self, new: Sequence[Series]) -> None:
        first = len(self.series)
        self.series.extend(new)
        keys = np.empty(len(new), np.int64)
        for index, series in enumerate(new):
            reading = self.readings.setdefault(series.reading, len(self.readings))
            device = self._devices.setdefault(series.device, len(self._devices))
            keys[index] = reading << _SHIFT | device
            self._by_name[series.name] = first + index
        numbers = np.arange(first, first + len(new), dtype=np.int32)
        order = np.argsort(keys, kind="stable")
        keys, numbers = keys[order], numbers[order]
        places = np.searchsorted(self._keys, keys)
        self._keys = np.insert(self._keys, places, keys)
        self._numbers = np.insert(self._numbers, places, numbers)
