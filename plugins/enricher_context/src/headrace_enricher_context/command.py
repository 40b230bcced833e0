"""`headrace context import`: a CSV or Parquet file of devices into the table that the enricher reads."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

import sqlalchemy as sa

from headrace.errors import did_you_mean
from headrace_enricher_context.csv_rows import CsvFile, FileError, Kind, Row, guesses
from headrace_enricher_context.database import Database
from headrace_enricher_context.parquet_rows import ParquetFile
from headrace_enricher_context.upsert import ROWS_PER_CHUNK, Converter, Counts, Refused, Upsert, converter, create_table, engine_for

DeviceFile = CsvFile | ParquetFile

PROGRESS_S: Final = 1.0
PARQUET_MAGIC: Final = b"PAR1"

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2

_EPILOG: Final = """\
The first line of a CSV file names the columns; all of them are imported. A table that is missing is made, with the key as its
primary key and each column as integer, float or text, whichever fits all its cells, or the type of a Parquet file's column; of
a table that exists the columns and types stay. Empty cells become NULL. Devices that are in the table and not in the file stay
as they are. All in one transaction: after an error nothing has changed. A running headrace takes the new rows at its next
refresh. A file is taken for Parquet by its first four bytes.

examples:
  headrace context import devices.csv --database sqlite:///data/context.db
  headrace context import devices.parquet --database sqlite:///data/context.db
  headrace context import devices.csv --database postgresql+psycopg://site@db.example/assets --table plant.devices --key serial

exit code: 0 imported, 1 the file or the database refused (the message names the line or row), 2 wrong usage
"""


class ImportFailed(Exception):
    """The import changed nothing; the text says why."""


def main(argv: list[str]) -> int:
    """Run `headrace context ARGV`; returns the exit code."""
    try:
        options = _parser().parse_args(argv)
    except SystemExit as exit_:  # --help, or wrong usage: argparse has said which
        return int(exit_.code or 0)
    try:
        url = sa.make_url(options.database)
    except (sa.exc.ArgumentError, ValueError):
        return _fail("--database: expected a URL such as sqlite:///data/context.db, got text that is not one", EXIT_USAGE)
    database = Database(options.database, connect_timeout_s=10, query_timeout_s=60)
    if problem := database.driver_problem():
        return _fail(f"--database: {problem}", EXIT_USAGE)
    if not options.file.is_file():
        came = "a folder" if options.file.is_dir() else "no such file"
        return _fail(f"{options.file}: expected a CSV or Parquet file, got {came}", EXIT_USAGE)
    try:
        counts, notes = _import(_opened(options.file, options.delimiter), url, database, options.table, options.key)
    except (FileError, ImportFailed) as error:
        return _fail(f"{error}; nothing was imported", EXIT_FAILED)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was imported", EXIT_FAILED)
    except (sa.exc.SQLAlchemyError, OSError) as error:
        return _fail(f"{database.name}: {database.plain(error)}; nothing was imported", EXIT_FAILED)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{options.table} in {database.name}: {counts.inserted} inserted, {counts.updated} updated, {counts.unchanged} unchanged")
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="headrace context", description="The site's context database.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "import",
        help="bring a CSV or Parquet file of devices into the database",
        description="Bring a CSV or Parquet file of devices into the database that enricher_context reads.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("file", type=Path, metavar="FILE", help="Parquet, or CSV in UTF-8 with a line of column names")
    command.add_argument("--database", required=True, metavar="URL", help="SQLAlchemy URL; a SQLite file is made if it is missing")
    command.add_argument("--table", default="devices", help="table or schema.table (default: %(default)s)")
    command.add_argument("--key", default="device", metavar="COLUMN", help="column with the device's id (default: %(default)s)")
    command.add_argument("--delimiter", default=",", type=_delimiter, metavar="CHAR", help="between cells of CSV (default: %(default)s)")
    return parser


def _delimiter(text: str) -> str:
    text = "\t" if text in ("\\t", "tab") else text
    if len(text) != 1 or text in '\r\n"':
        raise argparse.ArgumentTypeError(f"expected one character, got {text!r}")
    return text


def _fail(message: str, code: int) -> int:
    print(f"headrace context import: {message}", file=sys.stderr)
    return code


def _opened(path: Path, delimiter: str) -> DeviceFile:
    with path.open("rb") as file:
        magic = file.read(len(PARQUET_MAGIC))
    return ParquetFile(path) if magic == PARQUET_MAGIC else CsvFile(path, delimiter)


def _import(file: DeviceFile, url: sa.URL, database: Database, table_name: str, key: str) -> tuple[Counts, list[str]]:
    names = file.header()
    if key not in names:
        hint = did_you_mean(key, names) or "; name the column with the device's id by --key"
        if file.unit == "line" and len(names) == 1 and (other := next((one for one in ";\t|" if one in names[0]), "")):
            hint = f"; try --delimiter {'tab' if other == chr(9) else repr(other)}"
        raise file.error(1 if file.unit == "line" else 0, f"a column {key!r}", f"{', '.join(map(repr, names))}{hint}")
    kinds, repeated, notes = _survey(file, names, key, Progress(f"checked {{}} {file.unit}s", file.size, sys.stderr))
    if url.get_backend_name() == "sqlite" and url.database and not url.database.startswith((":memory:", "file:")):
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = engine_for(url)
    try:
        with engine.begin() as connection:
            table = _table(connection, table_name, key, kinds, notes)
            upsert = Upsert(connection, table, key, names)
            counts = Counts()
            progress = Progress(f"imported {{}} {file.unit}s", file.size, sys.stderr)
            for lines, rows in _chunks(file, names, key, table, connection.dialect.name, repeated, progress):
                try:
                    counts = counts.plus(upsert.write(rows))
                except Refused as refused:
                    reason = database.plain(refused.error)
                    raise file.error(lines[refused.index], "a row that the database takes", reason) from refused
        return counts, notes
    finally:
        engine.dispose()


def _survey(file: DeviceFile, names: Sequence[str], key: str, progress: Progress) -> tuple[dict[str, Kind], dict[str, int], list[str]]:
    """First pass: the columns' kinds, the last line of each key that stands several times, and what to tell about it."""
    columns = guesses(names, key)
    place = names.index(key)
    typed = file.kinds()
    lines: dict[str, int] = {}
    repeated: dict[str, int] = {}
    for row in file.rows(len(names), progress.add):
        device = _key(file, row, place, key)
        if device in lines:
            repeated[device] = row.line
        lines[device] = row.line
        for column, cell in zip(columns, row.cells, strict=True) if typed is None else ():
            if cell is not None:
                column.add(cell, row.line)
    progress.end()
    notes = [
        f"{file.path}: {key} {device!r} stands more than once; {file.unit} {line} counts" for device, line in list(repeated.items())[:5]
    ]
    if len(repeated) > 5:
        notes.append(f"{file.path}: so do {len(repeated) - 5} more; the last {file.unit} of each counts")
    notes += [f"column {column.name!r} became text because of {column.spoiler}" for column in columns if column.spoiler]
    if typed is not None:
        return {name: "text" if name == key else kind for name, kind in zip(names, typed, strict=True)}, repeated, notes
    return {column.name: column.result() for column in columns}, repeated, notes


