"""The last context, kept in a file, so that a restart while the database is down still knows the devices.

The file is an Arrow IPC stream (any Arrow library reads it) with the checksum of all of it behind its end. Its modification
time is the time at which the database last said so.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import pyarrow as pa

from headrace_enricher_context.held import Held, read_schema

_TRAILER: Final = struct.Struct("<4sI")
_MAGIC: Final = b"HRCX"


class BrokenFile(Exception):
    """The file does not hold a whole context; it was set aside. The text says why and where it is."""


class Stored(NamedTuple):
    """A context from the file, and the Unix time in seconds at which the database held it."""

    held: Held
    at: float


class ContextFile:
    """`context.arrows` in the component's directory. Blocking: call it in a thread.

    `origin` says how the fields are made (table, columns); a file of another origin is not this component's context.
    """

    def __init__(self, directory: Path, origin: str, fault: Callable[[str], None]) -> None:
        self._path = directory / "context.arrows"
        self._metadata = {b"headrace.context": origin.encode()}
        self._fault = fault

    def save(self, held: Held, at: float) -> None:
        """Replace the file: whole or not at all, whatever happens. Raises OSError."""
        temporary = self._path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            sink = _Checksummed(file)
            table = held.table.replace_schema_metadata(self._metadata)
            with pa.ipc.new_stream(pa.PythonFile(sink, "w"), table.schema) as writer:
                writer.write_table(table)
            file.write(_TRAILER.pack(_MAGIC, sink.checksum))
            file.flush()
            os.utime(temporary, (at, at))
            os.fsync(file.fileno())
        self._fault("context_written")
        temporary.replace(self._path)
        _sync_directory(self._path.parent)

    def confirm(self, at: float) -> None:
        """The database still says what the file holds. Raises OSError."""
        os.utime(self._path, (at, at))

    def load(self, fields: pa.Schema) -> Stored | None:
        """What the file holds, or None: no file, or one of another origin. Raises BrokenFile, OSError."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            table = _parse(content)
        except (ValueError, struct.error, pa.ArrowException) as error:
            aside = self._path.with_suffix(".broken")
            self._path.replace(aside)
            raise BrokenFile(f"expected a whole context in {self._path}, got one that is not ({error}); it is now {aside.name}") from error
        if table.schema.metadata != self._metadata:
            return None
        return Stored(Held(_plain(table).cast(read_schema(fields)), fields), self._path.stat().st_mtime)


class _Checksummed:
    """A file that keeps the checksum of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.checksum = 0
        self.closed = False

    def write(self, data: bytes) -> int:
        self.checksum = zlib.crc32(data, self.checksum)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self.closed = True


def _parse(content: bytes) -> pa.Table:
    magic, checksum = _TRAILER.unpack(content[-_TRAILER.size :])
    body = memoryview(content)[: -_TRAILER.size]
    if magic != _MAGIC:
        raise ValueError("its end is missing")
    if zlib.crc32(body) != checksum:
        raise ValueError("its checksum is wrong")
    return pa.ipc.open_stream(pa.py_buffer(body)).read_all()


def _plain(table: pa.Table) -> pa.Table:
    fields = [field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field for field in table.schema]
    return table.cast(pa.schema(fields))


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
