"""Whose the files in a queue's directory are, so that a file of another queue is never taken for one of ours. No I/O.

Positions, generations and segment numbers of two queues are alike, and a copied or swapped file is sound in itself. So the
head, both notes of the marks and each segment carry the *owner*: 16 bytes that are made with the queue and never change. The
marks and the note `owner` carry the *place* as well, which tells the directory in which they were written from all others: a
note that is of here was put there by this directory's queue and by nobody else, whatever came in beside it.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from headrace_queue_pmem.layout import CELL_CRC, OWNER, OWNER_MAGIC, PLACE, PLACE_MAGIC, checksum
from headrace_queue_pmem.marks import Note
from headrace_queue_pmem.segment import Segment

OWNER_NOTE: Final = "owner"


class Claim(NamedTuple):
    """What the note `owner` says: whose the directory is in which it was written, and which that is."""

    owner: bytes
    place: bytes

    def pack(self) -> bytes:
        """The note's content."""
        body = OWNER.pack(OWNER_MAGIC, self.owner) + PLACE.pack(PLACE_MAGIC, self.place)
        return body + CELL_CRC.pack(checksum(body))


def read_claim(content: bytes | None) -> Claim | None:
    """The note `owner`; None where there is none, or a damaged one."""
    size = OWNER.size + PLACE.size
    if content is None or len(content) != size + CELL_CRC.size or checksum(content[:size]) != CELL_CRC.unpack_from(content, size)[0]:
        return None
    return Claim(OWNER.unpack_from(content)[1], PLACE.unpack_from(content, OWNER.size)[1])


def whose(head: bytes, notes: Sequence[Note | Claim], segments: Sequence[Segment], here: bytes) -> bytes:
    """The owner of a directory, by what its files say; empty when none says anything.

    What the notes say that were written in this directory (`here`) holds. Where none was, as in a directory that was moved or
    restored, or where they differ, it is put to the vote: one file may have been put here, or several. The head has two votes,
    the segments two together (as most of them say), each note one. Where votes are even the head's word holds; without a head,
    the segments' that a note knows, because they have the events.
    """
    written_here = {note.owner for note in notes if note.owner and note.place == here}
    if len(written_here) == 1:
        return written_here.pop()
    said = Counter(segment.owner for segment in segments if segment.owner)
    noted = Counter(note.owner for note in notes if note.owner)
    most = next((owner for owner, _ in said.most_common(1)), b"")
    votes = Counter(noted)
    votes.update([head] * 2 + [most] * 2)
    votes.pop(b"", None)
    candidates = [head, *(owner for owner in noted if owner in said), most, *noted]
    return max((owner for owner in candidates if owner), key=lambda owner: votes[owner], default=b"")


def strange_head(head: bytes, owner: bytes, segments: Iterable[Segment], ids: Mapping[int, bytes]) -> str:
    """Why a head is of another queue; "" when it is ours, or may be. It may have lost what it says of its owner (`head` is empty)."""
    if head:
        return f"it is of another queue: its owner is {head.hex()}, that of the other files is {owner.hex()}" if head != owner else ""
    for segment in segments:
        known = ids.get(segment.header.generation)
        if segment.owner == owner and known not in (None, segment.header.queue_id):
            return f"it is of another queue: {segment.name} is of a queue id that it knows by another name"
    return ""


def owned_from(owner: bytes, segments: Iterable[Segment]) -> int:
    """The number from which on every segment says whose it is, where no head tells."""
    segments = list(segments)
    first = min((segment.header.number for segment in segments if segment.owner == owner), default=None)
    return max((segment.header.number for segment in segments), default=0) + 1 if first is None else first


def stranger(segment: Segment, owner: bytes, since: int, ids: Mapping[int, bytes]) -> str:
    """Why a segment is of another queue; "" when it is ours, or may be: an event of ours is never given up on a doubt.

    `ids` are the queue ids that the head knows, by generation; that one is missing there says nothing, for a head may be lost.
    """
    header = segment.header
    known = ids.get(header.generation)
    if known is not None and known != header.queue_id:
        return f"it is of queue id {uuid.UUID(bytes=header.queue_id)}, which this queue never had"
    if segment.owner and segment.owner != owner:
        return f"it is of another queue: its owner is {segment.owner.hex()}, this queue's is {owner.hex()}"
    if segment.owner == b"" and known is None and header.number >= since:
        return f"it does not say whose it is, as every segment of this queue does from number {since} on"
    return ""
