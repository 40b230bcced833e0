"""Read a site's TOML file; everything that can be wrong with it is found here, before anything runs.

    site = load(Path("site.toml"), overrides=["admin.listen=127.0.0.1:0"])

`load` raises the first problem, `examine` gives all of them. Paths in a config are relative to the current directory, except
those of plugin files (`use = "./geo.py:Geocode"`), which are relative to the config file's folder.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from headrace.component import Component
from headrace.declared import read_schema
from headrace.discovery import find, is_file
from headrace.errors import ConfigError, HeadraceError, HookError, did_you_mean
from headrace.hookcheck import PLACES, hook_problems, in_use, wrapper_problems
from headrace.hookspecs import ROLES, Role
from headrace.options import Secret, config_problems, convert, shown, unknown_key
from headrace.tables import (
    ID_PATTERN,
    RESERVED,
    Admin,
    Declared,
    DeclaredReading,
    Engine,
    Entry,
    EntryKeys,
    Host,
    OutputKeys,
    Site,
    Tier,
    TierKeys,
    changed,
    redacted,
)  # fmt: skip
from headrace.values import Filled, fill, override, parse, read, toml_value

__all__ = [
    "Admin", "Engine", "Entry", "EntryKeys", "Host", "OutputKeys", "Secret", "Site", "Tier",
    "changed", "examine", "load", "redacted", "reload",
]  # fmt: skip

DATA_DIR: Final = "${HEADRACE_DATA:-./data}"

T = TypeVar("T")
K = TypeVar("K", bound=msgspec.Struct)


def load(
    file: Path,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
    only: Sequence[str] = (),
    text: str | None = None,
) -> Site:
    """Read the file; raise the first ConfigError or PluginError.

    `overrides` are `key.path=value`. `only` names the tiers to read (none: all): of the others neither the plugins need be
    installed nor the variables and secrets be there, so that every container can have the same file. `text` takes the place
    of what stands in the file now.
    """
    site, problems = examine(file, overrides, environ, only, text)
    if site is None or problems:
        raise problems[0]
    return site


def reload(site: Site, environ: Mapping[str, str] = os.environ) -> Site:
    """Read the site's file again, under the same overrides and for the same tiers; raises as `load` does."""
    return load(site.file, site.overrides, environ, site.only)


def examine(
    file: Path,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
    only: Sequence[str] = (),
    text: str | None = None,
) -> tuple[Site | None, list[HeadraceError]]:
    """Every problem that can be found, and the site: whole without problems, else what could be read of it, or None."""
    try:
        text = read(file) if text is None else text
        tables = parse(text, file)
        override(tables, str(file), overrides)
    except ConfigError as error:
        return None, [error]
    reader = _Reader(file, environ)
    return reader.site(tables, tuple(overrides), tuple(only), text), reader.problems


