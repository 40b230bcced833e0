"""`headrace dead` on real sites, running and stopped: what is refused can be seen, mended, sent through again, once."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_host import SITE, rows, send, until

from headrace.dead.command import main
from headrace.engine.dead_letters import DeadLetters, Letter
from headrace.testing.site import SiteProcess

Make = Callable[..., SiteProcess]


def dead(*words: object, code: int = 0) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([*map(str, words)]) == code, out.getvalue()
    return out.getvalue()


def test_what_an_output_refused_is_listed_mended_and_replayed_while_the_site_runs(site_of: Make, tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("parts.py"), tmp_path)
    site = site_of(SITE + "refuse = 7\n")
    site.environ["HEADRACE_DATA"] = str(tmp_path / "data")
    site.start()
    send(site, *range(10))
    data = tmp_path / "data"
    until(lambda: sorted(rows(site)) == [*range(7), 8, 9], "the others are stored")
    (letter,) = [json.loads(line) for line in dead("list", data, "--json").splitlines()]
    assert (letter["output"], letter["stage"], letter["reason"], letter["device"]) == ("rows", "output", "PermanentError: that number", "d")
    assert "that number" in dead("list", data, "--output", "rows")
    assert '"n": 7' in dead("show", data, letter["seq"])
    assert "1  for output rows; decodes now" in dead("replay", data, "--all", "--dry-run")
    told = f"run `headrace dead list {data}/site/dead_letters.db`"
    until(lambda: told in site.components()["dead_letters"]["reason"], "the letter is told of")
    assert site.metric("dead_letters_stored", tier="site") == 1
    # nothing was mended yet: it is refused again, once, and stays
    assert "0 replayed, 1 refused again" in dead("replay", data, "--seq", letter["seq"], "--wait", "30s", code=1)
    assert json.loads(dead("list", data, "--json"))["attempts"] == 2
    site.file.write_text(site.file.read_text().replace("refuse = 7", "refuse = -1"))
    assert site.process is not None
    site.process.send_signal(signal.SIGHUP)
    until(lambda: any(line.get("message") == "reloaded" for line in site.lines()), "the mended file is taken")
    assert "1 replayed, 0 refused again" in dead("replay", data, "--all", "--wait", "30s")
    assert sorted(rows(site)) == list(range(10))
    assert site.metric("dead_letter_replayed_events_total", component="rows") == 1
    assert dead("list", data, "--json") == ""
    site.stop()


def letters_for_the_lake(site: SiteProcess, *ids: int) -> Path:
    """As if the lake had refused them in an earlier life."""
    path = site.folder / "data" / "site" / "dead_letters.db"
    store = DeadLetters(path, 1 << 20)
    store.add(
        [Letter("old", each, "lake", "output", "lake", "odd", 1, "d", 1_794_000_000_000_000, 1, b'{"id":"%d"}' % each) for each in ids]
    )
    store.close()
    return path


POINTS = ["sink_lake.after_commit", "engine.after_flush", *(["engine.before_flush"] if "HEADRACE_FULL" in os.environ else [])]


@pytest.mark.parametrize("point", POINTS)
def test_letters_replayed_into_the_lake_are_there_once_whatever_is_killed(site: SiteProcess, lake: Any, point: str, tmp_path: Path) -> None:
    path = letters_for_the_lake(site, 1, 2, 3)
    assert "3 letters queued" in dead("replay", path, "--output", "lake")
    site.start(faults=f"{point}=kill@1", ready=False)
    assert site.wait_until_dead() == -9
    site.start()
    until(lambda: dead("list", path, "--json") == "", "all are replayed")
    site.stop()
    assert lake.ids() == {"1": 1, "2": 1, "3": 1}
    assert lake.query("select origin, position from {lake} order by 2") == [("old", 1), ("old", 2), ("old", 3)]
    assert subprocess.run([sys.executable, "-m", "headrace", "lake", "verify", f"{tmp_path}/data/lake"], check=False).returncode == 0
