"""How much may gather for one commit, so that the queue can take it. No I/O."""

from __future__ import annotations

from typing import Final, NamedTuple

from headrace import QueueInfo
from headrace_ingest_ws.config import IngestWsConfig

#: What a row takes in a batch beside its payload, at most: a device's name of 128 bytes, two offsets, time, encoding.
ROW_BYTES_MAX: Final = 160


class Bounds(NamedTuple):
    """Rows and payload bytes at which a batch is full; the message that goes over them is in it still."""

    rows: int
    bytes: int


def batch_bounds(config: IngestWsConfig, queue: QueueInfo | None) -> Bounds:
    """The config's, or less where the queue takes less in one batch (its segments are small).

    Raises ValueError (expected, got) when a single message may be more than the queue takes: it would come again and again.
    """
    if queue is None or queue.batch_bytes_max is None:
        return Bounds(config.batch_rows_max, config.batch_bytes_max)
    message = max(config.message_bytes_max, config.post_bytes_max) + config.events_per_message_max * ROW_BYTES_MAX
    left = queue.batch_bytes_max - message
    if left < ROW_BYTES_MAX:
        raise ValueError(
            "message_bytes_max, post_bytes_max and events_per_message_max of which any message fits into one batch of the queue "
            f"({queue.batch_bytes_max} bytes), or a queue with larger segments (segment_bytes)",
            f"limits that allow {message} bytes",
        )
    # half for payloads, half for what is beside them; the queue's own fields and the padding of columns are within a row's bytes
    return Bounds(min(config.batch_rows_max, left // 2 // ROW_BYTES_MAX), min(config.batch_bytes_max, left // 2))
