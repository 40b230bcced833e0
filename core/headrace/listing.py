"""The text of `headrace plugins`: a table of all, or a page about one."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from headrace.component import Component
from headrace.discovery import distribution_of, find, installed
from headrace.hookcheck import implemented, roles_of
from headrace.option_table import Option, option_table


def plugin_list() -> str:
    """Every installed plugin, those that cannot be used with the reason."""
    rows = [("NAME", "ROLES", "DISTRIBUTION", "VERSION", "")]
    rows += [
        (one.name, ", ".join(one.roles) or "-", one.distribution, one.version, f"cannot be used: {one.error}" if one.error else "")
        for one in installed()
    ]
    return columns(rows) if len(rows) > 1 else "no plugins are installed"


def plugin_page(name: str) -> str:
    """What one plugin is for, its hooks, options and fault points. Raises as `find` does."""
    plugin = find(name)
    distribution = distribution_of(name)
    lines = [
        f"{name} ({', '.join(roles_of(plugin)) or 'wraps hooks'}), " + (" ".join(distribution) if distribution else "a class in a file"),
        "",
        description(plugin),
        "",
        f"hooks:        {', '.join(sorted(implemented(plugin)))}",
    ]
    if "output" in roles_of(plugin):
        lines += [
            f"idempotence:  {plugin.idempotence}",
            f"holds:        {'yes' if plugin.holds else 'no'}",
            f"takes:        {plugin.takes}",
        ]
    lines += [f"fault points: {', '.join(plugin.fault_points) or 'none'}", "", "options:"]
    lines += [columns(_option_rows(option_table(plugin.Config)), "  ")]
    return "\n".join(lines)


def description(thing: type[Component]) -> str:
    """The class's own docstring, or nothing (never that of the base class)."""
    return inspect.cleandoc(thing.__doc__) if thing.__doc__ and thing.__doc__ is not Component.__doc__ else "(no description)"


def columns(rows: Sequence[Sequence[str]], indent: str = "") -> str:
    """Rows in columns as wide as their widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join((indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip() for row in rows)


def _option_rows(options: Sequence[Option]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("NAME", "TYPE", "DEFAULT", "UNIT", "RANGE", "DESCRIPTION")]
    rows += [
        (
            one.name,
            one.type,
            "(required)" if one.default is None else one.default or "-",
            one.unit or "-",
            one.limits or "-",
            one.description,
        )
        for one in options
    ]
    return rows if options else [("none",)]
