"""What of a site's file becomes a process, a door for devices, a link or a lake. No I/O.

Everything that listens is given a port of its own, everything that connects goes through a proxy, and what is stored is moved into
the trial's folder: the site's own data and addresses are not touched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from headrace.engine.outputs import FAULT_POINTS as ENGINE_POINTS
from headrace.errors import HeadraceError
from headrace.hookcheck import implemented
from headrace.tables import Entry, Site, Tier
from headrace.torture.schedule import Point

ADDRESS: Final = re.compile(r"^(?:[a-z]+://)?\[?(?P<host>[^/\]]*?)\]?:(?P<port>\d{1,5})$")
#: Points of the engine that a trial cannot be sure to come by: plans and dead letters need what it does not provoke.
ENGINE_RARE: Final = ("engine.after_plan", "engine.after_dead_letters")
#: Those that every output with a link passes: sent, safe at the far side, and released here.
SENDING_POINTS: Final = ("engine.after_write", "engine.after_flush", "engine.after_release")
LAKE: Final = "sink_lake"
#: Frequent flushes, small segments and short waits: each way is taken often. Only where the plugin has the option.
QUICK: Final[Mapping[str, str]] = {
    "flush_interval_s": "0.3",
    "segment_bytes": "8388608",
    "reconnect_ms_max": "300",
    "dead_after_s": "3",
}
#: A tier whose far side is dead too keeps the rest, and is soon there again.
QUICK_DRAIN_S: Final = 5


class LayoutError(HeadraceError):
    """The file is not one that a trial can be made of."""


@dataclass(frozen=True)
class Link:
    """Where an option of a component in `tier` names the address that `far` of `far_tier` listens on."""

    tier: str
    entry: str
    option: str
    address: str
    far_tier: str
    far: str

    @property
    def name(self) -> str:
        """As in progress lines and reports."""
        return f"{self.tier}.{self.entry} -> {self.far_tier}.{self.far}"


@dataclass(frozen=True)
class Door:
    """A source for devices."""

    tier: str
    source: str

    @property
    def name(self) -> str:
        """As in progress lines and reports."""
        return f"devices -> {self.tier}.{self.source}"


@dataclass
class TierLayout:
    """One process: its fault points, and its settings but for the addresses that links go to."""

    name: str
    points: list[Point]
    overrides: list[str] = field(default_factory=list)


@dataclass
class Layout:
    """The trial's parts. lakes: where those that are last on the way lie. order: the tiers, upstream first. left_out: outputs that
    would store elsewhere. one_way: all events of a device come the same way, so that they come in their order."""

    tiers: dict[str, TierLayout]
    doors: list[Door]
    links: list[Link]
    lakes: list[Path]
    order: list[str]
    left_out: list[str]
    one_way: bool

    def link_overrides(self, tier: str, site: Site, ports: Mapping[Link, int]) -> list[str]:
        """Every address of a far tier, replaced by that of the link's proxy."""
        found: dict[str, Any] = {}
        for link in self.links:
            if link.tier != tier:
                continue
            entry = _entry(site.tiers[tier], link.entry)
            path = f"{entry.path}.{link.option}"
            found[path] = _replaced(found.get(path, entry.options[link.option]), link.address, f"tcp://127.0.0.1:{ports[link]}")
        return [f"{path}={_toml(value)}" for path, value in found.items()]


def layout(site: Site, folder: Path, quick: bool = True) -> Layout:
    """The parts of the site's tiers, with what they store below `folder`. LayoutError when it is no site that can be tried."""
    offered = {
        port: (tier.name, entry.id)
        for tier in site.tiers.values()
        for entry in tier.entries()
        for option, address in _addresses(entry)
        if _listens(option) and (port := _port(address))
    }
    links = [
        Link(tier.name, entry.id, option, address, *offered[_port(address)])
        for tier in site.tiers.values()
        for entry in tier.entries()
        for option, address in _addresses(entry)
        if not _listens(option) and _port(address) in offered
    ]
    strangers = [
        f"{entry.path}.{option} = {address}"
        for tier in site.tiers.values()
        for entry in tier.entries()
        for option, address in _addresses(entry)
        if not _listens(option) and address.startswith("tcp://") and _port(address) not in offered
    ]
    if strangers:
        raise LayoutError(f"expected links to tiers of this trial, got {strangers[0]}: name that tier too (--tier)")
    doors = [
        Door(tier.name, entry.id)
        for tier in site.tiers.values()
        for entry in tier.sources.values()
        if "ingest_serve" in implemented(entry.plugin) and any(option == "listen" for option, _ in _addresses(entry))
    ]
    if not doors:
        raise LayoutError(f"expected a source for devices (ingest_ws) in {', '.join(site.tiers)}, got none")
    order = _order(list(site.tiers), links)
    # an output with several far sides sends to whichever is there
    one_way = len({(link.tier, link.entry) for link in links}) == len(links)
    made = Layout({}, doors, links, [], order, [], one_way)
    for tier in site.tiers.values():
        made.tiers[tier.name] = _tier(tier, made, folder / tier.name, quick)
    made.lakes = _last_lakes(site, made, folder)
    return made


