"""`headrace check` says where a tier lacks what the view is filled from, or lets its queue wait for Akumuli without a bound."""

from pathlib import Path

import pytest

from headrace.check import check

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
"""
LAKE = '[tiers.site.outputs.lake]\nuse = "sink_lake"\n'
AKUMULI = '[tiers.site.outputs.view]\nuse = "sink_akumuli"\n'
WINDOW = 'hold = "window"\nhold_window_bytes = 1000\n'


def warnings(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(folder)
    Path("site.toml").write_text(SITE + text)
    findings = check(Path("site.toml"))
    assert [finding.text for finding in findings if not finding.ok] == []
    return [finding.text.removeprefix("site.toml: ") for finding in findings if finding.warning]


@pytest.mark.parametrize("path", ["lake", "./x/../lake", "LAKE", "file://LAKE/"])
def test_a_window_beside_the_lake_that_fills_it_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    path = path.replace("LAKE", str(tmp_path / "lake"))
    assert warnings(tmp_path, f'{LAKE}path = "lake"\n{AKUMULI}lake = "{path}"\n{WINDOW}', monkeypatch) == []


def test_the_lakes_default_path_and_an_object_stores_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert warnings(tmp_path, f'{LAKE}{AKUMULI}lake = "data/site/lake/lake"\n{WINDOW}', monkeypatch) == []
    uris = "s3://KEY:SECRET@bucket/site/?region=x", "s3://bucket/site"
    assert warnings(tmp_path, f'{LAKE}path = "{uris[0]}"\n{AKUMULI}lake = "{uris[1]}"\n{WINDOW}', monkeypatch) == []


def test_a_lake_of_nobody_in_the_tier_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (told,) = warnings(tmp_path, f'{LAKE}path = "s3://KEY:SECRET@bucket/a"\n{AKUMULI}lake = "other"\n{WINDOW}', monkeypatch)
    assert "tiers.site.outputs.view: lake: expected the path of a sink_lake of this tier (lake: s3://bucket/a), got other" in told
    # one that keeps a window only cannot fill anything
    text = f'{LAKE}path = "lake"\nhold = "window"\nhold_window_s = 9\n{AKUMULI}lake = "lake"\n{WINDOW}'
    assert [line.partition(":")[0] for line in warnings(tmp_path, text, monkeypatch)] == ["tiers.site.outputs.view", "tiers.site.queue"]


def test_a_lake_beside_it_that_it_does_not_use_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (told,) = warnings(tmp_path, f'{LAKE}path = "lake"\n{AKUMULI}{WINDOW}', monkeypatch)
    assert told.endswith('set lake = "lake"')


def test_a_queue_that_waits_for_akumuli_without_a_bound_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (told,) = warnings(tmp_path, f'{LAKE}path = "lake"\n{AKUMULI}lake = "lake"\n', monkeypatch)
    assert 'set hold = "window"' in told


def test_nothing_relies_on_akumuli_alone_untold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (told,) = warnings(tmp_path, AKUMULI, monkeypatch)
    assert "nothing else of this tier holds" in told
    link = '[tiers.site.outputs.up]\nuse = "transport_zmq"\nconnect = "tcp://127.0.0.1:5555"\n'
    assert warnings(tmp_path, AKUMULI + link, monkeypatch) == []
    (told,) = warnings(tmp_path, AKUMULI + WINDOW, monkeypatch)
    assert told.startswith("tiers.site.queue: no output holds always: events that fall out of the window of view")
