"""Do a class's hooks fit the hookspecs? Looks at classes only: nothing is built, registered or evaluated.

pluggy passes over much that would fail later: a required hook that is missing returns None, a method without `@hookimpl`
is never called, a keyword-only parameter is never passed. Each check here says where it is and what to do.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from headrace.component import Component
from headrace.errors import did_you_mean
from headrace.hookspecs import HOOKS_API, NAMESPACES, PROJECT, ROLES, FactHooks, Role

#: Where a role's table stands in the config.
PLACES: Final[dict[Role, str]] = {
    "source": "[tiers.<tier>.sources.<id>]",
    "queue": "[tiers.<tier>.queue]",
    "decoder": "[[tiers.<tier>.decoders]]",
    "enricher": "[[tiers.<tier>.enrichers]]",
    "output": "[tiers.<tier>.outputs.<id>]",
    "listener": "[listeners.<id>]",
}


@dataclass(frozen=True)
class Spec:
    """One hook of hookspecs.py: its namespace, whether it is async, its parameters without self."""

    name: str
    namespace: type[Any]
    is_async: bool
    parameters: Mapping[str, inspect.Parameter]


def _specs() -> Iterator[Spec]:
    for namespace in NAMESPACES:
        for name, function in vars(namespace).items():
            if hasattr(function, f"{PROJECT}_spec"):
                parameters = dict(inspect.signature(function).parameters)
                parameters.pop("self")
                yield Spec(name, namespace, inspect.iscoroutinefunction(function), parameters)


SPECS: Final[dict[str, Spec]] = {spec.name: spec for spec in _specs()}
FACTS: Final = frozenset(spec.name for spec in SPECS.values() if spec.namespace is FactHooks)


def hook_problems(plugin: type[Component], role: Role | None) -> list[str]:
    """All that is wrong with a component's class in that role (None: in any), one text each; empty when it fits."""
    problems = [*_class_problems(plugin), *_method_problems(plugin)]
    for name, function in _marked(plugin):
        if _options(function).get("wrapper") or _options(function).get("hookwrapper"):
            problems.append(f"{where(plugin, name)} is a wrapper; a component implements hooks, wrappers go into `wrap`")
    have = implemented(plugin)
    if role is not None and not any(whole <= have for whole in ROLES[role]):
        problems.append(_missing(plugin, role, have))
    elif role == "listener" and not have & FACTS:
        problems.append(f"{plugin.__name__} hears no facts; a listener implements one of {_join(FACTS)}")
    else:
        problems += _stray(plugin, have)
    return problems


def wrapper_problems(participant: type[Any]) -> list[str]:
    """All that is wrong with the class of a participant, which may only wrap hooks."""
    problems = [*_class_problems(participant), *_method_problems(participant)]
    for name, function in _marked(participant):
        if not _options(function).get("wrapper"):
            problems.append(f"{where(participant, name)} would run instead of the component's own hook; write @hookimpl(wrapper=True)")
    return problems


def implemented(plugin: type[Any]) -> frozenset[str]:
    """The hooks that a class implements itself (wrappers do not count)."""
    return frozenset(
        hook_name(name, function) for name, function in _marked(plugin) if not _options(function).get("wrapper")
    ) & SPECS.keys()  # fmt: skip


def in_use(plugin: type[Component], config: Any) -> frozenset[str]:
    """The hooks for which an instance with this config stands: those of the class, or fewer where it can be several things."""
    part = plugin.hooks_for(config)
    return implemented(plugin) if part is None else implemented(plugin) & part


def roles_of(plugin: type[Component]) -> tuple[Role, ...]:
    """The roles whose hooks the class implements; listener only when it hears facts and nothing else."""
    have = implemented(plugin)
    roles: list[Role] = [role for role, sets in ROLES.items() if role != "listener" and any(whole <= have for whole in sets)]
    return tuple(roles) or (("listener",) if have & FACTS else ())


def marker_of(plugin: type[Any], name: str) -> Mapping[str, Any] | None:
    """What `@hookimpl(...)` said on the class's plain method `name`; None for everything else."""
    attribute = inspect.getattr_static(plugin, name, None)
    return _options(attribute) if inspect.isfunction(attribute) and hasattr(attribute, _MARK) else None


