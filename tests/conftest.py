"""Real sites for the tests: `examples/single.toml` on free ports, with its data in the test's folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from headrace.testing.site import SiteProcess

ROOT = Path(__file__).parent.parent
FREE_PORTS = (
    "admin.listen=127.0.0.1:0",
    "tiers.site.sources.devices.listen=127.0.0.1:0",
    "tiers.site.outputs.live.listen=127.0.0.1:0",
)


class Lake:
    """The lake of a site, read by DuckDB: a reader that is not the writer."""

    def __init__(self, folder: Path) -> None:
        self.files = f"{folder}/lake/class=*/date=*/*.parquet"

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """`{lake}` in the query stands for the lake; no rows when there is no file yet."""
        table = f"read_parquet('{self.files}', union_by_name = true, hive_partitioning = false)"
        try:
            return duckdb.sql(sql.replace("{lake}", table)).fetchall()
        except duckdb.IOException as error:
            if "No files found" in str(error):
                return []
            raise

    def ids(self) -> Counter[str]:
        """How often each `readings.id` is there."""
        return Counter(dict(self.query("select readings.id, count(*) from {lake} group by 1")))


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "data")


@pytest.fixture
def lake_of() -> Callable[[Path], Lake]:
    """The lake below a folder of a site that another fixture made."""
    return Lake


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SiteProcess]:
    """The example site, not started yet."""
    with SiteProcess(ROOT / "examples" / "single.toml", tmp_path, FREE_PORTS) as process:
        yield process


@pytest.fixture
def site_of(tmp_path: Path) -> Iterator[Callable[..., SiteProcess]]:
    """`site_of(text)`: a site whose file has this text."""
    processes: list[SiteProcess] = []

    def make(text: str, *overrides: str) -> SiteProcess:
        file = tmp_path / "site.toml"
        file.write_text(text)
        processes.append(SiteProcess(file, tmp_path, overrides))
        return processes[-1]

    yield make
    for process in processes:
        process.__exit__()
