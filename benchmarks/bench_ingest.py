"""Durable acks a second on one core, beside a C ceiling and what else people deploy, in one run.

    python benchmarks/bench_ingest.py                    # about 8 minutes; writes results/ingest.md and ingest.svg
    python benchmarks/bench_ingest.py --rounds 1 --only edge,ceiling

The server has one core, the load generator (wsload; redis-benchmark for Redis) another. Each round starts every server afresh,
in a changing order; a bar compares two servers of the same round, and the median over the rounds counts. Contenders that are
not installed are left out, and the report says how to install them. The plot needs matplotlib. Linux only.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from generator import LoadError, build
from machine import Used, facts
from peers.contenders import (
    PAYLOAD_BYTES,
    AiohttpRedis,
    Ceiling,
    Contender,
    Edge,
    EdgePower,
    EdgeSessions,
    Nats,
    NotInstalled,
    Redis,
    RedisAlways,
    Site,
)

RESULTS = Path(__file__).parent / "results"
CONTENDERS: dict[str, type[Contender]] = {
    "ceiling": Ceiling, "edge": Edge, "site": Site, "redis": Redis, "nats": Nats, "aiohttp-redis": AiohttpRedis,
    "edge-power": EdgePower, "redis-always": RedisAlways, "edge-sessions": EdgeSessions,
}  # fmt: skip
#: Connections and messages outstanding on each.
CLOSED = ((1000, 1), (1000, 16))
OPEN_CONNECTIONS, OPEN_RATE = 10_000, 20_000


@dataclass(frozen=True)
class Figures:
    """One measurement. `noise`: cores that strangers kept busy meanwhile."""

    acked_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_percent: float
    idle_kb: float
    generator_percent: float
    noise: float


@dataclass(frozen=True)
class Bar:
    """A promise: the ratio of two contenders, or a figure of one, and its bound."""

    what: str
    value: float | None
    bound: float
    at_least: bool

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        return "kept" if (self.value >= self.bound) == self.at_least or self.value == self.bound else "MISSED"


Samples = dict[tuple[str, str], list[Figures | None]]


def main() -> int:
    """Measure, print, write the report; the exit code."""
    options = _options()
    cores = sorted(os.sched_getaffinity(0))
    program = build()
    if len(cores) < 2 or program is None:
        print("expected a C compiler and at least 2 cores (server and generator)", file=sys.stderr)
        return 2
    names = options.only.split(",") if options.only else list(CONTENDERS)
    missing: dict[str, str] = {}
    samples: Samples = {}
    with tempfile.TemporaryDirectory(prefix="headrace-bench-", dir=options.folder) as folder:
        where = facts(Path(folder))
        for turn in range(options.rounds):
            order = random.Random(turn).sample(names, len(names))
            for name in order:
                for scenario in scenarios(name):
                    print(f"round {turn + 1} of {options.rounds}: {name} {scenario}", file=sys.stderr, flush=True)
                    try:
                        figures = measure(name, scenario, Path(folder), program, cores[0], cores[1], options)
                    except NotInstalled as error:
                        missing[CONTENDERS[name].name] = str(error)
                        break
                    samples.setdefault((name, scenario), [None] * options.rounds)[turn] = figures
    report = _report(samples, bars(samples), missing, where, options)
    print(report)
    if not options.only or options.out:
        out = options.out or RESULTS / "ingest.md"
        plotted = plot(samples, out.with_suffix(".svg"))
        out.write_text(report + (f"\n![acks a second]({out.stem}.svg)\n" if plotted else ""))
    return 0


def scenarios(name: str) -> list[str]:
    """What is measured of a contender."""
    closed = [f"{connections}x{window}" for connections, window in CLOSED]
    if name in ("edge-power", "redis-always"):
        return closed[:1]
    if name == "edge-sessions":
        return [closed[-1], "open"]
    return [*closed, "open"] if name in ("edge", "ceiling") else closed


def measure(
    name: str, scenario: str, folder: Path, program: Path, server_core: int, generator_core: int, options: argparse.Namespace
) -> Figures:
    """One contender, started afresh, in one scenario."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        contender = CONTENDERS[name](Path(own), server_core)
        contender.start()
        try:
            before = Used.now(contender.pids[0])
            if isinstance(contender, Redis):
                figures = _redis_benchmark(contender, scenario, generator_core, options)
            else:
                figures = _wsload(contender, scenario, program, generator_core, options)
            noise = Used.now(contender.pids[0]).others_cores_since(before)
        finally:
            contender.stop()
    return Figures(*figures, noise=noise)


