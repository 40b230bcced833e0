"""The README's commands do what it says: its blocks run, in their order, against a real site on free ports.

They run in a folder that looks like a fresh clone after `make test`; only the addresses are other ones. Blocks that begin with `make`
or install packages are not run here: tests/packaging and the gate do that.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.cli import CORE
from headrace.discovery import commands
from headrace.testing.site import SiteProcess

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ELSEWHERE = ("make ", ".venv/bin/python -m pip ")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the blocks name: `.venv`, `examples`, and `data`, where the site of this test keeps its own."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.delenv("HEADRACE_DATA", raising=False)
    return tmp_path


def shell(block: str, clone: Path, site: SiteProcess) -> str:
    """Run a block as it stands, but for the addresses; its output."""
    block = with_addresses(block, site)
    done = subprocess.run(["sh", "-eu", "-c", block], cwd=clone, capture_output=True, text=True, timeout=60, env={**os.environ})
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def with_addresses(text: str, site: SiteProcess) -> str:
    for component, address in (("devices", "127.0.0.1:8080"), ("live", "127.0.0.1:8081"), ("admin", "127.0.0.1:9464")):
        text = text.replace(address, site.wait_for_url(component).removeprefix("http://"))
    return text


def test_what_a_reader_pastes_works(clone: Path, site: SiteProcess) -> None:
    site.overrides.append("tiers.site.outputs.lake.flush_interval_s=0.1")
    site.start()
    (snippet,) = blocks("python")
    (clone / "send.py").write_text(with_addresses(snippet, site))
    output: dict[str, str] = {}
    for block in blocks("sh"):
        if block.startswith(ELSEWHERE):
            continue
        if "duckdb" in block:
            site.wait_for_metric("sink_written_events_total", 4, component="lake")
        output[block] = shell(block, clone, site)
    said = "\n".join(output.values())
    assert '{"accepted":1,"rejected":[]}' in said
    assert '{"ack":3}' in said
    table = next(text for block, text in output.items() if "duckdb" in block)
    assert [table.count(device) for device in ("kitchen", "boiler")] == [1, 3]
    assert "ready to run" in said
    assert all(plugin.name in said for plugin in (ROOT / "plugins").iterdir() if (plugin / "pyproject.toml").exists())
    site.stop()


def test_every_block_is_run_or_is_known_to_run_elsewhere() -> None:
    skipped = [block for block in blocks("sh") if block.startswith(ELSEWHERE)]
    assert [block.split()[:2] for block in skipped] == [["make", "run"], [".venv/bin/python", "-m"], ["make", "test"]]
    assert len(blocks("sh")) - len(skipped) >= 4


def test_the_addresses_are_those_of_the_example() -> None:
    example = (ROOT / "examples" / "single.toml").read_text()
    assert set(re.findall(r"127\.0\.0\.1:\d+", README)) == set(re.findall(r"127\.0\.0\.1:\d+", example))


def test_the_command_list_is_complete() -> None:
    listed = set(re.findall(r"^\| `headrace (\w+)", README, re.MULTILINE))
    assert listed == {*CORE, *commands()}


def test_every_shipped_plugin_is_linked() -> None:
    for folder in (ROOT / "plugins").iterdir():
        if (folder / "pyproject.toml").exists():
            assert f"[{folder.name}](plugins/{folder.name}/README.md)" in README
