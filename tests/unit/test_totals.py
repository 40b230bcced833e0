"""What a process says of itself when it has ended well."""

from __future__ import annotations

import math
from pathlib import Path

from headrace.config import load
from headrace.host import Host, Totals

SITE = Path(__file__).parents[2] / "examples" / "single.toml"


def test_a_reader_that_stands_is_no_reason_to_end_badly(tmp_path: Path) -> None:
    host = Host(load(SITE, environ={"HEADRACE_DATA": str(tmp_path)}))
    host._metrics.gauge("queue_reader_drain_seconds", "").set(math.inf)
    for worker, acked in enumerate((3, 4)):
        host._metrics.counter("ingest_acked_events_total", "", tier="site", component=f"{worker}", plugin="p").inc(acked)
    host._metrics.counter("sink_written_events_total", "", tier="site", component="lake", plugin="p").inc(5)
    assert host._totals() == Totals(received=0, acked=7, stored={"lake": 5}, queued=0)
