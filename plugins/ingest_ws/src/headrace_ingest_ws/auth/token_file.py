"""The file that holds tokens' hashes: CSV with a header, replaced as a whole by whoever changes it."""

from __future__ import annotations

import csv
import fcntl
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace_ingest_ws.auth.rereading import Unreadable, stamp_of
from headrace_ingest_ws.auth.tokens import Record, TokenSet

HEADER = list(Record._fields)


class TokenFile:
    """Reads and changes the file. Everything here is blocking."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        return str(self.path)

    # --- for the server

    def stamp(self) -> object:
        """What changes when the file does. Raises Unreadable."""
        return stamp_of(self.path)

    def read(self) -> TokenSet:
        """Raises Unreadable for a file that is not there, or is wrong anywhere."""
        return token_set(self.name, _records(self.path))

    def records(self) -> list[Record]:
        """All tokens, in the order in which they were made. Raises Unreadable."""
        return list(_records(self.path))

    # --- for the command

    def add(self, records: Iterable[Record]) -> None:
        """Append, under a lock against others who change the file."""
        with self._changing(missing_ok=True) as known:
            known.extend(records)

    def revoke(self, doomed: set[str]) -> int:
        """Take out the tokens with these ids; how many there were."""
        with self._changing() as known:
            before = len(known)
            known[:] = [record for record in known if record.id not in doomed]
            return before - len(known)

    @contextmanager
    def _changing(self, missing_ok: bool = False) -> Iterator[list[Record]]:
        # The lock is a file of its own: the file itself is replaced under whoever waits for it.
        lock_path = self.path.with_name(self.path.name + ".lock")
        try:
            with lock_path.open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                known = [] if missing_ok and not self.path.exists() else self.records()
                yield known
                TokenSet(known)  # never write what the server would refuse to read
                self._replace(known)
        except OSError as error:
            raise Unreadable(f"{self.path}: cannot be changed: {error.strerror or error}") from error

    def _replace(self, records: Iterable[Record]) -> None:
        replace_file(self.path, records)


def replace_file(path: Path, records: Iterable[Record]) -> None:
    """Write all records to a new file, make it durable, and put it in the place of the old one, with the old one's owner and mode."""
    path = path.resolve()  # of a symbolic link, what it points to
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    new = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(HEADER)
            writer.writerows(records)
            _take_over(path, file.fileno())
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _take_over(path: Path, descriptor: int) -> None:
    try:
        old = path.stat()
    except FileNotFoundError:
        return  # mkstemp made it for its owner only
    os.fchmod(descriptor, old.st_mode & 0o777)
    if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
        os.fchown(descriptor, old.st_uid, old.st_gid)


def _records(path: Path) -> Iterator[Record]:
    """Row by row: ten megabytes at once would hold the interpreter's lock for some 30 ms."""
    line = 0
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file, strict=True)
            # without its header a file that a full disk cut to nothing would look like one that revokes everybody
            header = next(rows, [])
            if header != HEADER:
                came = ",".join(header)[:80] or "an empty file"
                raise Unreadable(f"{path}: expected the header {','.join(HEADER)}, got {came}")
            for row in rows:
                line = rows.line_num
                if len(row) != len(HEADER):
                    raise Unreadable(f"{path}:{line}: expected {len(HEADER)} columns, got {len(row)}")
                yield Record(*row)
    except FileNotFoundError:
        raise Unreadable(f"{path}: no such file; make it with: headrace devices token add DEVICE --file {path}") from None
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise Unreadable(f"{path}: expected CSV in UTF-8 behind line {line}: {error}") from error


def token_set(name: str, records: Iterable[Record]) -> TokenSet:
    """The records as a set; Unreadable when one of them is wrong."""
    try:
        return TokenSet(records)
    except ValueError as error:
        raise Unreadable(f"{name}: {error}") from None
