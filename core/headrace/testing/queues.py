"""The contract of queues: durable on return, in the order of the calls, and nothing forgotten that a reader still needs."""

from __future__ import annotations

from headrace.testing.queue_crashes import QueueCrashes
from headrace.testing.queue_entries import QueueEntries
from headrace.testing.queue_identity import QueueIdentity
from headrace.testing.queue_readers import QueueReaders


class QueueContract(QueueEntries, QueueReaders, QueueIdentity, QueueCrashes):
    """Subclass it as `TestMyQueue`, with `make(context)` of a small queue: a few MiB, so that the tests can fill it.

    `crash_rounds`, `fault_points_rare`, `fill_batch_bytes` and `fill_batches_max` may be set to fit it.
    """
