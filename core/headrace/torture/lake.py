"""Reads a lake as anybody would: the Parquet files that are there, by DuckDB if it is installed, else by pyarrow. Never by the writer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from headrace.torture.events import READINGS

ROWS_PER_READ: Final = 50_000
#: In a file's name: the first position, in the queue that the lake reads, of the roll that it is of.
_FIRST: Final = re.compile(r"-(\d{20})-")


class Row(NamedTuple):
    """One stored event. roll: which files came before the one that it is in; readings: the values of events.READINGS."""

    device: str
    origin: str
    position: int
    roll: int
    readings: tuple[Any, ...]


def files(lakes: Iterable[Path]) -> list[Path]:
    """The data files of the lakes: below the partitions' folders, as every reader of such a lake finds them."""
    return sorted(file for lake in lakes for file in lake.glob("*=*/**/*.parquet"))


def reader() -> str:
    """Which reader it is, for the report."""
    return "duckdb" if _duckdb() is not None else "pyarrow"


def count(lakes: Sequence[Path]) -> int:
    """Rows in all files, by their footers. A file that vanishes meanwhile counts as none."""
    import pyarrow.parquet as pq

    total = 0
    for file in files(lakes):
        try:
            total += pq.read_metadata(file).num_rows
        except FileNotFoundError:
            continue
    return total


def rows(lakes: Sequence[Path]) -> Iterator[Row]:
    """Every row of every file."""
    found = files(lakes)
    if not found:
        return
    duckdb = _duckdb()
    for part in _by_duckdb(duckdb, found) if duckdb is not None else _by_pyarrow(found):
        for file, device, origin, position, *values in part:
            yield Row(device, str(origin), position, _roll(file), tuple(values))


def _roll(file: str) -> int:
    found = _FIRST.search(file)
    return int(found[1]) if found else 0


def _duckdb() -> Any:
    try:
        import duckdb
    except ImportError:
        return None
    return duckdb


def _by_duckdb(duckdb: Any, found: Sequence[Path]) -> Iterator[list[tuple[Any, ...]]]:
    readings = ", ".join(f"readings.{name}" for name in READINGS)
    with duckdb.connect() as connection:
        result = connection.execute(
            f"select filename, device, origin, position, {readings} "
            "from read_parquet(?, union_by_name = true, hive_partitioning = false, filename = true)",
            [[str(file) for file in found]],
        )
        while part := result.fetchmany(ROWS_PER_READ):
            yield part


def _by_pyarrow(found: Sequence[Path]) -> Iterator[list[tuple[Any, ...]]]:
    import pyarrow.parquet as pq

    for file in found:
        for batch in pq.ParquetFile(file).iter_batches(ROWS_PER_READ, columns=["device", "origin", "position", "readings"]):
            readings = batch.column("readings")
            names = {readings.type.field(index).name for index in range(readings.type.num_fields)}
            columns = [batch.column(name).to_pylist() for name in ("device", "origin", "position")]
            columns += [readings.field(name).to_pylist() if name in names else [None] * batch.num_rows for name in READINGS]
            yield list(zip([str(file)] * batch.num_rows, *columns, strict=True))
