"""The JSON Schema says of a file what the host would say of its types and keys."""

import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import jsonschema
import msgspec
import pytest
from msgspec import Meta

import headrace
from headrace import Component, hookimpl
from headrace.config import Secret
from headrace.config_schema import json_schema
from headrace.discovery import names

EXAMPLES = Path(__file__).parents[2] / "examples"


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Certificates."""

    depth: Annotated[int, Meta(ge=0)] = 2


class Source(Component):
    """Listens."""

    class Config(headrace.Config, frozen=True, kw_only=True):
        listen: Annotated[str, Meta(description="Where.")]
        rows_max: Annotated[int, Meta(ge=1, le=100)] = 10
        mode: Literal["fast", "slow"] = "fast"
        token: Secret = Secret("default-secret")
        folder: Path = Path("x")
        tls: Tls | None = None
        more: dict[str, Tls] = msgspec.field(default_factory=dict)

    @hookimpl
    async def ingest_serve(self, deliver): ...


class Sink(Component):
    class Config(headrace.Config, frozen=True, kw_only=True):
        tls: Tls = Tls(depth=5)

    @hookimpl
    async def sink_write(self, batch, key): ...

    @hookimpl
    async def sink_flush(self, key): ...

    @hookimpl
    async def sink_reset(self): ...


SITE = """
[tiers.site.sources.dev]
use = "source"
listen = "127.0.0.1:1"
[tiers.site.outputs.lake]
use = "sink"
"""


@pytest.fixture(scope="module")
def validator():
    schema = json_schema({"source": Source, "sink": Sink})
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def valid(validator, text):
    return validator.is_valid(tomllib.loads(text))


def test_plain_site_is_valid(validator):
    validator.validate(tomllib.loads(SITE))


@pytest.mark.parametrize(
    "line",
    [
        'start = "head"\nhold = "none"',
        'flush_rows = "${ROWS:-5}"',
        "tls = { depth = 3 }",
        'wrap = ["./audit.py:Audit"]',
        '[host]\nlog_level = "debug"',
        '[tiers.site.engine]\nstall_s = 3',
        '[tiers.site.outputs.geo]\nuse = "./geo.py:Sink"\nwhatever = 3',
        '[tiers.site.outputs.off]\nuse = "not_installed"\nenabled = false',
        '[[tiers.site.enrichers]]\nuse = "./geo.py:Geocode"\nid = "geo"',
    ],
)  # fmt: skip
def test_what_the_host_takes_is_valid(validator, line):
    validator.validate(tomllib.loads(SITE + line))


@pytest.mark.parametrize(
    "line",
    [
        "unknown = 3",
        'flush_rows = "5"',
        "flush_rows = 0",
        'hold = "some"',
        'start = "newest"',
        "tls = { dept = 3 }",
        'id = "x"',
        "[hots]",
        '[tiers.site.outputs.more]\nuse = "not_installed"',
        '[tiers.site.outputs.more]\nuse = "source"\nlisten = "x"',
        '[tiers.site.sources.more]\nuse = "source"',
        '[tiers.site.sources.more]\nuse = "source"\nlisten = "x"\nhold = "none"',
        '[tiers.site.sources."B C"]\nuse = "source"\nlisten = "x"',
        '[listeners.x]\nuse = "sink"',
        "[tiers.site.queue]",
    ],
)
def test_what_the_host_refuses_is_invalid(validator, line):
    assert not valid(validator, SITE + line)


def test_a_file_without_tiers_is_invalid(validator):
    assert not valid(validator, "[host]")
    assert not valid(validator, "[tiers]")


def test_every_key_is_described_and_no_secret_is_shown(validator):
    text = msgspec.json.encode(validator.schema).decode()
    assert "default-secret" not in text
    definition = validator.schema["$defs"]["output.sink"]
    assert definition["properties"]["use"]["const"] == "sink"
    undescribed = [name for name, value in definition["properties"].items() if "description" not in value and name not in ("use", "tls")]
    assert undescribed == []


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.toml")), ids=lambda file: file.name)
def test_shipped_examples_are_valid(file):
    tables = tomllib.loads(file.read_text())
    if missing := set(re.findall(r'^use = "(\w+)"', file.read_text(), re.MULTILINE)) - set(names()):
        pytest.skip(f"not installed: {', '.join(sorted(missing))}")
    jsonschema.Draft202012Validator(json_schema()).validate(tables)
