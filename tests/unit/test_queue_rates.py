"""The gauges of queues and their readers: what waits, since when, and for how long still."""

from __future__ import annotations

import math

from prometheus_client import CollectorRegistry

from headrace import QueueInfo, ReaderInfo
from headrace.queue_metrics import RULES, QueueCollector
from headrace.queue_rates import SAMPLE_S, WINDOW_S, ReleaseRates


def info(head: int, oldest_s: float | None = None, **cursors: int) -> QueueInfo:
    readers = tuple(ReaderInfo(name, 0, cursor, None, head - cursor, 10 * (head - cursor), oldest_s) for name, cursor in cursors.items())
    return QueueInfo("edge", None, "process", "ext4", "fdatasync", head, 1, head, 10 * head, 1 << 20, oldest_s, readers, ())


def test_time_to_drain_is_the_lag_at_the_rate_of_the_last_minute() -> None:
    rates = ReleaseRates()
    for step in range(30):  # 100 events a second, for longer than the window
        rates.take([info(1_000_000, lake=int(step * SAMPLE_S * 100))], step * SAMPLE_S)
    assert rates.drain_s("edge", "lake", 6_000) == 60.0
    for step in range(30, 30 + int(WINDOW_S / SAMPLE_S) + 1):  # ten times as fast from here on
        rates.take([info(1_000_000, lake=int(14_500 + (step - 29) * SAMPLE_S * 1000))], step * SAMPLE_S)
    assert rates.drain_s("edge", "lake", 6_000) == 6.0, "the minute before counts no more"


def test_what_is_not_known_is_not_told() -> None:
    rates = ReleaseRates()
    assert rates.drain_s("edge", "lake", 10) is None
    rates.take([info(100, lake=50)], 0.0)
    assert rates.drain_s("edge", "lake", 50) is None, "one look is no rate"
    assert rates.drain_s("edge", "lake", 0) == 0.0
    rates.take([info(100, lake=50)], 5.0)
    assert rates.drain_s("edge", "lake", 50) == math.inf, "it does not move"
    rates.take([info(100, lake=20)], 10.0)
    assert rates.drain_s("edge", "lake", 80) is None, "it was rewound"
    rates.take([], 15.0)
    assert rates.drain_s("edge", "lake", 80) is None


def test_the_window_is_bounded() -> None:
    rates = ReleaseRates()
    for step in range(10_000):
        rates.take([info(10_000, lake=step)], step * SAMPLE_S)
    (kept,) = rates._cursors.values()
    assert len(kept) == WINDOW_S / SAMPLE_S + 1


def test_every_queue_and_every_reader_has_its_gauges() -> None:
    rates, registry = ReleaseRates(), CollectorRegistry()
    queues = [info(100, 1_700_000_000.0, lake=40, uplink=100)]
    registry.register(QueueCollector(lambda: queues, rates))
    rates.take([info(100, lake=20, uplink=100)], 0.0)
    rates.take(queues, 10.0)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"headrace_{name}", {"queue": "edge", **labels})

    assert value("queue_size_events") == 100
    assert value("queue_size_bytes") == 1000
    assert value("queue_oldest_event_timestamp_seconds") == 1_700_000_000.0
    assert [value(f"queue_reader_{name}", reader="lake") for name in ("lag_events", "lag_bytes", "drain_seconds")] == [60, 600, 30.0]
    assert value("queue_reader_oldest_event_timestamp_seconds", reader="lake") == 1_700_000_000.0
    assert value("queue_reader_drain_seconds", reader="uplink") == 0
    queues.append(info(100, new=0)._replace(name="other"))
    assert registry.get_sample_value("headrace_queue_reader_drain_seconds", {"queue": "other", "reader": "new"}) is None
    assert RULES == {"headrace_queue_reader_drain_seconds": "max"}
