"""`headrace context import`: a CSV file of devices into the table that the enricher reads."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

import sqlalchemy as sa

from headrace.errors import did_you_mean
from headrace_enricher_context.csv_rows import CsvError, CsvFile, Kind, Row, guesses
from headrace_enricher_context.database import Database
from headrace_enricher_context.upsert import ROWS_PER_CHUNK, Converter, Counts, Refused, Upsert, converter, create_table, engine_for

PROGRESS_S: Final = 1.0

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2

_EPILOG: Final = """\
The first line of the CSV names the columns; all of them are imported. A table that is missing is made, with the key as its
primary key and each column as integer, float or text, whichever fits all its cells; of a table that exists the columns and
types stay. Empty cells become NULL. Devices that are in the table and not in the CSV stay as they are. All in one
transaction: after an error nothing has changed. A running headrace takes the new rows at its next refresh.

examples:
  headrace context import devices.csv --database sqlite:///data/context.db
  headrace context import devices.csv --database postgresql+psycopg://site@db.example/assets --table plant.devices --key serial

exit code: 0 imported, 1 the CSV or the database refused (the message names the line), 2 wrong usage
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
    if not options.csv.is_file():
        return _fail(f"{options.csv}: expected a CSV file, got {'a folder' if options.csv.is_dir() else 'no such file'}", EXIT_USAGE)
    try:
        counts, notes = _import(CsvFile(options.csv, options.delimiter), url, database, options.table, options.key)
    except (CsvError, ImportFailed) as error:
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
        help="bring a CSV file of devices into the database",
        description="Bring a CSV file of devices into the database that enricher_context reads.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("csv", type=Path, metavar="CSV", help="the file, UTF-8, with a line of column names")
    command.add_argument("--database", required=True, metavar="URL", help="SQLAlchemy URL; a SQLite file is made if it is missing")
    command.add_argument("--table", default="devices", help="table or schema.table (default: %(default)s)")
    command.add_argument("--key", default="device", metavar="COLUMN", help="column with the device's id (default: %(default)s)")
    command.add_argument("--delimiter", default=",", type=_delimiter, metavar="CHAR", help="between cells (default: %(default)s)")
    return parser


def _delimiter(text: str) -> str:
    text = "\t" if text in ("\\t", "tab") else text
    if len(text) != 1 or text in '\r\n"':
        raise argparse.ArgumentTypeError(f"expected one character, got {text!r}")
    return text


def _fail(message: str, code: int) -> int:
    print(f"headrace context import: {message}", file=sys.stderr)
    return code


def _import(file: CsvFile, url: sa.URL, database: Database, table_name: str, key: str) -> tuple[Counts, list[str]]:
    names = file.header()
    if key not in names:
        hint = did_you_mean(key, names) or "; name the column with the device's id by --key"
        if len(names) == 1 and (other := next((one for one in ";\t|" if one in names[0]), "")):
            hint = f"; try --delimiter {'tab' if other == chr(9) else repr(other)}"
        raise file.error(1, f"a column {key!r}", f"{', '.join(map(repr, names))}{hint}")
    size_bytes = file.path.stat().st_size
    kinds, repeated, notes = _survey(file, names, key, Progress("checked", size_bytes, sys.stderr))
    if url.get_backend_name() == "sqlite" and url.database and not url.database.startswith((":memory:", "file:")):
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = engine_for(url)
    try:
        with engine.begin() as connection:
            table = _table(connection, table_name, key, kinds, notes)
            upsert = Upsert(connection, table, key, names)
            counts = Counts()
            progress = Progress("imported", size_bytes, sys.stderr)
            for lines, rows in _chunks(file, names, key, table, connection.dialect.name, repeated, progress):
                try:
                    counts = counts.plus(upsert.write(rows))
                except Refused as refused:
                    reason = database.plain(refused.error)
                    raise file.error(lines[refused.index], "a row that the database takes", reason) from refused
        return counts, notes
    finally:
        engine.dispose()


def _survey(file: CsvFile, names: Sequence[str], key: str, progress: Progress) -> tuple[dict[str, Kind], dict[str, int], list[str]]:
    """First pass: the columns' kinds, the last line of each key that stands several times, and what to tell about it."""
    columns = guesses(names, key)
    place = names.index(key)
    lines: dict[str, int] = {}
    repeated: dict[str, int] = {}
    for row in file.rows(len(names), progress.add):
        device = _key(file, row, place, key)
        if device in lines:
            repeated[device] = row.line
        lines[device] = row.line
        for column, cell in zip(columns, row.cells, strict=True):
            if cell is not None:
                column.add(cell, row.line)
    progress.end()
    notes = [f"{file.path}: {key} {device!r} stands more than once; line {line} counts" for device, line in list(repeated.items())[:5]]
    if len(repeated) > 5:
        notes.append(f"{file.path}: so do {len(repeated) - 5} more; the last line of each counts")
    notes += [f"column {column.name!r} became text because of {column.spoiler}" for column in columns if column.spoiler]
    return {column.name: column.result() for column in columns}, repeated, notes


def _key(file: CsvFile, row: Row, place: int, key: str) -> str:
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
            "add it with ALTER TABLE, or leave it out of the CSV"
        )
    return table


def _chunks(
    file: CsvFile, names: Sequence[str], key: str, table: sa.Table, dialect: str, repeated: Mapping[str, int], progress: Progress
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


def _converted(file: CsvFile, row: Row, names: Sequence[str], converters: Sequence[tuple[str, Converter]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, cell, (expected, convert) in zip(names, row.cells, converters, strict=True):
        try:
            values[name] = None if cell is None else convert(cell)
        except ValueError:
            raise file.error(row.line, f"{expected} in column {name!r}", repr(cell)) from None
    return values


class Progress:
    """Says on stderr how far a long pass is, once a second."""

    def __init__(self, verb: str, size_bytes: int, out: TextIO) -> None:
        self._verb, self._size_bytes, self._out = verb, max(1, size_bytes), out
        self._bytes = self._lines = 0
        self._next = time.monotonic() + PROGRESS_S
        self._shown = False

    def add(self, line_bytes: int) -> None:
        """One more line was read."""
        self._bytes += line_bytes
        self._lines += 1
        if self._lines % 1000 == 0 and (now := time.monotonic()) >= self._next:
            self._next = now + PROGRESS_S
            self._shown = True
            end = "\r" if self._out.isatty() else "\n"
            print(f"{self._verb} {self._lines} lines ({100 * self._bytes // self._size_bytes} %)", end=end, file=self._out, flush=True)

    def end(self) -> None:
        """The pass is over."""
        if self._shown and self._out.isatty():
            print(file=self._out)
