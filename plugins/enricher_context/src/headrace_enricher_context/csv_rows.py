"""Rows of a CSV file with the line that each stands on, and the types that its columns seem to have.

Lines are decoded one by one, so that an error names the very line.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Literal, NamedTuple

Kind = Literal["int", "float", "text"]

#: A code such as 007 is text: as a number it would lose its zeros.
_INT: Final = re.compile(r"[+-]?(?:0|[1-9][0-9]{0,18})")
_FLOAT: Final = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")


class FileError(Exception):
    """The file is not what it should be; the text begins with file and line, or row."""


class Row(NamedTuple):
    """One record: the line on which it begins, and its cells; empty cells are None."""

    line: int
    cells: list[str | None]


@dataclass
class CsvFile:
    """A CSV file in UTF-8 whose first line names the columns."""

    path: Path
    delimiter: str = ","
    unit: ClassVar[str] = "line"

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.path.stat().st_size

    def kinds(self) -> None:
        """Nothing says what the columns are: their cells have to be looked at."""

    def header(self) -> list[str]:
        """The names of the columns. Raises FileError where one is empty or stands twice, or there are none."""
        first = next(self._records(lambda size: None), None)
        if first is None:
            raise self.error(1, "a line that names the columns", "an empty file")
        names = [(cell or "").strip() for cell in first.cells]
        for name in names:
            if not name or names.count(name) > 1:
                problem = f"{name!r} twice" if name else "a column without a name"
                raise self.error(first.line, "column names that differ", f"{problem}, in {', '.join(map(repr, names))}")
        return names

    def rows(self, width: int, progress: Callable[[int], None] = lambda size: None) -> Iterator[Row]:
        """The rows behind the header; `progress` gets the bytes of every line. Raises FileError."""
        records = self._records(progress)
        next(records, None)
        for row in records:
            if len(row.cells) != width:
                raise self.error(row.line, f"{width} cells, as in the header", f"{len(row.cells)}")
            yield row

    def error(self, line: int, expected: str, came: str) -> FileError:
        """An error at a line of this file."""
        return FileError(f"{self.path}:{line}: expected {expected}, got {came}")

    def _records(self, progress: Callable[[int], None]) -> Iterator[Row]:
        reader = csv.reader(self._lines(progress), delimiter=self.delimiter, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise self.error(max(line, reader.line_num), "a line of CSV", f"a syntax error: {error}") from error
            if cells:  # an empty line is no row
                yield Row(line, [cell or None for cell in cells])

    def _lines(self, progress: Callable[[int], None]) -> Iterator[str]:
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                progress(len(raw))
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    came = f"byte 0x{raw[error.start]:02x} at byte {error.start + 1} of the line"
                    raise self.error(number, "UTF-8 text", came) from error
                if "\0" in text:
                    raise self.error(number, "text", "a NUL character")
                yield text


@dataclass
class Guess:
    """The narrowest kind that fits all cells of a column so far, and the cell that made it text."""

    name: str
    kind: Kind = "int"
    seen: bool = False
    spoiler: str = ""

    def add(self, cell: str, line: int) -> None:
        """Look at one more cell that is not empty."""
        if self.kind != "text" and (kind := kind_of(cell)) != "int":
            if kind == "text" and self.seen:
                self.spoiler = f"{cell!r} in line {line}"
            self.kind = kind
        self.seen = True

    def result(self) -> Kind:
        return self.kind if self.seen else "text"


def kind_of(cell: str) -> Kind:
    """What a cell looks like: int (64 bits), float (finite) or text."""
    text = cell.strip()
    if _INT.fullmatch(text) and -(2**63) <= int(text) < 2**63:
        return "int"
    if _FLOAT.fullmatch(text) and abs(float(text)) != float("inf"):
        return "float"
    return "text"


def guesses(names: Sequence[str], key: str) -> list[Guess]:
    """One guess per column; the key is text, whatever it looks like."""
    return [Guess(name, "text" if name == key else "int") for name in names]
