"""A site whose queue lets go of events that no output has safe is told so; and what a plugin says of its neighbours is heard."""

from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.check import check
from headrace.cli import main
from headrace.config import load
from headrace.unheld import Unheld, unheld

PLUGINS = '''
from headrace import Component, hookimpl

class Source(Component):
    @hookimpl
    async def ingest_serve(self, deliver): ...

class Sink(Component):
    """Says what it sees."""
    idempotence = "key"
    def check_tier(self, placed):
        if self.context.id == "bug":
            raise RuntimeError("oops")
        return [f"sees {entry.role} {entry.id} {entry.hold}".rstrip() for entry in placed] if self.context.id == "curious" else []
    @hookimpl
    async def sink_write(self, batch, key): ...
    @hookimpl
    async def sink_flush(self, key): ...
    @hookimpl
    async def sink_reset(self): ...
'''
SITE = """
[host]
data_dir = "data"
[admin]
listen = "127.0.0.1:0"
[tiers.site.sources.dev]
use = "./p.py:Source"
"""
QUEUE = '[tiers.site.queue]\nuse = "queue_pmem"\npath = "data/queue"\n'
WINDOW = 'hold = "window"\nhold_window_s = 60\n'
NONE = 'hold = "none"\n'
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.py").write_text(PLUGINS)

    def put(text: str) -> Path:
        (tmp_path / "site.toml").write_text(SITE + text)
        return Path("site.toml")

    return put


def output(name: str, keys: str = "") -> str:
    return f'[tiers.site.outputs.{name}]\nuse = "./p.py:Sink"\n{keys}'


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (QUEUE + output("a", WINDOW) + output("b", NONE) + output("c", WINDOW), [Unheld("tiers.site.queue", ("a", "c"))]),
        (QUEUE + output("a", NONE), [Unheld("tiers.site.queue", ())]),
        (QUEUE + output("a", WINDOW) + output("b"), []),
        # an output that is switched off holds nothing
        (QUEUE + output("a", WINDOW) + output("b", "enabled = false\n"), [Unheld("tiers.site.queue", ("a",))]),
        # no queue, nothing that is acked before the output has it
        (output("a", NONE), []),
    ],
)
def test_a_queue_is_unheld_where_no_output_holds_always(write: Write, text: str, found: list[Unheld]) -> None:
    assert unheld(load(write(text))) == found


def test_check_warns_and_still_says_that_the_site_would_start(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(write(QUEUE + output("a", WINDOW)))
    assert main(["check", file]) == 0
    lines = capsys.readouterr().out.splitlines()
    (warning,) = [line for line in lines if line.startswith("warning")]
    assert "site.toml: tiers.site.queue: no output holds always: events that fall out of the window of a are in no store" in warning
    assert 'add an output that holds always, such as a sink_lake, or set hold = "always"' in warning
    assert lines[-1] == "site.toml: ready to run, 1 warning"
    write(QUEUE + output("a", WINDOW) + output("b"))
    assert main(["check", file]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "site.toml: ready to run"


def test_what_a_component_says_of_its_tier_is_a_warning_and_its_bug_a_problem(write: Write) -> None:
    findings = check(write(QUEUE + output("curious") + output("other", WINDOW)))
    seen = [finding.text.partition("sees ")[2] for finding in findings if finding.warning]
    assert seen == ["source dev", "queue queue", "output curious always", "output other window"]
    assert all(finding.ok for finding in findings)
    problems = [finding.text for finding in check(write(QUEUE + output("bug"))) if not finding.ok]
    (problem,) = problems
    assert problem.startswith("site.toml: tiers.site.outputs.bug: its check failed, which is a bug of the plugin: RuntimeError: oops (/")
