"""What a site's file says, as frozen structs: the host's own tables, and every plugin in its place.

`headrace.config` reads them; their descriptions, defaults and ranges are what docs/config.md and `headrace schema` show.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from headrace.component import Component
from headrace.hookcheck import in_use
from headrace.hookspecs import Role

MIB: Final = 1 << 20
DAY_S: Final = 86_400
WORKERS_MAX: Final = 64
ID_PATTERN: Final = "^[a-z0-9_-]+$"


class Keys(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the tables whose keys are the host's own."""


class Host(Keys, frozen=True, kw_only=True):
    """`[host]`: the process."""

    name: Annotated[str, Meta(min_length=1, max_length=100, description="Name of this host in logs and metrics.")] = "headrace"
    data_dir: Annotated[str, Meta(min_length=1, description="Folder for what components keep; `${HEADRACE_DATA:-./data}` if not set.")] = (
        "./data"
    )
    drain_deadline_s: Annotated[
        float, Meta(ge=0, le=3600, description="How long a stopping process may take to make safe what it has taken in.")
    ] = 30.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least severe log line that is written.")
    ] = "info"  # fmt: skip


class Admin(Keys, frozen=True, kw_only=True):
    """`[admin]`: the server for health, metrics and component states."""

    listen: Annotated[str, Meta(pattern=r"^.*:\d{1,5}$", description="Address and port to listen on; port 0 takes a free one.")] = (
        "127.0.0.1:9464"
    )


class TierKeys(Keys, frozen=True, kw_only=True):
    """`[tiers.<tier>]`: the tier as a whole."""

    workers: Annotated[
        int,
        Meta(
            ge=1,
            le=WORKERS_MAX,
            description="Processes that each run the whole tier, on the same addresses, each with a queue of its own (`<path>.1`, ...).",
        ),
    ] = 1


class Engine(Keys, frozen=True, kw_only=True):
    """`[tiers.<tier>.engine]`: how a tier reads, decodes, retries and gives up."""

    read_rows_max: Annotated[int, Meta(ge=1, le=1_000_000, description="Most events taken from the queue in one read.")] = 16_384
    read_wait_ms_max: Annotated[
        int,
        Meta(
            ge=0,
            le=10_000,
            description="How long after a read a small one waits for more events: latency behind the ack, for less work per event.",
        ),
    ] = 20
    read_bytes_max: Annotated[
        int, Meta(ge=1 << 10, le=1 << 30, description="Most bytes taken from the queue in one read; one entry is always taken whole.")
    ] = 16 * MIB
    time_past_max_s: Annotated[
        int, Meta(ge=0, description="An event's own time further before its arrival than this is replaced by the arrival.")
    ] = 30 * DAY_S
    time_future_max_s: Annotated[
        int, Meta(ge=0, description="An event's own time further after its arrival than this is replaced by the arrival.")
    ] = 3600
    readings_max: Annotated[int, Meta(ge=1, le=65_536, description="Most distinct reading names in one batch.")] = 1024
    prepare_wait_ms_max: Annotated[
        int, Meta(ge=0, le=60_000, description="Longest wait for an enricher to fetch what is missing; then it enriches without.")
    ] = 100
    retry_base_ms: Annotated[int, Meta(ge=1, le=60_000, description="First wait after a transient error; doubles each time.")] = 100
    retry_max_ms: Annotated[int, Meta(ge=1, le=3_600_000, description="Longest wait between two tries.")] = 30_000
    attempts_max: Annotated[
        int, Meta(ge=1, le=100, description="Crashes on one range after which it is halved, down to the event at fault.")
    ] = 3
    orphan_hold_ratio: Annotated[
        float, Meta(ge=0, le=1, description="Share of the queue that the cursor of an output without a table may hold.")
    ] = 0.25
    dead_letters_bytes_max: Annotated[
        int, Meta(ge=MIB, description="Room for refused events; when it is used up, the output waits for a person.")
    ] = 256 * MIB
    stall_s: Annotated[float, Meta(gt=0, le=86_400, description="Time without a try after which a task counts as stuck.")] = 120.0


