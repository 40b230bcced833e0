"""The metrics of several processes as those of one. No I/O.

Counters and histograms add up, and never go back when a process dies: what its last answer said stays in the sum. Gauges add up
too, unless the metric has another rule (`headrace.metrics.OverWorkers`), which the processes tell in comment lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, cast, get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from headrace.metrics import OverWorkers, usual_rule

#: A sample's name and labels.
Key = tuple[str, tuple[tuple[str, str], ...]]
Values = dict[Key, float]

ONLY_GROW: Final = frozenset({"counter", "histogram"})
_RULE: Final = re.compile(r"^# over_workers (\S+) (\S+)$", re.MULTILINE)


def told_rules(rules: Mapping[str, OverWorkers]) -> bytes:
    """The comment lines that tell a supervisor how these gauges become one."""
    return "".join(f"# over_workers {name} {rule}\n" for name, rule in sorted(rules.items())).encode()


class MergedMetrics:
    """What all processes have counted. `take` one page of each, then `page`."""

    def __init__(self) -> None:
        self._families: dict[str, tuple[str, str]] = {}  # name -> type, documentation
        self._rules: dict[str, OverWorkers] = {}
        self._ended: Values = {}  # counts of lives that are over
        self._counts: dict[str, tuple[int, Values]] = {}  # by process: its life, and what it counted
        self._gauges: dict[str, Values] = {}

    def take(self, process: str, life: int, text: str) -> None:
        """The page of one process. `life` grows with each restart; a page of an earlier life is ignored."""
        counts, gauges = self._read(text)
        known, before = self._counts.get(process, (life, {}))
        if life < known:
            return
        if life > known:
            _add(self._ended, before)
        self._counts[process], self._gauges[process] = (life, counts), gauges

    def away(self, process: str) -> None:
        """It does not answer: its counts stay, its gauges are unknown."""
        self._gauges.pop(process, None)

    def page(self) -> bytes:
        """All of it as one page of Prometheus text."""
        registry = CollectorRegistry()
        registry.register(_Once(self._merged()))
        return generate_latest(registry)

    def _read(self, text: str) -> tuple[Values, Values]:
        for name, rule in _RULE.findall(text):
            if rule in get_args(OverWorkers):
                self._rules[name] = cast(OverWorkers, rule)
        counts: Values = {}
        gauges: Values = {}
        for family in text_string_to_metric_families(text):
            self._families[family.name] = family.type, family.documentation
            values = counts if family.type in ONLY_GROW else gauges
            for sample in family.samples:
                values[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
        return counts, gauges

    def _merged(self) -> Iterator[Metric]:
        counts: Values = dict(self._ended)
        for _, one in self._counts.values():
            _add(counts, one)
        gauges: dict[Key, list[float]] = {}
        for values in self._gauges.values():
            for key, value in values.items():
                gauges.setdefault(key, []).append(value)
        samples = counts | {key: merged(values, self._rules.get(key[0], usual_rule(key[0]))) for key, values in gauges.items()}
        by_family: dict[str, list[tuple[Key, float]]] = {}
        for key, value in samples.items():
            by_family.setdefault(self._family_of(key[0]), []).append((key, value))
        for name, found in sorted(by_family.items()):
            kind, documentation = self._families[name]
            family = Metric(name, documentation, kind)
            for (sample, labels), value in found:
                family.add_sample(sample, dict(labels), value)
            yield family

    def _family_of(self, sample: str) -> str:
        return sample if sample in self._families else re.sub(r"_(total|bucket|count|sum)$", "", sample)


def merged(values: Iterable[float], rule: OverWorkers) -> float:
    """One value for several processes' values of one gauge."""
    if rule == "sum":
        return sum(values)
    if rule == "oldest":  # 0 is "never", or "nothing there"
        return min((value for value in values if value), default=0.0)
    return max(values) if rule == "max" else min(values)


def _add(sums: Values, values: Values) -> None:
    for key, value in values.items():
        sums[key] = sums.get(key, 0.0) + value


class _Once(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
