"""A site's TOML file as typed, frozen structs; everything that can be wrong with it is found here, before anything runs.

    site = load(Path("site.toml"), overrides=["admin.listen=127.0.0.1:0"])

`load` raises the first problem, `examine` gives all of them. Paths in a config are relative to the current directory, except
those of plugin files (`use = "./geo.py:Geocode"`), which are relative to the config file's folder.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from headrace.component import Component
from headrace.discovery import find, is_file
from headrace.errors import ConfigError, HeadraceError, HookError
from headrace.hookcheck import PLACES, hook_problems, implemented, wrapper_problems
from headrace.hookspecs import Role
from headrace.options import Secret, config_problems, convert, shown, unknown_key
from headrace.values import Filled, fill, override, read, toml_value

__all__ = [
    "Admin",
    "Engine",
    "Entry",
    "EntryKeys",
    "Host",
    "OutputKeys",
    "Secret",
    "Site",
    "Tier",
    "changed",
    "examine",
    "load",
    "redacted",
]

MIB: Final = 1 << 20
DAY_S: Final = 86_400
DATA_DIR: Final = "${HEADRACE_DATA:-./data}"
ID_PATTERN: Final = "^[a-z0-9_-]+$"

T = TypeVar("T")
K = TypeVar("K", bound=msgspec.Struct)


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


class Engine(Keys, frozen=True, kw_only=True):
    """`[tiers.<tier>.engine]`: how a tier reads, decodes, retries and gives up."""

    read_rows_max: Annotated[int, Meta(ge=1, le=1_000_000, description="Most events taken from the queue in one read.")] = 16_384
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
        int, Meta(ge=1 << 10, description="Room for refused events; when it is used up, the output waits for a person.")
    ] = 256 * MIB
    stall_s: Annotated[float, Meta(gt=0, le=86_400, description="Time without a try after which a task counts as stuck.")] = 120.0


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
    topic: Annotated[str, Meta(max_length=255, description="Topic under which a transport publishes.")] = ""


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
    def holds(self) -> bool:
        """Whether the queue keeps events for it."""
        return isinstance(self.keys, OutputKeys) and self.keys.hold != "none"


class Tier(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """`[tiers.<name>]`: sources -> queue -> decoders -> enrichers -> outputs. Ids are unique in it."""

    name: str
    sources: dict[str, Entry]
    queue: Entry | None
    decoders: list[Entry]
    enrichers: list[Entry]
    outputs: dict[str, Entry]
    engine: Engine

    def entries(self) -> Iterator[Entry]:
        """Every entry, in the order in which data meets them."""
        yield from self.sources.values()
        if self.queue:
            yield self.queue
        yield from self.decoders
        yield from self.enrichers
        yield from self.outputs.values()


class Site(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The whole file."""

    file: Path
    host: Host
    admin: Admin
    tiers: dict[str, Tier]
    listeners: dict[str, Entry]

    def entries(self) -> Iterator[Entry]:
        """Every entry of every tier, then the listeners."""
        for tier in self.tiers.values():
            yield from tier.entries()
        yield from self.listeners.values()


def load(file: Path, overrides: Sequence[str] = (), environ: Mapping[str, str] = os.environ) -> Site:
    """Read the file; raise the first ConfigError or PluginError. `overrides` are `key.path=value`."""
    site, problems = examine(file, overrides, environ)
    if site is None:
        raise problems[0]
    return site


def examine(file: Path, overrides: Sequence[str] = (), environ: Mapping[str, str] = os.environ) -> tuple[Site | None, list[HeadraceError]]:
    """The site and no problems, or None and every problem that could be found."""
    try:
        tables = read(file)
        override(tables, str(file), overrides)
    except ConfigError as error:
        return None, [error]
    reader = _Reader(file, environ)
    site = reader.site(tables)
    return (None, reader.problems) if reader.problems else (site, [])


def redacted(site: Site) -> dict[str, Any]:
    """The site with all defaults as plain values, safe for logs and `/components`."""
    entries: dict[str, Any] = {entry.path: {**msgspec.to_builtins(entry.keys), "id": entry.id, **entry.options} for entry in site.entries()}
    engines = {f"tiers.{tier.name}.engine": msgspec.to_builtins(tier.engine) for tier in site.tiers.values()}
    return {
        "file": str(site.file), "host": msgspec.to_builtins(site.host), "admin": msgspec.to_builtins(site.admin), **engines, **entries
    }  # fmt: skip


def changed(old: Site, new: Site) -> list[str]:
    """The dotted keys of what differs: entries that came, went or changed, `host`, `admin`, `tiers.<tier>.engine`."""
    before, after = _parts(old), _parts(new)
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def _parts(site: Site) -> dict[str, Any]:
    entries = {entry.path: (entry.use, entry.keys, entry.plugin, entry.config, entry.wrappers) for entry in site.entries()}
    engines = {f"tiers.{tier.name}.engine": tier.engine for tier in site.tiers.values()}
    return {"host": site.host, "admin": site.admin, **engines, **entries}


