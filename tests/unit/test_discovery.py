"""Finding classes: installed ones through entry points, a site's own through files."""

import importlib.metadata
import sys
from pathlib import Path

import msgspec
import pytest
from stevedore import ExtensionManager

from headrace import Component
from headrace.discovery import COMMANDS, PLUGINS, command, commands, distribution_of, find, installed, is_file, names
from headrace.errors import PluginBroken, PluginClash, PluginNotFound

SINK = """
from headrace import Component, hookimpl

class Sink(Component):
    idempotence = "key"
    @hookimpl
    async def sink_write(self, batch, key): ...
    @hookimpl
    async def sink_flush(self, key): ...
    @hookimpl
    async def sink_reset(self): ...
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a distribution onto sys.path: install("acme-sink", {"sink_acme": "acme_sink:Sink"}, acme_sink=SINK)."""
    monkeypatch.setattr(ExtensionManager, "ENTRY_POINT_CACHE", {})
    before = set(sys.modules)

    def put(distribution, plugins, group=PLUGINS, version="1.2", **modules):
        folder = tmp_path / distribution
        meta = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        meta.mkdir(parents=True)
        (meta / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (meta / "entry_points.txt").write_text(f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in plugins.items()))
        for name, source in modules.items():
            (folder / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(str(folder))
        return folder

    yield put
    for name in set(sys.modules) - before:
        if name.startswith(("acme", "headrace_site_")):
            del sys.modules[name]


def test_finds_an_installed_plugin_by_name(install):
    install("acme-sink", {"sink_acme": "acme_sink:Sink"}, acme_sink=SINK)
    plugin = find("sink_acme")
    assert issubclass(plugin, Component)
    assert plugin.__module__ == "acme_sink"
    assert distribution_of("sink_acme") == ("acme-sink", "1.2")
    assert "sink_acme" in names()


def test_missing_plugin_gets_a_suggestion_and_the_list(install):
    install("acme-sink", {"sink_acme": "acme_sink:Sink"}, acme_sink=SINK)
    with pytest.raises(PluginNotFound, match=r"no plugin named 'sink_acne'; did you mean 'sink_acme'\?; installed: .*sink_acme"):
        find("sink_acne")
    assert distribution_of("sink_acne") is None


def test_clash_names_both_distributions_and_imports_neither(install):
    install("acme-sink", {"sink_acme": "acme_a:Sink", "aaa": "acme_a:X"}, acme_a="raise SystemError")
    install("other-sink", {"zzz": "acme_b:X", "sink_acme": "acme_b:Sink"}, acme_b="raise SystemError", version="7")
    with pytest.raises(PluginClash, match=r"offered by 2 distributions: acme-sink 1.2, other-sink 7; uninstall all but one"):
        find("sink_acme")


def test_one_distribution_seen_twice_is_no_clash(install, monkeypatch):
    folder = install("acme-sink", {"sink_acme": "acme_sink:Sink"}, acme_sink=SINK)
    monkeypatch.syspath_prepend(str(folder.parent / "." / folder.name))
    assert find("sink_acme").__name__ == "Sink"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import acme_not_there", "ModuleNotFoundError: No module named 'acme_not_there'; install what has it beside headrace: /"),
        ("raise AssertionError('no libfoo')", "AssertionError: no libfoo"),  # stevedore lets these two through
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("Sink = 3", "expected a subclass of headrace.Component, got 3"),
        ("class Sink: pass", "expected a subclass of headrace.Component"),
        ("", "has no attribute 'Sink'"),
    ],
)
def test_plugin_that_cannot_be_imported_says_why(install, source, reason):
    install("acme-sink", {"sink_acme": "acme_sink:Sink"}, acme_sink=source)
    with pytest.raises(PluginBroken) as caught:
        find("sink_acme")
    assert str(caught.value).startswith("plugin 'sink_acme' cannot be imported: ")
    assert reason in str(caught.value)


def test_stale_list_of_stevedore_is_not_believed(install):
    ExtensionManager.ENTRY_POINT_CACHE[PLUGINS] = [importlib.metadata.EntryPoint("sink_gone", "acme_gone:Sink", PLUGINS)]
    install("acme-sink", {"sink_acme": "acme_sink:Sink"}, acme_sink=SINK)
    assert find("sink_acme").__name__ == "Sink"
    with pytest.raises(PluginNotFound):
        find("sink_gone")


