"""How much gathers for a commit, beside what the queue takes in one."""

from __future__ import annotations

import pytest

from headrace import QueueInfo
from headrace_ingest_ws.bounds import ROW_BYTES_MAX, Bounds, batch_bounds
from headrace_ingest_ws.config import IngestWsConfig

CONFIG = IngestWsConfig(auth="none")
MIB = 1 << 20


def queue(batch_bytes_max: int | None) -> QueueInfo:
    return QueueInfo("queue", None, "process", "ext4", "mmap", 0, 0, 0, 0, 1 << 30, None, (), (), batch_bytes_max)


@pytest.mark.parametrize("info", [None, queue(None), queue(60 * MIB)])
def test_a_queue_that_takes_enough_changes_nothing(info: QueueInfo | None) -> None:
    assert batch_bounds(CONFIG, info) == Bounds(CONFIG.batch_rows_max, CONFIG.batch_bytes_max)


def test_a_full_batch_and_the_longest_message_fit_into_what_a_small_queue_takes() -> None:
    room = 4 * MIB
    bounds = batch_bounds(CONFIG, queue(room))
    last = CONFIG.post_bytes_max + CONFIG.events_per_message_max * ROW_BYTES_MAX
    assert 0 < bounds.bytes < CONFIG.batch_bytes_max
    assert bounds.bytes + bounds.rows * ROW_BYTES_MAX + last <= room


def test_a_message_that_the_queue_would_refuse_for_good_is_refused_before_it_comes() -> None:
    with pytest.raises(ValueError, match="segment_bytes") as caught:
        batch_bounds(CONFIG, queue(MIB))
    assert str(CONFIG.post_bytes_max + CONFIG.events_per_message_max * ROW_BYTES_MAX) in caught.value.args[1]
