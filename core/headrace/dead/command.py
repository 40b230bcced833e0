"""`headrace dead list|show|replay|purge FILE_OR_PATH`: the events that were refused for good, on a stopped or running site."""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from headrace.dead import content
from headrace.dead.replay import replay
from headrace.dead.store import DeadStore, Filter, find

LIMIT: Final = 50
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

Run = Callable[[argparse.Namespace, list[DeadStore], Filter], int]


def main(argv: list[str]) -> int:
    """Run `headrace dead ...`; 0 is well, 1 a problem or nothing done, 2 a wrong call. Raises HeadraceError."""
    options = parser().parse_args(argv)
    stores = find(options.place, options.tier)
    try:
        run: Run = options.run
        return run(options, stores, _filter(options))
    finally:
        for store in stores:
            store.close()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="headrace dead", description="The dead letters: events that a decoder, an enricher or an output refused for good."
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Run, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("place", type=Path, metavar="FILE_OR_PATH", help="the site's TOML file, its data folder, or a dead_letters.db")
        sub.add_argument("--tier", action="append", default=[], metavar="NAME", help="only this tier (repeatable)")
        sub.set_defaults(run=run, seq=[])
        return sub

    listing = add("list", _list, "List letters, with counts by reason.")
    _filters(listing)
    listing.add_argument("--limit", type=_positive, help=f"list so many at most ({LIMIT}); the counts are of all")
    listing.add_argument("--json", action="store_true", help="as NDJSON: one letter a line, all of them unless --limit is given")
    show = add("show", _show, "Show letters whole: ids, reason, and the bytes as they came.")
    show.add_argument("seq", nargs="+", type=_seqs, metavar="SEQ", help="numbers as `list` shows them; 5, or 5-9")
    how = show.add_mutually_exclusive_group()
    how.add_argument("--hex", action="store_true", help="the bytes as hex")
    how.add_argument("--raw", action="store_true", help="nothing but the bytes, to stdout (one letter)")
    how.add_argument("--json", action="store_true", help="as JSON, the bytes in base64")
    again = add("replay", replay, "Give letters again to the output that refused them. On a stopped site they wait for its start.")
    _filters(again)
    again.add_argument("--all", action="store_true", help="every letter")
    again.add_argument("--dry-run", action="store_true", help="only say what would happen")
    again.add_argument("--wait", type=_seconds, metavar="AGE", help="wait so long (60s, 5m) for the tier, and say what came of it")
    purge = add("purge", _purge, "Forget letters for good. Asks for --yes, and for a filter or --all.")
    _filters(purge)
    purge.add_argument("--older-than", type=_seconds, metavar="AGE", help="refused longer ago than that: 90s, 12h, 30d")
    purge.add_argument("--all", action="store_true", help="every letter")
    purge.add_argument("--yes", action="store_true", help="do it; without, only say what would be done")
    return top


def _filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", help="refused by this output, or by none in particular (decoding, enrichment)")
    parser.add_argument("--stage", choices=("decode", "enrich", "output", "crash"), help="where it was refused")
    parser.add_argument("--component", help="refused by this component")
    parser.add_argument("--reason", help="reasons with this text in them")
    parser.add_argument("--device", help="of this device")
    parser.add_argument("--since", type=_moment, metavar="TIME", help="refused since: RFC 3339, or an age as 90s, 12h, 30d")
    parser.add_argument("--until", type=_moment, metavar="TIME", help="refused before: RFC 3339, or an age")
    parser.add_argument("--seq", action="append", type=_seqs, default=[], metavar="SEQ", help="5, or 5-9 (repeatable)")


def _filter(options: argparse.Namespace) -> Filter:
    output, stage, component, reason, device = (
        getattr(options, name, None) for name in ("output", "stage", "component", "reason", "device")
    )
    until = getattr(options, "until", None)
    if (age_s := getattr(options, "older_than", None)) is not None:
        until = min(_ago(age_s), until) if until is not None else _ago(age_s)
    return Filter(output, stage, component, reason, device, getattr(options, "since", None), until, tuple(options.seq))


# --- list and show -------------------------------------------------------------------------------------------------------


