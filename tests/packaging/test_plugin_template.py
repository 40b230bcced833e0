"""The plugin template as its author would use it: installed beside headrace into a fresh environment, tested and run there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: What goes into the fresh environment: the host, what a site needs to take events, and the template.
DISTRIBUTIONS = (".", "plugins/ingest_ws", "plugins/queue_pmem", "examples/plugin_template")

SITE = """
[host]
data_dir = "data"
[admin]
listen = "127.0.0.1:0"
[tiers.site.sources.devices]
use = "ingest_ws"
listen = "127.0.0.1:0"
auth = "none"
[tiers.site.queue]
use = "queue_pmem"
path = "data/queue"
[[tiers.site.enrichers]]
id = "name"
use = "enricher_name"
[tiers.site.outputs.files]
use = "sink_files"
path = "files"
flush_interval_s = 0.2
"""

# one worker builds the environment, and has all the tests in it
pytestmark = [pytest.mark.packaging, pytest.mark.xdist_group("plugin_template")]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fresh environment; sources are copied first, since building leaves files beside them."""
    folder = tmp_path_factory.mktemp("fresh")
    sources = []
    for index, distribution in enumerate(DISTRIBUTIONS):
        ignored = shutil.ignore_patterns(
            ".*", "*.egg-info", "build", "data", "__pycache__", "plugins", "examples", "tests", "docs", "benchmarks"
        )
        shutil.copytree(ROOT / distribution, folder / f"source{index}", ignore=ignored)
        sources.append(str(folder / f"source{index}"))
    shutil.copytree(ROOT / DISTRIBUTIONS[-1] / "tests", folder / "tests")
    # by this environment's pip, and what is not imported is not compiled: half of the time
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    sources[-1] += "[test]"
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", folder / "env/bin/python", "install", "--no-compile"]
    pip += ["--quiet", "--disable-pip-version-check", "-c", ROOT / "constraints.txt"]
    for words in (["setuptools", "wheel", "cffi"], ["--no-build-isolation", *sources]):
        subprocess.run([*pip, *words], check=True, env=clean_environ(), timeout=280)
    return folder


def clean_environ() -> dict[str, str]:
    """Nothing of this checkout may shine through."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "HEADRACE", "VIRTUAL_ENV"))}


def headrace(installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [installed / "env/bin/headrace", *words], capture_output=True, text=True, cwd=installed, env=clean_environ(), timeout=60
    )


def test_its_own_tests_pass(installed: Path) -> None:
    command: list[str | Path] = [installed / "env/bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider", installed / "tests"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=installed, env=clean_environ(), timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_headrace_lists_both_plugins_with_their_distribution_and_options(installed: Path) -> None:
    listing = headrace(installed, "plugins")
    assert listing.returncode == 0, listing.stderr
    lines = {line.split()[0]: line for line in listing.stdout.splitlines() if line.strip()}
    assert "headrace-plugin-template" in lines["sink_files"]
    assert "headrace-plugin-template" in lines["enricher_name"]
    options = headrace(installed, "plugins", "sink_files")
    assert "Folder for the files" in options.stdout, options.stdout + options.stderr


def test_a_site_with_both_takes_events_to_the_files(installed: Path) -> None:
    (installed / "site.toml").write_text(SITE)
    checked = headrace(installed, "check", "site.toml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    log = (installed / "site.log").open("w")
    site = subprocess.Popen(
        [installed / "env/bin/headrace", "run", "site.toml"], stdout=log, stderr=log, cwd=installed, env=clean_environ()
    )
    try:
        url = wait_for_devices_url(installed / "site.log", site)
        sent = headrace(
            installed, "devices", "simulate", "--url", url, "--count", "20", "--rate", "200", "--seconds", "2", "--no-outages", "--json"
        )
        assert sent.returncode == 0, sent.stdout + sent.stderr
        site.send_signal(signal.SIGTERM)
        assert site.wait(60) == 0, (installed / "site.log").read_text()
    finally:
        site.kill()
        site.wait()
        log.close()
    rows = [json.loads(line) for file in sorted((installed / "files").glob("*.ndjson")) for line in file.open()]
    summary = json.loads(sent.stdout)
    assert len(rows) == len({(row["origin"], row["position"]) for row in rows}) == summary["acked"] > 0
    for row in rows:
        kind, number = row["device"].split("-")
        assert (row["context"]["kind"], row["context"]["number"]) == (kind, number)


def wait_for_devices_url(log: Path, site: subprocess.Popen[bytes]) -> str:
    """The address that the source listens on, from the site's log."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            entry = json.loads(line) if line.startswith("{") else {}
            if entry.get("component") == "devices" and "url" in entry:
                return str(entry["url"]).replace("http", "ws", 1)
        assert site.poll() is None, log.read_text()
        time.sleep(0.05)
    raise AssertionError(f"the site never listened:\n{log.read_text()}")
