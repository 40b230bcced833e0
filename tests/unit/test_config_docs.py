"""docs/config.md is what `headrace schema --markdown` prints for the host and the shipped plugins."""

from pathlib import Path
from typing import Annotated

import msgspec
import pytest
from msgspec import Meta

import headrace
from headrace import Component, hookimpl
from headrace.config_docs import markdown, plugin_section
from headrace.discovery import find, names
from headrace.option_table import option_table, unit_of
from headrace.tables import Admin, Engine, Host, OutputKeys

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "config.md"
SHIPPED = sorted(folder.name for folder in (ROOT / "plugins").iterdir() if (folder / "pyproject.toml").exists())
HOW = "run `headrace schema --markdown > docs/config.md`"


class Source(Component):
    """Listens."""

    class Config(headrace.Config, frozen=True, kw_only=True):
        wait_ms_max: Annotated[int, Meta(ge=1, le=9, description="This | or that.")] = 5
        name: str

    @hookimpl
    async def ingest_serve(self, deliver): ...


def test_committed_page_has_the_hosts_part():
    assert PAGE.read_text().startswith(markdown({})), HOW


@pytest.mark.parametrize("name", [name for name in SHIPPED if name in names()])
def test_committed_page_has_the_options_of_each_shipped_plugin(name):
    assert plugin_section(name, find(name)) in PAGE.read_text(), HOW


def test_committed_page_has_no_other_plugins():
    titles = [line.removeprefix("## `").removesuffix("`") for line in PAGE.read_text().splitlines() if line.startswith("## `")]
    assert [title for title in titles if "[" not in title and title not in SHIPPED] == [], HOW


def test_section_shows_unit_range_and_what_is_required():
    section = plugin_section("source", Source)
    assert "Its table: `[tiers.<tier>.sources.<id>]`." in section
    assert "| `wait_ms_max` | integer | `5` | milliseconds | `>= 1, <= 9` | This \\| or that. |" in section
    assert "| `name` | string | required |" in section


def test_nested_options_get_dotted_names():
    class Column(msgspec.Struct, frozen=True):
        type: str = "string"

    class Nested(Source):
        class Config(headrace.Config, frozen=True, kw_only=True):
            tls: Column = Column()
            columns: dict[str, Column] = msgspec.field(default_factory=dict)
            keys: list[Column] = msgspec.field(default_factory=list)
            flat: Annotated[tuple[int, ...] | None, Meta(description="Flat.")] = None

    names = [option.name for option in option_table(Nested.Config)]
    assert names == ["tls.type", "columns", "columns.<name>.type", "keys", "keys[].type", "flat"]


def test_plugin_without_options_says_so():
    class Bare(Source):
        Config = Component.Config

    assert plugin_section("bare", Bare).endswith("No options.\n")


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("wait_ms_max", "milliseconds"),
        ("stall_s", "seconds"),
        ("queue_bytes", "bytes"),
        ("tls.depth_max", ""),
        ("max", ""),
        ("flush_rows", "rows"),
    ],
)
def test_unit_is_read_from_the_name(name, unit):
    assert unit_of(name) == unit


@pytest.mark.parametrize("kind", [Host, Admin, Engine, OutputKeys])
def test_every_key_of_the_host_is_described(kind):
    assert [option.name for option in option_table(kind) if not option.description.endswith(".")] == []
