"""Gauges of every queue, read from `queue_info()` at each scrape: any queue plugin gets them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from headrace.hookspecs import QueueInfo, ReaderInfo
from headrace.metrics import PREFIX, OverWorkers
from headrace.queue_rates import ReleaseRates

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
    "queue_reader_oldest_event_timestamp_seconds": (
        "Unix time at which the oldest event came that this reader has yet to release; 0 when there is none.",
        lambda reader: reader.oldest_event_s or 0,
    ),
}
#: Not from `queue_info()` alone; of several workers the slowest counts.
_DRAIN: Final[dict[str, str]] = {
    "queue_reader_drain_seconds": (
        "Seconds until this reader has released what is there, at its rate over the last minute; absent while that is not known."
    ),
}
#: How several workers' values become one, where the name does not say.
RULES: Final[dict[str, OverWorkers]] = {PREFIX + name: "max" for name in _DRAIN}


class QueueCollector(Collector):
    """`infos` gives the queues that are open now, `rates` how fast their readers get on."""

    def __init__(self, infos: Callable[[], Iterable[QueueInfo]], rates: ReleaseRates) -> None:
        self._infos, self._rates = infos, rates

    def collect(self) -> Iterator[Metric]:
        infos = list(self._infos())
        for name, (documentation, value) in _QUEUE.items():
            family = GaugeMetricFamily(PREFIX + name, documentation, labels=["queue"])
            for info in infos:
                family.add_metric([info.name], value(info))
            yield family
        for name, documentation in _DRAIN.items():
            family = GaugeMetricFamily(PREFIX + name, documentation, labels=["queue", "reader"])
            for info in infos:
                for reader in info.readers:
                    if (drain_s := self._rates.drain_s(info.name, reader.name, reader.lag_events)) is not None:
                        family.add_metric([info.name, reader.name], drain_s)
            yield family
        for name, (documentation, of_reader) in _READER.items():
            family = GaugeMetricFamily(PREFIX + name, documentation, labels=["queue", "reader"])
            for info in infos:
                for reader in info.readers:
                    family.add_metric([info.name, reader.name], of_reader(reader))
            yield family
