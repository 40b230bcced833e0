"""One output hangs, one fails, one is well: the well one and the acks do not notice, until the queue's bound; nothing is lost."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import aiohttp
from tests.integration.test_host import rows, until

from headrace.testing.site import SiteProcess

SITE = """
[host]
data_dir = "${HEADRACE_DATA}"
[admin]
listen = "127.0.0.1:0"
[tiers.site.sources.devices]
use = "ingest_ws"
listen = "127.0.0.1:0"
auth = "none"
[tiers.site.queue]
use = "queue_pmem"
path = "${HEADRACE_DATA}/queue"
segment_bytes = 8388608
size_bytes_max = 16777216
[tiers.site.engine]
retry_base_ms = 10
retry_max_ms = 40
[tiers.site.outputs.well]
use = "./parts.py:Rows"
file = "${HEADRACE_DATA}/well.txt"
flush_interval_s = 0.1
[tiers.site.outputs.hanging]
use = "./parts.py:Down"
file = "${HEADRACE_DATA}/hanging.txt"
until = "${HEADRACE_DATA}/healed"
flush_interval_s = 0.1
[tiers.site.outputs.failing]
use = "./parts.py:Down"
how = "fail"
file = "${HEADRACE_DATA}/failing.txt"
until = "${HEADRACE_DATA}/healed"
flush_interval_s = 0.1
"""


async def post(site: SiteProcess, numbers: range, pad: int) -> bool:
    """Whether these events were acked, in two seconds."""
    body = "\n".join(json.dumps({"n": number, "pad": "x" * pad}) for number in numbers)
    headers = {"Content-Type": "application/x-ndjson"}
    try:
        async with (
            asyncio.timeout(2),
            aiohttp.ClientSession() as session,
            session.post(f"{site.url('devices')}/v1/devices/d/events", data=body, headers=headers) as answer,
        ):
            return answer.status == 200
    except TimeoutError:
        return False


async def fill(site: SiteProcess, first: int) -> int:
    """Events in lots of 100 until they are not acked any more; the number of the first that was not."""
    while await post(site, range(first, first + 100), 1000):
        first += 100
        assert first < 100_000, "the queue never became full"
    return first


def test_neither_acks_nor_other_outputs_wait_for_one_that_hangs_or_fails(site_of: Callable[..., SiteProcess], tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("parts.py"), tmp_path)
    site = site_of(SITE)
    site.start()
    assert asyncio.run(post(site, range(200), 10))
    until(lambda: len(rows(site, "well.txt")) == 200, "the well one has all")
    until(lambda: site.metric("sink_circuit_open", component="failing") == 1, "the failing one is only tried now and then")
    assert "the store is down; circuit open:" in site.components()["failing"]["reason"]
    assert site.metric("sink_circuit_open", component="well") == 0
    for reader in ("hanging", "failing"):
        assert site.metric("queue_reader_lag_events", reader=reader) == 200
        assert site.metric("queue_reader_oldest_event_timestamp_seconds", reader=reader) > 0
    assert site.metric("queue_reader_lag_events", reader="well") == 0
    # until the queue's bound, and not beyond it
    refused = asyncio.run(fill(site, 200))
    assert refused > 1000
    until(lambda: len(rows(site, "well.txt")) >= refused, "the well one has all that was acked")
    assert site.probe("/readyz")[0] == 503
    assert site.probe("/livez")[0] == 200
    (tmp_path / "data" / "healed").touch()
    until(lambda: site.probe("/readyz")[0] == 200, "there is room again")
    until(lambda: site.metric("queue_size_events") == 0, "all is stored")
    assert site.metric("sink_circuit_open") == 0
    assert {site.components()[name]["status"] for name in ("well", "hanging", "failing")} == {"ok"}
    site.stop()
    for name in ("well", "hanging", "failing"):
        counts = Counter(rows(site, f"{name}.txt"))
        # the lot that met the full queue was not answered: it may be there, once
        assert {number for number in counts if number < refused} == {*range(refused)}, name
        assert {*counts.values()} == {1}, name
