"""`headrace devices`: the commands that play the devices' part."""

from __future__ import annotations

import argparse
import asyncio
import ssl
import sys
import urllib.parse
from collections.abc import Coroutine
from pathlib import Path
from typing import Final

from headrace import discovery
from headrace.devices.drive import Drive, drive
from headrace.devices.fleet import fleet, write_devices_csv
from headrace.devices.outbox import WINDOW_DEFAULT
from headrace.devices.replay import Replay, ReplayError, check, recordings
from headrace.devices.simulate import Simulation
from headrace.devices.totals import Totals

URL_DEFAULT: Final = "ws://127.0.0.1:8080"
#: What a simulated device can hold while its server is away.
SIMULATED_CAPACITY: Final = 512
REPLAY_WINDOW: Final = 2048
EXIT_USAGE: Final = 2

OUTCOME: Final = """\
Progress goes to stderr (sent, acked, rejected, unacked, ack latency, connections), the summary to stdout.
A message counts as acked when the server says so. When a connection ends, the session goes on with the next one: what the
server does not hold by then is sent again, and nothing else.
Ctrl-C stops sending, waits for the last acks, and prints the summary; a second Ctrl-C does not wait.
Exit code: 0 all was acked, 1 something was rejected or left unacked, 2 bad arguments or files.
"""


def main(argv: list[str]) -> int:
    """Run `headrace devices` with the words behind it; return the exit code."""
    added = discovery.commands(discovery.DEVICES_COMMANDS)
    if argv and argv[0] in added:
        return discovery.command(argv[0], discovery.DEVICES_COMMANDS)(argv[1:])
    arguments = parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except (ReplayError, OSError) as error:
        print(f"headrace devices: {error}", file=sys.stderr)
        return EXIT_USAGE
    return code


