"""The metrics of docs/operations.md are those of the code; alerts and log messages name what exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()
FILES = [*(ROOT / "core" / "headrace").rglob("*.py"), *(ROOT / "plugins").glob("*/src/**/*.py")]
SOURCES = {path: path.read_text() for path in FILES if "testing" not in path.parts}
#: How a metric is made: by name in a call, or as a key of the queue collector.
MADE = re.compile(
    r'(?:counter|gauge|histogram|_metric_gauge)\(\s*"([a-z_]+)"|^    "(queue_[a-z_]+)": \($|^    "(queue_[a-z_]+)": \("', re.MULTILINE
)
EXAMPLES = {"shift_unknown_total"}


def made() -> set[str]:
    """Every metric that the code makes, without the prefix."""
    return {next(filter(None, groups)) for text in SOURCES.values() for groups in MADE.findall(text)} - EXAMPLES


def documented() -> set[str]:
    table = PAGE.partition("### Metrics")[2].partition("### Alerts")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_the_table_has_every_metric_of_the_code_and_no_other() -> None:
    assert len(made()) > 50
    assert sorted(documented() - made()) == [], "documented, and not in the code"
    assert sorted(made() - documented()) == [], "in the code, and not documented"


def test_alerts_ask_for_metrics_that_exist() -> None:
    queries = "\n".join(re.findall(r"^```promql\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
    asked = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\bheadrace_(\w+)", queries)}
    assert asked
    assert sorted(asked - made()) == []
    assert queries.count("(") == queries.count(")")


def test_log_messages_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (`.*?) \|", PAGE.partition("Messages worth knowing")[2].partition("###")[0], re.MULTILINE)
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    assert len(messages) > 5
    code = "\n".join(SOURCES.values())
    assert [message for message in messages if f'"{message}' not in code] == []


def test_status_reasons_are_those_of_the_code() -> None:
    section = PAGE.partition("## What a status means")[2].partition("\n## ")[0]
    reasons = [reason for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for reason in re.findall(r"`([^`]+)`", row)]
    code = "\n".join(SOURCES.values())
    assert len(reasons) >= 4
    assert [reason for reason in reasons if f'"{reason}' not in code] == []
