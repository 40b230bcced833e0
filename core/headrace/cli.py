"""The `headrace` command: its first word picks a command; what a command needs is imported only then.

Core commands are here; other first words come from distributions (entry points of the group `headrace.commands`), each
loaded only when that word is typed. Exit codes: 0 fine, 1 failed, 2 wrong usage, 78 (EX_CONFIG) wrong config or plugin.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from headrace.errors import ConfigError, HeadraceError, PluginError, did_you_mean

EX_USAGE: Final = 2
EX_CONFIG: Final = 78


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; never a traceback for what the user can put right."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args:
        print(_usage(), file=sys.stderr)
        return EX_USAGE
    if args[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if args[0] in ("-V", "--version"):
        print(f"headrace {_version()}")
        return 0
    code = answered(lambda: _command(args[0])(args[1:]))
    if argv is None and args[0] == "run":  # the process is ours
        from headrace.stopping import end_anyway

        end_anyway(code)
    return code


def answered(command: Callable[[], int]) -> int:
    """Run it and return its exit code; what headrace raises on purpose becomes a text and a code."""
    try:
        return command()
    except (ConfigError, PluginError) as error:
        return _fail([error], EX_CONFIG)
    except HeadraceError as error:
        return _fail([error], 1)
    except SystemExit as stop:  # argparse leaves this way
        return stop.code if isinstance(stop.code, int) else EX_USAGE
    except BrokenPipeError:  # `headrace schema | head`
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        return 130


def _run(argv: list[str]) -> int:
    parser = _parser("run", "Run the tiers of a site until SIGTERM or SIGINT; SIGHUP reads the file again.")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="instead of host.log_level")
    args = parser.parse_args(argv)
    overrides = [*args.set, *([f'host.log_level="{args.log_level}"'] if args.log_level else [])]

    from headrace.config import examine, reload

    site, problems = examine(args.file, overrides, only=args.tier)
    if site is None or problems:
        return _fail(problems, EX_CONFIG)
    from headrace import workers

    if workers.needed(site):
        from headrace.workers import supervisor

        return supervisor.run(site, lambda: reload(site))
    from headrace import host

    return host.run(site, list(site.tiers), lambda: reload(site))


def _check(argv: list[str]) -> int:
    parser = _parser("check", "Say whether a site would start: config, plugins, options, paths, ports. Opens and writes nothing.")
    parser.add_argument("--no-ports", action="store_true", help="do not ask whether ports are free (for a site that is running)")
    args = parser.parse_args(argv)

    from headrace.check import check

    findings = check(args.file, args.set, only=args.tier, ports=not args.no_ports)
    for finding in findings:
        print(f"{'problem' if not finding.ok else 'warning' if finding.warning else 'ok':<8} {finding.text}")
    count = sum(not finding.ok for finding in findings)
    warnings = sum(finding.warning for finding in findings)
    verdict = f"{count} problem{'s' * (count > 1)}" if count else "ready to run"
    print(f"{args.file}: {verdict}" + (f", {warnings} warning{'s' * (warnings > 1)}" if warnings else ""))
    return EX_CONFIG if count else 0


def _plugins(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("headrace plugins", description="List the installed plugins, or tell all about one.")
    parser.add_argument("name", nargs="?", help="a plugin's name, or ./file.py:Class")
    args = parser.parse_args(argv)

    from headrace.listing import plugin_list, plugin_page

    print(plugin_page(args.name) if args.name else plugin_list())
    return 0


def _schema(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("headrace schema", description="Print the JSON Schema of a site's file, with the installed plugins.")
    parser.add_argument("--markdown", action="store_true", help="print the reference page (docs/config.md) instead")
    args = parser.parse_args(argv)
    if args.markdown:
        from headrace.config_docs import markdown

        print(markdown(), end="")
        return 0

    import json

    from headrace.config_schema import json_schema

    print(json.dumps(json_schema(), indent=2))
    return 0


def _drain(argv: list[str]) -> int:
    text = "Empty a queue that nobody opens any more into its tier's outputs: no sources, the queue's own cursors, until nothing is left."
    parser = _parser("drain", text)
    parser.add_argument("--queue", metavar="PATH", help="the queue's folder, when it is not the one of the file")
    parser.add_argument("--minutes", type=float, default=60.0, metavar="M", help="give up after this long (default: 60)")
    args = parser.parse_args(argv)
    if len(args.tier) != 1 or not 0 < args.minutes <= 60 * 24 * 365:
        parser.error("expected one --tier, and --minutes above 0")

    from headrace.config import examine

    site, problems = examine(args.file, args.set, only=args.tier)
    if site is None or problems:
        return _fail(problems, EX_CONFIG)
    from headrace import draining

    return draining.run(site, args.tier[0], args.queue, args.minutes)


#: First word -> what it does, and its function.
CORE: Final[dict[str, tuple[str, Callable[[list[str]], int]]]] = {
    "run": ("run a site's tiers", _run),
    "check": ("say whether a site would start, and all that is wrong with it", _check),
    "drain": ("empty a queue that nobody opens any more into the next tier", _drain),
    "plugins": ("list the installed plugins, or tell all about one", _plugins),
    "schema": ("print the JSON Schema of a site's file", _schema),
}


def _command(word: str) -> Callable[[list[str]], int]:
    if word in CORE:
        return CORE[word][1]
    from headrace import discovery

    added = discovery.commands()
    if word in added:
        return discovery.command(word)
    print(f"headrace: no command {word!r}{did_you_mean(word, [*CORE, *added])}\n\n{_usage()}", file=sys.stderr)
    raise SystemExit(EX_USAGE)


def _usage() -> str:
    from headrace.discovery import commands

    rows = [f"  {word:<10} {text}" for word, (text, _) in CORE.items()]
    rows += [f"  {word:<10} see headrace {word} --help" for word in commands()]
    return "\n".join(["usage: headrace COMMAND ...", "", *rows, "", "headrace COMMAND --help tells more; headrace --version"])


def _version() -> str:
    from importlib.metadata import version

    return version("headrace")


def _parser(word: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(f"headrace {word}", description=description)
    parser.add_argument("file", type=Path, metavar="FILE", help="the site's TOML file")
    parser.add_argument("--tier", action="append", default=[], metavar="NAME", help="only this tier (repeatable; default: all)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        help="override a key (repeatable); the value is TOML or a bare string",
    )
    return parser


def _fail(errors: Iterable[Exception], code: int) -> int:
    for error in errors:
        print(f"headrace: {error}", *getattr(error, "__notes__", ()), sep="\n  ", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
