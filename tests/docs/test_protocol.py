"""The commands of docs/protocol.md do what the page says, against a real site."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from headrace.testing.site import SiteProcess

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_what_a_reader_pastes_gets_the_answers_shown(site: SiteProcess, lake: Any) -> None:
    pairs = re.findall(r"^```sh\n(.*?)^```\n\n```answers\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert len(pairs) == PAGE.count("\n```answers\n") == 2
    site.start()
    address = site.wait_for_url("devices").removeprefix("http://")
    for commands, answers in pairs:
        # `;echo` ends each answer with a newline, as a terminal's prompt would
        block = "\n".join(f"{command};echo" for command in commands.replace("127.0.0.1:8080", address).splitlines())
        done = subprocess.run(["sh", "-eu", "-c", block], capture_output=True, text=True, timeout=60)
        assert done.stdout == answers, f"{done.stderr}\n{site.log_end()}"
    site.stop()
    stored = lake.query("select readings.temp from {lake} where device = 'boiler'")
    assert sorted(temp for (temp,) in stored) == [61.5, 61.6, 61.7, 61.8, 61.9, 62.0, 62.0, 62.0, 62.1, 62.2, 62.3]
