"""Sends recorded readings (CSV files `timestamp,value`) as the devices that a devices CSV names."""

from __future__ import annotations

import asyncio
import csv
import datetime
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from headrace.devices.client import DeviceClient
from headrace.devices.reconnect import GaveUp
from headrace.errors import HeadraceError

DEVICE_COLUMNS: Final = ("device", "metric", "file")
ROW_COLUMNS: Final = ("timestamp", "value")
JSON_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


class ReplayError(HeadraceError):
    """A file is not what it should be: `path`, `line` (from 1), and what was expected."""

    def __init__(self, path: Path, line: int, problem: str) -> None:
        self.path, self.line, self.problem = path, line, problem
        super().__init__(f"{path}:{line}: {problem}")


class Recording(NamedTuple):
    """One file, the device that it came from, and the name of its reading."""

    device: str
    metric: str
    path: Path


class Row(NamedTuple):
    """One line of a recording: its number, the time in Unix seconds, and the message."""

    line: int
    at: float
    payload: bytes


def recordings(paths: Sequence[Path], devices_csv: Path) -> list[Recording]:
    """Match each file with its row of the devices CSV, by file name; the devices CSV itself may be among the files."""
    by_file: dict[str, tuple[int, str, str]] = {}
    with devices_csv.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        absent = [name for name in DEVICE_COLUMNS if name not in (reader.fieldnames or ())]
        if absent:
            raise ReplayError(devices_csv, 1, f"expected the columns {', '.join(DEVICE_COLUMNS)}, {', '.join(absent)} is missing")
        for row in reader:
            device, metric, name = (row[column] for column in DEVICE_COLUMNS)
            if not device or not metric or not name:
                raise ReplayError(devices_csv, reader.line_num, "expected a device, a metric and a file, one is empty")
            if name in by_file:
                raise ReplayError(devices_csv, reader.line_num, f"expected each file once, {name!r} stands in line {by_file[name][0]} too")
            by_file[name] = (reader.line_num, device, metric)
    found = []
    for path in paths:
        if path.resolve() == devices_csv.resolve():
            continue
        if path.name not in by_file:
            raise ReplayError(
                devices_csv, 1, f"expected a row whose file is {path.name!r}, found none; files: {', '.join(sorted(by_file))}"
            )
        _line, device, metric = by_file[path.name]
        found.append(Recording(device, metric, path))
    seen: dict[str, Path] = {}
    for recording in found:
        if (other := seen.setdefault(recording.device, recording.path)) is not recording.path:
            raise ReplayError(
                devices_csv, by_file[recording.path.name][0], f"expected one file per device, {other} is of {recording.device!r} too"
            )
    return found


def rows(recording: Recording) -> Iterator[Row]:
    """The messages of a recording in file order; raises ReplayError at the first line that is not `timestamp,value`.

    Timestamps without a zone are taken as UTC. The number keeps the digits that the file gives it.
    """
    prefix = b'{"ts":"%s",' + msgspec.json.encode(recording.metric).replace(b"%", b"%%") + b":%s}"
    with recording.path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if tuple(header) != ROW_COLUMNS:
            raise ReplayError(recording.path, 1, f"expected the header {','.join(ROW_COLUMNS)!r}, got {','.join(header)!r}")
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(ROW_COLUMNS):
                raise ReplayError(recording.path, reader.line_num, f"expected 2 fields, got {len(fields)}")
            stamp, value = fields
            if not JSON_NUMBER.fullmatch(value):
                raise ReplayError(recording.path, reader.line_num, f"expected a number in the field value, got {value!r}")
            try:
                at = datetime.datetime.fromisoformat(stamp)
            except ValueError:
                raise ReplayError(
                    recording.path, reader.line_num, f"expected a timestamp like 2013-12-02 21:15:00, got {stamp!r}"
                ) from None
            at = at.replace(tzinfo=datetime.UTC) if at.tzinfo is None else at.astimezone(datetime.UTC)
            text = at.isoformat().replace("+00:00", "Z")
            yield Row(reader.line_num, at.timestamp(), prefix % (text.encode(), value.encode()))


def check(sources: Sequence[Recording]) -> int:
    """Read every file once, so that nothing is sent of a set that is broken; the number of rows."""
    return sum(1 for recording in sources for _row in rows(recording))


class Replay:
    """Sends recordings at `speed` times real time (None: as fast as acks allow); each starts with its first row at once."""

    def __init__(self, sources: Sequence[Recording], speed: float | None) -> None:
        self._sources, self._speed = sources, speed

    async def feed(self, clients: Sequence[DeviceClient], stop: asyncio.Event) -> None:
        """Give every client its file, all at the same time."""
        stopped = asyncio.create_task(stop.wait())
        feeds = [asyncio.create_task(self._one(source, client)) for source, client in zip(self._sources, clients, strict=True)]
        all_fed = asyncio.gather(*feeds)
        try:
            await asyncio.wait((all_fed, stopped), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            all_fed.cancel()
            results = await asyncio.gather(*feeds, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _one(self, recording: Recording, client: DeviceClient) -> None:
        start, first = time.monotonic(), None
        for row in rows(recording):
            first = row.at if first is None else first
            if self._speed is not None:
                wait_s = start + (row.at - first) / self._speed - time.monotonic()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
            try:
                await client.send(row.payload, f"{recording.path}:{row.line}")
            except GaveUp:
                return  # said and counted where the client runs; the other devices go on
