"""Which lane an output sends on, and its own secret where the queue has none: small files, durable before the first send."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import NamedTuple

from headrace import LEVELS
from headrace.locked import replace_durably


class Lane(NamedTuple):
    """A lane binds what is sent on it to one far tier (DELIVERY 13): its marks speak for nobody else."""

    number: int
    peer: str


def load(folder: Path) -> Lane | None:
    """The lane of the last life; None before the first, and when it cannot be read."""
    file = folder / "lane.json"
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_bytes())
        return Lane(int(content["lane"]), str(content["peer"]))
    except (ValueError, KeyError, TypeError):
        return None  # it is written whole: only a damaged disk comes here, and lane 1 is what nearly every output has


def keep(folder: Path, lane: Lane) -> None:
    """Durable on return."""
    replace_durably(folder / "lane.json", json.dumps({"lane": lane.number, "peer": lane.peer}).encode())


def load_level(folder: Path) -> str | None:
    """The level of the far side, as it last said it."""
    file = folder / "far_level"
    level = file.read_text() if file.exists() else None
    return level if level in LEVELS else None


def keep_level(folder: Path, level: str) -> None:
    """Durable on return, for those that come before the far side is heard of again."""
    if load_level(folder) != level:
        replace_durably(folder / "far_level", level.encode())


def own_secret(folder: Path) -> bytes:
    """A secret of this output, made when there is none."""
    file = folder / "secret"
    if not file.exists():
        replace_durably(file, secrets.token_bytes(32))
        file.chmod(0o600)
    return file.read_bytes()
