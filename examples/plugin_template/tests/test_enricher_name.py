"""The kit's contract for enrichers, and what is this enricher's own."""

from __future__ import annotations

import pyarrow as pa
from headrace_plugin_template.enricher_name import EnricherName

from headrace import Context
from headrace.testing import EnricherContract, event_batch, fake_context


class TestContract(EnricherContract):
    def make(self, context: Context) -> EnricherName:
        return EnricherName(EnricherName.Config(), context)

    def known_events(self) -> pa.RecordBatch:
        return event_batch(4, devices=["pump-17", "meter-3", "gate", "pump-18"])


def test_groups_of_the_pattern_become_fields(tmp_path) -> None:
    config = EnricherName.Config(pattern=r"^(?P<hall>[A-Z])(?P<line>\d)")
    enricher = EnricherName(config, fake_context(tmp_path))
    rows = enricher.enrich(event_batch(3, first=0, devices=["A1-press", "B2-oven", "spare"])).to_pylist()
    assert rows == [{"hall": "A", "line": "1"}, {"hall": "B", "line": "2"}, {"hall": None, "line": None}]


def test_check_names_a_bad_pattern(tmp_path) -> None:
    for pattern, said in (("(?P<a>", "pattern: "), ("plain", "pattern")):
        problems = EnricherName(EnricherName.Config(pattern=pattern), fake_context(tmp_path)).check()
        assert len(problems) == 1
        assert said in problems[0]
