"""`headrace check`: would this site start? Everything that can be said without opening or writing anything."""

from __future__ import annotations

import os
import random
import re
import socket
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from headrace.component import Context, SystemClock
from headrace.config import Entry, Site, examine
from headrace.discovery import distribution_of
from headrace.log import Log, describe
from headrace.metrics import Metrics
from headrace.register import QueueRegister


class Finding(NamedTuple):
    """One line of the answer."""

    ok: bool
    text: str


def check(
    file: Path, overrides: Sequence[str] = (), environ: Mapping[str, str] = os.environ, only: Sequence[str] = (), ports: bool = True
) -> list[Finding]:
    """All findings, good and bad. `only`: the tiers asked for; `ports`: also try whether every `listen` address is free."""
    site, problems = examine(file, overrides, environ, only)
    findings = [Finding(False, "\n  ".join([str(error), *getattr(error, "__notes__", ())])) for error in problems]
    if site is None:
        return findings
    findings += _data_dir(site)
    for entry in site.entries():
        findings += _component(site, entry)
    findings += _listeners(site, ports)
    findings += _orphans(site)
    return findings


def _orphans(site: Site) -> Iterator[Finding]:
    """Queues that may still hold events and that no tier opens any more (DELIVERY 10)."""
    if site.only:
        return  # the others may well open them
    queues = [tier.queue.config for tier in site.tiers.values() if tier.queue]
    opened = {str(Path(config.path).absolute()) for config in queues if getattr(config, "path", None)}
    try:
        orphans = QueueRegister(Path(site.host.data_dir)).orphans(opened)
    except (OSError, ValueError, TypeError) as error:
        yield Finding(False, f"the register of queues in {site.host.data_dir} cannot be read: {describe(error)}")
        return
    for orphan in orphans:
        holds = f"a {orphan.plugin} of tier {orphan.tier!r} may still hold events, but no tier opens it"
        yield Finding(False, f"{orphan.path}: {holds}; give it back its tier until it is empty")


def _data_dir(site: Site) -> Iterator[Finding]:
    folder = Path(site.host.data_dir)
    nearest = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    if not nearest.is_dir():
        yield Finding(False, f"host.data_dir: {nearest} is not a folder")
    elif not os.access(nearest, os.W_OK | os.X_OK):
        yield Finding(False, f"host.data_dir: no permission to write to {nearest}")
    else:
        yield Finding(True, f"host.data_dir: {folder}" + ("" if folder.exists() else f" (will be made in {nearest})"))


def _component(site: Site, entry: Entry) -> Iterator[Finding]:
    """Ask the component itself; it is built for that, never opened."""
    try:
        complaints = entry.plugin(entry.config, _context(site, entry)).check()
    except Exception as error:
        complaints = [f"its check failed, which is a bug of the plugin: {describe(error)}"]
    for complaint in complaints:
        yield Finding(False, f"{site.file}: {entry.path}: {complaint}")
    if not complaints:
        distribution = distribution_of(entry.use)
        yield Finding(True, f"{entry.path}: {entry.use}" + (f" ({distribution.name} {distribution.version})" if distribution else ""))


def _context(site: Site, entry: Entry) -> Context:
    tier = entry.path.split(".")[1] if entry.role != "listener" else ""
    return Context(
        id=entry.id,
        tier=tier,
        plugin=entry.use,
        log=Log("check"),
        metrics=Metrics(component=entry.id, plugin=entry.use),
        clock=SystemClock(),
        random=random.Random(),
        data_dir=Path(site.host.data_dir) / tier / entry.id,
        fault=lambda name: None,
        status=lambda status, reason: None,
    )


def _listeners(site: Site, ports: bool) -> Iterator[Finding]:
    wanted = defaultdict(list)
    for path, address in _addresses(site):
        wanted[address].append(path)
    for (host, port), paths in wanted.items():
        if port and len(paths) > 1:
            yield Finding(False, f"{' and '.join(paths)} want the same address {host}:{port}")
        elif ports and port:
            problem = _bind(host, port)
            yield Finding(not problem, f"{paths[0]}: {host}:{port} {problem or 'is free'}")


def _addresses(site: Site) -> Iterator[tuple[str, tuple[str, int]]]:
    """Every option named `listen` that is HOST:PORT, with or without `tcp://` before it."""
    candidates: list[tuple[str, Any]] = [("admin.listen", site.admin.listen)]
    for entry in site.entries():
        value = entry.options.get("listen")
        candidates += [(f"{entry.path}.listen", one) for one in (value if isinstance(value, list) else [value])]
    for path, value in candidates:
        if isinstance(value, str) and (match := re.fullmatch(r"(?:tcp://)?\[?([^/\]]*?)\]?:(\d{1,5})", value)):
            yield path, (match[1], int(match[2]))


def _bind(host: str, port: int) -> str:
    """Why that address cannot be listened on; empty when it can."""
    if port > 65_535:
        return "cannot be listened on: ports end at 65535"
    try:
        found: Iterable[Any] = socket.getaddrinfo(host if host != "*" else None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in found:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as error:
        return f"cannot be listened on: {error.strerror or error}"
    return ""
