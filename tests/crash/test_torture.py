"""`headrace torture` itself: short trials with fixed seeds hold, and its oracle sees a loss, a double and a changed payload."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.config import load
from headrace.torture import lake
from headrace.torture.layout import layout
from headrace.torture.outcome import Outcome
from headrace.torture.report import report
from headrace.torture.trial import Options, Trial
from headrace.torture.verdict import Finding

EXAMPLES = Path(__file__).parents[2] / "examples"
SPREAD = Path(__file__).with_name("spread_middles.toml")
#: File and seed of each trial; all run beside each other.
TRIALS = ((EXAMPLES / "tiers.toml", 76), (SPREAD, 66), (EXAMPLES / "single.toml", 18))
SECONDS = 1.5
pytestmark = pytest.mark.xdist_group("torture")

HELD, ONCE, UNCHANGED, ALIVE, ENOUGH, IN_ORDER = range(6)


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Trial, Outcome]]:
    made = []
    for file, seed in TRIALS:
        folder = tmp_path_factory.mktemp(f"{file.stem}-{seed}")
        site = load(file, environ={"HEADRACE_DATA": str(folder)})
        options = Options(seed=seed, seconds=SECONDS, devices=8, rate=200.0)
        made.append(Trial(site, layout(site, folder), folder, options, lambda text: None))

    async def all_of_them() -> list[Outcome]:
        return await asyncio.gather(*(trial.run() for trial in made))

    return list(zip(made, asyncio.run(all_of_them()), strict=True))


def test_short_trials_with_fixed_seeds_hold(tried: list[tuple[Trial, Outcome]]) -> None:
    for (file, seed), (_, outcome) in zip(TRIALS, tried, strict=True):
        assert outcome.passed, f"{file.name}, seed {seed}\n{report(outcome)}"
        assert all(finding.checked for finding in outcome.findings)
        assert all(run.kills for run in outcome.tiers.values())
    deaths = {
        file.stem: {tier: set(run.points_hit) for tier, run in outcome.tiers.items()}
        for (file, _), (_, outcome) in zip(TRIALS, tried, strict=True)
    }
    assert deaths["spread_middles"]["edge"] == {"engine.after_flush"}, "acknowledged by one of two, and not released yet"


def test_the_other_reader_finds_the_same(tried: list[tuple[Trial, Outcome]], monkeypatch: pytest.MonkeyPatch) -> None:
    lakes = tried[0][0].layout.lakes
    by_duckdb = sorted(lake.rows(lakes))
    monkeypatch.setattr(lake, "_duckdb", lambda: None)
    assert lake.reader() == "pyarrow"
    assert sorted(lake.rows(lakes)) == by_duckdb
    assert lake.count(lakes) == len(by_duckdb) > 0
    assert all(row.roll for row in by_duckdb), "the names of files say in which order they came"


def rewritten(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def apply(file: Path) -> None:
        pq.write_table(change(pq.read_table(file, partitioning=None)), file)

    return apply


def with_another_device(table: pa.Table) -> pa.Table:
    return table.set_column(table.schema.get_field_index("device"), "device", pa.array(["torture-x"] * len(table), pa.string()))


@pytest.mark.parametrize(
    ("change", "against"),
    [
        pytest.param(Path.unlink, HELD, id="a file is gone"),
        pytest.param(rewritten(lambda table: table.slice(1)), HELD, id="a row is gone"),
        pytest.param(lambda file: shutil.copy(file, file.with_stem(f"{file.stem}-again")), ONCE, id="a file is there twice"),
        pytest.param(rewritten(lambda table: pa.concat_tables([table, table.slice(0, 1)])), ONCE, id="a row is there twice"),
        pytest.param(rewritten(with_another_device), UNCHANGED, id="another device's name stands there"),
    ],
)
def test_the_oracle_sees_what_is_wrong_in_the_lake(
    tried: list[tuple[Trial, Outcome]], tmp_path: Path, change: Callable[[Path], object], against: int
) -> None:
    trial = tried[0][0]
    (original,) = trial.layout.lakes
    copy = tmp_path / "lake"
    shutil.copytree(original, copy)
    change(lake.files([copy])[0])
    trial.layout.lakes = [copy]
    try:
        findings = trial.judged(trial.fleet.devices[-1])
    finally:
        trial.layout.lakes = [original]
    assert failed(findings) == {against}
    assert findings[against].examples


def failed(findings: list[Finding]) -> set[int]:
    return {number for number, finding in enumerate(findings) if finding.violations and number != ALIVE}


def test_an_acked_event_that_never_arrives_is_lost(tried: list[tuple[Trial, Outcome]]) -> None:
    trial = tried[0][0]
    device = trial.fleet.devices[0]
    device.issued += 1  # as if the tier had acked it and stored nothing
    try:
        findings = trial.judged(trial.fleet.devices[-1])
    finally:
        device.issued -= 1
    assert failed(findings) == {HELD}
    assert findings[HELD].examples == [f"{device.name}/{device.issued + 1} is acked and not there"]


def test_a_trial_in_which_nothing_happened_proves_nothing(tried: list[tuple[Trial, Outcome]]) -> None:
    trial = tried[0][0]
    run = trial.victims["edge"].run
    hit, run.points_hit = run.points_hit, type(run.points_hit)()
    try:
        findings = trial.judged(trial.fleet.devices[-1])
    finally:
        run.points_hit = hit
    assert failed(findings) == {ENOUGH}
