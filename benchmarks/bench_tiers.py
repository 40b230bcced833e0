"""The tiers as separate processes: into Parquet, to the live feed, after an outage, with many edges; beside Redis and NATS in one run.

    python benchmarks/bench_tiers.py                        # about 10 minutes; writes results/tiers.md
    python benchmarks/bench_tiers.py --only parquet,redis --rounds 1
    python benchmarks/bench_tiers.py --report               # from what pieces have left in build/tiers.json

Everything of a case shares all cores, the generator and the brokers too. A run after which the lake does not hold exactly what was
acked is no figure, and ends the benchmark with exit code 1. What is not installed is left out, and the report says how to install it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import tiers_cases as cases
from generator import BUILD, LoadError, build
from machine import facts
from peers.contenders import NotInstalled

RESULTS: Final = Path(__file__).parent / "results"
Samples = dict[str, list[dict[str, float]]]


@dataclass(frozen=True)
class Bar:
    """A promise, and its bound."""

    what: str
    value: float | None
    bound: float
    at_least: bool

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        return "kept" if (self.value >= self.bound) == self.at_least or self.value == self.bound else "MISSED"


def main() -> int:
    """Measure, print, write the report; the exit code."""
    options = _options()
    program = build()
    if program is None:
        return 2
    kept = BUILD / "tiers.json"
    samples: Samples = json.loads(kept.read_text()) if kept.exists() and (options.only or options.report) else {}
    todo = table(program, options)
    names = [] if options.report else options.only.split(",") if options.only else list(todo)
    missing: dict[str, str] = {}
    for turn in range(options.rounds):
        for name in names:
            print(f"round {turn + 1} of {options.rounds}: {name}", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(prefix="headrace-bench-", dir=options.folder) as folder:
                try:
                    found = todo[name](Path(folder))
                except NotInstalled as error:
                    missing[name] = str(error)
                    continue
                except LoadError as error:
                    print(f"no figure: {error}", file=sys.stderr)
                    return 1
            print({key: round(value, 2) for key, value in found.items()}, file=sys.stderr)
            samples[name] = [*(samples.get(name, []) if turn else []), found]
            kept.write_text(json.dumps(samples, indent=1))
    where = facts(options.folder or Path(tempfile.gettempdir()))
    text = report(samples, missing, {**where, "remark": options.remark} if options.remark else where)
    print(text)
    (RESULTS / "tiers.md").write_text(text)
    return 0


def table(program: Path, options: argparse.Namespace) -> dict[str, Callable[[Path], dict[str, float]]]:
    """The cases by name."""
    seconds = options.seconds
    return {
        "parquet": lambda folder: cases.parquet(program, folder, seconds),
        "redis": lambda folder: cases.redis(program, folder, seconds),
        "nats": lambda folder: cases.nats(program, folder, seconds, "nats"),
        "nats-py": lambda folder: cases.nats(program, folder, seconds / 4, "nats-py"),
        "live-1000": lambda folder: cases.live(program, folder, seconds, 1_000),
        "live-20000": lambda folder: cases.live(program, folder, seconds, 20_000),
        "drain": lambda folder: cases.drain(program, folder, options.backlog),
        "edges-1": lambda folder: cases.edges(program, folder, seconds, 1),
        "edges-8": lambda folder: cases.edges(program, folder, seconds, 8),
        "edges-32": lambda folder: cases.edges(program, folder, seconds, 32),
    }


def bars(samples: Samples) -> list[Bar]:
    """What this benchmark promises, by medians."""

    def figure(name: str, key: str) -> float | None:
        return cases.medians(samples[name])[key] if name in samples else None

    def ratio(one: float | None, other: float | None) -> float | None:
        return one / other if one and other else None

    def quotient(name: str, one: str, other: str) -> float | None:
        return ratio(figure(name, one), figure(name, other))

    ours, many = figure("parquet", "per_s"), figure("edges-32", "middle_us")
    return [
        Bar("events/s into Parquet, to the Redis path", ratio(ours, figure("redis", "per_s")), 3.0, True),
        Bar("events/s into Parquet, to the NATS path (nats-py)", ratio(ours, figure("nats-py", "per_s")), 10.0, True),
        Bar("CPU per event into Parquet, the Redis path to ours", ratio(figure("redis", "cpu_us"), figure("parquet", "cpu_us")), 1.0, True),
        Bar("device to live p99 in ms at 20,000/s", figure("live-20000", "p99_ms"), 50.0, False),
        Bar("ack p99 of live devices while a backlog drains, to before", quotient("drain", "busy_p99_ms", "quiet_p99_ms"), 2.0, False),
        Bar("ack p50 of live devices while a backlog drains, to before", quotient("drain", "busy_p50_ms", "quiet_p50_ms"), 2.0, False),
        Bar("CPU per event in the middle, 32 edges to 1", ratio(many, figure("edges-1", "middle_us")), 1.2, False),
    ]  # fmt: skip


def report(samples: Samples, missing: dict[str, str], where: dict[str, str]) -> str:
    """Markdown: a table for each kind of case, the bars, the machine."""
    found = {name: cases.medians(rounds) for name, rounds in samples.items()}
    lines = [
        "# Tiers as separate processes",
        "",
        f"`python benchmarks/bench_tiers.py`, {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC. Medians of "
        f"{max(map(len, samples.values()), default=0)} rounds.",
        "",
        "| into Parquet | events/s | acked/s | CPU us/event | edge | middle | events | others' cores |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    labels = {
        "parquet": "headrace edge -> middle -> lake",
        "redis": "Redis XADD -> XREADGROUP -> pyarrow",
        "nats-py": "NATS JetStream -> nats-py -> pyarrow",
        "nats": "NATS JetStream -> the plain protocol -> pyarrow",
    }
    for name, label in labels.items():
        if one := found.get(name):
            cells = [_cell(one, key, form) for key, form in COLUMNS]
            lines.append(f"| {label} | {' | '.join(cells)} |")
    lines += [
        "",
        "| device to live | p50 ms | p99 ms | max ms | ack p99 ms | edge % | middle % | live % | gaps | others' cores |",
        "|---|" + "---:|" * 9,
    ]
    for name in ("live-1000", "live-20000"):
        if one := found.get(name):
            keys = ("p50_ms", "p99_ms", "max_ms", "ack_p99_ms", "edge_percent", "middle_percent", "live_percent", "gaps", "others_cores")
            lines.append(f"| {int(name[5:]):,} events/s | {' | '.join(_cell(one, key, ',.1f') for key in keys)} |")
    if one := found.get("drain"):
        lines += ["", "| after an outage | |", "|---|---:|"]
        for key, label in DRAIN.items():
            lines.append(f"| {label} | {_cell(one, key, ',.2f' if key.endswith(('ms', 'cores')) else ',.0f')} |")
    lines += [
        "",
        "| edges on one middle, 20,000 events/s together | middle us/event | all edges us/event | commits |",
        "|---|---:|---:|---:|",
    ]
    for name in ("edges-1", "edges-8", "edges-32"):
        if one := found.get(name):
            lines.append(f"| {name[6:]} | {one['middle_us']:.2f} | {one['edge_us']:.2f} | {one['commits']:,.0f} |")
    lines += ["", "| bar | measured | bound | |", "|---|---:|---:|---|"]
    for bar in bars(samples):
        value, side = "-" if bar.value is None else f"{bar.value:.2f}", "at least" if bar.at_least else "at most"
        lines.append(f"| {bar.what} | {value} | {side} {bar.bound:g} | {bar.verdict} |")
    lines += ["", *(f"- {name}: {value}" for name, value in where.items())]
    lines += [f"- left out: {name}; it needs {how}" for name, how in missing.items()]
    return "\n".join([*lines, *NOTES]) + "\n"


PARQUET: Final = {
    "parquet": "headrace edge -> middle -> lake",
    "redis": "Redis XADD -> XREADGROUP -> pyarrow",
    "nats-py": "NATS JetStream -> nats-py -> pyarrow",
    "nats": "NATS JetStream -> the plain protocol -> pyarrow",
}
COLUMNS: Final = (
    ("per_s", ",.0f"), ("acked_per_s", ",.0f"), ("cpu_us", ".2f"), ("edge_us", ".2f"), ("middle_us", ".2f"), ("events", ",.0f"),
    ("others_cores", ".2f"),
)  # fmt: skip
EDGES: Final = "| edges on one middle, 20,000 events/s together | middle us/event | all edges us/event | commits |"
DRAIN: Final = {
    "backlog": "events that the edge held when the middle came back",
    "link_per_s": "events/s out of the edge, until its queue was empty",
    "parquet_per_s": "events/s until all were in files",
    "quiet_p50_ms": "ack p50 of live devices (2,000 events/s) before it came back, ms",
    "quiet_p99_ms": "the same, p99",
    "busy_p50_ms": "ack p50 while it drained, ms",
    "busy_p99_ms": "the same, p99",
    "others_cores": "others' cores meanwhile",
}
NOTES: Final = (
    "- into Parquet: from the first message until the last event is in a committed file; the generator has its share of the same cores. "
    "What is acked survives `kill -9` in all three (Redis: AOF everysec; NATS: file store)",
    f"- load: wsload (for Redis redis-benchmark), {cases.DEVICES} connections with {cases.WINDOW} messages of about 110 bytes outstanding",
    "- CPU us/event: of the servers and consumers, without the generator; others' cores: what strangers kept busy meanwhile, about "
    "0 on a quiet machine. Where it is not, events/s are too low, and CPU us/event is the figure to compare",
    "- the consumers of Redis and NATS decode JSON in columns with pyarrow, write one file a second, and acknowledge behind fsync; "
    "they add no context and check no message",
    "- device to live: edge -> middle -> fan-out -> live tier -> one WebSocket client; `read_wait_ms_max` 15 at the edge, "
    "0 behind it, `tick_ms = 5`; the generator sleeps between events and may be a millisecond late; "
    "a moment is taken when the generator writes the event, by the millisecond",
    "- after an outage: the generator of the live devices is never held up itself (SCHED_FIFO, where it may have that); the lake has "
    "`nice = 10`, as in `examples/tiers.toml`",
    "- after every run the lake held exactly what was acked",
)


def _cell(one: dict[str, float], key: str, form: str) -> str:
    return format(one[key], form) if key in one else ""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="time under load (default 6)")
    parser.add_argument("--backlog", type=int, default=5_000_000, help="events held during the outage (default 5 million)")
    parser.add_argument("--only", default="", help="some of the cases; the report has the others as they were measured before")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--remark", default="", help="a line for the report: what has to be known of this run")
    parser.add_argument("--folder", type=Path, help="where servers store (default: the temporary directory)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
