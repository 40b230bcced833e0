"""The host calls each hook as hookspecs.py says: one small site with a recording plugin in every role, and its journal.

The site runs twice: the second time without the output `keyed` and after events were left for it, so that its reader is an
orphan that holds too much. A test here is named after the hook it is about; tests/docs looks for all of them.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from headrace.testing.site import SiteProcess

# one run of the site serves all tests of the module
pytestmark = pytest.mark.xdist_group("hooks_called")

KEYED = """
[tiers.site.outputs.keyed]
use = "./hook_recorders.py:Keyed"
flush_interval_s = 0.05
"""
SITE = """
[host]
data_dir = "${HEADRACE_DATA}"
[admin]
listen = "127.0.0.1:0"
[listeners.ear]
use = "./hook_recorders.py:Listener"
[tiers.site.sources.ingest]
use = "./hook_recorders.py:Source"
[tiers.site.sources.link]
use = "./hook_recorders.py:Link"
[tiers.site.sources.fan]
use = "./hook_recorders.py:Fan"
[tiers.site.queue]
use = "queue_pmem"
path = "${HEADRACE_DATA}/queue"
segment_bytes = 8388608
size_bytes_max = 33554432
wrap = ["./hook_recorders.py:QueueSpy"]
[tiers.site.engine]
retry_base_ms = 10
orphan_hold_ratio = 0
[[tiers.site.decoders]]
use = "./hook_recorders.py:Hex"
id = "hex"
[[tiers.site.enrichers]]
use = "./hook_recorders.py:Shift"
id = "shift"
[tiers.site.outputs.uplink]
use = "./hook_recorders.py:Uplink"
send_window = 1
[tiers.site.outputs.resuming]
use = "./hook_recorders.py:Resuming"
flush_interval_s = 0.05
"""
#: 4 JSON events (one refused), 2 in hex (one does not decode), 2 of the link, 1 of the fan-out.
APPENDED = 9
MAIN, PIPELINE = "MainThread", "site.pipeline"


class Journal(NamedTuple):
    """All calls in their order; `second` is where the second run begins. hello: the answer of the listener's page."""

    calls: list[dict[str, Any]]
    second: int
    hello: tuple[int, str]

    def of(self, hook: str, **facts: Any) -> list[dict[str, Any]]:
        """The calls of a hook with these facts."""
        return [call for call in self.calls if call["hook"] == hook and facts.items() <= call.items()]

    def at(self, hook: str, **facts: Any) -> int:
        """The place of the first of them."""
        return self.calls.index(self.of(hook, **facts)[0])


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Journal:
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(Path(__file__).with_name("hook_recorders.py"), folder)
    file = folder / "site.toml"
    file.write_text(SITE + KEYED)
    with SiteProcess(file, folder) as site:
        site.start()
        until(site, lambda: lags(site) == {"resuming": 0, "keyed": 0, "uplink": 0} and site.metric("queue_head_position") == APPENDED)
        hello = site.probe("/recorders/hello")
        site.stop()
        second = len(read(folder))
        file.write_text(SITE)
        site.start()
        rest = {"resuming": 0, "uplink": 0}
        until(site, lambda: lags(site) == rest and any(call["hook"] == "queue_reader_drop" for call in read(folder)))
        site.stop()
    return Journal(read(folder), second, hello)


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "data" / "calls.ndjson").read_text().splitlines()]


def lags(site: SiteProcess) -> dict[str, int]:
    status, body = site.probe("/components")
    return {reader["name"]: reader["lag_events"] for reader in json.loads(body)["queues"][0]["readers"]} if status == 200 else {}


