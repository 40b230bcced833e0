"""What `headrace check` says of plugins that are wrong: what came, what was expected, where, and what to do."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from headrace.check import check
from headrace.schema import check_batch

PLUGIN = """
import pyarrow as pa
from headrace import Component, hookimpl

class Source(Component):
    @hookimpl
    async def ingest_serve(self, deliver): ...

class Enricher(Component):
    fields = pa.schema([pa.field("room", pa.string())])
    @hookimpl
    def enrich_fields(self): return self.fields
    @hookimpl
    def enrich(self, batch): ...

class Decoder(Component):
    encodings = {"packed": 200}
    @hookimpl
    def decode_encodings(self): return self.encodings
    @hookimpl
    def decode(self, payloads, encoding): ...

"""

SITE = """
[host]
data_dir = "data"
[admin]
listen = "127.0.0.1:0"
[tiers.site.sources.devices]
use = "./p.py:Source"
[tiers.site.outputs.gone]
use = "sink_discard"
hold = "none"
"""

ENRICHER = '[[tiers.site.enrichers]]\nid = "{id}"\nuse = "./p.py:{name}"\n'
DECODER = '[[tiers.site.decoders]]\nid = "{id}"\nuse = "./p.py:{name}"\n'


def problems(folder: Path, plugin: str, *tables: str) -> list[str]:
    (folder / "p.py").write_text(PLUGIN + plugin)
    (folder / "site.toml").write_text(SITE + "".join(tables))
    return [finding.text.replace(str(folder), "") for finding in check(folder / "site.toml", ports=False) if not finding.ok]


def enricher(name: str, own: str = "mine") -> str:
    return ENRICHER.format(id=own, name=name)


def decoder(name: str, own: str = "mine") -> str:
    return DECODER.format(id=own, name=name)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_component_that_cannot_be_built_is_told_once(tmp_path: Path) -> None:
    plugin = "class Bad(Enricher):\n    def __init__(self): ...\n"
    (problem,) = problems(tmp_path, plugin, enricher("Bad"))
    assert "tiers.site.enrichers.mine: it cannot be built, which is a bug of the plugin: TypeError: Bad.__init__() takes 1" in problem


def test_an_init_that_forgot_its_base_is_told_what_to_call(tmp_path: Path) -> None:
    plugin = "class Bad(Enricher):\n    def __init__(self, config, context): ...\n    def check(self):\n        return [self.config.path]\n"
    (problem,) = problems(tmp_path, plugin, enricher("Bad"))
    assert "AttributeError: 'Bad' object has no attribute 'config' (/p.py:26)" in problem
    assert problem.endswith("; let its __init__ call super().__init__(config, context)")


def test_fields_and_encodings_that_are_none_are_problems(tmp_path: Path) -> None:
    plugin = 'class Fields(Enricher):\n    fields = ["room"]\nclass Encodings(Decoder):\n    encodings = ["packed"]\n'
    assert [
        problem.partition("tiers.site: ")[2] for problem in problems(tmp_path, plugin, enricher("Fields"), decoder("Encodings", "other"))
    ] == [
        "decoder 'other': decode_encodings must return names with their numbers, got list",
        "enricher 'mine': enrich_fields must return a pyarrow.Schema, got list",
    ]


def test_a_hook_that_is_asked_before_open_and_raises_is_a_problem(tmp_path: Path) -> None:
    plugin = "class Bad(Enricher):\n    @hookimpl\n    def enrich_fields(self):\n        return self.read\n"
    (problem,) = problems(tmp_path, plugin, enricher("Bad"))
    assert "tiers.site.enrichers.mine: its enrich_fields failed, which is a bug of the plugin: AttributeError" in problem
    assert problem.endswith("(/p.py:26)")


@pytest.mark.parametrize("number", ["0", "1", "3", "4", "127", "256", "'200'"])
def test_numbers_of_encodings_that_a_site_cannot_have_are_problems(tmp_path: Path, number: str) -> None:
    plugin = f"class Bad(Decoder):\n    encodings = {{'mine': {number}}}\n"
    (problem,) = problems(tmp_path, plugin, decoder("Bad"))
    assert problem.endswith(f"tiers.site: decoder 'mine': encoding 'mine' has the number {number}: a site's own are 128-255")


def test_what_two_have_is_a_problem(tmp_path: Path) -> None:
    tables = (enricher("Enricher", "a"), enricher("Enricher", "b"), decoder("Decoder", "c"), decoder("Decoder", "d"))
    assert [problem.partition("tiers.site: ")[2] for problem in problems(tmp_path, "", *tables)] == [
        "decoders 'c' and 'd' both have the encoding 200; give one of them another number",
        "enrichers 'a' and 'b' both add the field 'room'; rename it in one of them",
    ]
    assert problems(tmp_path, "", enricher("Enricher"), decoder("Decoder", "other")) == []


def test_an_output_that_cannot_be_used_is_no_output_that_lacks(tmp_path: Path) -> None:
    plugin = "import acme_not_there\n"
    problems(tmp_path, plugin, '[tiers.site.queue]\nuse = "queue_pmem"\npath = "queue"\n[tiers.site.outputs.mine]\nuse = "./p.py:Sink"\n')
    findings = check(tmp_path / "site.toml", ports=False)
    assert [finding.text for finding in findings if finding.warning] == []
    assert any("No module named 'acme_not_there'; install what has it beside headrace: " in finding.text for finding in findings)


def test_what_is_no_batch_is_told_what_to_make() -> None:
    with pytest.raises(TypeError, match=r"^expected a pyarrow\.RecordBatch, got list$"):
        check_batch([{"device": "boiler"}])
    with pytest.raises(ValueError, match=r"got '' in \['device'\]; make it with schema=headrace\.RAW_SCHEMA$"):
        check_batch(pa.RecordBatch.from_pydict({"device": ["boiler"]}))