class DeclaredReading(Keys, frozen=True, kw_only=True):
    """`<reading> = {...}` in `[schema.<class>]`: what is known of a reading before a device sends it."""

    type: Annotated[
        Literal["float64", "int64", "bool", "string"],
        Meta(description="Type of its column. The same in every class that declares the reading; what does not fit goes to `_other`."),
    ] = "float64"
    unit: Annotated[str, Meta(max_length=100, description="Its unit in this class, as UCUM or SenML write it (metadata).")] = ""


#: Device class -> reading -> what is declared of it.
Declared = Mapping[str, Mapping[str, DeclaredReading]]


class EntryKeys(Keys, frozen=True, kw_only=True):
    """The host's own keys in every plugin's table."""

    use: Annotated[str, Meta(min_length=1, description="The plugin's name, or `./file.py:Class`.")]
    id: Annotated[
        Annotated[str, Meta(pattern=ID_PATTERN)] | None,
        Meta(description="Its name in decoders and enrichers; elsewhere the table's name is the id."),
    ] = None
    enabled: Annotated[bool, Meta(description="false: as if the table were not there, its plugin is not even imported.")] = True
    wrap: Annotated[
        tuple[str, ...], Meta(max_length=16, description="Plugins (names, or `./file.py:Class`) that wrap its hooks, the outermost first.")
    ] = ()


class OutputKeys(EntryKeys, frozen=True, kw_only=True):
    """The host's own keys in the table of an output."""

    hold: Annotated[
        Literal["always", "window", "none"],
        Meta(description='What the queue keeps for it: all until it is safe, a bounded window, or nothing (starts at the head, may lose).'),
    ] = "always"  # fmt: skip
    hold_window_bytes: Annotated[Annotated[int, Meta(ge=1)] | None, Meta(description='With `hold = "window"`: most bytes kept for it.')] = (
        None
    )
    hold_window_s: Annotated[
        Annotated[float, Meta(gt=0)] | None, Meta(description='With `hold = "window"`: longest time events are kept for it.')
    ] = None
    start: Annotated[
        str,
        Meta(
            pattern="^(oldest|head|after:[a-z0-9_-]+)$",
            description="Where a new output begins: `oldest`, `head`, or `after:OTHER` (at the cursor of that output).",
        ),
    ] = "oldest"
    flush_rows: Annotated[int, Meta(ge=1, description="Flushed after this many events.")] = 1_000_000
    flush_bytes: Annotated[int, Meta(ge=1, description="Flushed after this many bytes.")] = 128 * MIB
    flush_interval_s: Annotated[float, Meta(gt=0, le=86_400, description="Flushed at the latest after this long.")] = 10.0
    send_window: Annotated[int, Meta(ge=1, le=1024, description="Batches of a transport on their way at once.")] = 8
    nice: Annotated[
        int,
        Meta(
            ge=0,
            le=19,
            description="How far its own threads (`call_blocking`) give way to others on the same cores, as by `nice -n`; only on Linux.",
        ),
    ] = 0
    spread: Annotated[
        Annotated[str, Meta(pattern="^[a-z0-9_-]{1,64}$")] | None,
        Meta(description="Links of a tier with the same word here share its events: each takes those of its own devices, by hash."),
    ] = None
    spread_retired: Annotated[
        bool, Meta(description="With `spread`: from the next start on it takes nothing new; when its lag is 0 its table can go.")
    ] = False
    topic: Annotated[
        str,
        Meta(
            pattern=r"^([^{}]|\{[A-Za-z0-9_.-]+\})*$",
            max_length=255,
            description="Topic under which a transport publishes an event; `{name}` stands for a field of its context, or `device`.",
        ),
    ] = "{class}"


#: A plugin's own options may not have these names.
RESERVED: Final = frozenset(OutputKeys.__struct_fields__)


