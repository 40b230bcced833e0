"""What every page of the repository must keep: links that lead somewhere, TOML that parses, whole configs that would start."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.check import check

ROOT = Path(__file__).parents[2]
SKIPPED = {".venv", ".git", "data", "build", "node_modules"}
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in ROOT.rglob("*.md")
    if not any(part in SKIPPED or part.startswith(".") for part in path.relative_to(ROOT).parts[:-1])
)


def without_code(text: str) -> str:
    """The page without fenced blocks and code spans."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def links(page: str) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code((ROOT / page).read_text())):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(text: str) -> set[str]:
    """The anchors that headings get: lower case, punctuation dropped, spaces to dashes."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_somewhere(page: str) -> None:
    lost = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file.read_text())):
            lost.append(target)
    assert not lost


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "toml")])
def test_toml_parses(page: str) -> None:
    for block in blocks(page, "toml"):
        tomllib.loads(block)


WHOLE = [(page, number) for page in PAGES for number, block in enumerate(blocks(page, "toml")) if "[host]" in block]


@pytest.mark.parametrize(("page", "number"), WHOLE)
def test_a_whole_config_would_start(page: str, number: int, tmp_path: Path) -> None:
    """A block with `[host]` is a whole file. A plugin that it names by file is the page's Python block that begins with its name."""
    for block in blocks(page, "python"):
        if name := re.match(r"# (\w+\.py)\n", block):
            (tmp_path / name[1]).write_text(block)
    file = tmp_path / "site.toml"
    file.write_text(blocks(page, "toml")[number])
    findings = check(file, environ={"HEADRACE_DATA": str(tmp_path / "data")}, ports=False)
    assert [finding.text for finding in findings if not finding.ok] == []


def test_there_are_whole_configs_to_check() -> None:
    assert {"README.md", "docs/hooks.md"} <= {page for page, _ in WHOLE}


@pytest.mark.parametrize("page", PAGES)
def test_nobody_promises_exactly_once(page: str) -> None:
    # where it is named, it is named in quotes, as what not to say
    assert not re.search(r'(?<!")exactly[ -]once', (ROOT / page).read_text(), re.IGNORECASE)


def test_changes_are_one_line_of_a_known_kind() -> None:
    kinds = re.findall(r"^- `(\w+)`:", (ROOT / "changelog.d" / "README.md").read_text(), re.MULTILINE)
    for file in sorted((ROOT / "changelog.d").iterdir()):
        if file.name == "README.md":
            continue
        assert re.fullmatch(rf"[a-z0-9]+(-[a-z0-9]+)*\.({'|'.join(kinds)})\.md", file.name), file.name
        text = file.read_text()
        assert text.strip(), file.name
        assert text.count("\n") == 1, f"{file.name}: one line"
        assert text.endswith("\n"), file.name


def test_each_decision_is_in_the_list() -> None:
    folder = ROOT / "docs" / "decisions"
    pages = sorted(path.name for path in folder.glob("[0-9]*.md"))
    assert re.findall(r"\((\d{4}-[\w-]+\.md)\)", (folder / "README.md").read_text()) == pages
    assert [int(page[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        title = (folder / page).read_text().splitlines()[0]
        assert title.startswith(f"# {page[:4]}: "), page
        assert f"[{title.removeprefix('# ')}]({page})" in (folder / "README.md").read_text()