def hook_name(name: str, function: Callable[..., Any]) -> str:
    """The hook that a marked method implements: its own name, or `specname`."""
    return cast(str, _options(function).get("specname") or name)


def where(plugin: type[Any], name: str) -> str:
    """`Class.method (file:line)`, as far as Python can tell."""
    attribute = _plain(inspect.getattr_static(plugin, name, None))
    code = getattr(inspect.unwrap(attribute) if callable(attribute) else attribute, "__code__", None)
    place = f" ({code.co_filename}:{code.co_firstlineno})" if code else ""
    return f"{plugin.__name__}.{name}{place}"


_MARK: Final = f"{PROJECT}_impl"

_STATED: Final[Mapping[str, tuple[str, ...]]] = {
    "idempotence": ("none", "key", "event"),
    "takes": ("events", "raw"),
    "flush_level": ("process", "power"),
}


def _options(function: Any) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], getattr(function, _MARK))


def _marked(plugin: type[Any]) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in dir(plugin):
        if marker_of(plugin, name) is not None:
            yield name, inspect.getattr_static(plugin, name)


def _plain(attribute: Any) -> Any:
    """The function inside a property, classmethod, staticmethod or the like."""
    return getattr(attribute, "fget", None) or getattr(attribute, "__func__", None) or getattr(attribute, "func", None) or attribute


def _class_problems(plugin: type[Any]) -> Iterator[str]:
    api = getattr(plugin, "hooks_api", HOOKS_API)
    if not isinstance(api, int) or api > HOOKS_API:
        yield (f"{plugin.__name__}.hooks_api is {api!r}, this host knows up to {HOOKS_API}; upgrade headrace, or install an older plugin")
    if inspect.getattr_static(plugin, "__eq__") is not object.__eq__:
        yield f"{plugin.__name__} defines __eq__ (a dataclass does); components are told apart by identity, use @dataclass(eq=False)"
    if issubclass(plugin, Component):
        yield from _stated_problems(plugin)
        yield from _life_problems(plugin)


def _stated_problems(plugin: type[Component]) -> Iterator[str]:
    """What the class states of itself has to be something that the host acts on: a promise with a slip in it would be none."""
    for name, known in _STATED.items():
        if (value := getattr(plugin, name)) not in known:
            near = did_you_mean(value, known) if isinstance(value, str) else ""
            yield f"{plugin.__name__}.{name} must be one of {', '.join(map(repr, known))}, got {value!r}{near}"
    points = plugin.fault_points
    if isinstance(points, str) or not all(isinstance(point, str) for point in points):
        yield f"{plugin.__name__}.fault_points must be a tuple of names, got {points!r}; one name is written (name,)"


def _life_problems(plugin: type[Component]) -> Iterator[str]:
    for name, base in vars(Component).items():
        own = inspect.getattr_static(plugin, name)
        if inspect.isfunction(base) and inspect.isfunction(own) and not name.startswith("_"):
            if inspect.iscoroutinefunction(base) and not inspect.iscoroutinefunction(own):
                yield f"{where(plugin, name)} must be `async def` without a yield: the host awaits it"
            elif inspect.iscoroutinefunction(own) and not inspect.iscoroutinefunction(base):
                yield f"{where(plugin, name)} must be a plain `def`: the host does not await it"


def _method_problems(plugin: type[Any]) -> Iterator[str]:
    for name in dir(plugin):
        attribute = inspect.getattr_static(plugin, name, None)
        function = _plain(attribute)
        marked = hasattr(attribute, _MARK) or hasattr(function, _MARK)
        if not marked and name in SPECS:
            yield f"{where(plugin, name)} is named like a hook but has no @hookimpl, it would never be called; add it, or rename the method"
        elif marked and not inspect.isfunction(attribute):
            yield f"{where(plugin, name)} is a {type(attribute).__name__}; a hook is a plain method with self"
        elif marked:
            yield from _signature_problems(plugin, name, attribute)


