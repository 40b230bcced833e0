"""Sizes, offsets and byte layouts of everything that is on disk. FORMAT.md explains them one by one. No I/O."""

from __future__ import annotations

import struct
from typing import Final

from crc32c import crc32c

VERSION: Final = 1
LINE: Final = 64  # a cache line: what tears apart from its neighbours
PAGE: Final = 4096

HEAD_MAGIC: Final = b"HRQHEAD1"
SEGMENT_MAGIC: Final = b"HRQSEGM1"
FRAME_MAGIC: Final = 0x31465248  # b"HRF1"

#: Page 0 of every area carries its magic in each of its eight sectors, so that one flipped bit does not hide the area.
MAGIC_AT: Final = tuple(range(0, PAGE, 512))

#: Whose a file is: magic, 16 bytes that were made with the queue. See ownership.py.
OWNER: Final = struct.Struct("<8s16s")
OWNER_MAGIC: Final = b"HRQOWNR1"

#: In which directory a note was written: magic, 16 bytes that another directory does not have. See ownership.py.
PLACE: Final = struct.Struct("<8s16s")
PLACE_MAGIC: Final = b"HRQPLCE1"

#: Page 0 of an area in a pool also holds, twice, a checksum of what libpmemobj keeps for itself in the file.
POOL_AT: Final = (256, 768)
POOL: Final = struct.Struct("<8sII")  # magic, crc32c, crc32c of these 12 bytes
POOL_MAGIC: Final = b"HRQPOOL1"

# --- frames ---------------------------------------------------------------------------------------------------------
#: magic, crc32c of what follows in the header, segment nonce, first, count, generation, durable_upto, wall time in us,
#: origins bytes, payload bytes, crc32c of origins and payload, kind, flags.
FRAME: Final = struct.Struct("<IIQQIIQqIIIHH")
FRAME_TAIL: Final = struct.Struct("<QQIIQqIIIHH")  # the same without magic and crc
FRAME_PREFIX: Final = struct.Struct("<II")
assert FRAME.size == LINE

KIND_RAW: Final = 0
KIND_EVENT: Final = 1
KIND_SPAN: Final = 2

#: A flag: the first frame of a commit. All that lies before it in the log was durable when it was written.
BEGINS_COMMIT: Final = 1

# --- cells: what is rewritten in place ---------------------------------------------------------------------------------
#: A cell has two copies, each: sequence number, payload, crc32c of both. The newer valid one counts.
CELL_SEQUENCE: Final = struct.Struct("<Q")
CELL_CRC: Final = struct.Struct("<I")
CELL_OVERHEAD: Final = CELL_SEQUENCE.size + CELL_CRC.size

# --- the head ---------------------------------------------------------------------------------------------------------
READERS: Final = 64
SPANS: Final = 4096
READER_NAME_BYTES: Final = 128
PLAN_EXCLUDED: Final = 1000

HEADER_CELL: Final = 256
CURSOR_CELL: Final = LINE
READER_CELL: Final = 256
PLAN_CELL: Final = PAGE
SPAN_CELL: Final = LINE
OWNER_CELL: Final = LINE

HEADER_AT: Final = PAGE  # page 0 holds the magic alone, written once
OWNER_CELL_AT: Final = HEADER_AT + 2 * HEADER_CELL
CURSORS_AT: Final = 2 * PAGE
READERS_AT: Final = CURSORS_AT + 2 * READERS * CURSOR_CELL
PLANS_AT: Final = READERS_AT + 2 * READERS * READER_CELL
SPANS_AT: Final = PLANS_AT + 2 * READERS * PLAN_CELL
HEAD_BYTES: Final = SPANS_AT + 2 * SPANS * SPAN_CELL
HEAD_FILE_BYTES: Final = 8 << 20  # the smallest pool that libpmemobj makes

#: version, created us, 16 bytes secret, segment bytes
HEADER: Final = struct.Struct("<IQ16sQ")
#: 16 bytes of the owner, the first segment number from which on every segment says whose it is
HEAD_OWNER: Final = struct.Struct("<16sQ")
#: state (0 free, 1 in use), start, name length; the name follows
READER: Final = struct.Struct("<BQH")
CURSOR: Final = struct.Struct("<Q")
#: state (0 none, 1 planned), first, last, attempts, excluded count; then that many uint32 offsets from first
PLAN: Final = struct.Struct("<BQQIH")
#: generation, first, last (OPEN while in use), queue id
SPAN: Final = struct.Struct("<IQQ16s")
OPEN: Final = 2**64 - 1

# --- segments -----------------------------------------------------------------------------------------------------------
#: version, number, nonce, base position, generation, queue id, data ends at, created us; crc32c follows.
SEGMENT: Final = struct.Struct("<IQQQI16sQQ")
SEGMENT_COPY_AT: Final = (LINE, PAGE + LINE)
#: Each copy of the header is followed by one of OWNER; crc32c follows.
SEGMENT_OWNER_AT: Final = (3 * LINE, PAGE + 3 * LINE)
SEGMENT_DATA_AT: Final = 2 * PAGE
INDEX_STEP: Final = 64 << 10  # one index entry per so many bytes of frames
#: nonce, last position (base - 1 when empty), end offset, frames, index entries, crc32c of the header and the entries
SEAL: Final = struct.Struct("<8sQQQQI")
SEAL_MAGIC: Final = b"HRQSEAL1"
INDEX_ENTRY: Final = struct.Struct("<QQq")  # first position, offset, wall time in us


def align(size: int, to: int = LINE) -> int:
    """The next multiple."""
    return -(-size // to) * to


def frame_bytes(origins_bytes: int, payload_bytes: int) -> int:
    """Bytes that a frame takes: header, origins and payload, each on a line of its own."""
    return LINE + align(origins_bytes) + align(payload_bytes)


def seal_bytes(area_bytes: int) -> int:
    """Bytes at a segment's end that are kept for its seal: header and one index entry per INDEX_STEP."""
    return align(SEAL.size + CELL_CRC.size + (area_bytes // INDEX_STEP + 2) * INDEX_ENTRY.size, PAGE)


def checksum(*parts: bytes | memoryview) -> int:
    """CRC32C over the parts, one after the other."""
    value = 0
    for part in parts:
        value = crc32c(part, value)
    return value
