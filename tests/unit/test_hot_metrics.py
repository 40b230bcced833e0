"""Counters and histograms that fold in late tell what those of prometheus_client tell."""

import random
import threading

from prometheus_client import CollectorRegistry, generate_latest

from headrace.hot_metrics import KEPT_MAX
from headrace.metrics import Metrics


def test_the_page_is_that_of_prometheus_client() -> None:
    hot, usual = Metrics(CollectorRegistry(), tier="edge"), Metrics(CollectorRegistry(), tier="edge")
    rng = random.Random(1)
    for queue in ("one", "two", "idle"):
        counters = hot.hot_counter("acked_events_total", "Acked.", queue=queue), usual.counter("acked_events_total", "Acked.", queue=queue)
        histograms = (
            hot.hot_histogram("commit_seconds", "Commits.", (0.25, 0.5, 1.0), queue=queue),
            usual.histogram("commit_seconds", "Commits.", (0.25, 0.5, 1.0), queue=queue),
        )
        for _ in range(0 if queue == "idle" else 3 * KEPT_MAX + 5):
            amount, value = rng.randrange(100), rng.choice([0.125, 0.25, 0.375, 0.5, 1.0, 2.0])  # sums of them are exact
            for counter in counters:
                counter.inc(amount)
            for histogram in histograms:
                histogram.observe(value)
    assert generate_latest(hot.registry) == generate_latest(usual.registry)


def test_asking_again_gives_the_same() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.hot_counter("acked_events_total", "Acked.").inc()
    metrics.labelled().hot_counter("acked_events_total", "Acked.").inc(2)
    assert metrics.registry.get_sample_value("headrace_acked_events_total") == 3


def test_no_count_is_lost_between_threads() -> None:
    metrics = Metrics(CollectorRegistry())
    counter, histogram = metrics.hot_counter("acked_events_total", "Acked."), metrics.hot_histogram("commit_seconds", "Commits.", (1.0,))
    each = 20 * KEPT_MAX + 7

    def count() -> None:
        for _ in range(each):
            counter.inc()
            histogram.observe(0.5)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    seen = 0.0
    while any(thread.is_alive() for thread in threads):
        now = metrics.registry.get_sample_value("headrace_acked_events_total")
        assert now is not None
        assert now >= seen
        seen = now
    assert counter.total == 4 * each
    assert metrics.registry.get_sample_value("headrace_commit_seconds_bucket", {"le": "1.0"}) == 4 * each