def parser() -> argparse.ArgumentParser:
    """The command line, for `main` and for the docs."""
    added = "".join(f"  {word:<10} see headrace devices {word} --help\n" for word in discovery.commands(discovery.DEVICES_COMMANDS))
    top = argparse.ArgumentParser(
        prog="headrace devices",
        description="Play the devices' part: simulate a fleet, or replay recordings.",
        epilog=f"from plugins:\n{added}" if added else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    simulate = commands.add_parser(
        "simulate",
        help="let a simulated fleet send",
        description="Let a simulated fleet of several device classes on a few sites send believable readings.",
        epilog=OUTCOME,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    simulate.add_argument("--count", type=_whole, default=200, metavar="N", help="devices (default %(default)s)")
    simulate.add_argument(
        "--rate", type=_positive, default=100.0, metavar="R", help="events per second of the whole fleet together (default %(default)g)"
    )
    simulate.add_argument(
        "--seconds",
        type=_seconds,
        default=0.0,
        metavar="S",
        help="how long to send once all are connected; 0 is until Ctrl-C (default %(default)g)",
    )
    simulate.add_argument("--seed", type=int, default=1, help="the same seed makes the same fleet (default %(default)s)")
    simulate.add_argument("--csv", type=Path, metavar="OUT", help="first write the fleet as CSV, for headrace context import")
    simulate.add_argument(
        "--no-outages", action="store_true", help="keep every device online (else each leaves for some seconds now and then)"
    )
    _common(simulate)
    simulate.set_defaults(run=_simulate)

    written = commands.add_parser(
        "fleet",
        help="write the simulated fleet's devices as CSV",
        description="Write the devices of the simulated fleet as CSV, for headrace context import.",
    )
    written.add_argument("--count", type=_whole, default=200, metavar="N", help="devices (default %(default)s)")
    written.add_argument("--seed", type=int, default=1, help="the same seed makes the same fleet (default %(default)s)")
    written.add_argument("--csv", type=Path, required=True, metavar="OUT", help="the file to write")
    written.set_defaults(run=_fleet)

    replay = commands.add_parser(
        "replay",
        help="send recorded readings",
        description="Send CSV files (timestamp,value) as the devices that a devices CSV names for them. Each file is one device with a\n"
        "connection of its own, sent in file order; timestamps without a zone are taken as UTC.",
        epilog=OUTCOME,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    replay.add_argument("files", nargs="+", type=Path, metavar="CSV", help="recordings with the header timestamp,value")
    replay.add_argument(
        "--devices",
        type=Path,
        required=True,
        metavar="CSV",
        help="devices CSV with the columns device, metric and file (the recording's file name)",
    )
    replay.add_argument(
        "--speed",
        type=_speed,
        default=None,
        metavar="X|max",
        help="times real time by the timestamps, each file from its first row on; max: as fast as acks allow (default max)",
    )
    _common(replay)
    replay.set_defaults(run=_replay)
    return top


def _common(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--url", type=_url, default=URL_DEFAULT, help="the server, ws://HOST:PORT or wss://HOST:PORT (default %(default)s)"
    )
    command.add_argument(
        "--tokens",
        type=_tokens,
        default={},
        metavar="FILE",
        help="send with bearer tokens: lines of DEVICE and TOKEN, as headrace devices token add prints them",
    )
    command.add_argument("--ca", type=_trust, default=True, metavar="FILE", help="whom to trust for wss, PEM (default: as the system does)")
    command.add_argument(
        "--settle-s", type=_seconds, default=30.0, metavar="S", help="how long to wait for the last acks at the end (default %(default)g)"
    )
    command.add_argument("--json", action="store_true", help="print the summary as one JSON object")


def _simulate(arguments: argparse.Namespace) -> int:
    devices = fleet(arguments.count, arguments.seed)
    if arguments.csv:
        write_devices_csv(devices, arguments.csv)
    simulation = Simulation(devices, arguments.rate, arguments.seconds, arguments.seed, outages=not arguments.no_outages)
    how = Drive(
        url=arguments.url,
        devices=[device.device for device in devices],
        window=WINDOW_DEFAULT,
        capacity=SIMULATED_CAPACITY,
        seed=arguments.seed,
        settle_s=arguments.settle_s,
        as_json=arguments.json,
        tokens=arguments.tokens,
        tls=arguments.ca,
    )
    return _run(drive(how, simulation.feed)).exit_code()


def _fleet(arguments: argparse.Namespace) -> int:
    write_devices_csv(fleet(arguments.count, arguments.seed), arguments.csv)
    return 0


def _replay(arguments: argparse.Namespace) -> int:
    sources = recordings(arguments.files, arguments.devices)
    if not sources:
        print("headrace devices: expected at least one recording beside the devices CSV", file=sys.stderr)
        return EXIT_USAGE
    count = check(sources)
    print(f"replaying {count:,} rows of {len(sources)} files to {arguments.url}", file=sys.stderr)
    how = Drive(
        url=arguments.url,
        devices=[source.device for source in sources],
        window=REPLAY_WINDOW,
        capacity=2 * REPLAY_WINDOW,
        settle_s=arguments.settle_s,
        as_json=arguments.json,
        tokens=arguments.tokens,
        tls=arguments.ca,
    )
    totals = _run(drive(how, Replay(sources, arguments.speed).feed))
    return 1 if totals.taken < count else totals.exit_code()


def _run(work: Coroutine[None, None, Totals]) -> Totals:
    try:
        import uvloop  # about twice the events per second; plain asyncio does where it is not there
    except ImportError:
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def _whole(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text}")
    return number


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number > 0, got {text}")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds >= 0, got {text}")
    return number


def _url(text: str) -> str:
    url = urllib.parse.urlsplit(text)
    if url.scheme not in ("ws", "wss") or not url.hostname:
        raise argparse.ArgumentTypeError(f"expected ws://HOST:PORT or wss://HOST:PORT, got {text!r}")
    return text


def _tokens(text: str) -> dict[str, str]:
    try:
        lines = Path(text).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{text}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    tokens = {}
    for number, line in enumerate(lines, start=1):
        device, _, token = line.strip().rpartition(" ")
        if line.strip() and not device:
            raise argparse.ArgumentTypeError(f"{text}:{number}: expected a device, a space and its token")
        tokens[device.strip()] = token
    return tokens


def _trust(text: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=text)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: expected certificates in PEM ({error.strerror or error})") from None


def _speed(text: str) -> float | None:
    return None if text == "max" else _positive(text)
