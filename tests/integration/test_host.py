"""The host as its operator sees it: reload, drain, orphans, wrappers, listeners, poison, several outputs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from headrace.testing.site import SiteError, SiteProcess

SITE = """
[host]
data_dir = "${HEADRACE_DATA}"
[admin]
listen = "127.0.0.1:0"
[listeners.facts]
use = "./parts.py:Listener"
[tiers.site.sources.devices]
use = "ingest_ws"
listen = "127.0.0.1:0"
auth = "none"
[tiers.site.queue]
use = "queue_pmem"
path = "${HEADRACE_DATA}/queue"
segment_bytes = 8388608
size_bytes_max = 33554432
[tiers.site.engine]
retry_base_ms = 10
[tiers.site.outputs.rows]
use = "./parts.py:Rows"
file = "${HEADRACE_DATA}/rows.txt"
flush_interval_s = 0.1
"""
SECOND = """
[tiers.site.outputs.second]
use = "./parts.py:Rows"
file = "${HEADRACE_DATA}/second.txt"
flush_interval_s = 0.1
"""

Make = Callable[..., SiteProcess]


@pytest.fixture
def make(site_of: Make, tmp_path: Path) -> Make:
    shutil.copy(Path(__file__).with_name("parts.py"), tmp_path)
    return site_of


def send(site: SiteProcess, *numbers: int, pad: int = 0, reading: str = "pad") -> None:
    """POST events with these numbers; they are acked."""

    async def post() -> None:
        body = "\n".join(json.dumps({"n": number, reading: "x" * pad}) for number in numbers)
        headers = {"Content-Type": "application/x-ndjson"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{site.url('devices')}/v1/devices/d/events", data=body, headers=headers) as answer,
        ):
            assert answer.status == 200, await answer.text()

    asyncio.run(post())


def rows(site: SiteProcess, name: str = "rows.txt") -> list[int]:
    file = site.folder / "data" / name
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [line[1] for line in lines if isinstance(line, list)]


def until(done: Callable[[], Any], what: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, f"waited {timeout_s} s until {what}"
        time.sleep(0.05)


def test_a_drain_stores_everything_acked_and_says_how_much(make: Make) -> None:
    site = make(SITE, "tiers.site.outputs.rows.flush_interval_s=3600")
    site.start()
    send(site, *range(500))
    assert site.stop() == "received 500 events, acked 500, stored: rows 500"
    assert rows(site) == list(range(500))
    assert not json.loads((site.folder / "data" / "queues.json").read_text()), "an empty queue leaves the register"


def test_running_again_continues(make: Make) -> None:
    site = make(SITE)
    for first in (0, 10, 20):
        site.start()
        send(site, *range(first, first + 10))
        site.kill() if first == 10 else site.stop()
    site.start()
    site.stop()
    assert rows(site) == list(range(30))


def test_sighup_restarts_only_what_changed_and_refuses_a_bad_file(make: Make) -> None:
    site = make(SITE)
    site.start()
    send(site, 1, 2)
    before = {name: row["since"] for name, row in site.components().items()}
    devices = site.url("devices")

    site.file.write_text(SITE.replace("rows.txt", "other.txt") + SECOND)
    assert site.process is not None
    site.process.send_signal(signal.SIGHUP)
    until(lambda: "second" in site.components(), "the new output runs")
    until(lambda: rows(site, "second.txt") == [1, 2], "the new output has read the queue")
    send(site, 3)
    until(lambda: 3 in rows(site, "other.txt"), "the changed output writes to its new place")
    assert site.url("devices") == devices
    assert site.components()["devices"]["since"] == before["devices"]
    assert site.components()["rows"]["since"] > before["rows"]

    site.file.write_text(SITE.replace("flush_interval_s = 0.1", 'flush_interval_s = "soon"'))
    site.process.send_signal(signal.SIGHUP)
    until(lambda: site.metric("config_reload_success") == 0, "the bad file is refused")
    send(site, 4)
    until(lambda: 4 in rows(site, "other.txt"), "the old config runs on")

    told = "queue lets go of events that no output has safe"
    assert not any(line["message"] == told for line in site.lines())
    window = 'hold = "window"\nhold_window_s = 60\n'
    site.file.write_text(SITE.replace("rows.txt", "other.txt") + window + SECOND + window)
    site.process.send_signal(signal.SIGHUP)
    until(lambda: any(line["message"] == told for line in site.lines()), "it is told that nothing holds the queue now")

    site.file.write_text(SITE.replace("data_dir", "name = 'x'\ndata_dir"))
    site.process.send_signal(signal.SIGHUP)
    until(lambda: any("host" in line.get("error", "") for line in site.lines()), "a change of the host is refused")
    site.stop()
    assert sorted(rows(site, "second.txt")) == [1, 2, 3, 4]


def test_an_output_that_left_the_config_is_an_orphan_and_in_the_way_of_nobody(make: Make) -> None:
    site = make(SITE + SECOND)
    site.start()
    send(site, 1)
    until(lambda: rows(site, "second.txt") == [1], "the second output has it")
    site.stop()
    site.file.write_text(SITE)
    site.start()
    assert any(line.get("message") == "reader has no output in the config" for line in site.lines())
    assert site.metric("queue_reader_lag_events", reader="second") == 0
    send(site, 2)
    until(lambda: site.metric("queue_reader_lag_events", reader="second") == 1, "the orphan's lag grows")
    for _ in range(20):  # more than 25 % of the queue
        send(site, *range(1000), pad=500)
    until(lambda: site.metric("queue_discarded_events_total", reason="orphan") > 0, "the orphan is dropped", 60)
    site.stop()
    site.file.write_text(SITE + SECOND)
    site.start()
    send(site, 3)
    until(lambda: 3 in rows(site, "second.txt"), "a new output of that name begins anew")
    site.stop()


def test_a_queue_that_left_the_config_is_an_error_until_it_is_drained(make: Make) -> None:
    site = make(SITE)
    site.start()
    send(site, 1)
    site.kill()
    site.overrides.append(f"tiers.site.queue.path={site.folder}/data/elsewhere")
    site.start()
    assert any("queue is not in the config" in line.get("message", "") for line in site.lines())
    site.stop()
    site.overrides.pop()
    site.start()
    site.stop()
    assert rows(site) == [1]


def test_wrappers_take_part_in_every_call_of_their_component(make: Make) -> None:
    site = make(SITE.replace('use = "./parts.py:Rows"', 'use = "./parts.py:Rows"\nwrap = ["./parts.py:Audit"]'))
    site.start()
    send(site, 1, 2)
    site.stop()
    (audit,) = (site.folder / "data").rglob("audit.txt")
    assert audit.read_text().splitlines() == ["write 1-2", "written"]
    assert rows(site) == [1, 2]


def test_listeners_hear_facts_and_one_that_raises_is_counted(make: Make) -> None:
    site = make(SITE, "tiers.site.outputs.rows.refuse=2")
    site.start()
    send(site, 1, 2, 3)
    until(lambda: rows(site) == [1, 3], "the others are stored")
    until(lambda: "quarantined 1 by rows" in json.loads(site.probe("/facts")[1]), "the quarantine is told")
    facts = json.loads(site.probe("/facts")[1])
    assert "started" in facts
    assert "site.rows ok" in facts
    assert site.metric("listener_errors_total", hook="host_started") == 1
    assert site.metric("dead_letter_events_total", component="rows") == 1
    site.stop()


def test_an_event_that_kills_the_process_is_found_and_set_aside(make: Make) -> None:
    site = make(SITE, "tiers.site.outputs.rows.die_on=7", "tiers.site.engine.attempts_max=2", "tiers.site.engine.read_rows_max=16")
    site.start()
    send(site, *range(20))
    for _ in range(25):
        until(lambda: site.died() is not None or len(rows(site)) == 19, "it is dead, or has stored the others")
        if site.died() is None:
            break
        assert site.died() == -9
        try:
            site.start()
        except SiteError:
            continue
    site.stop()
    assert sorted(rows(site)) == [number for number in range(20) if number != 7]
    letters = sqlite3.connect(site.folder / "data" / "site" / "dead_letters.db").execute("select payload, reason, output from letters")
    ((payload, reason, output),) = letters.fetchall()
    assert (json.loads(payload)["n"], output) == (7, "rows")
    assert "the process died" in reason


def test_a_second_process_on_the_same_queue_is_told_who_holds_it(make: Make, tmp_path: Path) -> None:
    site = make(SITE)
    site.start()
    second = SiteProcess(site.file, tmp_path, site.overrides)
    with pytest.raises(SiteError, match=rf"held by .*{site.process.pid if site.process else ''}"):
        second.start()
    site.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs")
def test_a_site_starts_on_a_full_disk_and_a_new_one_says_why_not(make: Make) -> None:
    site = make(SITE)
    data = site.folder / "data"
    data.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(data)], check=True)
    try:
        site.start()
        send(site, 1)
        until(lambda: rows(site) == [1], "it is stored")
        site.kill()
        fill(data / "others")
        site.start()
        send(site, 2, reading="new")
        until(lambda: site.metric("decode_waiting") == 1, "the type of a new reading cannot be saved")
        assert site.components()["decoding"]["reason"].startswith("types of readings cannot be saved in ")
        (data / "others").unlink()
        until(lambda: rows(site) == [1, 2], "it is stored")
        assert site.metric("decode_waiting") == 0
        assert site.components()["decoding"]["status"] == "ok"
        site.stop()
        (data / "queues.json").unlink()
        fill(data / "others")
        with pytest.raises(SiteError, match=r"cannot start: .*No space left on device"):
            site.start()
    finally:
        subprocess.run(["umount", "-l", str(data)], check=True)


def test_a_store_that_went_back_is_warned_of(make: Make) -> None:
    site = make(SITE)
    warned = "store holds less than it had reported safe: another one, or restored; what the queue still has is written again"
    site.start()
    send(site, 1, 2)
    until(lambda: rows(site) == [1, 2], "it is stored")
    site.stop()
    site.start()
    assert warned not in [line["message"] for line in site.lines()]
    site.stop()
    (site.folder / "data" / "rows.txt").unlink()
    site.start()
    until(lambda: rows(site) == [1, 2], "what the queue still has is stored again")
    (line,) = [line for line in site.lines() if line["message"] == warned]
    assert (line["component"], line["position"], line["cursor"]) == ("rows", 0, 2)
    site.stop()


def test_a_data_folder_that_cannot_be_made_is_said_in_one_line(make: Make) -> None:
    site = make(SITE)
    (site.folder / "data").write_text("a file")
    with pytest.raises(SiteError, match="headrace: cannot start: ") as refused:
        site.start()
    assert "Traceback" not in str(refused.value)


def test_while_a_component_cannot_open_readyz_says_why(make: Make, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        site = make(SITE, f"tiers.site.sources.devices.listen='{address}'")
        site.start(ready=False)
        until(lambda: "cannot listen" in site.probe("/readyz")[1], "it says why")
        assert site.probe("/readyz")[1].startswith("starting: site.devices: component did not open: ")
        since = site.components()["devices"]["since"]
        until(lambda: site.metric("plugin_errors_total", component="devices") >= 3, "it has tried again")
        assert site.components()["devices"]["since"] == since
    until(lambda: site.probe("/readyz")[0] == 200, "it is ready by itself")
    site.stop()


def fill(file: Path) -> None:
    """Take what is left of a filesystem."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as others:
        while others.write(bytes(4096)):
            pass


