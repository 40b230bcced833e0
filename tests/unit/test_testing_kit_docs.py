"""The page on testing plugins: its example works, and what it names is there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.unit.test_testing_kit_streams import Lines

import headrace.testing
from headrace.testing import SinkContract, SourceContract, failures
from headrace.testing.crash_child import load

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "testing.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_example_is_a_whole_test_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "plugin_template" / "src"))
    (tmp_path / "test_example.py").write_text(BLOCKS[0])
    example: type[SinkContract] = load(str(tmp_path / "test_example.py"), "TestSinkFiles")
    assert issubclass(example, SinkContract)
    tests = ("test_what_is_flushed_is_stored_once_and_unchanged", "test_kill_9_at_random_moments_loses_and_doubles_nothing")
    assert failures(example, *tests) == {}
    sys.modules.pop("headrace_plugin_template", None)


def test_the_example_of_an_outside_world_passes_with_a_good_source(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("headrace_lines")
    module.Lines = Lines  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "headrace_lines", module)
    names: dict[str, Any] = {}
    exec(BLOCKS[1], names)
    example: type[SourceContract] = names["TestLines"]
    assert failures(example) == {}


def test_the_imports_of_the_page_work() -> None:
    exec(BLOCKS[2], {})


def test_everything_that_the_kit_offers_is_on_the_page() -> None:
    offered = set(headrace.testing.__all__) - {"Contract", "DEVICES", "QUEUE_ID", "FakeContext", "Sender"}
    missing = [name for name in sorted(offered) if not re.search(rf"`[^`]*\b{name}\b", PAGE)]
    assert not missing
