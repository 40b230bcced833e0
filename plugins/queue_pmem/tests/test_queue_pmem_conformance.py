"""The contract of queues that every queue plugin passes, on both media and at both levels (the hooks tests take all four pairs)."""

from __future__ import annotations

from typing import Any, ClassVar

from headrace.component import Component, Context
from headrace.testing.queues import QueueContract
from headrace_queue_pmem import QueuePmem

MIB = 1 << 20


class _Contract(QueueContract):
    crash_rounds = 5
    # Only a queue of several segments passes these.
    fault_points_rare = frozenset({"queue_pmem.before_release", "queue_pmem.after_release"})
    options: ClassVar[dict[str, Any]]

    def make(self, context: Context) -> Component:
        config = QueuePmem.Config(path=str(context.data_dir / "queue"), segment_bytes=8 * MIB, size_bytes_max=16 * MIB, **self.options)
        return QueuePmem(config, context)


class TestPmemProcess(_Contract):
    options: ClassVar[dict[str, Any]] = {"medium": "pmem", "level": "process"}


class TestFilePower(_Contract):
    options: ClassVar[dict[str, Any]] = {"medium": "file", "level": "power"}
