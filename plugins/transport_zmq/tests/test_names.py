"""Rows keep the name that the first durable queue gave them, however their frames are cut, joined and trimmed on the way."""

from __future__ import annotations

import random

import numpy as np
import pytest

from headrace import Missing, Origin, RangeKey, origin_batch
from headrace.position import global_ids, pack_name, row_positions
from headrace.testing import raw_batch
from headrace_queue_pmem.trim import trim
from headrace_transport_zmq import wire
from headrace_transport_zmq.content import joined, take
from headrace_transport_zmq.receiver import Peer, Staged
from headrace_transport_zmq.sending import flight_of

EDGES = [f"0000000{number}-0000-0000-0000-000000000000" for number in range(3)]
MIDDLE = "aaaaaaaa-0000-0000-0000-000000000000"


def names(rng: random.Random, rows: int) -> tuple[list[Origin], list[tuple[str, int]]]:
    """Origins of so many rows of the middle's queue, from its position 1 on, and the name of each row."""
    origins, named, row, first = [], [], 0, dict.fromkeys(EDGES, 1)
    while row < rows:
        count = min(rng.randint(1, 6), rows - row)
        edge = rng.choice([*EDGES, ""])
        if edge:  # else a row that the middle took from a device
            first[edge] += rng.randint(0, 2)
            note = pack_name(edge, 1000) if rng.random() < 0.5 else None
            begin = first[edge] - 1000 if note else first[edge]
            origins.append(Origin("relay/up.1" if note else f"{edge}/up.1", begin, begin + count - 1, row, note=note))
            named += [(edge, first[edge] + index) for index in range(count)]
            first[edge] += count
        else:
            origins.append(Origin("device/session", 1, 1, row, 1))
            named += [(MIDDLE, row + 1 + index) for index in range(count)]
        row += count
    return origins, named


@pytest.mark.parametrize("seed", range(40))
def test_names_survive_two_links(seed: int) -> None:
    rng = random.Random(seed)
    rows = rng.randint(1, 60)
    _, named = names(rng, rows)
    # the middle sends them, with a gap somewhere, in frames of any size
    gap = rng.randint(1, rows) if rng.random() < 0.7 else 0
    holes = (Missing(gap, gap, "corrupt"),) if gap else ()
    positions = row_positions(1, rows, holes)
    whole = wire_parts(positions, named, holes, rows, rng)
    batch, sent = joined(whole)
    held = rng.choice([None, rng.randint(1, rows)])
    trimmed = trim(batch, sent, lambda _: held)
    kept = [int(position) for position in positions if held is None or position > held]
    assert trimmed.batch.num_rows == len(kept)
    origin, position = global_ids("store", np.arange(500, 500 + len(kept), dtype=np.uint64), trimmed.origins)
    assert list(zip(origin.to_pylist(), position.to_pylist(), strict=True)) == [named[number - 1] for number in kept]


def wire_parts(positions, named, holes, rows, rng):
    """What a receiver staged of the frames that carry the rows at `positions`."""
    per_row = [Origin(*named[int(number) - 1], named[int(number) - 1][1], row) for row, number in enumerate(positions)]
    peer = Peer(b"", b"", f"{MIDDLE}/store.1", 1, None, None, 0.0)
    staged, first = [], 1
    while first <= rows:
        last = min(rows, first + rng.randint(0, 20))
        inside = [row for row, number in enumerate(positions) if first <= number <= last]
        told = [origin._replace(row_offset=origin.row_offset - inside[0]) for origin in per_row if origin.row_offset in inside]
        told = [origin for origin in told if origin.id != MIDDLE]
        missing = tuple(hole for hole in holes if first <= hole.first <= last)
        flight = flight_of(raw_batch(len(inside)), origin_batch(told), RangeKey(MIDDLE, first, last, missing))
        frame = wire.decode(
            wire.encode(wire.Frame(wire.DATA, prev=first - 1, first=first, last=last, rows=len(inside), parts=flight.parts))
        )
        staged.append(Staged(peer, first, last, take(frame), 0))
        first = last + 1
    return staged
