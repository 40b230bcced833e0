"""`headrace akumuli info|rebuild FILE`: what the view holds and lacks, and how it is made anew from the lake."""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from headrace import Context
from headrace.component import SystemClock
from headrace.config import load as load_site
from headrace.log import Log
from headrace.metrics import Metrics
from headrace_sink_akumuli.config import AkumuliConfig
from headrace_sink_akumuli.feed import held_by
from headrace_sink_akumuli.guard import METRIC, START_METRIC
from headrace_sink_akumuli.lake import Lake
from headrace_sink_akumuli.link import REBUILD, Link
from headrace_sink_akumuli.measures import Measures
from headrace_sink_akumuli.rebuild import Rebuild, RebuildError
from headrace_sink_akumuli.series import SeriesTable
from headrace_sink_akumuli.state import load
from headrace_sink_akumuli.wire import Questions

PROGRESS_S: Final = 2.0
#: About so many bytes of memory for each event that is sorted.
EVENT_BYTES: Final = 200

_EPILOG: Final = """\
For a rebuild: stop the site (or take the output's table out and send SIGHUP), stop akumulid, remove its database, start it by
deploy/akumuli/start.sh, run this, restart akumulid (what it has is safe then), start the site. Interrupted, it goes on where it
was. Tags are taken anew: those of each device's newest event. Events that come meanwhile are in the queue and the lake; the output
takes them afterwards.

exit code: 0 done, 1 it could not be done (the message says what to do), 2 wrong usage, 78 wrong config
"""


class _Output(NamedTuple):
    """The output that the command is about: tier and id, options, and its folder."""

    tier: str
    id: str
    config: AkumuliConfig
    folder: Path


def main(argv: list[str]) -> int:
    """Run `headrace akumuli ARGV`; returns the exit code."""
    options = _parser().parse_args(argv)
    try:
        return int(options.run(options))
    except OSError as error:
        print(f"headrace akumuli: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("headrace akumuli", description="The view that sink_akumuli keeps in Akumuli.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        form = argparse.RawDescriptionHelpFormatter
        sub = commands.add_parser(name, help=text, description=text, epilog=_EPILOG if name == "rebuild" else None, formatter_class=form)
        sub.add_argument("file", type=Path, metavar="FILE", help="the site's TOML file")
        sub.add_argument("--output", metavar="ID", help="which output, where the site has several of sink_akumuli")
        sub.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="override a key (repeatable)")
        sub.set_defaults(run=run)
        return sub

    info = add("info", _info, "What the server holds, how far the output is, and what needs a rebuild.")
    info.add_argument("--json", action="store_true", help="as one JSON object")
    rebuild = add("rebuild", _rebuild, "Fill an empty database from the lake, in order of time.")
    rebuild.add_argument("--lake", metavar="PATH_OR_URI", help="the lake (default: the output's option `lake`)")
    rebuild.add_argument("--memory", type=int, default=200, metavar="MIB", help="for events that are being sorted (default: %(default)s)")
    return parser


def _output(options: argparse.Namespace) -> _Output:
    site = load_site(options.file, options.set)
    found = [
        _Output(tier.name, entry.id, entry.config, Path(site.host.data_dir) / tier.name / entry.id)
        for tier in site.tiers.values()
        for entry in tier.outputs.values()
        if isinstance(entry.config, AkumuliConfig) and options.output in (None, entry.id)
    ]
    if len(found) != 1:
        what = f"an output {options.output!r} of sink_akumuli" if options.output else "one output of sink_akumuli"
        raise RebuildError(f"{options.file}: expected {what}, found {', '.join(each.id for each in found) or 'none'}; name it by --output")
    return found[0]


def _rebuild(options: argparse.Namespace) -> int:
    output = _output(options)
    path = options.lake or output.config.lake
    if path is None:
        raise RebuildError("expected a lake: give --lake, or the output the option `lake`")
    output.folder.mkdir(parents=True, exist_ok=True)
    metrics = Metrics(tier=output.tier, component=output.id, plugin="sink_akumuli")
    context = Context(
        id=output.id, tier=output.tier, plugin="sink_akumuli", log=Log(f"{output.tier}.{output.id}"), metrics=metrics, clock=SystemClock(),
        random=random.Random(), data_dir=output.folder, fault=lambda name: None, status=lambda status, reason: None,
    )  # fmt: skip
    started = time.monotonic()
    rebuild = Rebuild(
        Link(output.config, context, Measures(metrics)),
        Questions(output.config.query, output.config.timeout_s),
        output.folder,
        Lake(path, output.config.tags),
        _progress(),
        max(10_000, options.memory * (1 << 20) // EVENT_BYTES),
    )
    rebuild.run(output.config.metric_prefix)
    counts, seconds = rebuild.counts, time.monotonic() - started
    print(f"{rebuild.events:,} events, {counts.points:,} points in {seconds:.0f} s")
    print(f"held already: {counts.held:,} points; left out: {_reasons(counts.refused)}")
    print("restart akumulid by deploy/akumuli/start.sh before you start the site: what it has is safe then")
    return 0


def _reasons(refused: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(refused.items())) or "none"


def _info(options: argparse.Namespace) -> int:
    output = _output(options)
    facts = _facts(output)
    if options.json:
        print(json.dumps(facts))
        return 0
    for name, value in facts.items():
        print(f"{name:24}{value}")
    return 0


def _facts(output: _Output) -> dict[str, Any]:
    """What is remembered, beside what the server says."""
    table = SeriesTable(output.folder / "series.ndjson", output.config.series_max)
    table.read()
    newest, base = load(output.folder / "newest"), load(output.folder / "base")
    questions = Questions(output.config.query, output.config.timeout_s)
    version = questions.version().splitlines()[0]
    metrics = questions.metrics()
    timestamps = questions.last_timestamps(metrics)
    held = held_by(table, timestamps)
    if newest is not None:
        newest.grow(len(table))
    return {
        "server": version,
        "metrics": len([metric for metric in metrics if metric not in (METRIC, START_METRIC)]),
        "series_in_server": int((held > 0).sum()),
        "series_known": len(table),
        "series_behind": 0 if newest is None else int((held < newest.last).sum()),
        "started_ns": max((ns for name, ns in timestamps.items() if name.startswith(f"{START_METRIC} ")), default=None),
        "positions": dict(newest.marks) if newest else {},
        "positions_safe": dict(base.marks) if base else {},
        "rebuild_needed": [[gap.queue_id, gap.first, gap.last, gap.reason] for gap in newest.gaps] if newest else [],
        "rebuild_unfinished": (output.folder / REBUILD).exists(),
    }


def _progress() -> Callable[[str], None]:
    told = time.monotonic()

    def tell(text: str) -> None:
        nonlocal told
        if time.monotonic() - told >= PROGRESS_S:
            told = time.monotonic()
            print(f"rebuild: {text}", file=sys.stderr, flush=True)

    return tell