def _signature_problems(plugin: type[Any], name: str, function: Callable[..., Any]) -> Iterator[str]:
    at = where(plugin, name)
    hook = hook_name(name, function)
    spec = SPECS.get(hook)
    if spec is None:
        if not _options(function).get("optionalhook"):
            yield (
                f"{at}: this host has no hook {hook!r}{did_you_mean(hook, SPECS)}"
                "; rename it, or mark it @hookimpl(optionalhook=True) if the plugin can live without"
            )
        return
    yield from _kind_problems(at, spec, function)
    accepts = f"{hook}({', '.join(spec.parameters)})"
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters or parameters[0].kind not in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
        yield f"{at}: the first parameter must be self"
    elif parameters[0].name in spec.parameters:
        yield f"{at}: the first parameter must be self, got {parameters[0].name!r}; put self before it"
    for parameter in parameters[1:]:
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            yield f"{at}: {parameter} would never be filled; name the parameters of {accepts} that it needs"
        elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            yield f"{at}: {parameter.name!r} is keyword-only and would never be passed; remove the * before it"
        elif parameter.name not in spec.parameters:
            yield f"{at}: {accepts} has no parameter {parameter.name!r}{did_you_mean(parameter.name, spec.parameters)}"
        elif parameter.default is not inspect.Parameter.empty:
            yield f"{at}: {parameter.name!r} has a default, and pluggy before 1.7 would never pass it; remove the default"


def _kind_problems(at: str, spec: Spec, function: Callable[..., Any]) -> Iterator[str]:
    options = _options(function)
    if options.get("hookwrapper"):
        yield f"{at} is an old-style wrapper; write @hookimpl(wrapper=True)"
    elif options.get("wrapper"):
        if not inspect.isgeneratorfunction(function):
            returns = " and returns a coroutine that awaits what the yield gave" if spec.is_async else ""
            yield f"{at} must be a plain generator (def, one yield): it wraps the call{returns}"
    elif spec.is_async and not inspect.iscoroutinefunction(function):
        yield f"{at} must be `async def` without a yield: {spec.name} is async"
    elif not spec.is_async and (inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)):
        yield f"{at} must be a plain `def`: {spec.name} is not async, its coroutine would never be awaited"
    elif not spec.is_async and inspect.isgeneratorfunction(function):
        yield f"{at} must return its result, it has a yield"


def _missing(plugin: type[Any], role: Role, have: frozenset[str]) -> str:
    nearest = max(ROLES[role], key=lambda whole: (len(whole & have), -len(whole - have)))
    text = f"{plugin.__name__} in the role {role} needs "
    if nearest & have:
        text += f"{_join(nearest)}; missing: {_join(nearest - have)}"
    else:
        text += " or ".join(_join(whole) for whole in ROLES[role]) + "; it has none of them"
    methods = [name for name in dir(plugin) if name not in SPECS and not name.startswith("_")]
    for hook in sorted(nearest - have):
        if near := difflib.get_close_matches(hook, methods, n=1, cutoff=0.8):
            text += f"; is {where(plugin, near[0])} meant to be {hook}?"
    if not nearest & have and (others := roles_of(plugin)):
        text += f"; it can be {' or '.join(others)}: move its table to {' or '.join(PLACES[other] for other in others)}"
    return text


def _stray(plugin: type[Any], have: frozenset[str]) -> Iterator[str]:
    """Hooks that nobody would call, because what must stand beside them is missing."""
    for hook in sorted(have - FACTS):
        role, needed = _companions(hook)
        if not any(whole <= have for whole in needed):
            missing = min((whole - have for whole in needed), key=len)
            yield (
                f"{where(plugin, hook)} is a hook of the role {role}, and would never be called without {_join(missing)}"
                "; add what is missing, or remove it"
            )


def _companions(hook: str) -> tuple[Role, list[frozenset[str]]]:
    """The role that a hook belongs to, and the sets of which one must be whole for it to be called."""
    siblings = {spec.name for spec in SPECS.values() if spec.namespace is SPECS[hook].namespace}
    for role, sets in ROLES.items():
        if near := [whole for whole in sets if whole and whole <= siblings]:
            return role, [whole for whole in near if hook in whole] or near
    raise AssertionError(f"hook {hook} belongs to no role")


def _join(hooks: frozenset[str]) -> str:
    return ", ".join(sorted(hooks))
