"""Which class is `sink_lake`? Answered once at boot: by stevedore for installed plugins, by path for a site's own file.

Nothing is imported before somebody asks for it by name, so one broken plugin breaks nothing else.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, cast

from stevedore import DriverManager, ExtensionManager

from headrace.errors import PluginBroken, PluginClash, PluginError, PluginNotFound

if TYPE_CHECKING:
    from headrace.component import Component
    from headrace.hookspecs import Role

PLUGINS: Final = "headrace.plugins"
COMMANDS: Final = "headrace.commands"
#: The second words of `headrace devices`.
DEVICES_COMMANDS: Final = "headrace.commands.devices"


class Distribution(NamedTuple):
    """What pip installed: `headrace-sink-lake`, `0.1.0`."""

    name: str
    version: str


class Installed(NamedTuple):
    """One line of `headrace plugins`. roles: where its table may stand; error: why it cannot be used, or None."""

    name: str
    distribution: str
    version: str
    roles: tuple[Role, ...]
    error: str | None


def find(name: str, folder: Path | None = None) -> type[Component]:
    """The class behind `use = name`: an installed plugin, or `./geo.py:Geocode` relative to `folder`.

    Raises PluginNotFound, PluginClash, or PluginBroken with the reason.
    """
    from headrace.component import Component

    plugin = _from_file(name, folder or Path.cwd()) if is_file(name) else _load(PLUGINS, name)
    if not (isinstance(plugin, type) and issubclass(plugin, Component)):
        raise PluginBroken(name, f"expected a subclass of headrace.Component, got {plugin!r}")
    return plugin


def is_file(name: str) -> bool:
    """Whether `use = name` means a class in a file: a path to a `.py` file, a colon, the class's name."""
    path, colon, _ = name.rpartition(":")
    return bool(colon) and ("/" in path or path.endswith(".py"))


def names() -> list[str]:
    """The names of all installed plugins, without importing any."""
    return sorted({entry.name for entry in _entries(PLUGINS)})


def installed() -> list[Installed]:
    """Every installed plugin, those that cannot be used included, with the reason."""
    return [_describe(entry) for entry in sorted(_entries(PLUGINS), key=lambda entry: (entry.name, _distribution(entry)))]


def distribution_of(name: str) -> Distribution | None:
    """Which distribution offers the plugin; None for a class in a file, and for what is not installed."""
    return next((_distribution(entry) for entry in _entries(PLUGINS) if entry.name == name), None)


def commands(group: str = COMMANDS) -> list[str]:
    """The first words that installed distributions add to `headrace` (or to one of its commands), without importing any."""
    return sorted({entry.name for entry in _entries(group)})


def command(word: str, group: str = COMMANDS) -> Callable[[list[str]], int]:
    """The function behind `headrace <word>`. Raises as `find` does."""
    function = _load(group, word)
    if not callable(function):
        raise PluginBroken(word, f"expected a function main(argv: list[str]) -> int, got {function!r}")
    return cast(Callable[[list[str]], int], function)


def _entries(group: str) -> list[EntryPoint]:
    # Asked of importlib.metadata each time (a few ms, at boot only): stevedore's own disk cache keys on float32 mtimes,
    # which move in steps of 128 s, so after a quick reinstall it may answer with the list from before.
    found = list(entry_points(group=group))
    ExtensionManager.ENTRY_POINT_CACHE[group] = found
    return found


def _load(group: str, name: str) -> Any:
    found = _entries(group)
    same = [entry for entry in found if entry.name == name]
    if not same:
        raise PluginNotFound(name, {entry.name for entry in found})
    if len(same) > 1:  # asked before stevedore is, which imports all of them before it sees the clash
        raise PluginClash(name, [" ".join(_distribution(entry)) for entry in same])

    def broken(_manager: object, _entry: object, error: BaseException) -> NoReturn:
        raise PluginBroken(name, _reason(error)) from error

    try:
        return DriverManager(group, name, on_load_failure_callback=broken).driver
    except (AssertionError, SystemExit) as error:  # stevedore lets these two pass its callback
        raise PluginBroken(name, _reason(error)) from error


def _from_file(name: str, folder: Path) -> Any:
    path_text, _, class_name = name.rpartition(":")
    path = folder / Path(path_text).expanduser()
    try:
        source = path.read_bytes()
    except OSError as error:
        raise PluginBroken(name, f"{path}: {error.strerror}; the path is relative to the config file's folder") from error
    module = _module(name, path.resolve(), source)
    try:
        return getattr(module, class_name)
    except AttributeError:
        classes = ", ".join(key for key, value in vars(module).items() if isinstance(value, type) and value.__module__ == module.__name__)
        raise PluginBroken(name, f"{path} has no class {class_name!r}; it has {classes or 'none'}") from None


def _module(name: str, path: Path, source: bytes) -> ModuleType:
    # Named by content: the same file gives the same classes, so that a reload restarts only what was edited.
    digest = hashlib.sha256(bytes(path) + b"\0" + source).hexdigest()[:12]
    module_name = f"headrace_site_{path.stem}_{digest}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None:
        raise PluginBroken(name, f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # type hints are resolved through it
    try:
        # Not through the loader: its bytecode cache keys on whole seconds, and an edit may be quicker.
        exec(compile(source, str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise PluginBroken(name, f"{path}: {_reason(error)}") from error
    return module


def _describe(entry: EntryPoint) -> Installed:
    from headrace.plugins import roles_of

    distribution = _distribution(entry)
    try:
        return Installed(entry.name, *distribution, roles_of(find(entry.name)), None)
    except PluginError as error:
        return Installed(entry.name, *distribution, (), str(error))


def _distribution(entry: EntryPoint) -> Distribution:
    return Distribution(entry.dist.name, entry.dist.version) if entry.dist else Distribution("unknown", "unknown")


def _reason(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{type(error).__name__}: {error}; install what has it beside headrace: {sys.executable} -m pip install ..."
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