def test_an_engine_fault_ends_the_process_and_a_restart_recovers(make: Make) -> None:
    site = make(SITE)
    site.start(faults="engine.after_flush=bug@2")
    send(site, 1)
    until(lambda: rows(site) == [1], "the first is stored")
    send(site, 2)
    assert site.wait_until_dead(20) == 70
    site.start()
    site.stop()
    assert rows(site) == [1, 2]


def test_one_ctrl_c_that_arrives_twice_still_drains(make: Make) -> None:
    site = make(SITE, "tiers.site.outputs.rows.flush_interval_s=3600")
    site.start()
    send(site, *range(100))
    assert site.process is not None
    for _ in range(3):
        site.process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    assert site.wait_until_dead() == 0
    assert rows(site) == list(range(100))


def test_a_call_that_never_returns_fails_livez_and_nothing_else_is_held_up(make: Make) -> None:
    site = make(SITE + SECOND, "tiers.site.outputs.rows.hang_on=1", "tiers.site.engine.stall_s=1")
    site.start()
    assert site.probe("/livez") == (200, "ok\n")
    send(site, 1, 2)
    until(lambda: rows(site, "second.txt") == [1, 2], "the other output has both")
    until(lambda: site.probe("/livez")[0] == 503, "the stuck call is noticed")
    assert "site.rows: in one call for" in site.probe("/livez")[1]
    assert site.probe("/readyz")[0] == 200
    send(site, 3)


