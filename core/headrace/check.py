"""`headrace check`: would this site start? Everything that can be said without opening or writing anything."""

from __future__ import annotations

import os
import random
import traceback
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from headrace.addresses import address_of, why_not
from headrace.component import Component, Context, Placed, SystemClock
from headrace.config import Entry, Site, Tier, examine
from headrace.discovery import distribution_of
from headrace.engine.decoder import check_encodings
from headrace.engine.enrichment import check_fields
from headrace.log import Log, describe
from headrace.metrics import Metrics
from headrace.plugins import ComponentPlugins
from headrace.register import QueueRegister, Registered
from headrace.tables import WORKERS_MAX
from headrace.unheld import unheld
from headrace.workers.plan import processes, queue_path, queue_paths, worker_queue


class Finding(NamedTuple):
    """One line of the answer. warning: the site would start, and still somebody should know this first."""

    ok: bool
    text: str
    warning: bool = False


def check(
    file: Path, overrides: Sequence[str] = (), environ: Mapping[str, str] = os.environ, only: Sequence[str] = (), ports: bool = True
) -> list[Finding]:
    """All findings, good and bad. `only`: the tiers asked for; `ports`: also try whether every `listen` address is free."""
    site, problems = examine(file, overrides, environ, only)
    findings = [Finding(False, "\n  ".join([str(error), *getattr(error, "__notes__", ())])) for error in problems]
    if site is None:
        return findings
    findings += _data_dir(site)
    built: dict[str, Component] = {}
    for entry in site.entries():
        findings += _component(site, entry, entry.path, built)
    for tier in site.tiers.values():
        findings += _workers(site, tier)
        findings += _together(site, tier, built)
        findings += _added(site, tier, built)
    if not problems:  # else the output that holds may be the one that is left out of `site`
        findings += [Finding(True, f"{site.file}: {queue.path}: {queue.what}; {queue.remedy}", warning=True) for queue in unheld(site)]
    findings += _listeners(site, ports)
    findings += _orphans(site)
    return findings


def _workers(site: Site, tier: Tier) -> Iterator[Finding]:
    """What more than one worker adds: queues of their own."""
    if tier.workers == 1:
        return
    yield Finding(True, f"tiers.{tier.name}.workers: {tier.workers} processes")
    for number in range(1, tier.workers):
        if (queue := worker_queue(tier.queue, number)) is not None:
            yield from _component(site, queue, f"{queue.path} of worker {number}", {})


def _orphans(site: Site) -> Iterator[Finding]:
    """Queues that may still hold events and that no tier opens any more (DELIVERY 10)."""
    try:
        registered = QueueRegister(Path(site.host.data_dir)).entries()
    except (OSError, ValueError, TypeError) as error:
        yield Finding(False, f"the register of queues in {site.host.data_dir} cannot be read: {describe(error)}")
        return
    for process in processes(site, registered):
        if process.former and (queue := site.tiers[process.tiers[0]].queue):
            yield Finding(True, f"{queue_path(queue, process.worker)}: the queue of a former worker, which empties it and ends")
    if site.only:
        return  # the others may well be opened by another process
    opened = queue_paths(site, registered)
    for orphan in registered:
        if orphan.path not in opened:
            holds = f"a {orphan.plugin} of tier {orphan.tier!r} may still hold events, but no tier opens it"
            yield Finding(False, f"{orphan.path}: {holds}; {_remedy(site, orphan)}")


def _remedy(site: Site, orphan: Registered) -> str:
    tier = site.tiers.get(orphan.tier)
    drain = f"headrace drain {site.file} --tier {orphan.tier} --queue {orphan.path}"
    if tier is not None and tier.queue is not None:
        for number in range(tier.workers, WORKERS_MAX):
            if orphan.path == str(Path(queue_path(tier.queue, number)).absolute()):
                return f"set tiers.{tier.name}.workers = {number + 1}, with outputs that can have them, until it is empty, or run {drain}"
        return f"run {drain}"
    return "give it back its tier until it is empty"


