"""What a run of devices did, in numbers. No I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

#: A bucket per 1/16 power of two from 1 us up: quantiles are right to 4.4 %, in 640 integers however long the run.
BUCKETS_PER_OCTAVE: Final = 16
BUCKETS: Final = 40 * BUCKETS_PER_OCTAVE
SHORTEST_S: Final = 1e-6


class Latencies:
    """Durations in seconds, kept as a logarithmic histogram."""

    def __init__(self) -> None:
        self.count = 0
        self.max_s = 0.0
        self._buckets = [0] * BUCKETS

    def add(self, seconds: float) -> None:
        index = int(math.log2(seconds / SHORTEST_S) * BUCKETS_PER_OCTAVE) if seconds > SHORTEST_S else 0
        self._buckets[min(index, BUCKETS - 1)] += 1
        self.count += 1
        if seconds > self.max_s:
            self.max_s = seconds

    def quantile(self, q: float) -> float | None:
        """The duration that a share `q` of all stays at or below (upper edge of its bucket); None without any."""
        if not self.count:
            return None
        rank, seen = math.ceil(q * self.count), 0
        for index, bucket in enumerate(self._buckets):
            seen += bucket
            if seen >= rank:
                return min(SHORTEST_S * math.exp2((index + 1) / BUCKETS_PER_OCTAVE), self.max_s)
        return self.max_s


@dataclass
class Totals:
    """Counts over all devices of a run.

    taken = acked + rejected + unacked at any moment, in messages of one event each. `sent` counts first sends, `resent`
    repetitions; `resumed` are those that the hello of a new connection settled, so that they were not repeated. `skipped` are
    readings that a device never took, since its outbox was full. Latencies run from the first send to the ack, reconnects
    included. `trouble` is why the latest try to connect failed.
    """

    taken: int = 0
    sent: int = 0
    resent: int = 0
    resumed: int = 0
    acked: int = 0
    rejected: int = 0
    skipped: int = 0
    reconnects: int = 0
    connections: int = 0
    gave_up: int = 0
    trouble: str = ""
    rejects_by_code: dict[str, int] = field(default_factory=dict)
    latency: Latencies = field(default_factory=Latencies)
    recent: Latencies = field(default_factory=Latencies)

    @property
    def unacked(self) -> int:
        return self.taken - self.acked - self.rejected

    def count_ack(self, latency_s: float) -> None:
        self.acked += 1
        self.latency.add(latency_s)
        self.recent.add(latency_s)

    def count_reject(self, code: str) -> None:
        self.rejected += 1
        self.rejects_by_code[code] = self.rejects_by_code.get(code, 0) + 1

    def summary(self, elapsed_s: float) -> dict[str, Any]:
        """The run as plain values, for JSON."""
        return {
            "sent": self.sent,
            "acked": self.acked,
            "rejected": self.rejected,
            "rejects_by_code": dict(sorted(self.rejects_by_code.items())),
            "unacked": self.unacked,
            "resent": self.resent,
            "resumed": self.resumed,
            "skipped": self.skipped,
            "reconnects": self.reconnects,
            "gave_up": self.gave_up,
            "elapsed_s": round(elapsed_s, 3),
            "acked_per_s": round(self.acked / elapsed_s, 1) if elapsed_s > 0 else 0.0,
            "ack_latency_p50_s": _rounded(self.latency.quantile(0.5)),
            "ack_latency_p99_s": _rounded(self.latency.quantile(0.99)),
            "ack_latency_max_s": _rounded(self.latency.max_s if self.latency.count else None),
        }

    def exit_code(self) -> int:
        """0 when every message was acked, else 1."""
        return 0 if self.unacked == 0 and self.rejected == 0 and self.gave_up == 0 else 1


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
