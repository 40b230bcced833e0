"""Counters and histograms for what happens thousands of times a second.

Those of prometheus_client take a lock and walk their buckets at each observation: 1 to 5 us each, several of them in every commit.
Here an observation is kept in a list, and folded in when somebody asks, or when there are many.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Generic, TypeVar

import numpy as np
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

#: So many are kept before they are folded in.
KEPT_MAX: Final = 1024


class _Kept:
    """Numbers that are not folded in yet; from any thread."""

    __slots__ = ("_kept", "_lock")

    def __init__(self) -> None:
        self._kept: list[float] = []
        self._lock = threading.Lock()

    def _keep(self, value: float) -> None:
        kept = self._kept
        kept.append(value)
        if len(kept) >= KEPT_MAX:
            self.fold()

    def fold(self) -> None:
        """Take what is kept into account."""
        with self._lock:
            count = len(self._kept)
            taken = self._kept[:count]
            del self._kept[:count]  # what another thread appended meanwhile stays
            if taken:
                self._add(taken)

    def _add(self, taken: list[float]) -> None:
        raise NotImplementedError


class HotCounter(_Kept):
    """A counter whose `inc` costs 0.1 us."""

    __slots__ = ("_total",)

    def __init__(self) -> None:
        super().__init__()
        self._total = 0.0

    def inc(self, amount: float = 1) -> None:
        """Count so many more."""
        self._keep(amount)

    @property
    def total(self) -> float:
        """All of it."""
        self.fold()
        return self._total

    def _add(self, taken: list[float]) -> None:
        self._total += sum(taken)


class HotHistogram(_Kept):
    """A histogram whose `observe` costs 0.1 us."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        super().__init__()
        self._bounds = np.array(bounds, np.float64)
        self._counts = np.zeros(len(bounds) + 1, np.int64)  # not cumulative; the last one is of what lies above all bounds
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value in."""
        self._keep(value)

    def read(self) -> tuple[list[tuple[str, float]], float]:
        """The buckets as Prometheus has them, cumulative with their upper bounds, and the sum of all values."""
        self.fold()
        with self._lock:
            counts, total = np.cumsum(self._counts).tolist(), self._sum
        return list(zip([*map(floatToGoString, self._bounds), "+Inf"], counts, strict=True)), total

    def _add(self, taken: list[float]) -> None:
        values = np.array(taken, np.float64)
        self._counts += np.bincount(np.searchsorted(self._bounds, values), minlength=len(self._counts))
        self._sum += float(values.sum())


T = TypeVar("T", HotCounter, HotHistogram)


#: How the children of a family, by the values of their labels, are told: from its name, documentation, labels and them.
Exposition = Callable[[str, str, Sequence[str], Sequence[tuple[tuple[str, ...], T]]], Metric]


class HotFamily(Collector, Generic[T]):
    """The counters or histograms of one name, by the values of their labels."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str], make: Callable[[], T], exposition: Exposition[T]) -> None:
        self._name, self._documentation, self._labels = name, documentation, tuple(labels)
        self._make: Callable[[], T] = make
        self._exposition: Exposition[T] = exposition
        self._children: dict[tuple[str, ...], T] = {}

    def labels(self, **values: str) -> T:
        """The one with these values; asking again gives the same. Not from two threads at once."""
        key = tuple(values[name] for name in self._labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._make()
        return child

    def collect(self) -> Iterator[Metric]:
        yield self._exposition(self._name, self._documentation, self._labels, list(self._children.items()))


def counters(name: str, documentation: str, labels: Sequence[str], children: Sequence[tuple[tuple[str, ...], HotCounter]]) -> Metric:
    """As Prometheus has counters."""
    family = CounterMetricFamily(name, documentation, labels=labels)
    for values, child in children:
        family.add_metric(values, child.total)
    return family


def histograms(name: str, documentation: str, labels: Sequence[str], children: Sequence[tuple[tuple[str, ...], HotHistogram]]) -> Metric:
    """As Prometheus has histograms."""
    family = HistogramMetricFamily(name, documentation, labels=labels)
    for values, child in children:
        buckets, total = child.read()
        family.add_metric(values, buckets, total)
    return family