class Entry(msgspec.Struct, frozen=True, kw_only=True, eq=False, repr_omit_defaults=True):
    """One plugin in its place. path: dotted key, such as `tiers.site.outputs.lake`.

    keys: the host's own keys (OutputKeys for an output). config: the plugin's typed Config. options: the same with defaults
    as plain values, safe to print. wrappers: the classes that `wrap` names, the outermost first.
    """

    id: str
    role: Role
    use: str
    path: str
    keys: EntryKeys
    options: dict[str, Any]
    plugin: type[Component]
    config: Any
    wrappers: tuple[type[Component], ...] = ()

    def __repr__(self) -> str:
        return f"Entry({self.path}, use={self.use!r})"

    @property
    def output(self) -> OutputKeys:
        """The keys of an output."""
        if not isinstance(self.keys, OutputKeys):
            raise TypeError(f"{self.path} is a {self.role}, not an output")
        return self.keys

    @property
    def hooks(self) -> frozenset[str]:
        """The hooks for which it stands, with this config."""
        return in_use(self.plugin, self.config)

    @property
    def holds(self) -> bool:
        """Whether the queue keeps events for it."""
        return isinstance(self.keys, OutputKeys) and self.keys.hold != "none"


class Tier(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """`[tiers.<name>]`: sources -> queue -> decoders -> enrichers -> outputs. Ids are unique in it. declared: the file's `[schema]`."""

    name: str
    sources: dict[str, Entry]
    queue: Entry | None
    decoders: list[Entry]
    enrichers: list[Entry]
    outputs: dict[str, Entry]
    engine: Engine
    workers: int = 1
    declared: Declared = msgspec.field(default_factory=dict)

    def entries(self) -> Iterator[Entry]:
        """Every entry, in the order in which data meets them."""
        yield from self.sources.values()
        if self.queue:
            yield self.queue
        yield from self.decoders
        yield from self.enrichers
        yield from self.outputs.values()


class Site(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The whole file, or of its tiers only those asked for. overrides: the `--set key=value` under which it was read; text: what
    stood in the file then."""

    file: Path
    host: Host
    admin: Admin
    tiers: dict[str, Tier]
    listeners: dict[str, Entry]
    declared: Declared = msgspec.field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    text: str = ""

    def __repr__(self) -> str:
        return f"Site({self.file}, tiers={list(self.tiers)})"  # never the overrides: they may hold secrets

    def entries(self) -> Iterator[Entry]:
        """Every entry of every tier, then the listeners."""
        for tier in self.tiers.values():
            yield from tier.entries()
        yield from self.listeners.values()


def redacted(site: Site) -> dict[str, Any]:
    """The site with all defaults as plain values, safe for logs and `/components`."""
    entries: dict[str, Any] = {entry.path: {**msgspec.to_builtins(entry.keys), "id": entry.id, **entry.options} for entry in site.entries()}
    engines = {f"tiers.{tier.name}.engine": msgspec.to_builtins(tier.engine) for tier in site.tiers.values()}
    workers = {f"tiers.{tier.name}.workers": tier.workers for tier in site.tiers.values()}
    return {
        "file": str(site.file), "host": msgspec.to_builtins(site.host), "admin": msgspec.to_builtins(site.admin),
        **({"schema": msgspec.to_builtins(site.declared)} if site.declared else {}), **workers, **engines, **entries,
    }  # fmt: skip


def changed(old: Site, new: Site) -> list[str]:
    """The dotted keys of what differs: entries that differ, `host`, `admin`, `schema`, `tiers.<tier>.engine`, `.workers`."""
    before, after = _parts(old), _parts(new)
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def _parts(site: Site) -> dict[str, Any]:
    entries = {entry.path: (entry.use, entry.keys, entry.plugin, entry.config, entry.wrappers) for entry in site.entries()}
    engines = {f"tiers.{tier.name}.engine": tier.engine for tier in site.tiers.values()}
    workers = {f"tiers.{tier.name}.workers": tier.workers for tier in site.tiers.values()}
    return {"host": site.host, "admin": site.admin, "schema": site.declared, **engines, **workers, **entries}