def test_a_source_that_holds_the_loop_or_ends_by_itself_is_told_of(make: Make) -> None:
    site = make(SITE + '[tiers.site.sources.ends]\nuse = "./parts.py:Ends"\n')
    site.start()
    site.wait_for_line("source ended by itself", "ends")
    (held,) = [line for line in site.lines() if line["message"] == "a loop is held"]
    assert held["loop"] == "sources"
    assert held["at"].endswith(" ingest_serve")
    status = site.components()["ends"]
    assert status["status"] == "degraded"
    assert status["reason"].startswith("it takes nothing any more")
    send(site, 1)
    assert site.stop().startswith("received 1 events, acked 1")
    site.start()
    site.stop()  # it was told to drain: nothing to say
    assert "source ended by itself" not in [line["message"] for line in site.lines()]


@pytest.mark.parametrize("where", ["loop", "thread"])
def test_a_call_that_never_returns_does_not_hold_up_a_stop(make: Make, where: str) -> None:
    stuck = f'[tiers.site.outputs.stuck]\nuse = "./parts.py:Stuck"\nwhere = "{where}"\n'
    site = make(SITE + stuck, "host.drain_deadline_s=1")
    site.start()
    send(site, *range(10))
    until(lambda: site.metric("sink_attempts_total", component="stuck") >= 1 or site.probe("/livez")[0] != 200, "it is in its call")
    began = time.monotonic()
    site.process.send_signal(signal.SIGTERM)  # type: ignore[union-attr]
    assert site.wait_until_dead() == 0
    assert time.monotonic() - began < 30
    (passed,) = [line for line in site.lines() if line["message"] == "drain deadline passed; the queue keeps the rest"]
    assert passed["left"]["stuck"] == 10