def test_installed_lists_good_broken_and_clashing_plugins(install):
    install("acme-sink", {"sink_acme": "acme_sink:Sink", "sink_bad": "acme_bad:Sink"}, acme_sink=SINK, acme_bad="import acme_x")
    install("other-sink", {"sink_bad": "acme_sink:Sink"})
    found = [one for one in installed() if one.name in ("sink_acme", "sink_bad")]
    assert found[0] == ("sink_acme", "acme-sink", "1.2", ("output",), None)
    assert [one.distribution for one in found[1:]] == ["acme-sink", "other-sink"]
    assert all(one.error and "2 distributions" in one.error for one in found[1:])


def test_one_broken_plugin_breaks_nothing_else(install):
    install("acme-sink", {"sink_acme": "acme_sink:Sink", "sink_bad": "acme_bad:Sink"}, acme_sink=SINK, acme_bad="1/0")
    assert find("sink_acme").__name__ == "Sink"
    assert next(one.error for one in installed() if one.name == "sink_bad") == (
        "plugin 'sink_bad' cannot be imported: ZeroDivisionError: division by zero"
    )


# --- classes in files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "answer"), [("./geo.py:Geo", True), ("geo.py:Geo", True), ("a/b:C", True), ("sink_lake", False), ("a:b", False)]
)
def test_a_path_and_a_colon_mean_a_file(name, answer):
    assert is_file(name) is answer


def test_class_in_a_file_is_relative_to_the_folder(tmp_path):
    (tmp_path / "geo.py").write_text("from __future__ import annotations\n" + SINK)
    assert find("./geo.py:Sink", tmp_path).__name__ == "Sink"


def test_same_file_gives_the_same_class_and_an_edit_a_new_one(tmp_path):
    file = tmp_path / "geo.py"
    file.write_text(SINK)
    first = find("./geo.py:Sink", tmp_path)
    assert find("./geo.py:Sink", tmp_path) is first
    file.write_text(SINK + "\n# edited within the second, with the same size or not\n")
    assert find("./geo.py:Sink", tmp_path) is not first


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (None, "No such file or directory; the path is relative to the config file's folder"),
        ("def f(:", "SyntaxError"),
        ("raise ValueError('later')", "ValueError: later"),
        (SINK, "has no class 'Snik'; it has Sink"),
        ("Snik = 1", "expected a subclass of headrace.Component, got 1"),
    ],
)
def test_file_that_cannot_be_used_says_why(tmp_path, source, reason):
    if source is not None:
        (tmp_path / "geo.py").write_text(source)
    with pytest.raises(PluginBroken) as caught:
        find("./geo.py:Snik", tmp_path)
    assert reason in str(caught.value)
    assert "geo.py" in str(caught.value)


def test_file_that_failed_is_tried_afresh(tmp_path, monkeypatch):
    (tmp_path / "geo.py").write_text("import os\nif 'ACME_READY' not in os.environ: raise ValueError('later')\n" + SINK)
    with pytest.raises(PluginBroken, match="later"):
        find("./geo.py:Sink", tmp_path)
    monkeypatch.setenv("ACME_READY", "1")
    assert find("./geo.py:Sink", tmp_path).__name__ == "Sink"


def test_file_with_type_hints_as_text_works(tmp_path):
    (tmp_path / "opt.py").write_text(
        "from __future__ import annotations\nimport msgspec\nfrom headrace import Component, Config\n"
        "class Geo(Component):\n    class Config(Config):\n        rows_max: int = 3\n"
    )
    assert msgspec.convert({"rows_max": 4}, find("./opt.py:Geo", tmp_path).Config).rows_max == 4


# --- commands --------------------------------------------------------------------------------------------------------


def test_command_is_imported_only_when_asked_for(install):
    install("acme-tool", {"acme": "acme_tool:main"}, group=COMMANDS, acme_tool="def main(argv):\n    return len(argv)\n")
    assert "acme" in commands()
    assert "acme_tool" not in sys.modules
    assert command("acme")(["a", "b"]) == 2


def test_broken_command_says_why(install):
    install("acme-tool", {"acme": "acme_tool:main", "acme2": "acme_other:main"}, group=COMMANDS, acme_tool="1/0", acme_other="main = 3")
    with pytest.raises(PluginBroken, match="division by zero"):
        command("acme")
    with pytest.raises(PluginBroken, match=r"expected a function main\(argv: list\[str\]\) -> int, got 3"):
        command("acme2")
    with pytest.raises(PluginNotFound):
        command("acme3")


def test_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "geo.py").write_text(SINK)
    assert find("~/geo.py:Sink", Path("/")).__name__ == "Sink"
