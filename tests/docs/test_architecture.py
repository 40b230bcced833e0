"""ARCHITECTURE.md, CONTRIBUTING.md and the decisions name files and functions that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ["ARCHITECTURE.md", "CONTRIBUTING.md", *(f"docs/decisions/{path.name}" for path in (ROOT / "docs" / "decisions").glob("0*.md"))]
#: Names of other projects.
FOREIGN = {"subset_hook_caller", "mypy_path"}
SOURCES = "\n".join(path.read_text() for folder in ("core", "plugins") for path in (ROOT / folder).rglob("*.py"))


def spans(page: str) -> list[str]:
    """The code spans of a page, fenced blocks left out."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE))


@pytest.mark.parametrize("page", PAGES)
def test_every_path_is_there(page: str) -> None:
    # a place with a placeholder or an option behind it is no path
    paths = [
        span for span in spans(page) if re.fullmatch(r"(?:core|plugins|tests|docs|examples|tools|benchmarks|changelog\.d)/[\w./-]*", span)
    ]
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_module_of_the_folder_table_is_there() -> None:
    rows = re.findall(r"^\| (`core/.*?) \|", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE)
    for row in rows:
        first, *others = re.findall(r"`([\w./]+)`", row)
        folder = (ROOT / first).parent if first.endswith(".py") else ROOT / first
        assert [name for name in others if not (folder / name).exists()] == []


def test_every_module_of_the_host_has_a_place_on_the_map() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    modules = [path.name for path in (ROOT / "core" / "headrace").glob("[!_]*.py")]
    folders = [path.parent.name for path in (ROOT / "core" / "headrace").glob("*/__init__.py")]
    assert [module for module in modules if not re.search(rf"[`/]{module}`", text)] == []
    assert [folder for folder in folders if f"core/headrace/{folder}/" not in text] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_function_and_class_is_there(page: str) -> None:
    lost = []
    for span in spans(page):
        if match := re.fullmatch(r"([A-Z]\w+)\.(_?[a-z]\w*)", span):
            klass, method = match.groups()
            bodies = re.findall(rf"^class {klass}\b.*?(?=^[^\s)]|\Z)", SOURCES, re.DOTALL | re.MULTILINE)
            if not any(re.search(rf"^    (async )?def {method}\(", body, re.MULTILINE) for body in bodies):
                lost.append(span)
        elif re.fullmatch(r"_[a-z]\w+|[a-z]+_[a-z]\w+", span) and span not in FOREIGN and span.removeprefix("headrace_") not in SOURCES:
            lost.append(span)
    assert not lost
