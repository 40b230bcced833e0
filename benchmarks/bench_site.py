"""Events per second from device to Parquet, and ack latency, with the whole site of examples/single.toml.

Each run starts a fresh `headrace run examples/single.toml` in a temporary folder (one core, the generator on another one),
lets devices send, waits until everything is in the lake, and compares the lake with the acks: a run that lost or doubled an
event is no figure, and ends the benchmark with exit code 1.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from generator import LoadError, Scenario, build
from machine import facts
from site_run import Figures, Options, run

RESULTS = Path(__file__).parent / "results"
SCENARIOS = (Scenario(100), Scenario(1000), Scenario(1000, window=16), Scenario(1000, rate=20_000), Scenario(1000, rate=5_000))
SIMULATED = (Scenario(200, rate=2_000), Scenario(1000, rate=5_000))

#: Column, and what it shows of a run.
COLUMNS: tuple[tuple[str, Callable[[Figures], float], str], ...] = (
    ("acked/s", lambda f: f.acked_per_s, ",.0f"),
    ("ack p50 ms", lambda f: f.p50_ms, ",.2f"),
    ("ack p99 ms", lambda f: f.p99_ms, ",.1f"),
    ("to Parquet/s", lambda f: f.parquet_per_s, ",.0f"),
    ("backlog", lambda f: f.backlog, ",.0f"),
    ("drain s", lambda f: f.drain_s, ",.1f"),
    ("CPU %", lambda f: f.cpu_percent, ",.0f"),
    ("CPU us/event", lambda f: f.cpu_us_per_event, ",.1f"),
    ("RSS MB", lambda f: f.rss_mb, ",.0f"),
    ("RSS peak MB", lambda f: f.rss_peak_mb, ",.0f"),
    ("not sent", lambda f: f.unsent, ",.0f"),
    ("late max ms", lambda f: f.late_max_ms, ",.0f"),
    ("others' cores", lambda f: f.noise, ",.2f"),
)


def main() -> int:
    """Measure, print the table, write the report; the exit code."""
    arguments = _arguments()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print(f"expected at least 2 cores (server and generator), got {len(cores)}", file=sys.stderr)
        return 2
    try:
        program = None if arguments.simulate else build()
        options = Options(
            program=program,
            warmup_s=arguments.warmup,
            seconds=arguments.seconds,
            server_cores=frozenset(cores if arguments.both_cores else cores[:1]),
            generator_core=cores[1],
            level=arguments.level,
            flush_interval_s=arguments.flush_interval_s,
            folder=arguments.folder,
        )
        scenarios = [s for s in (SCENARIOS if program else SIMULATED) if not arguments.only or s.name in arguments.only]
        if not scenarios:
            names = ", ".join(repr(scenario.name) for scenario in (SCENARIOS if program else SIMULATED))
            print(f"--only: expected one of {names}, got {arguments.only}", file=sys.stderr)
            return 2
        results = _measure(scenarios, options, arguments.runs)
    except LoadError as error:
        print(f"no figure: {error}", file=sys.stderr)
        return 1
    print(table(results, options.level))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(report(results, options, arguments.runs))
        print(f"report: {os.path.relpath(arguments.out)}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="runs of each scenario (default 3)")
    parser.add_argument("--seconds", type=float, default=8.0, help="measured time under load (default 8)")
    parser.add_argument("--warmup", type=float, default=3.0, help="time under load before measuring (default 3)")
    parser.add_argument("--level", choices=("process", "power"), default="process", help="durability of an ack (default process)")
    parser.add_argument("--both-cores", action="store_true", help="let the server use all cores, the generator's as well")
    parser.add_argument(
        "--flush-interval-s", type=float, default=2.0, help="longest time until a file is closed (default 2; the example has 10)"
    )
    parser.add_argument("--only", action="append", help="only the scenario of this name (repeatable)")
    parser.add_argument("--simulate", action="store_true", help="load by `headrace devices simulate`, as where no C compiler is")
    parser.add_argument("--folder", type=Path, help="where the temporary data goes (default: the system's)")
    parser.add_argument(
        "--out", type=Path, default=None, help="write a Markdown report (default: results/site.md when nothing is left out)"
    )
    arguments = parser.parse_args()
    whole = not (arguments.only or arguments.both_cores or arguments.simulate) and arguments.level == "process"
    if arguments.out is None and whole:
        arguments.out = RESULTS / "site.md"
    return arguments


Results = list[tuple[Scenario, list[Figures]]]


def _measure(scenarios: Sequence[Scenario], options: Options, runs: int) -> Results:
    """Round by round, so that a quiet or a busy minute of the machine is not one scenario's alone."""
    found: Results = [(scenario, []) for scenario in scenarios]
    for number in range(1, runs + 1):
        for scenario, figures in found:
            figures.append(run(scenario, options))
            one = figures[-1]
            line = f"run {number} {scenario.name}: {one.acked_per_s:,.0f} acked/s, p50 {one.p50_ms:.2f} ms, p99 {one.p99_ms:.1f} ms, "
            print(
                f"{line}{one.parquet_per_s:,.0f}/s to Parquet; lake = acked = {one.acked:,}; others' cores {one.noise:.2f}", file=sys.stderr
            )
    return found


