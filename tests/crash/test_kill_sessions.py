"""kill -9 of a site under the full load of a C load generator whose devices resume their sessions: 0 lost, 0 doubled."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from headrace.testing.site import SiteProcess

WSLOAD = Path(__file__).parents[2] / "benchmarks" / "load" / "wsload.c"
ROUNDS: Final = 2 if "HEADRACE_FULL" not in os.environ else 30
DEVICES, WINDOW = 64, 32
#: Small segments and rolls, so that marks are noted, segments given back and files written in each round.
SMALL = (
    "tiers.site.queue.segment_bytes=8388608",
    "tiers.site.outputs.lake.flush_interval_s=0.5",
    "tiers.site.outputs.lake.flush_rows=20000",
)


class Progress(NamedTuple):
    """One device after a run: the messages up to `base` were settled when it began, it sent up to `sent`, was acked up to `acked`."""

    base: int
    sent: int
    acked: int


def compiled(folder: Path) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler for the load generator")
    program = folder / "wsload"
    subprocess.run([compiler, "-O2", "-o", program, WSLOAD], check=True)
    return program


class Load:
    """Devices that number their events as the session numbers their messages, over several runs of the generator."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._program, self._log = program, folder / "acked.csv"
        self.progress = [Progress(0, 0, 0)] * DEVICES
        self.resumed = self.resent = 0

    def start(self, site: SiteProcess, seconds: float) -> subprocess.Popen[bytes]:
        port = site.wait_for_url("devices").rpartition(":")[2]
        known = ["--acked", self._log] if self._log.exists() else []
        template = '{"id":"%CONN%/%SEQ%","seq":%SEQ%}'
        command: list[Any] = [self._program, "--port", port, "--path", "/v1/devices/dev-%CONN%/events", "--session", "s", *known]
        command += ["--conns", str(DEVICES), "--window", str(WINDOW), "--seconds", str(seconds), "--warmup", "0", "--drain", "20"]
        command += ["--payload-template", template, "--acklog", self._log]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def ended(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        """Wait for a run's end; an acked message of which the server knew nothing is an error of the protocol."""
        out, _ = process.communicate(timeout=60)
        result: dict[str, Any] = json.loads(out)
        assert result["errors"]["protocol"] == result["errors"]["http"] == 0, result["errors"]
        with self._log.open() as file:
            rows = list(csv.DictReader(file))
        now = [Progress(int(row["first_seq"]) - 1, int(row["sent_seq"]), int(row["acked_seq"])) for row in rows]
        for before, after in zip(self.progress, now, strict=True):
            if after.base or after.sent:  # else it did not even get its hello
                assert before.acked <= after.base <= max(before.sent, before.acked)
                self.resumed += after.base - before.acked
                self.resent += max(0, before.sent - after.base)
        self.progress = now
        return result


def test_kills_under_full_load_with_resume_lose_and_double_nothing(site: SiteProcess, lake: Any, tmp_path: Path, capsys: Any) -> None:
    seed = int(os.environ.get("HEADRACE_SEED", random.randrange(2**32)))
    rng = random.Random(seed)
    site.overrides += SMALL
    load = Load(compiled(tmp_path), tmp_path)
    for _ in range(ROUNDS):
        site.start()
        running = load.start(site, 60)
        site.wait_for_metric("ingest_acked_events_total", rng.randrange(1_000, 60_000))
        site.kill()
        load.ended(running)
    site.start()
    result = load.ended(load.start(site, 0.2))
    assert result["unacked"] == 0
    site.stop()
    stored = dict(lake.query("select device, [count(*), count(distinct readings.seq), max(readings.seq)] from {lake} group by 1"))
    acked = {f"dev-{number}": device.acked for number, device in enumerate(load.progress)}
    with capsys.disabled():
        print(
            f"\n  {ROUNDS} kills, seed {seed}: acked {sum(acked.values()):,}, {load.resumed:,} of them by a hello, re-sent {load.resent:,} "
            f"whose ack was lost, stored {int(sum(count for count, _, _ in stored.values())):,}"
        )
    assert load.resent, "no kill hit a message on its way"
    # the events of a device are numbered without a hole: so many distinct ones up to there are all of them
    assert stored == {device: [last, last, last] for device, last in acked.items()}
