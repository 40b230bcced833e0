"""Arrow IPC messages from elsewhere, looked at before they are read: pyarrow unpacks compressed buffers to whatever size they claim.

A message of 140 KB became 600 MB of events. What is not compressed is never larger than what came. No I/O.
"""

from __future__ import annotations

from struct import Struct, error
from typing import Any, Final

import pyarrow as pa

#: Before each message: that one follows, and the size of its metadata.
_FRAMING: Final = Struct("<Ii")
_CONTINUES: Final = 0xFFFF_FFFF
#: Places of fields in the tables of Arrow's Message.fbs.
_HEADER_TYPE: Final = 1
_HEADER: Final = 2
_BODY_LENGTH: Final = 3
_DICTIONARY_DATA: Final = 1
_COMPRESSION: Final = 3
#: Values of `header_type`.
_DICTIONARY_BATCH: Final = 2
_RECORD_BATCH: Final = 3
#: How Arrow said it before its format had a field for that; it still reads it.
_EXPERIMENTAL: Final = b"ARROW:experimental_compression"

_INT32: Final = Struct("<i")
_UINT32: Final = Struct("<I")
_UINT16: Final = Struct("<H")
_INT64: Final = Struct("<q")


def read_batch(payload: Any, schema: pa.Schema) -> pa.RecordBatch:
    """The batch in a bare record batch message. ArrowException, OSError or ValueError when it is none, or compressed."""
    _check(payload)
    return pa.ipc.read_record_batch(pa.ipc.read_message(pa.py_buffer(payload)), schema)


def read_stream(payload: Any) -> pa.RecordBatch:
    """The first batch of a stream. ArrowException, OSError, EOFError, StopIteration or ValueError when it is none, or compressed."""
    _check(payload)
    with pa.ipc.open_stream(pa.py_buffer(payload)) as reader:
        return reader.read_next_batch()


def _check(payload: Any) -> None:
    """ValueError when any message of these is compressed, or they are not in the framing of Arrow since 0.15."""
    view, at = memoryview(payload).cast("B"), 0
    try:
        while at < len(view):
            continues, size = _FRAMING.unpack_from(view, at)
            if continues != _CONTINUES or not 0 <= size <= len(view):
                raise ValueError("expected an Arrow IPC message")
            if not size:
                return  # the end of a stream
            metadata = bytes(view[at + _FRAMING.size : at + _FRAMING.size + size])
            body = _look(metadata)
            at += _FRAMING.size + size + body
    except error as short:
        raise ValueError(f"an Arrow IPC message that is cut: {short}") from short


def _look(metadata: bytes) -> int:
    """The size of the message's body; by the flatbuffer itself, for pyarrow tells nothing of compression."""
    (root,) = _UINT32.unpack_from(metadata)
    at = _field(metadata, root, _HEADER_TYPE)
    kind = metadata[at] if 0 < at < len(metadata) else 0
    if kind in (_RECORD_BATCH, _DICTIONARY_BATCH):
        header = _table(metadata, root, _HEADER)
        if kind == _DICTIONARY_BATCH:
            header = _table(metadata, header, _DICTIONARY_DATA)
        if _field(metadata, header, _COMPRESSION) or _EXPERIMENTAL in metadata:
            raise ValueError("expected buffers that are not compressed")
    at = _field(metadata, root, _BODY_LENGTH)
    body: int = _INT64.unpack_from(metadata, at)[0] if at else 0
    if body < 0:
        raise ValueError(f"an Arrow IPC message with a body of {body} bytes")
    return body


def _field(metadata: bytes, table: int, number: int) -> int:
    """Where this field of a table lies; 0 when the table does not have it."""
    vtable = table - _INT32.unpack_from(metadata, table)[0]
    at = 4 + 2 * number
    if vtable < 0 or at + 2 > _UINT16.unpack_from(metadata, vtable)[0]:
        return 0
    offset: int = _UINT16.unpack_from(metadata, vtable + at)[0]
    return table + offset if offset else 0


def _table(metadata: bytes, table: int, number: int) -> int:
    """Where the table lies that this field refers to. ValueError without it."""
    at = _field(metadata, table, number)
    if not at:
        raise ValueError("an Arrow IPC message without a header")
    return at + int(_UINT32.unpack_from(metadata, at)[0])