def until(site: SiteProcess, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 40
    while not done():
        assert time.monotonic() < deadline, f"the site did not get there\n{site.log_end(15)}"
        time.sleep(0.05)


# --- sources ---------------------------------------------------------------------------------------------------------


def test_hook_ingest_serve(journal: Journal) -> None:
    assert journal.of("ingest_serve")[0]["thread"] == MAIN
    assert len(journal.of("ingest_serve")) == 2  # once for each run
    durable = journal.of("ingest_serve.durable")[0]
    assert durable["json"][1] - durable["json"][0] + 1 == 4
    assert journal.at("queue_append", rows=4) < journal.at("ingest_serve.durable")
    assert journal.at("host_draining") < journal.at("drain") < journal.at("ingest_serve.cancelled")


def test_hook_transport_serve(journal: Journal) -> None:
    assert journal.of("transport_serve")[0]["held"] is None
    durable = journal.of("transport_serve.durable")[0]
    (first, last), (again_first, again_last) = durable["ranges"]
    assert last - first + 1 == 2
    assert again_last == again_first - 1, "what is held is dropped"
    assert durable["held"] == 2


def test_hook_transport_subscribe(journal: Journal) -> None:
    (first, last) = journal.of("transport_subscribe")[0]["range"]
    assert first == last


# --- queue -----------------------------------------------------------------------------------------------------------


def test_hook_queue_info(journal: Journal) -> None:
    assert journal.of("queue_info")[0]["level"] == "process"


def test_hook_queue_secret(journal: Journal) -> None:
    assert {call["bytes"] for call in journal.of("queue_secret")} == {16}


def test_hook_queue_append(journal: Journal) -> None:
    appends = [call for call in journal.calls[: journal.second] if call["hook"] == "queue_append"]
    assert {call["thread"] for call in appends} == {MAIN}
    taken = sorted(call["result"] for call in appends if call["result"][0] <= call["result"][1])
    assert [first for first, _ in taken] == [1, *(last + 1 for _, last in taken[:-1])], "positions without a hole"
    assert taken[-1][1] == APPENDED
    assert any(call["origins"] == 1 for call in appends)


def test_hook_queue_origin_position(journal: Journal) -> None:
    before, after = journal.of("queue_origin_position", origin="upstream/0")[:2]
    assert (before["result"], after["result"]) == (None, 2)


def test_hook_queue_origin_mark(journal: Journal) -> None:
    before, after = journal.of("queue_origin_mark", origin="device/session")[:2]
    assert (before["result"], after["result"]) == ([1, "b'refused'"], None)


def test_hook_queue_origin_forget(journal: Journal) -> None:
    forgotten = journal.of("queue_origin_forget")[0]
    assert (forgotten["thread"], forgotten["origins"]) == (MAIN, ["device/session"])
    assert journal.calls.index(forgotten) > journal.at("queue_origin_mark")


def test_hook_queue_reader_open(journal: Journal) -> None:
    for reader in ("resuming", "keyed"):
        (opened, *_) = journal.of("queue_reader_open", reader=reader)
        assert (opened["thread"], opened["start"]) == (PIPELINE, "oldest")
    cursor = journal.of("queue_reader_open", reader="resuming")[-1]["result"][2]
    assert cursor == APPENDED, "the cursor survived the restart"


def test_hook_queue_reader_drop(journal: Journal) -> None:
    (dropped,) = journal.of("queue_reader_drop")
    assert dropped["reader"] == "keyed"
    assert journal.calls.index(dropped) > journal.second


def test_hook_queue_read(journal: Journal) -> None:
    reads = journal.of("queue_read")
    assert {call["thread"] for call in reads} == {PIPELINE}
    assert min(call["after"] for call in reads) == 0
    assert all(call["rows_max"] >= 1 for call in reads)


def test_hook_queue_plan(journal: Journal) -> None:
    planned = journal.of("queue_plan", reader="keyed")
    ranges = [(call["plan"][0], call["plan"][1]) for call in planned if call["plan"]]
    for write in (call for call in journal.of("sink_write", component="site.keyed")):
        first, last = (int(number) for number in write["key"].rpartition("/")[2].split("-"))
        assert (first, last) in ranges, "a range is planned before it is written"
        plan = next(call for call in planned if call["plan"] and (call["plan"][0], call["plan"][1]) == (first, last))
        assert journal.calls.index(plan) < journal.calls.index(write)


def test_hook_queue_release(journal: Journal) -> None:
    for reader in ("resuming", "keyed"):
        released = [call["upto"] for call in journal.of("queue_release", reader=reader)]
        assert released == sorted(released)
        assert APPENDED in released
        flushed = journal.of("sink_flush", component=f"site.{reader}")[0]
        upto = int(flushed["key"].rpartition("-")[2])
        assert journal.calls.index(flushed) < journal.at("queue_release", reader=reader, upto=upto)


# --- decoders and enrichers ------------------------------------------------------------------------------------------


def test_hook_decode_encodings(journal: Journal) -> None:
    assert journal.at("decode_encodings") < journal.at("decode")


def test_hook_decode(journal: Journal) -> None:
    (call, *_) = journal.of("decode")
    assert (call["payloads"], call["encoding"], call["thread"]) == (["10", "zz"], 200, PIPELINE)
    assert any(16.0 in write["numbers"] for write in journal.of("sink_write"))
    assert [call["count"] for call in journal.of("batch_quarantined", by="decode")] == [1, 1], "the bad row of each run, and no other"


def test_hook_enrich_fields(journal: Journal) -> None:
    assert journal.at("enrich_fields") < journal.at("enrich")


def test_hook_enrich_prepare(journal: Journal) -> None:
    prepared, enriched = journal.of("enrich_prepare")[0], journal.of("enrich")[0]
    assert prepared["rows"] == enriched["rows"]
    assert journal.calls.index(prepared) < journal.calls.index(enriched)


def test_hook_enrich(journal: Journal) -> None:
    assert journal.of("enrich")[0]["thread"] == PIPELINE
    assert {shift for write in journal.of("sink_write") for shift in write["shifts"]} == {"late"}


# --- sinks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["resuming", "keyed"])
def test_hook_sink_write(journal: Journal, output: str) -> None:
    writes = journal.of("sink_write", component=f"site.{output}")
    assert {call["thread"] for call in writes} == {PIPELINE}
    first_run = [call for call in writes if journal.calls.index(call) < journal.second]
    assert sorted(number for call in first_run for number in call["numbers"]) == [0.0, 1.0, 2.0, 5.0, 6.0, 7.0, 16.0]
    covered = [position for call in first_run for position in positions(call["key"])]
    assert covered == list(range(1, APPENDED + 1)), "keys follow each other without a hole"


@pytest.mark.parametrize("output", ["resuming", "keyed"])
def test_hook_sink_flush(journal: Journal, output: str) -> None:
    written: list[int] = []
    for call in journal.calls[: journal.second]:
        if call["component"] != f"site.{output}":
            continue
        if call["hook"] == "sink_write":
            written += positions(call["key"])
        if call["hook"] == "sink_reset":
            written.clear()
        if call["hook"] == "sink_flush":
            assert positions(call["key"]) == written, "a flush spans what was written since the last"
            written.clear()
    assert not written, "a drain leaves nothing unflushed"


def test_hook_sink_reset(journal: Journal) -> None:
    for component in ("site.resuming", "site.keyed"):
        calls = [call["hook"] for call in journal.calls if call["component"] == component]
        for index, hook in enumerate(calls):
            if hook in ("sink_write.failed", "sink_write.refused"):
                assert calls[index + 1] == "sink_reset", "after every error"
        assert {"sink_write.failed", "sink_write.refused"} <= set(calls)


def test_hook_sink_resume(journal: Journal) -> None:
    asked = journal.of("sink_resume")
    assert any(call["held"] == APPENDED for call in asked), "the second run asks for the id of the first"
    assert not journal.of("sink_resume", component="site.keyed")


# --- transports ------------------------------------------------------------------------------------------------------


def test_hook_transport_queue(journal: Journal) -> None:
    told = journal.of("transport_queue")
    assert [(call["name"], call["level"], call["secret"]) for call in told] == [("site", "process", 16)] * len(told)
    assert len(told) == 3, "at each start, and after the error"
    assert journal.at("transport_queue") < journal.at("transport_resume")


def test_hook_transport_resume(journal: Journal) -> None:
    asked = journal.of("transport_resume")
    assert any(call["held"] == APPENDED for call in asked), "the second run asks for the id of the first"
    calls = [
        call["hook"]
        for call in journal.calls
        if call["component"] == "site.uplink" and call["hook"] not in ("transport_hurry", "transport_bound")
    ]
    failed = calls.index("transport_send.failed")
    assert calls[failed + 1 : failed + 4] == ["transport_queue", "transport_resume", "transport_send"]


def test_hook_transport_send(journal: Journal) -> None:
    sent = journal.of("transport_send")
    assert {call["thread"] for call in sent} == {PIPELINE}
    first_run = [call for call in sent if journal.calls.index(call) < journal.second]
    assert [position for call in first_run for position in positions(call["key"])] == list(range(1, APPENDED + 1))
    payloads = [payload for call in first_run for payload in call["payloads"]]
    assert "zz" in payloads, "what does not decode travels on: nothing is decoded for it"
    assert any("upstream/0" in call["origins"] for call in first_run)
    released = [call["upto"] for call in journal.of("queue_release", reader="uplink")]
    assert released == sorted(released)


def test_hook_transport_hurry(journal: Journal) -> None:
    hurried = journal.of("transport_hurry")
    assert {call["thread"] for call in hurried} == {PIPELINE}
    assert journal.at("transport_queue") < journal.at("transport_hurry"), "one call under way is all that send_window allows"


def test_hook_transport_bound(journal: Journal) -> None:
    assert {call["thread"] for call in journal.of("transport_bound")} == {PIPELINE}


def positions(key: str) -> list[int]:
    first, last = (int(number) for number in key.rpartition("/")[2].split("-"))
    return list(range(first, last + 1))


# --- facts -----------------------------------------------------------------------------------------------------------


def test_hook_host_started(journal: Journal) -> None:
    assert [call["thread"] for call in journal.of("host_started")] == [MAIN, MAIN]


def test_hook_host_draining(journal: Journal) -> None:
    assert [call["deadline_s"] for call in journal.of("host_draining")] == [30.0, 30.0]


def test_hook_component_status(journal: Journal) -> None:
    statuses = [call["status"] for call in journal.of("component_status", of="site.keyed")]
    assert statuses[0] == "starting"
    assert {"degraded", "ok"} <= set(statuses), "the first write fails, and then it is well again"
    assert {call["thread"] for call in journal.of("component_status")} == {MAIN}


def test_hook_batch_quarantined(journal: Journal) -> None:
    refused = journal.of("batch_quarantined", by="keyed")
    assert [call["count"] for call in refused if journal.calls.index(call) < journal.second] == [1]
    assert "no threes" in refused[0]["reason"]


def test_hook_register_routes(journal: Journal) -> None:
    assert journal.hello == (200, "hello")
    assert journal.at("register_routes") < journal.at("host_started")
