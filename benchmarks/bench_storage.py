"""What storing an event costs: decoded and enriched, into the lake, into Akumuli, into PostgreSQL; and the whole site at a steady rate.

    python benchmarks/bench_storage.py                       # about 4 minutes; writes results/storage.md
    python benchmarks/bench_storage.py --only decode,lake    # table only

Decoding, enriching and the lake have one core. Rates into Akumuli and PostgreSQL are those of bench_akumuli.py and bench_sql.py, run
from here. The site (examples/single.toml) has all cores, and shares them with the devices, which pipeline: each sends 16 messages when
16 are due. Its queue is flat when what the lake has yet to make safe grows by less than 1 % of the rate. Beside it, on the same cores:
aiohttp -> Redis stream -> Python consumer -> Parquet (peers/), as fast as it goes.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import storage_parts
from generator import LoadError, Scenario, build
from machine import facts
from peers.contenders import NotInstalled
from site_run import Figures, Options, run
from storage_peer import PeerFigures, measure_peer

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PARTS = ("decode", "lake", "akumuli", "sql", "site")
DEVICES, GROUP = 1000, 16


@dataclass(frozen=True)
class Bar:
    """A figure, in words, and the promise about it. met is None where it was not measured."""

    what: str
    figure: str
    bound: str
    met: bool | None

    def row(self) -> str:
        verdict = "not measured" if self.met is None else "kept" if self.met else "MISSED"
        return f"| {self.what} | {self.figure} | {self.bound} | {verdict} |"


def main() -> int:
    options = _options()
    wanted = options.only.split(",") if options.only else list(PARTS)
    if unknown := set(wanted) - set(PARTS):
        print(f"--only: expected some of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    measures: dict[str, Callable[[argparse.Namespace], tuple[list[Bar], list[str]]]] = {
        "decode": decode, "lake": lake, "akumuli": akumuli, "sql": sql, "site": site,
    }  # fmt: skip
    bars: list[Bar] = []
    notes: list[str] = []
    for name in wanted:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            found, said = measures[name](options)
        except LoadError as error:
            print(f"no figure: {error}", file=sys.stderr)
            return 1
        bars += found
        notes += said
        print("\n".join(bar.row() for bar in found), file=sys.stderr, flush=True)
    text = report(bars, notes)
    print(text)
    if options.out or not options.only:
        (options.out or RESULTS / "storage.md").write_text(text)
    return 0


# --- on one core -----------------------------------------------------------------------------------------------------


def decode(options: argparse.Namespace) -> tuple[list[Bar], list[str]]:
    """The pipeline of a tier with enricher_context, on batches of 10,000 rows."""
    with _one_core(), tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        found = storage_parts.pipeline(Path(folder), options.rounds, options.devices)
    whole, join, repeated = (statistics.median(taken) for taken in (found.whole, found.join, found.join_repeated))
    notes = [
        f"decode + enrich: `Pipeline.events` with enricher_context over {options.devices:,} devices held in "
        f"{found.bytes_per_device:.0f} bytes each; 10,000 events of as many devices in a batch, 8 readings in 130 bytes of JSON; the join "
        f"alone {join:,.0f} ns ({min(found.join):,.0f}-{max(found.join):,.0f})",
        *(f"decode + enrich of other batches: {name} {statistics.median(ns):,.0f} ns" for name, ns in found.others.items()),
    ]
    return [
        Bar("decode + enrich, ns/event", f"{whole:,.0f} ({min(found.whole):,.0f}-{max(found.whole):,.0f})", "at most 1,500", whole <= 1500),
        Bar("join with the context, us/event, of 625 devices that sent 16 each", f"{repeated / 1000:.3f}", "below 0.2", repeated < 200),
        Bar("join with the context, us/event, of 10,000 devices that sent one each", f"{join / 1000:.3f}", "below 0.2", join < 200),
        Bar("context, bytes/device", f"{found.bytes_per_device:.0f}", "at most 200", found.bytes_per_device <= 200),
    ], notes


def lake(options: argparse.Namespace) -> tuple[list[Bar], list[str]]:
    """sink_lake, from event batches to committed files: of readings that drift, and of those that hardly change."""
    with _one_core(), tempfile.TemporaryDirectory(prefix="headrace-bench-", dir=options.folder) as folder:
        found = storage_parts.lake(storage_parts.new_folder(Path(folder), "drifting"), options.rounds)
        still = storage_parts.lake(storage_parts.new_folder(Path(folder), "still"), options.rounds, storage_parts.readings)
    ns = statistics.median(found.ns)
    shown = f"{ns:,.0f} ({min(found.ns):,.0f}-{max(found.ns):,.0f})"
    alone = statistics.median(found.parquet_ns)
    notes = [
        f"lake: rolls of {storage_parts.ROLL_ROWS:,} events of readings that drift and are noisy, zstd, {found.bytes_per_event:.1f} bytes "
        "an event; read back by row counts",
        f"lake: of readings that hardly change {statistics.median(still.ns):,.0f} ns ({min(still.ns):,.0f}-{max(still.ns):,.0f}), "
        f"{still.bytes_per_event:.1f} bytes an event",
        f"lake: pyarrow's writer alone {alone:,.0f} ns ({min(found.parquet_ns):,.0f}-{max(found.parquet_ns):,.0f}): the rows of these "
        "files, in their order, into memory with the same options",
    ]
    return [Bar("lake write with zstd, ns/event", shown, "at most 500", ns <= 500)], notes


class _one_core:  # noqa: N801 - used as a context manager
    """This process, its threads and children on one core; Arrow with one thread."""

    def __enter__(self) -> None:
        import pyarrow as pa

        self._before, self._threads = os.sched_getaffinity(0), pa.cpu_count()
        os.sched_setaffinity(0, {min(self._before)})
        pa.set_cpu_count(1)

    def __exit__(self, *error: object) -> None:
        import pyarrow as pa

        os.sched_setaffinity(0, self._before)
        pa.set_cpu_count(self._threads)


# --- of other benchmarks ---------------------------------------------------------------------------------------------


def sql(options: argparse.Namespace) -> tuple[list[Bar], list[str]]:
    """Rows into PostgreSQL, by bench_sql.py."""
    text, problem = _benchmark("bench_sql.py", "--rows", "100000", "--runs", "3")
    shares = dict(re.findall(r"^\| ([^|]+?) \| [\d,]+ \| [^|]* \| ([\d.]+) \| [\d.]+ \|$", text, re.MULTILINE))
    rates = dict(re.findall(r"^\| ([^|]+?) \| ([\d,]+) \|", text, re.MULTILINE))
    if "sink_sql" not in shares:
        return [Bar("rows/s into PostgreSQL to plain COPY", "-", "at least 0.6", None)], [f"sql: not measured: {problem}"]
    share = float(shares["sink_sql"])
    notes = [f"sql: {rates['sink_sql']} rows/s through sink_sql, {rates['plain, csv']} by plain psycopg COPY of text rendered before"]
    if "plain, rows" in rates:
        notes.append(f"sql: {rates['plain, rows']} rows/s by plain psycopg COPY of Python tuples (`write_row`)")
    return [Bar("rows/s into PostgreSQL to plain COPY of rendered text", f"{share:.2f}", "at least 0.6", share >= 0.6)], notes


def akumuli(options: argparse.Namespace) -> tuple[list[Bar], list[str]]:
    """Points into Akumuli, by bench_akumuli.py."""
    if not (HERE / "bench_akumuli.py").exists():
        return [Bar("points/s into Akumuli to the rendered stream", "-", "at least 0.5", None)], ["akumuli: there is no bench_akumuli.py"]
    text, problem = _benchmark("bench_akumuli.py", "--points", "500000", "--runs", "2")
    told = {name: fact.strip() for name, fact in re.findall(r"^(server|rendered|sink|ratio) +(.*)$", text, re.MULTILINE)}
    if "ratio" not in told:
        return [Bar("points/s into Akumuli to the rendered stream", "-", "at least 0.5", None)], [f"akumuli: not measured: {problem}"]
    share = float(told["ratio"].split()[0])
    # without akumulid the ratio is to what a process takes that does nothing with it, and the bar says nothing of that
    met = share >= 0.5 if "bar" in told["ratio"] else None
    notes = [f"akumuli, against {told['server']}: {told['sink']}; {told['rendered']}"]
    return [Bar("points/s into Akumuli to the rendered stream", f"{share:.2f}", "at least 0.5 with akumulid", met)], notes


def _benchmark(name: str, *words: str) -> tuple[str, str]:
    """What another benchmark printed, and, where that is no report, why."""
    done = subprocess.run([sys.executable, HERE / name, *words], capture_output=True, text=True, check=False)
    lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
    return (done.stdout if done.returncode == 0 else ""), lines[-1]


# --- the whole site --------------------------------------------------------------------------------------------------


def site(options: argparse.Namespace) -> tuple[list[Bar], list[str]]:
    """Device to Parquet on all cores at a steady rate, and the other path as fast as it goes."""
    program = build()
    if program is None or len(os.sched_getaffinity(0)) < 2:
        return [Bar("events/s, device to Parquet", "-", "at least 150,000", None)], ["site: needs a C compiler and two cores"]
    cores = sorted(os.sched_getaffinity(0))
    scenario = Scenario(DEVICES, rate=options.rate, group=GROUP)
    extra = (f"tiers.site.workers={options.workers}",) if options.workers > 1 else ()
    site_options = Options(
        program=program, warmup_s=5.0, seconds=options.seconds, server_cores=frozenset(cores), generator_core=cores[1],
        level="process", flush_interval_s=2.0, folder=options.folder, extra=extra,
    )  # fmt: skip
    figures = run(scenario, site_options)
    growth = slope([(at, lag) for at, lag in figures.lags if at > 5.0])
    flat = abs(growth) <= 0.01 * options.rate or growth < 0
    # the last groups that are due may not be sent any more
    kept = figures.acked_per_s >= 0.999 * options.rate and figures.unsent <= 0.001 * figures.acked and flat
    bars = [
        Bar(
            f"events/s, device to Parquet, for {options.seconds:.0f} s, queue flat",
            f"{figures.acked_per_s:,.0f}, growing by {growth:,.0f}/s",
            "at least 150,000",
            kept and figures.acked_per_s >= 150_000,
        )
    ]
    notes = _site_notes(scenario, figures, options)
    try:
        peer = measure_peer(program, DEVICES, GROUP, options.peer_seconds, options.folder)
    except NotInstalled as error:
        return [*bars, Bar("the site to aiohttp -> Redis -> Parquet", "-", "at least 5", None)], [*notes, f"peer: needs {error}"]
    bars.append(_beside(figures, peer, kept))
    notes.append(
        f"peer: {peer.acked_per_s:,.0f} acked/s, closed loop, {DEVICES}x{GROUP} for {options.peer_seconds:.0f} s; "
        f"{peer.parquet_per_s:,.0f}/s into Parquet, draining included; every acked event is in its files ({peer.rows:,})"
    )
    return bars, notes


def _beside(figures: Figures, peer: PeerFigures, flat: bool) -> Bar:
    # where the queue grew, what reached Parquet is the site's rate
    mine = figures.acked_per_s if flat else figures.parquet_per_s
    ratio = mine / peer.parquet_per_s
    return Bar("the site to aiohttp -> Redis -> Parquet", f"{ratio:.1f}", "at least 5", ratio >= 5)


def _site_notes(scenario: Scenario, figures: Figures, options: argparse.Namespace) -> list[str]:
    lags = [lag for _, lag in figures.lags]
    shown = f"{min(lags):,.0f} to {max(lags):,.0f}, {statistics.mean(lags):,.0f} on average" if lags else "not seen"
    workers = f"{options.workers} worker{'s' * (options.workers > 1)}"
    return [
        f"site: {scenario.name}, {workers}, {figures.acked:,} events, each once in the lake; ack p50 {figures.p50_ms:.1f} ms, "
        f"p99 {figures.p99_ms:.1f} ms; {figures.unsent:,} were due and not sent; late by {figures.late_max_ms:,.0f} ms at most",
        f"site: not yet in a committed file, each second: {shown}; a file is closed every 2 s; drained in {figures.drain_s:.1f} s",
        f"site: {figures.cpu_us_per_event:.1f} us of processor an event, {figures.rss_peak_mb:,.0f} MB at most; "
        f"others, and the kernel for nobody in particular, kept {figures.noise:.2f} cores busy",
    ]


def slope(samples: list[tuple[float, float]]) -> float:
    """Growth a second, by least squares."""
    if len(samples) < 3:
        return float("nan")
    return statistics.linear_regression(*zip(*samples, strict=True)).slope


def report(bars: list[Bar], notes: list[str]) -> str:
    now = datetime.datetime.now(datetime.UTC)
    lines = [
        "# What storing an event costs",
        "",
        f"`python benchmarks/bench_storage.py {' '.join(sys.argv[1:])}`".replace(" `", "`") + f", {now:%Y-%m-%d %H:%M} UTC.",
        "Medians of the rounds, in brackets the least and the most. What has one core is measured in time of the processor.",
        "",
        "| what | figure | bar | |",
        "|---|---:|---|---|",
        *(bar.row() for bar in bars),
        "",
        *(f"- {note}" for note in notes),
        *(f"- {name}: {value}" for name, value in facts(Path(tempfile.gettempdir())).items()),
    ]
    return "\n".join(lines) + "\n"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="of what has one core (default 7)")
    parser.add_argument("--devices", type=int, default=1_000_000, help="in the context (default 1,000,000)")
    parser.add_argument("--rate", type=int, default=152_000, help="events a second from device to Parquet (default 152,000)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of that rate (default 60)")
    parser.add_argument("--workers", type=int, default=1, help="of the site's tier (default 1)")
    parser.add_argument("--peer-seconds", type=float, default=15.0, help="of the other path (default 15)")
    parser.add_argument("--only", default="", help=f"some of {','.join(PARTS)}; table only, unless --out is given")
    parser.add_argument("--folder", type=Path, help="where the temporary data goes (default: the system's)")
    parser.add_argument("--out", type=Path, help="where the report goes (default results/storage.md)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