class _Reader:
    """Turns tables into a Site, and keeps every problem instead of stopping at the first."""

    def __init__(self, file: Path, environ: Mapping[str, str]) -> None:
        self.problems: list[HeadraceError] = []
        self._file, self._folder, self._environ = str(file), file.parent, environ

    def site(self, tables: dict[str, Any], overrides: tuple[str, ...], only: tuple[str, ...], text: str) -> Site:
        self._known(tables, ("host", "admin", "schema", "tiers", "listeners"), "")
        host = {"data_dir": DATA_DIR, **self._table(tables, "host", "")}
        tiers = self._table(tables, "tiers", "")
        if not tiers:
            self._problem("tiers", "at least one [tiers.<name>] table", "none")
        for name in only:
            if name not in tiers:
                self._problem("tiers", f"a tier named {name!r}", ", ".join(tiers), did_you_mean(name, tiers).removeprefix("; "))
        declared = self._declared(self._table(tables, "schema", ""))
        wanted = [name for name in tiers if (not only or name in only) and self._is_id(name, f"tiers.{name}")]
        site = Site(
            file=Path(self._file),
            host=self._keys(Host, host, "host"),
            admin=self._keys(Admin, self._table(tables, "admin", ""), "admin"),
            tiers={name: self._tier(name, self._table(tiers, name, "tiers"), declared) for name in wanted},
            listeners=self._named("listener", tables, "listeners", ""),
            declared=declared,
            overrides=overrides,
            only=only,
            text=text,
        )
        for tier in site.tiers.values():
            if tier.workers > 1:
                self._check_listeners(site.listeners, tier)
        return site

    def _tier(self, name: str, table: dict[str, Any], declared: Declared) -> Tier:
        path = f"tiers.{name}"
        count = len(self.problems)
        own = TierKeys.__struct_fields__
        self._known(table, ("sources", "queue", "decoders", "enrichers", "outputs", "engine", *own), path)
        keys = self._keys(TierKeys, {key: value for key, value in table.items() if key in own}, path)
        tier = Tier(
            name=name,
            sources=self._named("source", table, "sources", path),
            queue=self._entry("queue", table["queue"], f"{path}.queue", "queue") if "queue" in table else None,
            decoders=self._listed("decoder", table, "decoders", path),
            enrichers=self._listed("enricher", table, "enrichers", path),
            outputs=self._named("output", table, "outputs", path),
            engine=self._keys(Engine, self._table(table, "engine", path), f"{path}.engine"),
            workers=keys.workers,
            declared=declared,
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
        if (names := len({name for readings in tier.declared.values() for name in readings})) > tier.engine.readings_max:
            expected = f"at most {tier.engine.readings_max} readings (tiers.{tier.name}.engine.readings_max)"
            self._problem("schema", expected, str(names))
        if tier.queue is None:
            self._check_unqueued(tier, path)
        if tier.workers > 1:
            for entry in tier.entries():
                self._check_many(entry, tier, "give it a tier of its own, behind a link, or this one a single worker")

    def _check_listeners(self, listeners: dict[str, Entry], tier: Tier) -> None:
        for entry in listeners.values():
            self._check_many(entry, tier, "every process has its own instance of a listener")

    def _check_many(self, entry: Entry, tier: Tier, hint: str) -> None:
        expected = f"a plugin of which every worker can have one (tiers.{tier.name}.workers = {tier.workers})"
        for use in single(entry):
            self._problem(f"{entry.path}.use", expected, f"{use}, which does not say so (many_workers)", hint)

    def _check_unqueued(self, tier: Tier, path: str) -> None:
        holding = [entry for entry in tier.outputs.values() if entry.holds]
        if len(holding) > 1:
            ids = ", ".join(entry.id for entry in holding)
            hint = f'add a [{path}.queue], set hold = "none" where loss is fine, or give each output a link and a tier of its own'
            self._problem(f"{path}.outputs", "at most one holding output in a tier without a queue", ids, hint)
        for entry in holding:
            if entry.output.hold == "window":
                self._problem(f"{entry.path}.hold", '"always" or "none" in a tier without a queue', "'window'", f"add a [{path}.queue]")
        if passes(tier):
            self._check_passing(tier, path, holding)

    def _check_passing(self, tier: Tier, path: str, holding: list[Entry]) -> None:
        """A tier without a queue that links lead to: the store of its one holding output has to tell what has arrived."""
        hint = f"add a [{path}.queue]: without one, only a store that knows up to where it holds each queue can tell a link where to go on"
        for entry in tier.sources.values():
            if not is_link(entry):
                self._problem(entry.path, "links only, beside a link into a tier without a queue", repr(entry.use), f"add a [{path}.queue]")
        if not holding:
            self._problem(f"{path}.outputs", "an output that holds, in a tier without a queue that links lead to", "none", hint)
        for entry in holding[:1]:
            if "sink_resume" not in entry.hooks:
                self._problem(entry.path, "a sink that knows what it holds (sink_resume)", repr(entry.use), hint)

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
        hooks = in_use(plugin, config)
        if role != "listener" and not any(whole <= hooks for whole in ROLES[role]):
            raise ConfigError(self._file, path, f"options that make {keys.use} a part of the role {role}", f"those of {_others(hooks)}")
        if isinstance(keys, OutputKeys):
            self._check_output(keys, plugin, hooks, path, name, siblings)
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

    def _check_output(
        self, keys: OutputKeys, plugin: type[Component], hooks: frozenset[str], path: str, name: str, siblings: frozenset[str]
    ) -> None:
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
            self._check_holding(plugin, hooks, path)
        if keys.spread is not None and "transport_send" not in hooks:
            raise ConfigError(
                self._file, f"{path}.spread", "the sending half of a link", plugin.__name__, "only links know what they leave out"
            )
        if keys.spread_retired and keys.spread is None:
            raise ConfigError(self._file, f"{path}.spread_retired", "spread beside it", "none")

    def _check_holding(self, plugin: type[Component], hooks: frozenset[str], path: str) -> None:
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

    def _declared(self, tables: dict[str, Any]) -> Declared:
        filled, unfilled = fill(tables, self._file, "schema", self._environ)
        self.problems += unfilled
        return read_schema(filled, lambda table, path: self._try(lambda: convert(DeclaredReading, table, self._file, path)), self._problem)

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


def _others(hooks: frozenset[str]) -> str:
    """The roles that a set of hooks makes whole."""
    return " or ".join(role for role, sets in ROLES.items() if role != "listener" and any(whole <= hooks for whole in sets)) or "none"


def is_link(entry: Entry) -> bool:
    """Whether a source is the receiving half of a durable link, and nothing else."""
    return "transport_serve" in entry.hooks and "ingest_serve" not in entry.hooks


def passes(tier: Tier) -> bool:
    """Whether links lead to a tier without a queue: it passes on what it gets, under the positions of the queues that sent it."""
    return tier.queue is None and any(is_link(entry) for entry in tier.sources.values())


def single(entry: Entry) -> list[str]:
    """The plugins of an entry, itself and its wrappers, that only one process of a site may have."""
    plugins = (entry.plugin, *entry.wrappers)
    return [
        one.__name__ for one in plugins if not (entry.role in one.many_workers if isinstance(one.many_workers, tuple) else one.many_workers)
    ]


def _kind(value: object) -> str:
    return {list: "list", dict: "table", str: "string", bool: "boolean"}.get(type(value), "number")