def table(results: Results, level: str) -> str:
    """Medians as a Markdown table; the spread (least to most) in brackets behind what varies."""
    lines = ["| scenario | level | " + " | ".join(name for name, _, _ in COLUMNS) + " |"]
    lines.append("|---|---|" + "---:|" * len(COLUMNS))
    for scenario, figures in results:
        cells = [_cell([value(one) for one in figures], form) for _, value, form in COLUMNS]
        lines.append(f"| {scenario.name} | {level} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float], form: str) -> str:
    middle, least, most = (format(value, form) for value in (statistics.median(values), min(values), max(values)))
    return middle if least == most else f"{middle} ({least}-{most})"


def report(results: Results, options: Options, runs: int) -> str:
    """The report: table, machine, how it was taken, every run."""
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    load = (
        "benchmarks/load/wsload.c"
        if options.program
        else "headrace devices simulate (no C compiler): a Python sender, its delays are in the latency"
    )
    command = shlex.join(["python", "benchmarks/bench_site.py", *sys.argv[1:]])
    placed = "all cores, the generator's as well" if len(options.server_cores) > 1 else "one core"
    warmup_s = options.warmup_s if options.program else 0.0
    noise = statistics.median(one.noise for _, figures in results for one in figures)
    busy = f"The machine was **not quiet**: other processes kept {noise:.2f} cores busy (median); figures on a quiet one are better. " * (
        noise > 0.1
    )
    lines = [
        "# Device to Parquet: the whole site",
        "",
        f"`{command}`, {date}. {busy}The table has medians of {runs} runs, in brackets the least and the most.",
        "",
        table(results, options.level),
        "",
        *(f"- {name}: {value}" for name, value in facts(options.folder or Path(tempfile.gettempdir())).items()),
        f"- server: `headrace run examples/single.toml` on {placed}, fresh for each run; queue level `{options.level}`;",
        f"  `flush_interval_s = {options.flush_interval_s}` in place of the default, so that the end of a run is not a wait for the clock;",
        "  the context of every device known;",
        "  no client on the live feed",
        f"- load: {load}, on one core; {warmup_s:g} s warm-up, then {options.seconds:g} s measured; messages of about 120 bytes",
        "- after every run the lake, read by DuckDB, held exactly the acked messages of each device, each one time",
        "",
        "What the columns mean is in `benchmarks/README.md`.",
        "",
        "## Runs",
        "",
        "| scenario | run | acked | " + " | ".join(name for name, _, _ in COLUMNS) + " |",
        "|---|---:|---:|" + "---:|" * len(COLUMNS),
    ]
    for scenario, figures in results:
        for number, one in enumerate(figures, 1):
            cells = [format(value(one), form) for _, value, form in COLUMNS]
            lines.append(f"| {scenario.name} | {number} | {one.acked:,} | " + " | ".join(cells) + " |")
    wrong = sorted({f"{one.counter / one.acked:.2f}" for _, figures in results for one in figures if one.counter != one.acked})
    if wrong:
        factor = " to ".join(wrong)
        lines += ["", f"`headrace_sink_written_events_total` was {factor} times the rows in the lake: the counter is wrong, not the lake."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
