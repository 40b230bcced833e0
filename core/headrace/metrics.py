"""Prometheus metrics with the prefix and the component's labels preset.

Names follow the Prometheus rules: base units, `_total` for counters, never a device id as a label. One registry per host,
so that two hosts in one process (tests) do not meet.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.metrics import MetricWrapperBase

from headrace.hot_metrics import Exposition, HotCounter, HotFamily, HotHistogram, counters, histograms

PREFIX: Final = "headrace_"

# the `_created` series double the number of counters, and nobody asks for them
disable_created_metrics()  # type: ignore[no-untyped-call]

#: From a ring commit on memory (2 us) to a lake roll that waits for a slow disk.
DURATION_BUCKETS_S: Final = (
    0.000_01, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
COUNT_BUCKETS: Final = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)

#: How a gauge of several workers becomes one value. `oldest`: the smallest that is not 0, for times.
OverWorkers = Literal["sum", "min", "max", "oldest"]

M = TypeVar("M", bound=MetricWrapperBase)
Hot = TypeVar("Hot", HotCounter, HotHistogram)


class Metrics:
    """Makes metrics named `headrace_<name>` that carry preset labels; asking for one again gives the same."""

    def __init__(self, registry: CollectorRegistry | None = None, **preset: str) -> None:
        self.registry = registry or CollectorRegistry()
        self._families: dict[str, MetricWrapperBase] = {}
        self._hot_families: dict[str, HotFamily[Any]] = {}
        self._lock = threading.Lock()
        #: by whole name, of the gauges that say what several are together
        self.rules: dict[str, OverWorkers] = {}
        self._preset = preset

    def labelled(self, **preset: str) -> Metrics:
        """The same registry under other preset labels."""
        other = Metrics(self.registry, **preset)
        other._families, other._hot_families = self._families, self._hot_families
        other._lock, other.rules = self._lock, self.rules
        return other

    def counter(self, name: str, documentation: str, **labels: str) -> Counter:
        """A counter; `name` ends in `_total`."""
        return self._child(Counter, name, documentation, labels)

    def gauge(self, name: str, documentation: str, over_workers: OverWorkers | None = None, **labels: str) -> Gauge:
        """A gauge; `over_workers` says what several workers' values are together (default: `usual_rule`)."""
        if over_workers is not None:
            self.rules[PREFIX + name] = over_workers
        return self._child(Gauge, name, documentation, labels)

    def histogram(self, name: str, documentation: str, buckets: Sequence[float] = DURATION_BUCKETS_S, **labels: str) -> Histogram:
        """A histogram, of seconds unless `buckets` says otherwise."""
        return self._child(Histogram, name, documentation, labels, buckets=tuple(buckets))

    def hot_counter(self, name: str, documentation: str, **labels: str) -> HotCounter:
        """A counter for what is counted in every commit; `name` ends in `_total`."""
        return self._hot_child(HotCounter, counters, name, documentation, labels)

    def hot_histogram(self, name: str, documentation: str, buckets: Sequence[float] = DURATION_BUCKETS_S, **labels: str) -> HotHistogram:
        """A histogram for what is observed in every commit, of seconds unless `buckets` says otherwise."""
        bounds = tuple(buckets)
        return self._hot_child(lambda: HotHistogram(bounds), histograms, name, documentation, labels)

    def _hot_child(
        self, make: Callable[[], Hot], exposition: Exposition[Hot], name: str, documentation: str, labels: dict[str, str]
    ) -> Hot:
        values = {**self._preset, **labels}
        with self._lock:
            family: HotFamily[Hot] | None = self._hot_families.get(name)
            if family is None:
                family = HotFamily(PREFIX + name, documentation, tuple(values), make, exposition)
                self.registry.register(family)
                self._hot_families[name] = family
            return family.labels(**values)

    def _child(self, kind: type[M], name: str, documentation: str, labels: dict[str, str], **options: object) -> M:
        values = {**self._preset, **labels}
        with self._lock:
            family = self._families.get(name)
            if family is None:
                family = kind(PREFIX + name, documentation, tuple(values), registry=self.registry, **options)  # type: ignore[arg-type]
                self._families[name] = family
        return cast(M, family.labels(**values) if values else family)


def usual_rule(name: str) -> OverWorkers:
    """What several workers' values of a gauge of that name are together, unless it says otherwise."""
    if name.endswith("_timestamp_seconds"):
        return "oldest"
    return "max" if name.endswith("_info") else "sum"