def _list(options: argparse.Namespace, stores: list[DeadStore], wanted: Filter) -> int:
    if options.json:
        rows = ((store, row) for store in stores for row in store.rows(wanted, options.limit))
        for store, row in itertools.islice(rows, options.limit):
            print(json.dumps(content.as_json(store.name, row), ensure_ascii=False))
        _mention_corrupt(stores, sys.stderr)
        return 0
    left = options.limit or LIMIT
    lines = []
    for store in stores:
        for row in store.rows(wanted, left):
            left -= 1
            state = "" if row.state == "dead" else f" ({row.state})"
            again = f" (x{row.attempts})" if row.attempts > 1 else ""
            refused = re.sub(r"\.\d+Z$", "Z", content.time_text(row.refused_us))
            lines.append(
                (store.name, str(row.seq), refused, row.stage + state, row.component, row.output or "(all)", row.device, row.reason + again)
            )
    _table(("tier", "seq", "refused", "stage", "by", "for output", "device", "reason"), lines)
    for store in stores:
        total = store.count(wanted)
        print(f"\n{store.path}: {total} letter{'s' * (total != 1)}, {store.size_bytes()} bytes on disk")
        _table(
            ("letters", "stage", "by", "reason"),
            [(str(count.letters), count.stage, count.component, count.reason) for count in store.counts(wanted)],
        )
    _mention_corrupt(stores, sys.stdout)
    return 0


def _mention_corrupt(stores: list[DeadStore], out: object) -> None:
    for store in stores:
        for file, letters in store.set_aside():
            held = "not readable" if letters is None else f"{letters} letters can still be counted in it"
            print(f"{file}: set aside as corrupt; {held}", file=out)  # type: ignore[call-overload]


def _table(head: Sequence[str], lines: Sequence[Sequence[str]], width_max: int = 100) -> None:
    if not lines:
        return
    cells = [[_cell(cell, width_max) for cell in line] for line in (head, *lines)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    for line in cells:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(text: str, width_max: int) -> str:
    # devices and reasons come from outside: nothing of them may steer a terminal
    text = content.harmless(text)
    return text if len(text) <= width_max else text[: width_max - 3] + "..."


def _show(options: argparse.Namespace, stores: list[DeadStore], wanted: Filter) -> int:
    rows = [(store, row) for store in stores for row in store.rows(wanted)]
    if not rows:
        print("headrace dead: no such letter", file=sys.stderr)
        return 1
    if options.raw:
        if len(rows) > 1:
            print(f"headrace dead: --raw takes one letter, {len(rows)} were found; add --tier", file=sys.stderr)
            return 2
        sys.stdout.buffer.write(rows[0][1].payload)
        return 0
    for store, row in rows:
        if options.json:
            print(json.dumps(content.as_json(store.name, row, payload=True), ensure_ascii=False))
            continue
        facts = content.as_json(store.name, row)
        for name in ("tier", "seq", "state", "stage", "component", "output", "device"):
            print(f"{name:10}{_cell(str(facts[name] if facts[name] is not None else '(all that take events)'), 1000)}")
        print(f"{'reason':10}{_cell(row.reason, 10_000)}")
        print(f"{'refused':10}{facts['refused']}, {row.attempts} time{'s' * (row.attempts != 1)}")
        print(f"{'received':10}{facts['received']}")
        print(f"{'event':10}{facts['origin']}/{facts['origin_position']}")
        print(f"{'queue':10}{row.queue_id}/{row.position}")
        print(f"{'payload':10}{len(row.payload)} bytes of {content.encoding_name(row.encoding)}")
        print(content.hexdump(row.payload) if options.hex else content.readable(row))
        print()
    return 0


# --- purge ---------------------------------------------------------------------------------------------------------------


def _purge(options: argparse.Namespace, stores: list[DeadStore], wanted: Filter) -> int:
    if not wanted.narrow and not options.all:
        print("headrace dead: purge needs a filter (--reason, --older-than, ...) or --all", file=sys.stderr)
        return 2
    for store in stores:
        if options.yes:
            print(f"{store.path}: {store.purge(wanted)} letters purged")
        else:
            print(f"{store.path}: {store.count(wanted)} letters would be purged; add --yes to do it")
    return 0 if options.yes else 1


# --- words of the command line -------------------------------------------------------------------------------------------


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected an age as 90s, 15m, 12h or 30d, got {text!r}")
    return float(match[1]) * _UNITS_S[match[2]]


def _ago(seconds: float) -> int:
    # Before 1970 nothing was refused, and SQLite's numbers end.
    return max(int((datetime.datetime.now(datetime.UTC).timestamp() - seconds) * 1e6), 0)


def _moment(text: str) -> int:
    if re.fullmatch(r"\d+(\.\d+)?[smhd]", text):
        return _ago(_seconds(text))
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a time in RFC 3339, or an age as 90s, 12h or 30d, got {text!r}") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return int(moment.timestamp() * 1e6)


def _seqs(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a number, or two as 5-9, got {text!r}")
    return int(match[1]), int(match[2] or match[1])


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of 1 or more, got {text!r}")
    return int(text)