def _key(file: DeviceFile, row: Row, place: int, key: str) -> str:
    device = row.cells[place]
    if device is None:
        raise file.error(row.line, f"a {key} in column {place + 1}", "an empty cell")
    return device


def _table(connection: sa.Connection, table_name: str, key: str, kinds: Mapping[str, Kind], notes: list[str]) -> sa.Table:
    schema, _, name = table_name.rpartition(".")
    try:
        table = sa.Table(name, sa.MetaData(), schema=schema or None, autoload_with=connection, resolve_fks=False)
    except sa.exc.NoSuchTableError:
        return create_table(connection, schema or None, name, key, kinds)
    notes[:] = [note for note in notes if not note.startswith("column ")]  # the table's types count, not the guessed ones
    missing = [column for column in kinds if column not in table.c]
    if missing:
        near = "".join(did_you_mean(column, list(table.c.keys())) for column in missing[:3])
        raise ImportFailed(
            f"table {table_name!r} has no column {', '.join(map(repr, missing))}{near}; it has: {', '.join(table.c.keys())}; "
            "add it with ALTER TABLE, or leave it out of the file"
        )
    return table


def _chunks(
    file: DeviceFile,
    names: Sequence[str],
    key: str,
    table: sa.Table,
    dialect: str,
    repeated: Mapping[str, int],
    progress: Progress,
) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
    """Second pass: converted rows and their lines, without those that a later line replaces."""
    place = names.index(key)
    converters = [converter(table.c[name], dialect) for name in names]
    lines: list[int] = []
    chunk: list[dict[str, Any]] = []
    for row in file.rows(len(names), progress.add):
        if repeated.get(_key(file, row, place, key), row.line) != row.line:
            continue
        lines.append(row.line)
        chunk.append(_converted(file, row, names, converters))
        if len(chunk) == ROWS_PER_CHUNK:
            yield lines, chunk
            lines, chunk = [], []
    if chunk:
        yield lines, chunk
    progress.end()


def _converted(file: DeviceFile, row: Row, names: Sequence[str], converters: Sequence[tuple[str, Converter]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, cell, (expected, convert) in zip(names, row.cells, converters, strict=True):
        try:
            values[name] = None if cell is None else convert(cell)
        except ValueError:
            raise file.error(row.line, f"{expected} in column {name!r}", repr(cell)) from None
    return values


class Progress:
    """Says on stderr how far a long pass is, once a second. words: with a place for the number of lines."""

    def __init__(self, words: str, size: int, out: TextIO) -> None:
        self._words, self._size, self._out = words, max(1, size), out
        self._done = self._lines = 0
        self._next = time.monotonic() + PROGRESS_S
        self._shown = False

    def add(self, size: int) -> None:
        """One more line was read, which is so much of the file's size."""
        self._done += size
        self._lines += 1
        if self._lines % 1000 == 0 and (now := time.monotonic()) >= self._next:
            self._next = now + PROGRESS_S
            self._shown = True
            end = "\r" if self._out.isatty() else "\n"
            print(f"{self._words.format(self._lines)} ({100 * self._done // self._size} %)", end=end, file=self._out, flush=True)

    def end(self) -> None:
        """The pass is over."""
        if self._shown and self._out.isatty():
            print(file=self._out)