def _wsload(contender: Contender, scenario: str, program: Path, core: int, options: argparse.Namespace) -> tuple[float, ...]:
    connections, window = (OPEN_CONNECTIONS, 0) if scenario == "open" else map(int, scenario.split("x"))
    words = ["--conns", str(connections), "--seconds", str(options.seconds), "--warmup", str(options.warmup), "--drain", "30"]
    words += ["--rate", str(OPEN_RATE)] if scenario == "open" else ["--window", str(window)]
    words += ["--payload-size", str(PAYLOAD_BYTES), *contender.load]
    for pid in contender.pids:
        words += ["--server-pid", str(pid)]
    done = subprocess.run(["taskset", "-c", str(core), program, *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LoadError(f"{contender.name}, {scenario}: wsload ended with code {done.returncode}: {done.stderr}{done.stdout}")
    result = json.loads(done.stdout)
    if result["unacked"] or result["connected"] != connections:
        raise LoadError(f"{contender.name}, {scenario}: {result['unacked']} unacked, {result['connected']} of {connections} connected")
    ack, server = result["ack_us"], result["server"]
    return (
        result["acked_per_s"], ack["p50"] / 1e3, ack["p99"] / 1e3, server["cpu_pct"], server["idle_kb_per_conn"], result["client_cpu_pct"],
    )  # fmt: skip


def _redis_benchmark(contender: Redis, scenario: str, core: int, options: argparse.Namespace) -> tuple[float, ...]:
    connections, window = map(int, scenario.split("x"))
    payload = '{"pad":"' + "x" * (PAYLOAD_BYTES - 10) + '"}'
    words = ["redis-benchmark", "-h", "127.0.0.1", "-p", str(contender.port), "-c", str(connections), "-P", str(window), "--csv"]

    def run(count: int) -> dict[str, str]:
        command = ["taskset", "-c", str(core), *words, "-n", str(count), "XADD", "events", "*", "payload", payload]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        lines = [line for line in output.splitlines() if line.startswith('"')]
        (row,) = csv.DictReader(io.StringIO("\n".join([lines[0], lines[-1].replace(payload, "").replace('""', '"')])))
        return row

    pilot = float(run(20_000 * window)["rps"])
    row = run(int(pilot * options.seconds))
    return float(row["rps"]), float(row["p50_latency_ms"]), float(row["p99_latency_ms"]), float("nan"), float("nan"), float("nan")


def bars(samples: Samples) -> list[Bar]:
    """What this benchmark promises; ratios of acks a second in the same round, medians over the rounds."""

    def ratio(what: str, one: str, other: str, scenario: str, bound: float) -> Bar:
        pairs = zip(samples.get((one, scenario), []), samples.get((other, scenario), []), strict=False)
        ratios = [mine.acked_per_s / theirs.acked_per_s for mine, theirs in pairs if mine and theirs]
        return Bar(f"{what}, {scenario}", statistics.median(ratios) if ratios else None, bound, True)

    def figure(what: str, scenario: str, field: str, bound: float) -> Bar:
        found = [getattr(one, field) for one in samples.get(("edge", scenario), []) if one]
        return Bar(what, statistics.median(found) if found else None, bound, False)

    return [
        ratio("edge to the C ceiling", "edge", "ceiling", "1000x1", 0.55),
        ratio("edge to raw Redis everysec", "edge", "redis", "1000x1", 1.0),
        ratio("edge to NATS over WebSocket", "edge", "nats", "1000x1", 2.5),
        ratio("edge to aiohttp -> Redis", "edge", "aiohttp-redis", "1000x1", 5.0),
        ratio("edge to the C ceiling", "edge", "ceiling", "1000x16", 0.35),
        ratio("edge to raw Redis everysec", "edge", "redis", "1000x16", 1.5),
        ratio("edge at power to raw Redis always", "edge-power", "redis-always", "1000x1", 1.0),
        figure(f"ack p50 in ms, {OPEN_CONNECTIONS:,} connections, {OPEN_RATE:,}/s", "open", "p50_ms", 0.5),
        figure(f"ack p99 in ms, {OPEN_CONNECTIONS:,} connections, {OPEN_RATE:,}/s", "open", "p99_ms", 10.0),
        figure(f"% of the core, {OPEN_CONNECTIONS:,} connections, {OPEN_RATE:,}/s", "open", "cpu_percent", 60.0),
        figure(f"KB for each idle connection, {OPEN_CONNECTIONS:,} of them", "open", "idle_kb", 6.0),
    ]


def _report(samples: Samples, promised: list[Bar], missing: dict[str, str], where: dict[str, str], options: argparse.Namespace) -> str:
    lines = [
        "# Durable ingest on one core",
        "",
        f"`python benchmarks/bench_ingest.py {' '.join(options.words)}`".replace(" `", "`")
        + f", {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC.",
        f"Medians of {options.rounds} rounds, in brackets the least and the most.",
        "",
        "| server | level | scenario | acked/s | p50 ms | p99 ms | CPU % | KB a connection | others' cores |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for (name, scenario), rounds in sorted(samples.items(), key=lambda item: (item[0][1], list(CONTENDERS).index(item[0][0]))):
        found = [one for one in rounds if one]
        shown = f"{OPEN_CONNECTIONS:,} connections, {OPEN_RATE:,}/s" if scenario == "open" else scenario
        cells = [
            _cell([one.acked_per_s for one in found], ",.0f"), _cell([one.p50_ms for one in found], ",.2f"),
            _cell([one.p99_ms for one in found], ",.1f"), _cell([one.cpu_percent for one in found], ",.0f"),
            _cell([one.idle_kb for one in found], ",.1f"), _cell([one.noise for one in found], ",.2f"),
        ]  # fmt: skip
        lines.append(f"| {CONTENDERS[name].name} | {CONTENDERS[name].level} | {shown} | {' | '.join(cells)} |")
    lines += ["", "| bar | measured | bound | |", "|---|---:|---:|---|"]
    for bar in promised:
        value, side = "-" if bar.value is None else f"{bar.value:.2f}", "at least" if bar.at_least else "at most"
        lines.append(f"| {bar.what} | {value} | {side} {bar.bound:g} | {bar.verdict} |")
    lines += ["", *(f"- {name}: {value}" for name, value in where.items())]
    lines += [f"- left out: {name}; it needs {how}" for name, how in missing.items()]
    lines += [
        "- `CxW`: C connections with W messages of about 120 bytes outstanding on each; latency there is a figure of load",
        "- the open loop: messages are due by the clock, and latency counts from then",
        "- level: what an ack survives: `process` kill -9, `power` power loss, `none` nothing (the ceiling stores nothing)",
        "- the load generator has one core; where the server's CPU is far from 100 %, the generator was the limit",
    ]
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float], form: str) -> str:
    values = [value for value in values if value == value]
    if not values:
        return ""
    low, middle, high = min(values), statistics.median(values), max(values)
    text = format(middle, form)
    return text if len(values) == 1 else f"{text} ({format(low, form)}-{format(high, form)})"


def plot(samples: Samples, file: Path) -> bool:
    """Acks a second of every contender in the closed-loop scenarios; False, with a message, where matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        print("no plot: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)
        return False
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "headrace"
    from matplotlib import pyplot as plt

    shown = [f"{connections}x{window}" for connections, window in CLOSED]
    figure, axes = plt.subplots(1, len(shown), figsize=(11, 3.6))
    for axis, scenario in zip(axes, shown, strict=True):
        names = [name for name in CONTENDERS if (name, scenario) in samples]
        medians = [statistics.median(one.acked_per_s for one in samples[name, scenario] if one) for name in names]
        colours = ["#1f6f8b" if "edge" in name or "site" in name else "#b9c4c9" for name in names]
        axis.barh([f"{CONTENDERS[name].name} ({CONTENDERS[name].level})" for name in names], medians, color=colours)
        for place, value in enumerate(medians):
            axis.text(value, place, f" {value / 1000:,.0f}k", va="center", fontsize=8)
        axis.invert_yaxis()
        axis.set_title(f"acks a second, {scenario}", fontsize=10)
        axis.tick_params(labelsize=8)
        axis.margins(x=0.15)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    return True


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="measured time (default 4)")
    parser.add_argument("--warmup", type=float, default=1.0, help="seconds before that (default 1)")
    parser.add_argument("--only", default="", help=f"some of {','.join(CONTENDERS)}; table only, unless --out is given")
    parser.add_argument("--out", type=Path, help="where the report goes (default results/ingest.md)")
    parser.add_argument("--folder", type=Path, help="where servers store (default: the temporary directory)")
    options = parser.parse_args()
    options.words = sys.argv[1:]
    return options


if __name__ == "__main__":
    sys.exit(main())
