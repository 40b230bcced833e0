"""`headrace dead replay`: marks letters in the store; the tier that runs (or runs next) takes them from there."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from typing import Final

from headrace.config import Entry, examine
from headrace.dead import content
from headrace.dead.store import DeadStore, Filter, Row
from headrace.hookcheck import implemented

POLL_S: Final = 0.2


def replay(options: argparse.Namespace, stores: list[DeadStore], wanted: Filter) -> int:
    """The command; 1 when something is left dead or unanswered."""
    if not wanted.narrow and not options.all:
        print("headrace dead: replay needs a filter (--seq, --output, --reason, ...) or --all", file=sys.stderr)
        return 2
    outputs = _outputs(options)
    if options.dry_run:
        for store in stores:
            _would(store, wanted, outputs.get(_tier(store.name)))
        return 0
    queued = [(store, store.queue(wanted)) for store in stores]
    for store, seqs in queued:
        print(f"{store.path}: {len(seqs)} letters queued; the tier takes them within seconds, or when it starts")
    return _wait(queued, options.wait) if options.wait is not None else 0


def _tier(store: str) -> str:
    """The tier of a store: a worker's name has a number behind it."""
    name, _, number = store.rpartition(".")
    return name if name and number.isdigit() else store


def _outputs(options: argparse.Namespace) -> dict[str, dict[str, Entry]]:
    """The outputs of each tier, where the site's file was given."""
    if options.place.suffix != ".toml" or not options.place.is_file():
        return {}
    site, _ = examine(options.place, [])
    return {} if site is None else {name: tier.outputs for name, tier in site.tiers.items()}


def _would(store: DeadStore, wanted: Filter, outputs: dict[str, Entry] | None) -> None:
    verdicts: Counter[str] = Counter()
    for row in store.rows(wanted._replace(state="dead")):
        verdicts[f"{_where(row, outputs)}; {_decodes(row)}"] += 1
    print(f"{store.path}: {verdicts.total()} letters would be queued")
    for verdict, count in verdicts.most_common():
        print(f"  {count:>8}  {verdict}")


def _where(row: Row, outputs: dict[str, Entry] | None) -> str:
    if outputs is None:
        return f"for output {row.output}" if row.output else "for all outputs that take events"
    able = [name for name, entry in outputs.items() if entry.holds and "sink_write" in implemented(entry.plugin)]
    names = [name for name in able if row.output == name or (not row.output and outputs[name].plugin.takes == "events")]
    if names:
        return f"for output {', '.join(names)}"
    return f"stays dead: no output {row.output or 'of this tier'} that takes replays (links do not, nor what holds nothing)"


def _decodes(row: Row) -> str:
    decodes = content.decodes(row)
    if decodes is None:
        return f"{content.encoding_name(row.encoding)} is decoded by a plugin of the site, not tried here"
    return "decodes now" if decodes else "does not decode now: it would be refused again"


def _wait(queued: list[tuple[DeadStore, list[int]]], seconds: float) -> int:
    deadline = time.monotonic() + seconds
    code = 0
    for store, seqs in queued:
        while (states := store.states(seqs)).get("queued") and time.monotonic() < deadline:
            time.sleep(POLL_S)
        done = states["gone"]
        print(f"{store.path}: {done} replayed, {states.get('dead', 0)} refused again, {states.get('queued', 0)} still queued")
        if states.get("queued"):
            print("  is the tier running? they stay queued, and go through when it is", file=sys.stderr)
        code = code or int(done < len(seqs))
    return code
