"""`headrace lake info|verify|files|compact|vacuum PATH_OR_URI`: what the person on call needs to know of a lake."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable

from headrace import HeadraceError
from headrace_sink_lake.compact import Options, compact
from headrace_sink_lake.inspection import Inspection, inspect, require_lake
from headrace_sink_lake.snapshot import live_files
from headrace_sink_lake.store import open_store, without_secrets
from headrace_sink_lake.vacuum import vacuum
from headrace_sink_lake.verify import verify

PROGRESS_S = 2.0
PARTITIONS_SHOWN = 10


def main(argv: list[str]) -> int:
    """Run `headrace lake ...`; 0 is well, 1 a problem found, 2 a wrong call."""
    options = _parser().parse_args(argv)
    try:
        return int(options.run(options))
    except (HeadraceError, OSError) as error:
        print(f"headrace lake: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("headrace lake", description="Look into a lake of sink_lake, and tend it.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("path", metavar="PATH_OR_URI", help="the lake: the `path` of its output")
        sub.set_defaults(run=run)
        return sub

    info = add("info", _info, "What is in a lake: files, rows, partitions, queue ids, rolls under way. Also while it is written.")
    info.add_argument("--json", action="store_true", help="as one JSON object, with every partition")
    check = add("verify", _verify, "Prove that each position is there once, or declared missing or dead; exit code 1 where it is not.")
    check.add_argument("--fast", action="store_true", help="records, names, sizes and footers only: does not look at events")
    check.add_argument("--json", action="store_true", help="as one JSON object")
    merge = add("compact", _compact, "Merge small files into large ones, beside writers and readers; nothing that exists is changed.")
    merge.add_argument("--target-bytes", type=_positive, default=Options().target_bytes, help="size of a file (default: 128 MiB)")
    merge.add_argument("--files-min", type=_positive, default=Options().files_min, help="small files that make a partition worth it (4)")
    clean = add("vacuum", _vacuum, "Remove the files that compacted ones replace. Readers of a plain glob must not read meanwhile.")
    clean.add_argument("--older-than", type=float, default=3600.0, metavar="SECONDS", help="only what was replaced so long ago (3600)")
    add("files", _files, "Print the files that hold each row once, one a line: what readers of a compacted lake are to open.")
    return parser


def _info(options: argparse.Namespace) -> int:
    found = inspect(open_store(options.path))
    if options.json:
        print(json.dumps(found.facts()))
        return 0
    for line in _described(found):
        print(line)
    return 0


def _described(found: Inspection) -> list[str]:
    facts = found.facts()
    lines = [
        f"{'lake':14}{found.root}",
        f"{'rows':14}{facts['rows']:,}",
        f"{'files':14}{facts['files']:,}, {_bytes(facts['bytes'])}, of which {facts['small_files']:,} are small",
        f"{'compacted':14}{found.compacted:,} files in place of {found.replaced:,}; {found.unsettled:,} partitions not vacuumed",
        f"{'rolls':14}{sum(queue.rolls for queue in found.queues):,}, written {facts['written_first']} to {facts['written_last']}",
        f"{'partitions':14}{len(found.folders):,}, the largest:",
    ]
    largest = sorted(found.folders.items(), key=lambda entry: -entry[1].rows)[:PARTITIONS_SHOWN]
    lines += [f"  {name or '.':50} {entry.rows:>14,} rows {entry.files:>6,} files {_bytes(entry.bytes):>10}" for name, entry in largest]
    lines.append("queue ids")
    for queue in found.queues:
        held = f"{queue.rolls:,} rolls, {queue.rows:,} rows, {queue.missing:,} missing, {queue.dead:,} dead"
        clock = f", {queue.wrong_clock:,} received by a wrong clock" if queue.wrong_clock else ""
        lines.append(f"  {queue.id}  {queue.first}-{queue.last}: {held}{clock}")
    for roll in found.pending:
        state = "committed, not yet published" if roll.committed else "being written, or left by a crash"
        lines.append(f"pending: _tmp/{roll.attempt}: {roll.files} files, {state}")
    return lines


def _verify(options: argparse.Namespace) -> int:
    started = time.monotonic()
    verdict = verify(open_store(options.path), fast=options.fast, tell=progress("verify"))
    if options.json:
        print(json.dumps({**vars(verdict), "findings": [finding._asdict() for finding in verdict.findings], "ok": verdict.ok}))
        return 0 if verdict.ok else 1
    for note in verdict.notes:
        print(f"note     {note}")
    for finding in verdict.findings:
        print(f"problem  {finding}")
    if verdict.findings_more:
        print(f"problem  and {verdict.findings_more:,} more")
    looked = f"{verdict.rolls:,} rolls, {verdict.files:,} files, {verdict.rows:,} rows, {verdict.missing:,} missing, {verdict.dead:,} dead"
    proved = "by records and footers" if options.fast else "each position exactly once, missing or dead"
    ending = proved if verdict.ok else f"{len(verdict.findings) + verdict.findings_more:,} problems"
    print(f"{without_secrets(options.path)}: {looked}: {ending} ({time.monotonic() - started:.1f} s)")
    return 0 if verdict.ok else 1


def _files(options: argparse.Namespace) -> int:
    store = open_store(options.path)
    require_lake(store)
    for path in live_files(store):
        print(f"{store.root}/{path}")
    return 0


def _compact(options: argparse.Namespace) -> int:
    chosen = Options(target_bytes=options.target_bytes, files_min=options.files_min)
    done = compact(open_store(options.path), chosen, tell=progress("compact"))
    for note in done.notes:
        print(f"note     {note}")
    merged = f"{done.files_before:,} files made {done.files_after:,} in {done.partitions:,} partitions, {done.rows:,} rows"
    print(f"{without_secrets(options.path)}: {merged}; read it by headrace lake files until headrace lake vacuum has run")
    return 1 if done.damaged else 0


def _vacuum(options: argparse.Namespace) -> int:
    done = vacuum(open_store(options.path), options.older_than, tell=progress("vacuum"))
    print(f"{without_secrets(options.path)}: {done.files:,} files ({_bytes(done.bytes)}) removed in {done.partitions:,} partitions")
    return 0


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return number


def progress(what: str) -> Callable[[str], None]:
    """Tells how far long work is, to stderr, every two seconds at most."""
    told = time.monotonic()

    def tell(text: str) -> None:
        nonlocal told
        if time.monotonic() - told >= PROGRESS_S:
            told = time.monotonic()
            print(f"{what}: {text}", file=sys.stderr, flush=True)

    return tell


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.1f} {unit}" if unit != "B" else f"{int(count)} B"
        count /= 1024
    return f"{count:.1f} TiB"
