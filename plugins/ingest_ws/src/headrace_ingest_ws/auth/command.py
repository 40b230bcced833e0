"""`headrace devices token`: make, revoke and list the tokens that `auth = "tokens"` takes."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from headrace_ingest_ws.auth.identity import SEPARATOR, patterns_problem
from headrace_ingest_ws.auth.rereading import Unreadable
from headrace_ingest_ws.auth.token_file import TokenFile
from headrace_ingest_ws.auth.tokens import PREFIX, Record, new_token
from headrace_ingest_ws.protocol import device_problem

if TYPE_CHECKING:  # it needs SQLAlchemy, which a file does not
    from headrace_ingest_ws.auth.token_database import TokenDatabase

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2

CONNECT_TIMEOUT_S: Final = 10

_EPILOG: Final = """\
Only the SHA-256 of a token is kept, so a token is shown once, when it is made. Running servers take a change within some
seconds; whoever is connected with a token that was revoked is cut off within 5 s.

examples:
  headrace devices token add pump-7 --file /etc/headrace/tokens.csv
  headrace devices token add gateway-1 --writes-for 'meter-*' --database sqlite:///data/tokens.db
  headrace devices token add - --file tokens.csv < names.txt > secrets.txt
  headrace devices token list --device pump-7 --file tokens.csv
  headrace devices token revoke 2jvk4sx6rqmb3n7a --file tokens.csv

To replace a token: add another one for the same name, give it to the device, revoke the old one.

exit code: 0 done, 1 the file or the database refused and nothing was changed, 2 wrong usage
"""


def main(argv: list[str]) -> int:
    """Run `headrace devices token ARGV`; returns the exit code."""
    try:
        arguments = parser().parse_args(argv)
    except SystemExit as exit_:  # --help, or wrong usage: argparse has said which
        return int(exit_.code or 0)
    try:
        code: int = arguments.run(arguments)
    except _Usage as error:
        return _fail(str(error), EXIT_USAGE)
    except (Unreadable, ValueError) as error:
        return _fail(str(error) if arguments.run is _list else f"{error}; nothing was changed", EXIT_FAILED)
    return code


def parser() -> argparse.ArgumentParser:
    """The command line, for `main` and for the docs."""
    top = argparse.ArgumentParser(
        prog="headrace devices token",
        description='The tokens of devices and gateways, for ingest_ws with auth = "tokens".',
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    about = "Make a token for each name; each is printed once, as NAME and TOKEN on a line."
    add = commands.add_parser("add", help="make a token for each name", description=about)
    add.add_argument("names", nargs="+", metavar="NAME", help="the device's name, or the gateway's own; -: names from stdin, one a line")
    add.add_argument(
        "--writes-for",
        action="append",
        default=[],
        metavar="PATTERN",
        help="make it a gateway's, which may write for devices of these names; * stands for any characters (repeatable)",
    )
    add.set_defaults(run=_add)
    revoke = commands.add_parser("revoke", help="take tokens back", description="Take tokens back, by their ids or by whose they are.")
    revoke.add_argument("ids", nargs="*", metavar="ID", help="the token's id, as list shows it (the token itself will do)")
    revoke.add_argument("--device", action="append", default=[], metavar="NAME", help="all tokens of this device or gateway (repeatable)")
    revoke.set_defaults(run=_revoke)
    about = "List the tokens, without their secrets."
    listed = commands.add_parser("list", help="list the tokens, without their secrets", description=about)
    listed.add_argument("--device", metavar="NAME", help="only those of this device or gateway")
    listed.add_argument("--json", action="store_true", help="print one JSON object a line")
    listed.set_defaults(run=_list)
    for command in (add, revoke, listed):
        place = command.add_mutually_exclusive_group(required=True)
        place.add_argument("--file", type=Path, metavar="PATH", help="the file with the hashes; add makes it")
        place.add_argument("--database", metavar="URL", help="SQLAlchemy URL of the database with the hashes; add makes the table")
    return top


class _Usage(Exception):
    """What was typed makes no sense."""


def _add(arguments: argparse.Namespace) -> int:
    names = _names(arguments.names)
    patterns = SEPARATOR.join(arguments.writes_for)
    if patterns and (problem := patterns_problem(patterns)):
        raise _Usage(f"--writes-for: {problem}")
    created = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    made = [new_token(name, patterns, created) for name in names]
    place = _place(arguments)
    place.add(record for _, record in made)  # kept first: a token that was printed and is not known would be worse
    for token, record in made:
        print(record.name, token)
    what = "1 token" if len(made) == 1 else f"{len(made)} tokens"
    print(f"added {what} to {place.name}; what is printed above is shown this once", file=sys.stderr)
    return EXIT_OK


def _names(given: Sequence[str]) -> list[str]:
    names: list[str] = []
    for name in given:
        names += [line.strip() for line in sys.stdin if line.strip()] if name == "-" else [name]
    for name in names:
        if problem := device_problem(name):
            raise _Usage(f"{name!r}: {problem}")
    if not names:
        raise _Usage("expected at least one name, got none")
    return names


def _revoke(arguments: argparse.Namespace) -> int:
    if bool(arguments.ids) == bool(arguments.device):
        raise _Usage("expected either ids of tokens or --device NAME")
    place = _place(arguments)
    known = place.records()
    wanted = {_id(text) for text in arguments.ids}
    doomed = {record.id for record in known if record.id in wanted or record.name in arguments.device}
    missing = sorted(wanted - doomed) or sorted(set(arguments.device) - {record.name for record in known})
    if missing:
        raise Unreadable(f"{place.name}: no token {'of' if arguments.device else 'with the id'} {', '.join(missing)}")
    count = place.revoke(doomed)
    print(f"revoked {count} token{'s' * (count != 1)} in {place.name}")
    return EXIT_OK


def _id(text: str) -> str:
    return text.split("_")[1] if text.startswith(f"{PREFIX}_") else text


def _list(arguments: argparse.Namespace) -> int:
    records = [record for record in _place(arguments).records() if arguments.device in (None, record.name)]
    if arguments.json:
        for record in records:
            print(msgspec.json.encode({name: value for name, value in record._asdict().items() if name != "sha256"}).decode())
        return EXIT_OK
    rows = [("ID", "CREATED", "NAME", "WRITES FOR"), *((one.id, one.created or "-", one.name, _writes_for(one)) for one in records)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return EXIT_OK


def _writes_for(record: Record) -> str:
    return f"itself, {record.devices.replace(SEPARATOR, ', ')}" if record.devices else "itself"


def _place(arguments: argparse.Namespace) -> TokenFile | TokenDatabase:
    if arguments.file is not None:
        return TokenFile(arguments.file)
    try:
        from headrace_ingest_ws.auth.token_database import TokenDatabase
    except ImportError as error:
        raise _Usage(f"--database needs SQLAlchemy ({error}); pip install SQLAlchemy") from None
    try:
        return TokenDatabase(arguments.database, CONNECT_TIMEOUT_S)
    except ValueError as error:
        raise _Usage(f"--database: {error}") from None


def _fail(message: str, code: int) -> int:
    print(f"headrace devices token: {message}", file=sys.stderr)
    return code