def _data_dir(site: Site) -> Iterator[Finding]:
    folder = Path(site.host.data_dir)
    nearest = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    if not nearest.is_dir():
        yield Finding(False, f"host.data_dir: {nearest} is not a folder")
    elif not os.access(nearest, os.W_OK | os.X_OK):
        yield Finding(False, f"host.data_dir: no permission to write to {nearest}")
    else:
        yield Finding(True, f"host.data_dir: {folder}" + ("" if folder.exists() else f" (will be made in {nearest})"))


def _component(site: Site, entry: Entry, name: str, built: dict[str, Component]) -> Iterator[Finding]:
    """Ask the component itself; it is built for that (then it stands in `built`), never opened."""
    try:
        component = entry.plugin(entry.config, _context(site, entry))
    except Exception as error:
        yield Finding(False, f"{site.file}: {name}: it cannot be built, which is a bug of the plugin: {_bug(error)}")
        return
    built[name] = component
    try:
        complaints = component.check()
    except Exception as error:
        complaints = [f"its check failed, which is a bug of the plugin: {_bug(error)}"]
    for complaint in complaints:
        yield Finding(False, f"{site.file}: {name}: {complaint}")
    if not complaints:
        distribution = distribution_of(entry.use)
        yield Finding(True, f"{name}: {entry.use}" + (f" ({distribution.name} {distribution.version})" if distribution else ""))


def _bug(error: Exception) -> str:
    """What was raised and where, and what helps where that is known."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = "" if frame.filename == __file__ else f" ({frame.filename}:{frame.lineno})"
    hint = ""
    if isinstance(error, AttributeError) and error.name in ("config", "context") and isinstance(error.obj, Component):
        hint = "; let its __init__ call super().__init__(config, context)"
    return f"{describe(error)}{place}{hint}"


def _added(site: Site, tier: Tier, built: Mapping[str, Component]) -> Iterator[Finding]:
    """What decoders and enrichers say that they add, as the tier asks them before it opens anything."""
    for entries, hook, complain in ((tier.decoders, "decode_encodings", check_encodings), (tier.enrichers, "enrich_fields", check_fields)):
        told: dict[str, object] = {}
        for entry in entries:
            if entry.path in built:
                try:
                    told[entry.id] = getattr(ComponentPlugins(built[entry.path], entry.role, entry.use).hook, hook)()
                except Exception as error:
                    yield Finding(False, f"{site.file}: {entry.path}: its {hook} failed, which is a bug of the plugin: {_bug(error)}")
        if complaint := complain(told):
            yield Finding(False, f"{site.file}: tiers.{tier.name}: {complaint}")


def _together(site: Site, tier: Tier, built: Mapping[str, Component]) -> Iterator[Finding]:
    """What each component says of the others of its tier."""
    placed = [
        Placed(entry.id, entry.role, entry.use, entry.output.hold if entry.role == "output" else "", entry.config)
        for entry in tier.entries()
    ]
    for entry in tier.entries():
        if entry.path not in built:
            continue
        try:
            warnings = built[entry.path].check_tier(placed)
        except Exception as error:
            yield Finding(False, f"{site.file}: {entry.path}: its check failed, which is a bug of the plugin: {_bug(error)}")
            continue
        yield from (Finding(True, f"{site.file}: {entry.path}: {warning}", warning=True) for warning in warnings)


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
        workers=site.tiers[tier].workers if tier else 1,
    )


def _listeners(site: Site, ports: bool) -> Iterator[Finding]:
    wanted = defaultdict(list)
    for path, address in _addresses(site):
        wanted[address].append(path)
    for (host, port), paths in wanted.items():
        if port and len(paths) > 1:
            yield Finding(False, f"{' and '.join(paths)} want the same address {host}:{port}")
        elif ports and port:
            problem = why_not(host, port)
            yield Finding(not problem, f"{paths[0]}: {host}:{port} {problem or 'is free'}")


def _addresses(site: Site) -> Iterator[tuple[str, tuple[str, int]]]:
    """Every option named `listen` or `publish` that is HOST:PORT, with or without `tcp://` before it."""
    candidates: list[tuple[str, Any]] = [("admin.listen", site.admin.listen)]
    for entry in site.entries():
        for option in ("listen", "publish"):
            value = entry.options.get(option)
            candidates += [(f"{entry.path}.{option}", one) for one in (value if isinstance(value, list) else [value])]
    for path, value in candidates:
        if (address := address_of(value)) is not None:
            yield path, address
