"""The metrics of several workers as those of one process."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from headrace.metrics import Metrics, OverWorkers
from headrace.workers.merging import MergedMetrics, merged, told_rules


def worker(acked: int = 0, paused: int = 0, queued: int = 0, flushed: float = 0) -> str:
    metrics = Metrics(CollectorRegistry(), tier="edge")
    metrics.counter("acked_events_total", "Acked.").inc(acked)
    metrics.gauge("paused", "1 while paused.", "max").set(paused)
    metrics.gauge("queue_size_events", "Queued.").set(queued)
    metrics.gauge("flush_timestamp_seconds", "Last flush.").set(flushed)
    metrics.gauge("build_info", "1.", version="1").set(1)
    metrics.histogram("commit_seconds", "Commits.", (0.1, 1.0)).observe(0.5)
    return (generate_latest(metrics.registry) + told_rules(metrics.rules)).decode()


def values(merge: MergedMetrics) -> dict[str, float]:
    families = text_string_to_metric_families(merge.page().decode())
    return {f"{sample.name}{sample.labels.get('le', '')}": sample.value for family in families for sample in family.samples}


def test_counts_add_up_and_gauges_follow_their_rule() -> None:
    merge = MergedMetrics()
    merge.take("edge.0", 1, worker(acked=3, queued=1, flushed=50))
    merge.take("edge.1", 1, worker(acked=4, paused=1, queued=2, flushed=40))
    merge.take("edge.2", 1, worker())
    assert values(merge) == {
        "headrace_acked_events_total": 7,
        "headrace_paused": 1,
        "headrace_queue_size_events": 3,
        "headrace_flush_timestamp_seconds": 40,
        "headrace_build_info": 1,
        "headrace_commit_seconds_bucket0.1": 0,
        "headrace_commit_seconds_bucket1.0": 3,
        "headrace_commit_seconds_bucket+Inf": 3,
        "headrace_commit_seconds_count": 3,
        "headrace_commit_seconds_sum": 1.5,
    }


def test_the_page_keeps_types_and_help() -> None:
    merge = MergedMetrics()
    merge.take("edge.0", 1, worker())
    page = merge.page().decode()
    assert "# TYPE headrace_acked_events_total counter" in page
    assert "# HELP headrace_acked_events_total Acked." in page
    assert "# TYPE headrace_commit_seconds histogram" in page
    assert 'headrace_acked_events_total{tier="edge"} 0.0' in page


def test_a_count_never_goes_back_when_a_worker_is_restarted() -> None:
    merge = MergedMetrics()
    seen = []
    for life, acked in ((1, 10), (1, 25), (2, 0), (2, 5), (3, 1)):
        merge.take("edge.0", life, worker(acked=acked))
        seen.append(values(merge)["headrace_acked_events_total"])
    assert seen == [10, 25, 25, 30, 31]
    merge.take("edge.0", 2, worker(acked=1000))  # an answer that came too late
    assert values(merge)["headrace_acked_events_total"] == 31


def test_of_a_worker_that_does_not_answer_the_counts_stay_and_the_gauges_go() -> None:
    merge = MergedMetrics()
    merge.take("edge.0", 1, worker(acked=1, queued=1))
    merge.take("edge.1", 1, worker(acked=2, queued=2))
    merge.away("edge.1")
    assert values(merge)["headrace_acked_events_total"] == 3
    assert values(merge)["headrace_queue_size_events"] == 1


@pytest.mark.parametrize(("rule", "together"), [("sum", 5.0), ("min", 0.0), ("max", 3.0), ("oldest", 2.0)])
def test_rules(rule: OverWorkers, together: float) -> None:
    assert merged([3.0, 0.0, 2.0], rule) == together


def test_nothing_is_as_old_as_never() -> None:
    assert merged([0.0, 0.0], "oldest") == 0
