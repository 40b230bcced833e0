"""For all tests: how processes start, and which tests come first."""

from __future__ import annotations

import pytest

from headrace.testing import forking

#: What takes longest or waits most: begun early, the others run beside it, and no worker is left with it at the end.
FIRST = (
    "test_ingest_ws_fuzz",
    "test_fresh_clone",
    "test_plugin_template",
    "integration/test_workers",
    "test_sink_sql_conformance",
    "test_queue_pmem_kill",
    "test_kills_at_random_moments",
    "test_queue_pmem_conformance",
    "test_queue_pmem_damage",
    "tests/soak",
)

# as commands, hundreds of processes would take minutes of two cores to import the same
forking.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return next((number for number, name in enumerate(FIRST) if name in item.nodeid), len(FIRST))

    items.sort(key=place)