def _tier(tier: Tier, made: Layout, folder: Path, quick: bool) -> TierLayout:
    ends = {link.entry for link in made.links if link.tier == tier.name} | {link.far for link in made.links if link.far_tier == tier.name}
    points: dict[str, Point] = {}
    overrides = ["admin.listen=127.0.0.1:0", f"host.data_dir={json.dumps(str(folder / 'data'))}"]
    if quick:
        overrides.append(f"host.drain_deadline_s={QUICK_DRAIN_S}")
    if tier.workers > 1:
        overrides.append(f"tiers.{tier.name}.workers=1")  # who dies is to be one process
    for entry in tier.entries():
        for point in entry.plugin.fault_points_in(entry.role, entry.config):
            points[point] = Point(point, needed=entry.id in ends)
        overrides += _moved(entry, folder, made)
        if quick:
            overrides += [f"{entry.path}.{option}={value}" for option, value in QUICK.items() if _has(entry, option)]
    if any(entry.holds and entry.id not in ends for entry in tier.outputs.values()):
        points |= {name: Point(name) for name in ENGINE_POINTS if name not in ENGINE_RARE}
    if any(link.tier == tier.name and tier.outputs[link.entry].holds for link in made.links if link.entry in tier.outputs):
        points |= {name: Point(name, needed=True) for name in SENDING_POINTS}
    return TierLayout(tier.name, list(points.values()), overrides)


def _moved(entry: Entry, folder: Path, made: Layout) -> Iterator[str]:
    """Ports of its own, files of its own."""
    for option, address in _addresses(entry):
        if _listens(option):
            yield f"{entry.path}.{option}={json.dumps(_local(address))}"
    if "auth" in entry.options and entry.role == "source":
        yield f"{entry.path}.auth=none"
    if entry.role not in ("queue", "output"):
        return
    if "path" in entry.options:
        yield f"{entry.path}.path={json.dumps(str(folder / entry.id))}"
    elif entry.role == "output" and entry.output.hold != "none" and not any(_addresses(entry)):
        made.left_out.append(entry.path)
        yield f"{entry.path}.enabled=false"


def _last_lakes(site: Site, made: Layout, folder: Path) -> list[Path]:
    """The lakes of the tiers behind which there is no other lake."""
    lakes = {tier.name: [entry.id for entry in tier.outputs.values() if entry.use == LAKE] for tier in site.tiers.values()}
    last = [name for name in lakes if not any(lakes[further] for further in _behind(name, made.links))]
    found = [folder / name / lake for name in last for lake in lakes[name]]
    if not found:
        raise LayoutError(f"expected an output {LAKE} in {', '.join(site.tiers)}, got none: it is what a trial is checked by")
    return found


def _behind(tier: str, links: Sequence[Link]) -> set[str]:
    """Every tier that the links of one lead to."""
    found: set[str] = set()
    edge = {tier}
    while edge := {link.far_tier for link in links if link.tier in edge} - found:
        found |= edge
    return found - {tier}


def _order(tiers: list[str], links: Sequence[Link]) -> list[str]:
    """Upstream first. (What subscribes connects upstream, and holds nothing: wherever it comes is fine.)"""
    return sorted(tiers, key=lambda tier: (-len(_behind(tier, links)), tiers.index(tier)))


def _addresses(entry: Entry) -> Iterator[tuple[str, str]]:
    """Its options that hold an address, and each address in them."""
    for option, value in entry.options.items():
        for text in _strings(value):
            if (match := ADDRESS.match(text)) and 0 <= int(match["port"]) < 65536:
                yield option, text


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _replaced(value: Any, old: str, new: str) -> Any:
    if isinstance(value, str):
        return new if value == old else value
    if isinstance(value, Mapping):
        return {key: _replaced(item, old, new) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(item, old, new) for item in value]
    return value


def _toml(value: Any) -> str:
    """As a value behind `--set KEY=`."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {_toml(item)}" for key, item in value.items() if item is not None) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


def _listens(option: str) -> bool:
    return option.startswith(("listen", "bind", "publish"))


def _local(address: str) -> str:
    scheme = address.rpartition("://")
    return f"{scheme[0]}{scheme[1]}127.0.0.1:0"


def _port(address: str) -> int:
    match = ADDRESS.match(address)
    return int(match["port"]) if match else 0


def _has(entry: Entry, option: str) -> bool:
    if option in entry.options:
        return entry.options[option] is not None
    return entry.role == "output" and entry.output.hold != "none" and option == "flush_interval_s"


def _entry(tier: Tier, name: str) -> Entry:
    return next(entry for entry in tier.entries() if entry.id == name)
