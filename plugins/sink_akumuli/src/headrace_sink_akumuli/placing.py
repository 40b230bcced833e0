"""Whether a tier has what a derived view needs: a lake that keeps everything, and a queue that does not wait for it. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from headrace_sink_lake.store import without_secrets

#: What to write beside `hold = "window"`.
EXAMPLE = "hold_window_bytes = 1_000_000_000"


def warnings(hold: str, lake: str | None, lakes: Mapping[str, str], alone: bool) -> list[str]:
    """What an operator should know. hold, lake: the output's own; lakes: by id, where the sink_lakes of its tier lie that hold always;
    alone: no other output of the tier holds always."""
    same = lake is not None and _place(lake) in {_place(path) for path in lakes.values()}
    found = []
    if lake is not None and not same:
        there = ", ".join(f"{name}: {without_secrets(path)}" for name, path in lakes.items()) or "none"
        found.append(
            f"lake: expected the path of a sink_lake of this tier ({there}), got {without_secrets(lake)}: positions that the queue no "
            "longer has are not found elsewhere"
        )
    if lake is None and lakes and hold != "none":
        found.append(f"lake: not set, so what the queue no longer has stays missing here; set {_suggested(lakes)}")
    if hold == "always" and alone:
        found.append(
            "hold: nothing else of this tier holds, and Akumuli loses what came last when it is killed; add a sink_lake, and set lake"
        )
    elif hold == "always" and lakes:
        found.append(
            f'hold: "always" lets the queue fill up while Akumuli is away; set hold = "window" and {EXAMPLE}, the lake has the rest'
        )
    return found


def _suggested(lakes: Mapping[str, str]) -> str:
    return " or ".join(f'lake = "{without_secrets(path)}"' for path in lakes.values())


def _place(path: str) -> str:
    """The same for the same place, however it is written."""
    if path.startswith("file://"):
        path = path.removeprefix("file://")
    return without_secrets(path).rstrip("/") if "://" in path else str(Path(path).resolve())