def test_a_window_bounds_what_a_dead_output_holds(make: Make) -> None:
    window = 'hold = "window"\nhold_window_bytes = 1000000'
    site = make(SITE + SECOND.replace("[tiers.site.outputs.second]", f"[tiers.site.outputs.second]\n{window}"))
    site.overrides.append("tiers.site.outputs.second.hang_on=0")
    site.start()
    for first in range(0, 20_000, 1000):
        send(site, *range(first, first + 1000), pad=500)
    until(lambda: site.metric("queue_reader_lag_bytes", reader="second") < 2_000_000, "the window has moved on")
    until(lambda: len(rows(site)) == 20_000, "the other output has everything")
    assert site.probe("/readyz")[0] == 200


def test_a_queue_whose_outputs_hold_nothing_does_not_fill_up(make: Make) -> None:
    live = '[tiers.site.outputs.rows]\nuse = "live_ws"\nlisten = "127.0.0.1:0"\nhold = "none"\n'
    site = make(SITE.partition("[tiers.site.outputs.rows]")[0] + live)
    site.start()
    for _ in range(60):  # twice what the queue can hold
        send(site, *range(1000), pad=1000)
    until(lambda: site.metric("queue_size_events", queue="site") == 0, "the queue is empty")
    site.stop()
    site.file.write_text(SITE)
    site.start()
    send(site, 7)
    until(lambda: 7 in rows(site), "an output that holds takes over")
    until(lambda: site.metric("queue_size_events", queue="site") == 0, "nobody else holds the queue")
    site.stop()