class _Reader:
    """Turns tables into a Site, and keeps every problem instead of stopping at the first."""

    def __init__(self, file: Path, environ: Mapping[str, str]) -> None:
        self.problems: list[HeadraceError] = []
        self._file, self._folder, self._environ = str(file), file.parent, environ

    def site(self, tables: dict[str, Any]) -> Site:
        self._known(tables, ("host", "admin", "tiers", "listeners"), "")
        host = {"data_dir": DATA_DIR, **self._table(tables, "host", "")}
        tiers = self._table(tables, "tiers", "")
        if not tiers:
            self._problem("tiers", "at least one [tiers.<name>] table", "none")
        return Site(
            file=Path(self._file),
            host=self._keys(Host, host, "host"),
            admin=self._keys(Admin, self._table(tables, "admin", ""), "admin"),
            tiers={name: self._tier(name, self._table(tiers, name, "tiers")) for name in tiers if self._is_id(name, f"tiers.{name}")},
            listeners=self._named("listener", tables, "listeners", ""),
        )

    def _tier(self, name: str, table: dict[str, Any]) -> Tier:
        path = f"tiers.{name}"
        count = len(self.problems)
        self._known(table, ("sources", "queue", "decoders", "enrichers", "outputs", "engine"), path)
        tier = Tier(
            name=name,
            sources=self._named("source", table, "sources", path),
            queue=self._entry("queue", table["queue"], f"{path}.queue", "queue") if "queue" in table else None,
            decoders=self._listed("decoder", table, "decoders", path),
            enrichers=self._listed("enricher", table, "enrichers", path),
            outputs=self._named("output", table, "outputs", path),
            engine=self._keys(Engine, self._table(table, "engine", path), f"{path}.engine"),
        )
        if len(self.problems) == count:  # else half of it is missing, and these would only report that
            self._check_tier(tier, path)
        return tier

    def _check_tier(self, tier: Tier, path: str) -> None:
        for kind in ("sources", "outputs"):
            if not getattr(tier, kind):
                self._problem(f"{path}.{kind}", f"at least one [{path}.{kind}.<id>] table", "none")
        for twin, count in Counter(entry.id for entry in tier.entries()).items():
            if count > 1:
                paths = " and ".join(entry.path for entry in tier.entries() if entry.id == twin)
                self._problem(path, "ids that are unique in the tier", f"{twin!r} {count} times: {paths}")
        if tier.queue is None:
            self._check_unqueued(tier, path)

    def _check_unqueued(self, tier: Tier, path: str) -> None:
        holding = [entry for entry in tier.outputs.values() if entry.holds]
        if len(holding) > 1:
            ids = ", ".join(entry.id for entry in holding)
            hint = f'add a [{path}.queue], set hold = "none" where loss is fine, or give each output a link and a tier of its own'
            self._problem(f"{path}.outputs", "at most one holding output in a tier without a queue", ids, hint)
        for entry in holding:
            if entry.output.hold == "window":
                self._problem(f"{entry.path}.hold", '"always" or "none" in a tier without a queue', "'window'", f"add a [{path}.queue]")

    # --- entries -----------------------------------------------------------------------------------------------------

    def _named(self, role: Role, table: dict[str, Any], key: str, path: str) -> dict[str, Entry]:
        """`[tiers.site.outputs.lake]`: tables whose name is the id."""
        tables = self._table(table, key, path)
        path = f"{path}.{key}" if path else key
        names = [name for name in tables if self._is_id(name, f"{path}.{name}")]
        entries = {name: self._entry(role, tables[name], f"{path}.{name}", name, frozenset(tables)) for name in names}
        return {name: entry for name, entry in entries.items() if entry}

    def _listed(self, role: Role, table: dict[str, Any], key: str, path: str) -> list[Entry]:
        """`[[tiers.site.enrichers]]`: tables in an order, with an id each."""
        path = f"{path}.{key}"
        elements = table.get(key, [])
        if not isinstance(elements, list):
            self._problem(path, f"a list of tables, [[{path}]]", f"a {_kind(elements)}")
            return []
        entries = []
        for index, element in enumerate(elements):
            use = element.get("use", "") if isinstance(element, dict) else ""
            name = element.get("id", Path(use.rpartition(":")[0]).stem if is_file(use) else use) if isinstance(use, str) and use else ""
            if name and not self._is_id(name, f"{path}[{index}].id"):
                continue
            entries.append(self._entry(role, element, f"{path}.{name}" if name else f"{path}[{index}]", name))
        return [entry for entry in entries if entry]

    def _entry(self, role: Role, raw: Any, path: str, name: str, siblings: frozenset[str] = frozenset()) -> Entry | None:
        if not isinstance(raw, dict):
            self._problem(path, f"a table, {PLACES[role]}", repr(raw))
            return None
        table, unfilled = fill(raw, self._file, path, self._environ)
        enabled = table.get("enabled", True)
        if (toml_value(enabled) if isinstance(enabled, Filled) else enabled) is False:
            return None
        if unfilled:
            self.problems += unfilled
            return None
        return self._try(lambda: self._built(role, table, path, name, siblings))

    def _built(self, role: Role, table: dict[str, Any], path: str, name: str, siblings: frozenset[str]) -> Entry:
        kind = OutputKeys if role == "output" else EntryKeys
        own = set(kind.__struct_fields__)
        keys = convert(kind, {key: value for key, value in table.items() if key in own}, self._file, path)
        if keys.id is not None and role not in ("decoder", "enricher"):
            raise ConfigError(self._file, f"{path}.id", "no id here", repr(keys.id), f"the table's name is the id: {name}")
        plugin = self._plugin(keys.use, f"{path}.use", lambda found: [*config_problems(found, RESERVED), *hook_problems(found, role)])
        options = {key: value for key, value in table.items() if key not in own}
        config = convert(plugin.Config, options, self._file, path, own)
        if isinstance(keys, OutputKeys):
            self._check_output(keys, plugin, path, name, siblings)
        return Entry(
            id=name, role=role, use=keys.use, path=path, keys=keys, plugin=plugin, config=config,
            options=shown(config, options), wrappers=tuple(self._wrapper(wrap, f"{path}.wrap") for wrap in keys.wrap),
        )  # fmt: skip

    def _plugin(self, use: str, path: str, check: Callable[[type[Component]], list[str]]) -> type[Component]:
        try:
            plugin = find(use, self._folder)
            if problems := check(plugin):
                raise HookError(use, "\n  ".join(problems))
        except HeadraceError as error:
            error.add_note(f"needed by {self._file}: {path}")
            raise
        return plugin

    def _wrapper(self, use: str, path: str) -> type[Component]:
        plugin = self._plugin(use, path, wrapper_problems)
        convert(plugin.Config, {}, self._file, path)  # it gets no options, so it must need none
        return plugin

    def _check_output(self, keys: OutputKeys, plugin: type[Component], path: str, name: str, siblings: frozenset[str]) -> None:
        windows = [key for key in ("hold_window_bytes", "hold_window_s") if getattr(keys, key) is not None]
        if keys.hold == "window" and len(windows) != 1:
            raise ConfigError(
                self._file, path, 'one of hold_window_bytes and hold_window_s with hold = "window"', "both" if windows else "none"
            )
        if keys.hold != "window" and windows:
            raise ConfigError(self._file, f"{path}.{windows[0]}", 'hold = "window" beside it', f'hold = "{keys.hold}"')
        other = keys.start.partition("after:")[2]
        if other and (other == name or other not in siblings):
            known = ", ".join(sorted(siblings - {name})) or "none"
            raise ConfigError(
                self._file, f"{path}.start", f"after: another output of the tier ({known})", repr(keys.start),
                "an output that was switched off stays known while its table is there with enabled = false",
            )  # fmt: skip
        if keys.hold != "none":
            self._check_holding(plugin, path)

    def _check_holding(self, plugin: type[Component], path: str) -> None:
        hooks = implemented(plugin)
        if not plugin.holds:
            why = f"{plugin.__name__} cannot promise that anything is safe"
        elif not hooks & {"sink_write", "transport_send"}:
            why = f"{plugin.__name__} only publishes"
        elif not hooks & {"sink_resume", "transport_resume"} and plugin.idempotence == "none":
            why = f"{plugin.__name__} neither knows where it stopped (sink_resume) nor declares idempotence, a crash would double events"
        else:
            return
        raise ConfigError(self._file, f"{path}.hold", '"none"', "an output that holds", why)

    # --- small things ------------------------------------------------------------------------------------------------

    def _keys(self, kind: type[K], table: dict[str, Any], path: str) -> K:
        filled, unfilled = fill(table, self._file, path, self._environ)
        self.problems += unfilled
        result = None if unfilled else self._try(lambda: convert(kind, filled, self._file, path))
        return kind() if result is None else result

    def _try(self, make: Callable[[], T]) -> T | None:
        try:
            return make()
        except HeadraceError as error:
            self.problems.append(error)
            return None

    def _table(self, table: dict[str, Any], key: str, path: str) -> dict[str, Any]:
        value = table.get(key, {})
        if isinstance(value, dict):
            return value
        path = f"{path}.{key}" if path else key
        self._problem(path, f"a table, [{path}]", f"a {_kind(value)}")
        return {}

    def _known(self, table: dict[str, Any], keys: Sequence[str], path: str) -> None:
        for key in [key for key in table if key not in keys]:
            self.problems.append(unknown_key(self._file, f"{path}.{key}" if path else key, key, keys))

    def _is_id(self, name: object, path: str) -> bool:
        if isinstance(name, str) and re.fullmatch(ID_PATTERN, name):
            return True
        self._problem(path, "an id of a-z, 0-9, _ and -", repr(name))
        return False

    def _problem(self, path: str, expected: str, came: str, hint: str = "") -> None:
        self.problems.append(ConfigError(self._file, path, expected, came, hint))


def _kind(value: object) -> str:
    return {list: "list", dict: "table", str: "string", bool: "boolean"}.get(type(value), "number")
