"""`headrace keys`: make the keys of a link's ends, and show their public halves."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Final

from headrace_transport_zmq.keys import KeysError, new_pair, read_allowed, read_pair, write_pair

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_EPILOG: Final = """\
Each end of a link has a pair: NAME.key is its secret, NAME.pub what the other end has to know of it.

examples:
  headrace keys new middle --out /etc/headrace          key_file of the middle; its .pub is the edges' server_key
  headrace keys new edge-7 --out /etc/headrace
  cat edge-7.pub >> /etc/headrace/edges.keys            the middle's allow_keys_file
  headrace keys show /etc/headrace/edges.keys

exit code: 0 done, 1 a file refused, 2 wrong usage
"""


def main(argv: list[str]) -> int:
    """Run `headrace keys ARGV`; returns the exit code."""
    try:
        arguments = parser().parse_args(argv)
    except SystemExit as exit_:  # --help, or wrong usage: argparse has said which
        return int(exit_.code or 0)
    try:
        code: int = arguments.run(arguments)
    except KeysError as error:
        print(f"headrace keys: {error}", file=sys.stderr)
        return EXIT_FAILED
    return code


def parser() -> argparse.ArgumentParser:
    """The command line, for `main` and for the docs."""
    top = argparse.ArgumentParser(
        prog="headrace keys",
        description="The keys of transport_zmq's links (CURVE).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    about = "Make a pair: NAME.key, which only you can read, and NAME.pub. Prints the public key."
    new = commands.add_parser("new", help="make a pair of keys", description=about)
    new.add_argument("name", metavar="NAME", help="whose it is; the name of its files")
    new.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="folder for the two files (default: this one)")
    new.set_defaults(run=_new)
    about = "Print the public keys in a file, each with its name; of a secret file its public half."
    show = commands.add_parser("show", help="print the public keys in a file", description=about)
    show.add_argument("file", type=Path, metavar="FILE", help="a .key or .pub file, or one of allowed keys")
    show.set_defaults(run=_show)
    return top


def _new(arguments: argparse.Namespace) -> int:
    if not _NAME.fullmatch(arguments.name):
        print(f"headrace keys: expected a name of letters, digits, `.`, `_` and `-`, got {arguments.name!r}", file=sys.stderr)
        return EXIT_USAGE
    pair = new_pair()
    secret_file, public_file = write_pair(pair, arguments.name, arguments.out)
    print(pair.public.decode(), arguments.name)
    print(f"wrote {secret_file} (secret: it stays on the machine that uses it) and {public_file}", file=sys.stderr)
    return EXIT_OK


def _show(arguments: argparse.Namespace) -> int:
    path: Path = arguments.file
    try:
        print(read_pair(path).public.decode(), path.stem)
    except KeysError as no_pair:
        try:
            allowed = read_allowed(path)
        except KeysError:
            raise (no_pair if path.suffix == ".key" else KeysError(f"keys in {path}", "none")) from None
        for key, name in allowed.items():
            print(key.decode(), name)
    return EXIT_OK
