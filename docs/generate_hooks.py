"""Write the reference part of docs/hooks.md from the docstrings of headrace.hookspecs; what stands above the mark stays.

.venv/bin/python docs/generate_hooks.py
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from headrace import hookspecs
from headrace.component import Component, Context, Health, Placed
from headrace.hookcheck import PLACES, SPECS
from headrace.hookspecs import NAMESPACES, ROLES
from headrace.position import Missing, Origin, OriginMark, RangeKey
from headrace.store_calls import StoreCalls

PAGE: Final = Path(__file__).with_name("hooks.md")
MARK: Final = "<!-- Generated below by docs/generate_hooks.py; do not edit. -->"

CROSSING: Final[tuple[type[Any], ...]] = (
    hookspecs.Deliver,
    hookspecs.Elsewhere,
    RangeKey,
    Missing,
    Origin,
    OriginMark,
    hookspecs.Plan,
    hookspecs.QueueInfo,
    hookspecs.ReaderInfo,
    hookspecs.QueueSpan,
    hookspecs.QueueRead,
)
BASES: Final[tuple[type[Any], ...]] = (Component, Context, Health, Placed, StoreCalls)
TITLES: Final = {
    "SourceHooks": "Sources",
    "QueueHooks": "Queues",
    "DecodeHooks": "Decoders",
    "EnrichHooks": "Enrichers",
    "SinkHooks": "Sinks",
    "TransportHooks": "Transports, the sending half",
    "FactHooks": "Facts",
}


def main() -> None:
    written, _, _ = PAGE.read_text().partition(MARK)
    PAGE.write_text(written + MARK + "\n\n" + reference())


def reference() -> str:
    """The generated part of the page."""
    parts = [*_rules(), *_roles()]
    for namespace in NAMESPACES:
        parts += _namespace(namespace)
    parts += ["## What crosses the hooks\n", "Beside Arrow record batches ([their columns](#the-batches)).\n"]
    for kind in CROSSING:
        parts += _crossing(kind)
    parts += ["## What a component has\n"]
    for kind in BASES:
        parts += _crossing(kind)
    return "\n".join(parts).rstrip() + "\n"


def _rules() -> Iterator[str]:
    text = inspect.cleandoc(hookspecs.__doc__ or "")
    yield "## Rules for all hooks\n"
    yield text.partition("Rules for all hooks:\n\n")[2] + "\n"


def _roles() -> Iterator[str]:
    yield "## Roles\n"
    yield "The place of a table in the config decides the role; a class must implement one whole set of its role's hooks.\n"
    yield "| role | table | hooks that must be there |\n|---|---|---|"
    for role, sets in ROLES.items():
        needed = ", or ".join(", ".join(f"`{hook}`" for hook in SPECS if hook in whole) for whole in sets) or "one of the facts"
        yield f"| {role} | `{PLACES[role]}` | {needed} |"
    yield ""


def _namespace(namespace: type[Any]) -> Iterator[str]:
    yield f"## {TITLES[namespace.__name__]}\n"
    yield inspect.cleandoc(namespace.__doc__ or "") + "\n"
    for spec in SPECS.values():
        if spec.namespace is namespace:
            yield from _hook(spec.name, namespace)


def _hook(name: str, namespace: type[Any]) -> Iterator[str]:
    function = vars(namespace)[name]
    yield f"### `{name}`\n"
    yield f"```python\n{_signature(name, function)}\n```\n"
    yield inspect.cleandoc(function.__doc__) + "\n"


def _crossing(kind: type[Any]) -> Iterator[str]:
    yield f"### `{kind.__name__}`\n"
    yield inspect.cleandoc(kind.__doc__ or "") + "\n"
    if fields := getattr(kind, "_fields", ()):
        yield f"Fields: {', '.join(f'`{field}: {_type(kind.__annotations__[field])}`' for field in fields)}.\n"
    methods = [(name, member) for name, member in vars(kind).items() if inspect.isfunction(member) and member.__doc__]
    told = [(name, member) for name, member in methods if member.__module__.startswith("headrace") and (kind, name) != (Context, "close")]
    for name, member in told:
        yield f"- `{_signature(name, member)}`: {_one_line(member.__doc__ or '')}"
    if told:
        yield ""


def _signature(name: str, function: Any) -> str:
    word = "async def" if inspect.iscoroutinefunction(function) else "def"
    return f"{word} {name}{inspect.signature(function)}".replace("'", "").replace("Ellipsis", "...")


def _type(annotation: Any) -> str:
    return getattr(annotation, "__forward_arg__", None) or str(annotation)


def _one_line(text: str) -> str:
    return " ".join(inspect.cleandoc(text).split())


if __name__ == "__main__":
    main()
