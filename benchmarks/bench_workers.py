"""One worker beside several: `edge.toml` (ingest_ws -> queue_pmem -> discard), in turns, so that both meet the same noise.

The load generator needs a core of its own, and the workers have what is left: on a machine with few cores the gain is that of
sharing them better, not that of more cores.

    .venv/bin/python benchmarks/bench_workers.py --out benchmarks/results/workers.md
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from generator import Load, LoadError, Scenario, build, run_wsload
from machine import facts, process_cpu_s

from headrace.testing.site import SiteProcess

SITE = Path(__file__).parent / "edge.toml"
SCENARIOS = (Scenario(1000, window=1), Scenario(1000, window=16))


@dataclass(frozen=True)
class Run:
    """One run; `busy` is how many cores the site's processes used, from the first message to the last ack."""

    scenario: Scenario
    workers: int
    load: Load
    busy: float


def main() -> int:
    """Measure, print the table, write the report; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="beside one (default 2)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured time under load (default 5)")
    parser.add_argument("--warmup", type=float, default=2.0, help="time under load before measuring (default 2)")
    parser.add_argument("--out", type=Path, help="write the report there")
    arguments = parser.parse_args()
    program = build()
    if program is None:
        return 2
    try:
        runs = [
            measure(program, scenario, workers, arguments.warmup, arguments.seconds)
            for scenario in SCENARIOS
            for _ in range(arguments.runs)
            for workers in (1, arguments.workers)
        ]
    except LoadError as error:
        print(f"no figure: {error}", file=sys.stderr)
        return 1
    print("\n".join(table(runs)))
    if arguments.out:
        arguments.out.write_text("\n".join(report(runs)) + "\n")
    return 0


def measure(program: Path, scenario: Scenario, workers: int, warmup_s: float, seconds: float) -> Run:
    """A fresh site under load; LoadError when its processes did not count what the generator saw acked."""
    with tempfile.TemporaryDirectory() as folder:
        ports = ("admin.listen=127.0.0.1:0", "tiers.edge.sources.devices.listen=127.0.0.1:0")
        with SiteProcess(SITE, Path(folder), [*ports, f"tiers.edge.workers={workers}"]) as site:
            site.start()
            assert site.process is not None
            pids = [row["pid"] for row in site.workers().values()] or [site.process.pid]
            port = int(site.wait_for_url("devices").rpartition(":")[2])
            before = sum(map(process_cpu_s, pids))
            load = run_wsload(program, port, scenario, warmup_s, seconds, sorted(os.sched_getaffinity(0))[-1], Path(folder))
            busy = (sum(map(process_cpu_s, pids)) - before) / (load.ended - load.begun)
            counted = site.metric("ingest_acked_events_total")
            site.stop()
    if counted != load.acked:
        raise LoadError(f"the generator saw {load.acked} acks, the site counted {counted:.0f}")
    print(f"{scenario.name}, {workers} workers: {load.acked_per_s:,.0f}/s, {busy:.2f} cores", file=sys.stderr)
    return Run(scenario, workers, load, busy)


def table(runs: list[Run]) -> list[str]:
    """Median, and in brackets least and most."""
    lines = ["| scenario | workers | acked/s | ack p50 ms | ack p99 ms | cores used |", "|---|---|---|---|---|---|"]
    for scenario in SCENARIOS:
        for workers in sorted({run.workers for run in runs}):
            group = [run for run in runs if (run.scenario, run.workers) == (scenario, workers)]
            cells = [
                spread((run.load.acked_per_s for run in group), ",.0f"),
                spread((run.load.p50_ms for run in group), ".2f"),
                spread((run.load.p99_ms for run in group), ".1f"),
                spread((run.busy for run in group), ".2f"),
            ]
            lines.append(f"| {scenario.name} | {workers} | {' | '.join(cells)} |")
    return lines


def spread(values: Iterable[float], style: str) -> str:
    known = sorted(values)
    return f"{statistics.median(known):{style}} ({known[0]:{style}}-{known[-1]:{style}})"


def report(runs: list[Run]) -> list[str]:
    """The page."""
    about = [f"- {name}: {fact}" for name, fact in facts(Path(tempfile.gettempdir())).items()]
    explained = (
        "Written by `benchmarks/bench_workers.py`: median (least-most) of runs that took turns. Workers and load generator share the "
        "machine's cores; the generator is bound to one of them."
    )
    return ["# Several workers", "", explained, "", *table(runs), "", *about]


if __name__ == "__main__":
    sys.exit(main())
