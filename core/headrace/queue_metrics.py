"""Gauges of every queue, read from `queue_info()` at each scrape: any queue plugin gets them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from headrace.hookspecs import QueueInfo, ReaderInfo
from headrace.metrics import PREFIX

_QUEUE: Final[dict[str, tuple[str, Callable[[QueueInfo], float]]]] = {
    "queue_size_events": ("Events in the queue that are not yet released.", lambda info: info.size_events),
    "queue_size_bytes": ("Bytes that these events take.", lambda info: info.size_bytes),
    "queue_max_size_bytes": ("Bytes at which the queue is full.", lambda info: info.size_bytes_max),
    "queue_head_position": ("The last committed position.", lambda info: info.head),
    "queue_oldest_event_timestamp_seconds": (
        "Unix time at which the oldest event came; 0 when empty.",
        lambda info: info.oldest_event_s or 0,
    ),
}
_READER: Final[dict[str, tuple[str, Callable[[ReaderInfo], float]]]] = {
    "queue_reader_lag_events": ("Events that this reader has yet to release.", lambda reader: reader.lag_events),
    "queue_reader_lag_bytes": ("Bytes that this reader has yet to release.", lambda reader: reader.lag_bytes),
    "queue_reader_position": ("The last position that this reader released.", lambda reader: reader.cursor),
}


class QueueCollector(Collector):
    """`infos` gives the queues that are open now."""

    def __init__(self, infos: Callable[[], Iterable[QueueInfo]]) -> None:
        self._infos = infos

    def collect(self) -> Iterator[Metric]:
        infos = list(self._infos())
        for name, (documentation, value) in _QUEUE.items():
            family = GaugeMetricFamily(PREFIX + name, documentation, labels=["queue"])
            for info in infos:
                family.add_metric([info.name], value(info))
            yield family
        for name, (documentation, of_reader) in _READER.items():
            family = GaugeMetricFamily(PREFIX + name, documentation, labels=["queue", "reader"])
            for info in infos:
                for reader in info.readers:
                    family.add_metric([info.name, reader.name], of_reader(reader))
            yield family
