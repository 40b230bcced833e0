"""Whose the files in a queue's directory are, so that a file of another queue is never taken for one of ours. No I/O.

Positions, generations and segment numbers of two queues are alike, and a copied or swapped file is sound in itself. So the
head, both notes of the marks and each segment carry the *owner*: 16 bytes that are made with the queue and never change.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from headrace_queue_pmem.marks import Note
from headrace_queue_pmem.segment import Segment


def whose(head: bytes, notes: Sequence[Note], segments: Sequence[Segment]) -> bytes:
    """The owner of a directory, by what its files say; empty when none says anything.

    One file may have been put here, or several: the head has two votes, the segments two together (as most of them say), each
    note one. Where votes are even the head's word holds; without a head, the segments' that a note knows, because they have
    the events.
    """
    said = Counter(segment.owner for segment in segments if segment.owner)
    noted = Counter(note.owner for note in notes if note.owner)
    most = next((owner for owner, _ in said.most_common(1)), b"")
    votes = Counter(noted)
    votes.update([head] * 2 + [most] * 2)
    votes.pop(b"", None)
    candidates = [head, *(owner for owner in noted if owner in said), most, *noted]
    return max((owner for owner in candidates if owner), key=lambda owner: votes[owner], default=b"")


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
