"""Which processes a site with workers has, what each runs, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from headrace import ConfigError
from headrace.check import check
from headrace.config import Site, changed, load
from headrace.errors import HeadraceError
from headrace.register import QueueRegister, Registered
from headrace.workers.plan import processes, queue_paths, site_of

LINKED = """
[host]
data_dir = "data"
[tiers.edge]
workers = 3
[tiers.edge.sources.devices]
use = "ingest_ws"
listen = "127.0.0.1:0"
auth = "none"
[tiers.edge.queue]
use = "queue_pmem"
path = "data/edge"
[tiers.edge.outputs.lake]
use = "sink_lake"
[tiers.other.sources.devices]
use = "ingest_ws"
listen = "127.0.0.1:0"
auth = "none"
[tiers.other.queue]
use = "queue_pmem"
path = "data/other/"
[tiers.other.outputs.lake]
use = "sink_lake"
[tiers.third.sources.devices]
use = "ingest_ws"
listen = "127.0.0.1:0"
auth = "none"
[tiers.third.outputs.lake]
use = "sink_lake"
"""
LIVE = '[tiers.edge.outputs.live]\nuse = "live_ws"\nhold = "none"\n'
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)

    def put(text: str = LINKED) -> Path:
        (tmp_path / "site.toml").write_text(text)
        return tmp_path / "site.toml"

    return put


def names(site: Site, *registered: Registered) -> list[str]:
    return [process.name + (" former" if process.former else "") for process in processes(site, registered)]


def queue(path: str, tier: str = "edge") -> Registered:
    return Registered(tier, "queue_pmem", str(Path(path).absolute()))


def test_each_worker_has_a_process_and_the_other_tiers_share_one(write: Write) -> None:
    assert names(load(write())) == ["edge.0", "edge.1", "edge.2", "other+third"]
    assert names(load(write(), ["tiers.edge.workers=1"])) == ["edge+other+third"]
    assert names(load(write(), only=["edge"])) == ["edge.0", "edge.1", "edge.2"]


def test_a_worker_runs_its_tier_with_a_queue_of_its_own(write: Write) -> None:
    site = load(write())
    parts = [site_of(site, process) for process in processes(site)]
    assert [list(part.tiers) for part in parts] == [["edge"], ["edge"], ["edge"], ["other", "third"]]
    queues = [part.tiers["edge"].queue for part in parts[:3]]
    assert [(entry.config.path, entry.options["path"]) for entry in queues if entry] == [
        (path, path) for path in ("data/edge", "data/edge.1", "data/edge.2")
    ]
    assert parts[3].tiers["other"] is not None
    assert queue_paths(site) == {queue(path).path for path in ("data/edge", "data/edge.1", "data/edge.2", "data/other")}


def test_a_former_worker_empties_its_queue_and_has_no_sources(write: Write) -> None:
    site = load(write(LINKED.replace("workers = 3", "workers = 1")))
    assert names(site, queue("data/edge"), queue("data/edge.2"), queue("data/other.1", "other")) == [
        "edge.0", "edge.2 former", "other.0", "other.1 former", "third",
    ]  # fmt: skip
    assert names(site, queue("data/edge.2", "other"), queue("data/edge.x"), queue("data/elsewhere.1")) == ["edge+other+third"]
    former = processes(site, [queue("data/edge.2")])[1]
    part = site_of(site, former)
    assert (list(part.tiers["edge"].sources), list(part.tiers["edge"].outputs)) == ([], ["lake"])
    assert part.tiers["edge"].queue is not None
    assert part.tiers["edge"].queue.config.path == "data/edge.2"


def test_a_former_worker_needs_no_live_feed(write: Write) -> None:
    site = load(write(LINKED.replace("workers = 3", "workers = 1") + LIVE))
    former = processes(site, [queue("data/edge.1")])[1]
    assert list(site_of(site, former).tiers["edge"].outputs) == ["lake"]


def test_what_can_be_there_only_once_is_refused_beside_workers(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"tiers\.edge\.outputs\.live\.use: .*workers = 3.*got LiveWs.*tier of its own"):
        load(write(LINKED + LIVE))
    load(write(LINKED + LIVE), ["tiers.edge.workers=1"])
    wrapped = LINKED.replace(
        '[tiers.edge.outputs.lake]\nuse = "sink_lake"', '[tiers.edge.outputs.lake]\nuse = "sink_lake"\nwrap = ["./w.py:Wrap"]'
    )
    code = "from headrace import Component, hookimpl\nclass Wrap(Component):\n"
    code += "    @hookimpl(wrapper=True)\n    def sink_flush(self, key):\n        return (yield)\n"
    file = write(wrapped)
    (file.parent / "w.py").write_text(code)
    with pytest.raises(HeadraceError, match="got Wrap"):
        load(file)
    listening = code.replace("(wrapper=True)", "").replace("sink_flush(self, key)", "host_started(self)").replace("return (yield)", "pass")
    (file.parent / "l.py").write_text(listening)
    with pytest.raises(HeadraceError, match=r"listeners\.l\.use: .*got Wrap.*every process"):
        load(write(LINKED + '[listeners.l]\nuse = "./l.py:Wrap"\n'))


def test_a_plugin_may_be_there_several_times_in_one_role_only(write: Write) -> None:
    both = (
        "from headrace import Component, hookimpl\nclass Both(Component):\n    many_workers = ('output',)\n    idempotence = 'event'\n"
        "    @hookimpl\n    async def ingest_serve(self, deliver): ...\n"
    )
    for hook in ("sink_write(self, batch, key)", "sink_flush(self, key)", "sink_reset(self)"):
        both += f"    @hookimpl\n    async def {hook}: ...\n"
    file = write(LINKED + '[tiers.edge.outputs.both]\nuse = "./both.py:Both"\n')
    (file.parent / "both.py").write_text(both)
    load(file)
    with pytest.raises(ConfigError, match=r"tiers\.edge\.sources\.both\.use: .*got Both"):
        load(write(LINKED + '[tiers.edge.sources.both]\nuse = "./both.py:Both"\n'))


@pytest.mark.parametrize("workers", ["0", "65", '"two"', "1.5"])
def test_numbers_of_workers_have_bounds(write: Write, workers: str) -> None:
    with pytest.raises(ConfigError, match=r"tiers\.edge\.workers"):
        load(write(LINKED.replace("workers = 3", f"workers = {workers}")))


def test_a_change_of_the_number_is_seen(write: Write) -> None:
    assert changed(load(write()), load(write(LINKED.replace("workers = 3", "workers = 2")))) == ["tiers.edge.workers"]


def test_the_text_given_counts_and_not_the_file(write: Write) -> None:
    file = write("nonsense")
    assert load(file, text=LINKED).text == LINKED


def test_check_tells_of_workers_and_of_what_former_ones_left(write: Write) -> None:
    file = write(LINKED.replace("workers = 3", "workers = 2"))
    register = QueueRegister(Path("data"))
    for path in ("data/edge", "data/edge.1", "data/edge.4"):
        register.add(queue(path))
    findings = check(file, ports=False)
    assert [finding.text for finding in findings if not finding.ok] == []
    texts = [finding.text for finding in findings]
    assert "tiers.edge.workers: 2 processes" in texts
    assert any(text.startswith("tiers.edge.queue of worker 1: queue_pmem") for text in texts)
    assert "data/edge.4: the queue of a former worker, which empties it and ends" in texts


def test_check_says_what_to_do_where_nobody_can_empty_a_former_queue(write: Write) -> None:
    once = "from headrace import Component, hookimpl\nclass Once(Component):\n    idempotence = 'event'\n" + "".join(
        f"    @hookimpl\n    async def {hook}: ...\n"
        for hook in ("sink_write(self, batch, key)", "sink_flush(self, key)", "sink_reset(self)")
    )
    file = write(LINKED.replace("workers = 3", "workers = 1") + '[tiers.edge.outputs.once]\nuse = "./once.py:Once"\n')
    (file.parent / "once.py").write_text(once)
    QueueRegister(Path("data")).add(queue("data/edge.1"))
    (problem,) = [finding.text for finding in check(file, ports=False) if not finding.ok]
    assert "set tiers.edge.workers = 2" in problem
