"""`headrace torture`: the command."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Final

from headrace.config import examine
from headrace.torture.layout import layout
from headrace.torture.outcome import Outcome
from headrace.torture.report import report
from headrace.torture.trial import Options, Trial

EX_CONFIG: Final = 78
EX_TERM: Final = 143
EPILOG: Final = """\
The site's own data and addresses are not touched: every tier gets ports and a folder of its own, links go through proxies that can
be cut and stalled. Devices are simulated, number their events and resume their sessions. Outputs that would store elsewhere are left out.
What is done is a function of the seed, the minutes and the file; when exactly it hits is up to the machine. Exit code: 0 all
six properties hold, 1 one does not (the folder is kept), 78 the file cannot be tried.
"""


def main(argv: list[str]) -> int:
    """Run one trial; the exit code."""
    arguments = parser().parse_args(argv)
    environ = {**os.environ, "HEADRACE_DATA": "."}  # whatever the file has for it: a tier's own is set for its process
    site, problems = examine(arguments.file, arguments.set, environ, only=arguments.tier)
    if site is None or problems:
        for problem in problems:
            print(f"headrace: {problem}", file=sys.stderr)
        return EX_CONFIG
    seed = random.SystemRandom().randrange(2**32) if arguments.seed is None else arguments.seed
    folder = Path(tempfile.mkdtemp(prefix="headrace-torture-")) if arguments.folder is None else arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        print(f"headrace: expected an empty folder, got {folder}", file=sys.stderr)
        return EX_CONFIG
    made = layout(site, folder, quick=not arguments.as_is)
    for path in made.left_out:
        print(f"left out: {path} would store outside of {folder}", file=sys.stderr)
    options = Options(
        seed=seed, seconds=arguments.minutes * 60, devices=arguments.devices, rate=arguments.rate, overrides=tuple(arguments.set)
    )
    again = repeat(arguments, seed)
    outcome: Outcome | None = None
    try:
        outcome = asyncio.run(_run(Trial(site, made, folder, options, lambda text: print(text, file=sys.stderr, flush=True))))
        print(f"{arguments.file}, seed {seed}\n{report(outcome)}")
    except asyncio.CancelledError:
        return EX_TERM
    finally:
        if outcome is None or not outcome.passed:
            print(f"\nthe data and logs are kept in {folder}; again: {again}", file=sys.stderr)
        elif arguments.folder is None:
            shutil.rmtree(folder)
    return 0 if outcome.passed else 1


async def _run(trial: Trial) -> Outcome:
    """Also when asked to end, no tier is left behind."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await trial.run()


def repeat(arguments: argparse.Namespace, seed: int) -> str:
    """The command that does the same again."""
    words = ["headrace", "torture", str(arguments.file), "--minutes", f"{arguments.minutes:g}", "--seed", str(seed)]
    words += ["--devices", str(arguments.devices), "--rate", f"{arguments.rate:g}", *(["--as-is"] if arguments.as_is else [])]
    words += [word for tier in arguments.tier for word in ("--tier", tier)]
    words += [word for override in arguments.set for word in ("--set", override)]
    return shlex.join(words)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        "headrace torture",
        description="Kill, pause and cut off the tiers of a site under load, and check that no acked event is lost or doubled.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the site's TOML file")
    parser.add_argument("--minutes", type=_positive, default=1.0, metavar="M", help="about how long faults are made (default %(default)g)")
    parser.add_argument("--seed", type=int, metavar="S", help="what is done and in what order (default: drawn, and printed)")
    parser.add_argument("--tier", action="append", default=[], metavar="NAME", help="only this tier (repeatable; default: all)")
    parser.add_argument("--devices", type=_count, default=20, metavar="N", help="simulated devices (default %(default)s)")
    parser.add_argument("--rate", type=_positive, default=400.0, metavar="R", help="events per second of all devices (default %(default)g)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="an empty folder for data and logs, kept (default: a temporary one)")
    parser.add_argument("--as-is", action="store_true", help="leave flush intervals, segments and reconnects as the file has them")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="override a key (repeatable)")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 10_000:
        raise argparse.ArgumentTypeError(f"expected 1 to 10000, got {text}")
    return value
