"""A real akumulid that is away under load: killed, away for a while (ten minutes with HEADRACE_FULL=1), and back."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from akumuli_real import Akumulid
from test_akumuli_site import DEVICES, EVENTS, lake_rows, send, site_on

pytestmark = pytest.mark.skipif(shutil.which("akumulid") is None, reason="no akumulid on the PATH")

#: How long it is away, and between the beginnings of two rounds of DEVICES messages of EVENTS events each.
AWAY_S, ROUND_S = (600.0, 2.0) if "HEADRACE_FULL" in os.environ else (3.0, 0.5)
#: Less than what comes meanwhile: most of it has to come from the lake.
WINDOW = 400_000


@pytest.mark.timeout(60 + 2 * AWAY_S)
def test_acks_and_lake_notice_nothing_of_a_server_that_is_away_and_it_gets_every_point(tmp_path: Path) -> None:
    took: dict[bool, list[float]] = {False: [], True: []}
    rounds = 0

    def load(seconds: float, away: bool) -> None:
        nonlocal rounds
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = time.monotonic()
            send(site, rounds * EVENTS)
            took[away].append(time.monotonic() - began)
            rounds += 1
            time.sleep(max(0.0, ROUND_S - took[away][-1]))

    with Akumulid(tmp_path / "akumuli") as server, site_on(server, tmp_path, WINDOW) as site:
        site.start()
        load(AWAY_S / 10, away=False)
        server.kill()
        load(AWAY_S, away=True)
        sent = rounds * DEVICES * EVENTS
        site.wait_for_metric("sink_written_events_total", sent, component="lake")
        assert lake_rows(site) == sent
        assert site.components()["akumuli"]["status"] == "degraded"
        site._wait_for(lambda: site.metric("queue_reader_lag_bytes", reader="akumuli") <= WINDOW, "to keep no more than the window", 60)
        server.start()
        load(AWAY_S / 10, away=False)
        sent = rounds * DEVICES * EVENTS
        site.wait_for_metric("akumuli_points_total", 1, component="akumuli")
        site._wait_for(lambda: server.count("n") == sent, "to fill Akumuli", 120)
        for points in server.points("n").values():
            assert [value for _, value in points] == [float(number) for number in range(rounds * EVENTS)]
        assert site.metric("akumuli_rebuild_positions") == 0
        assert lake_rows(site) == sent
        site.stop()
    for away, seconds in took.items():
        middle, longest = sorted(seconds)[len(seconds) // 2] * 1e3, max(seconds) * 1e3
        print(f"{'away' if away else 'there'}: {len(seconds)} rounds of {DEVICES} acks, median {middle:.1f} ms, longest {longest:.1f} ms")
