"""The load: `load/wsload.c`, compiled on demand; without a compiler, `headrace devices simulate`."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parent / "load" / "wsload.c"
BUILD = Path(__file__).parent / "build"
SETTLE_S = 0.3  # wsload waits for this between the last handshake and the first message


@dataclass(frozen=True)
class Scenario:
    """`connections` devices; closed loop with `window` messages outstanding each, or, with a `rate`, an open loop.

    group: open loop of devices that pipeline: each sends so many messages when so many are due.
    """

    connections: int
    window: int = 1
    rate: int = 0
    group: int = 1

    @property
    def name(self) -> str:
        if not self.rate:
            return f"{self.connections}x{self.window}"
        return f"{self.connections} devices, {self.rate:,}/s" + (f", {self.group} at a time" if self.group > 1 else "")


@dataclass(frozen=True)
class Load:
    """What the sender saw. `begun` and `ended` are moments of the monotonic clock: first message, last ack."""

    acked: int
    acked_per_s: float
    p50_ms: float
    p99_ms: float
    unsent: int
    late_max_ms: float
    begun: float
    ended: float
    acked_by_device: dict[str, int] | None


class LoadError(Exception):
    """The generator failed, or what it saw makes the figure worthless."""


def build() -> Path | None:
    """The compiled generator; None, with a message on stderr, where there is no compiler."""
    program = BUILD / "wsload"
    if program.exists() and program.stat().st_mtime >= SOURCE.stat().st_mtime:
        return program
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        print(
            "no C compiler (cc, gcc or clang) in PATH: the load comes from `headrace devices simulate`, which measures fewer\n"
            "scenarios and adds its own delays to the latency; install one (Debian: apt-get install gcc libc6-dev) for the real figures",
            file=sys.stderr,
        )
        return None
    BUILD.mkdir(exist_ok=True)
    done = subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-o", program, SOURCE], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LoadError(f"{SOURCE.name} did not compile:\n{done.stderr}")
    return program


def write_devices(file: Path, count: int) -> None:
    """The devices of wsload (dev-0 ...) for `headrace context import`: four classes on eight sites."""
    with file.open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(("device", "class", "type", "site", "latitude", "longitude"))
        for number in range(count):
            kind = ("thermometer", "pump", "meter", "gateway")[number % 4]
            rows.writerow((f"dev-{number}", kind, f"{kind}-{number % 3}", f"site-{number % 8}", 52.0 + number % 8, 13.0 + number % 8))


def run_wsload(program: Path, port: int, scenario: Scenario, warmup_s: float, seconds: float, core: int, folder: Path) -> Load:
    """Drive the scenario from one core. Every message is acked on return, or LoadError."""
    ack_log = folder / "acked.csv"
    command = [str(program), "--port", str(port), "--path", "/v1/devices/dev-%CONN%/events", "--conns", str(scenario.connections)]
    command += ["--rate", str(scenario.rate), "--group", str(scenario.group)] if scenario.rate else ["--window", str(scenario.window)]
    command += ["--warmup", str(warmup_s), "--seconds", str(seconds), "--drain", "60", "--acklog", str(ack_log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        os.sched_setaffinity(process.pid, {core})
        assert process.stderr is not None
        assert process.stdout is not None
        connected = process.stderr.readline()  # "connected N of N in S s", when all are
        begun = time.monotonic() + SETTLE_S
        output, errors = process.stdout.read(), connected + process.stderr.read()
        process.wait()
        ended = time.monotonic()
    if process.returncode != 0:
        raise LoadError(f"wsload ended with code {process.returncode}: {output or errors}")
    result = json.loads(output)
    if result["unacked"] or result["connected"] != scenario.connections:
        raise LoadError(f"expected every connection and every ack, got {result['connected']} connections, {result['unacked']} unacked")
    with ack_log.open() as rows:
        acked = {f"dev-{row['conn']}": int(row["acked_seq"]) for row in csv.DictReader(rows)}
    return Load(
        acked=sum(acked.values()),
        acked_per_s=result["acked_per_s"],
        p50_ms=result["ack_us"]["p50"] / 1e3,
        p99_ms=result["ack_us"]["p99"] / 1e3,
        # a generator that is late at the end never sends what was due by then, and does not count it
        unsent=max(0, round(scenario.rate * (warmup_s + seconds)) - sum(acked.values())),
        late_max_ms=result["late_max_us"] / 1e3,
        begun=begun,
        ended=ended,
        acked_by_device=acked,
    )


def run_simulate(port: int, scenario: Scenario, seconds: float, core: int) -> Load:
    """The same from `headrace devices simulate`: open loop only, no warm-up, and no count per device."""
    words = [
        "devices",
        "simulate",
        "--count",
        scenario.connections,
        "--rate",
        scenario.rate,
        "--seconds",
        seconds,
        "--no-outages",
        "--json",
    ]
    command = ["taskset", "-c", str(core), sys.executable, "-m", "headrace", *map(str, words), "--url", f"ws://127.0.0.1:{port}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    ended = time.monotonic()
    if done.returncode != 0:
        raise LoadError(f"headrace devices simulate ended with code {done.returncode}: {done.stdout}{done.stderr}")
    result = json.loads(done.stdout)
    return Load(
        acked=result["acked"],
        acked_per_s=result["acked_per_s"],
        p50_ms=result["ack_latency_p50_s"] * 1e3,
        p99_ms=result["ack_latency_p99_s"] * 1e3,
        unsent=result["skipped"],
        late_max_ms=0.0,
        begun=ended - result["elapsed_s"],
        ended=ended,
        acked_by_device=None,
    )
