"""The command line: words, exit codes, and that mistakes are told on stderr without a traceback."""

import os
import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest

from headrace import discovery
from headrace.cli import main
from headrace.register import QueueRegister, Registered

PLUGINS = '''
from typing import Annotated
from msgspec import Meta
import headrace
from pathlib import Path
from headrace import Component, hookimpl

class Source(Component):
    """Listens.

    And more."""
    fault_points = ("before_ack",)
    class Config(headrace.Config, frozen=True, kw_only=True):
        listen: Annotated[str, Meta(description="Where.")] = "127.0.0.1:0"
        wait_ms_max: Annotated[int, Meta(ge=1, le=9, description="How long | at most.")] = 5
        name: str
    def check(self):
        if self.config.name == "bug":
            raise RuntimeError("oops")
        return [] if self.config.name == "good" else [f"no such name {self.config.name!r}"]
    @hookimpl
    async def ingest_serve(self, deliver): ...

class Sink(Component):
    holds = False
    @hookimpl
    async def sink_write(self, batch, key): ...
    @hookimpl
    async def sink_flush(self, key): ...
    @hookimpl
    async def sink_reset(self): ...
'''

SITE = """
[host]
data_dir = "data"
[admin]
listen = "127.0.0.1:0"
[tiers.site.sources.dev]
use = "./p.py:Source"
name = "good"
[tiers.site.outputs.live]
use = "./p.py:Sink"
hold = "none"
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.py").write_text(PLUGINS)
    (tmp_path / "site.toml").write_text(SITE)
    return "site.toml"


@pytest.fixture
def host(monkeypatch):
    """A stand-in for headrace.host that keeps what it was called with."""
    module = types.ModuleType("headrace.host")
    module.calls = []
    module.run = lambda site, tiers, reload: module.calls.append((site, tiers, reload)) or 3
    monkeypatch.setitem(sys.modules, "headrace.host", module)
    monkeypatch.setattr("headrace.host", module, raising=False)
    return module


# --- words -----------------------------------------------------------------------------------------------------------


def test_help_lists_core_and_added_commands(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for word in ("run", "check", "plugins", "schema", "devices"):
        assert f"  {word} " in out


def test_no_word_is_wrong_usage(capsys):
    assert main([]) == 2
    assert "usage: headrace COMMAND" in capsys.readouterr().err


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("headrace 0.")


def test_unknown_word_gets_a_suggestion(capsys):
    assert main(["chekc", "site.toml"]) == 2
    assert "no command 'chekc'; did you mean 'check'?" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["run", "check", "plugins", "schema"])
def test_every_command_explains_itself(word, capsys):
    assert main([word, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: headrace {word}")


def test_wrong_arguments_are_wrong_usage(capsys):
    assert main(["run"]) == 2
    assert "the following arguments are required: FILE" in capsys.readouterr().err


def test_added_command_gets_the_rest_of_the_line(monkeypatch):
    monkeypatch.setattr(discovery, "commands", lambda: ["acme"])
    monkeypatch.setattr(discovery, "command", lambda word: lambda argv: len(argv) + 40)
    assert main(["acme", "a", "--b"]) == 42


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from headrace.cli import main; main(['--help']); "
        "print(sorted({'pyarrow', 'aiohttp', 'numpy', 'prometheus_client', 'uvloop'} & sys.modules.keys()))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "[]"


# --- run -------------------------------------------------------------------------------------------------------------


def test_run_hands_the_site_and_its_tiers_to_the_host(file, host):
    assert main(["run", file, "--set", "tiers.site.sources.dev.wait_ms_max=7", "--log-level", "debug"]) == 3
    [(site, tiers, reload)] = host.calls
    assert tiers == ["site"]
    assert site.tiers["site"].sources["dev"].config.wait_ms_max == 7
    assert site.host.log_level == "debug"
    assert reload().host.log_level == "debug"


def test_run_of_one_tier(file, host, capsys):
    assert main(["run", file, "--tier", "site"]) == 3
    assert main(["run", file, "--tier", "sit"]) == 78
    assert "tiers: expected a tier named 'sit', got site; did you mean 'site'?" in capsys.readouterr().err


def test_run_refuses_a_bad_config_with_all_problems_and_78(file, host, capsys):
    assert main(["run", file, "--set", "tiers.site.sources.dev.wait_ms_max=0", "--set", "tiers.site.outputs.live.use=nope"]) == 78
    err = capsys.readouterr().err
    assert "headrace: site.toml: tiers.site.sources.dev.wait_ms_max: expected an integer >= 1, got 0" in err
    assert "headrace: no plugin named 'nope'" in err
    assert "\n  needed by site.toml: tiers.site.outputs.live.use" in err
    assert "Traceback" not in err
    assert host.calls == []


def test_config_errors_of_the_host_end_with_78_too(file, host, capsys):
    from headrace.errors import HookError, QueueLocked

    def fail(error):
        def run(site, tiers, reload):
            raise error

        return run

    host.run = fail(HookError("x", "late"))
    assert main(["run", file]) == 78
    host.run = fail(QueueLocked("q", "pid 3"))
    assert main(["run", file]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_interrupt_ends_quietly(file, host, capsys):
    def run(site, tiers, reload):
        raise KeyboardInterrupt

    host.run = run
    assert main(["run", file]) == 130
    assert capsys.readouterr().err == ""


# --- plugins and schema ----------------------------------------------------------------------------------------------


def test_plugins_without_a_name_lists_broken_ones_too(monkeypatch, capsys):
    rows = [
        discovery.Installed("sink_a", "acme-a", "1.0", ("output",), None),
        discovery.Installed("sink_b", "acme-b", "2", (), "no libfoo"),
    ]
    monkeypatch.setattr("headrace.listing.installed", lambda: rows)
    assert main(["plugins"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "ROLES", "DISTRIBUTION", "VERSION"]
    assert lines[1].split() == ["sink_a", "output", "acme-a", "1.0"]
    assert lines[2].split() == ["sink_b", "-", "acme-b", "2", "cannot", "be", "used:", "no", "libfoo"]


def test_plugins_with_a_name_tells_all_about_it(file, capsys):
    assert main(["plugins", "./p.py:Source"]) == 0
    out = capsys.readouterr().out
    assert "./p.py:Source (source), a class in a file" in out
    assert "Listens.\n\nAnd more." in out
    assert "hooks:        ingest_serve" in out
    assert "fault points: before_ack" in out
    row = next(line for line in out.splitlines() if line.startswith("  wait_ms_max"))
    assert row.split()[:6] == ["wait_ms_max", "integer", "5", "milliseconds", ">=", "1,"]
    assert "(required)" in next(line for line in out.splitlines() if line.startswith("  name"))


def test_plugins_with_an_unknown_name_ends_with_78(capsys):
    assert main(["plugins", "sink_lakr"]) == 78
    assert "no plugin named 'sink_lakr'" in capsys.readouterr().err


def test_schema_prints_json(capsys):
    import json

    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_schema_into_a_closed_pipe_is_no_crash():
    answer = subprocess.run(
        f"{sys.executable} -m headrace.cli schema | head -c 10", shell=True, capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in answer.stderr


# --- check -----------------------------------------------------------------------------------------------------------


def checked(capsys, *args):
    code = main(["check", *args])
    return code, capsys.readouterr().out


def test_check_of_a_good_site(file, tmp_path, capsys):
    code, out = checked(capsys, file)
    assert code == 0
    assert out.splitlines()[-1] == "site.toml: ready to run"
    assert "ok       tiers.site.sources.dev: ./p.py:Source" in out
    assert "(will be made in " in out
    assert not (tmp_path / "data").exists()


def test_check_tells_all_problems_at_once(file, capsys):
    code, out = checked(
        capsys, file, "--set", "tiers.site.sources.dev.name=bad", "--set", "tiers.site.outputs.live.x=1", "--set", "host.log_level='x'"
    )
    assert code == 78
    assert out.splitlines()[-1] == "site.toml: 3 problems"
    assert "problem  site.toml: tiers.site.sources.dev: no such name 'bad'" in out
    assert "the unknown key 'x'" in out
    assert "problem  site.toml: host.log_level: expected 'debug' or 'error' or 'info' or 'warning', got 'x'" in out


def test_check_of_a_file_that_is_no_toml(file, tmp_path, capsys):
    (tmp_path / file).write_text("[")
    code, out = checked(capsys, file)
    assert code == 78
    assert out.splitlines()[-1] == "site.toml: 1 problem"


def test_check_that_raises_is_a_bug_of_the_plugin(file, capsys):
    code, out = checked(capsys, file, "--set", "tiers.site.sources.dev.name=bug")
    assert code == 78
    assert "its check failed, which is a bug of the plugin: RuntimeError: oops" in out


def test_check_finds_ports_that_are_taken(file, capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        code, out = checked(capsys, file, "--set", f"tiers.site.sources.dev.listen='{address}'")
        assert code == 78
        assert f"tiers.site.sources.dev.listen: {address} cannot be listened on: Address already in use" in out
        assert checked(capsys, file, "--no-ports", "--set", f"tiers.site.sources.dev.listen='{address}'")[0] == 0


def test_no_component_asks_for_its_port_when_the_site_is_running(file, capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        taken = [f"tiers.site.{part}.listen='{address}'" for part in ("sources.devices", "outputs.live")]
        example = str(Path(__file__).parents[2] / "examples" / "single.toml")
        for key in taken:
            code, out = checked(capsys, example, "--no-ports", "--set", key)
            assert code == 0, out


def test_an_output_that_is_wrong_is_not_taken_for_one_that_is_not_there(file, capsys):
    example = str(Path(__file__).parents[2] / "examples" / "single.toml")
    code, out = checked(capsys, example, "--no-ports", "--set", "tiers.site.outputs.lake.use=sink_lak")
    assert code == 78
    assert "did you mean 'sink_lake'" in out
    assert "no output holds" not in out


def test_check_finds_two_who_want_one_port(file, capsys):
    code, out = checked(
        capsys, file, "--no-ports", "--set", "admin.listen=127.0.0.1:9", "--set", "tiers.site.sources.dev.listen=127.0.0.1:9"
    )
    assert code == 78
    assert "admin.listen and tiers.site.sources.dev.listen want the same address 127.0.0.1:9" in out


@pytest.mark.parametrize("listen", ["192.0.2.1:80", "127.0.0.1:70000", "[::ffff]:80"])
def test_check_finds_addresses_that_are_not_of_this_machine(file, capsys, listen):
    assert checked(capsys, file, "--set", f"tiers.site.sources.dev.listen={listen}")[0] == 78


def test_check_finds_a_data_dir_that_cannot_be(file, tmp_path, capsys):
    (tmp_path / "plain").write_text("")
    code, out = checked(capsys, file, "--set", "host.data_dir=plain/data")
    assert code == 78
    assert "host.data_dir: " in out
    assert "plain is not a folder" in out


def test_check_finds_a_queue_that_no_tier_opens(file, tmp_path, capsys):
    QueueRegister(tmp_path / "data").add(Registered("old", "queue_pmem", "/var/old/queue"))
    code, out = checked(capsys, file)
    assert code == 78
    assert "problem  /var/old/queue: a queue_pmem of tier 'old' may still hold events, but no tier opens it" in out
    assert checked(capsys, file, "--tier", "site")[0] == 0
    (tmp_path / "data" / "queues.json").write_text("{")
    assert "the register of queues in data cannot be read: JSONDecodeError" in checked(capsys, file)[1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_check_finds_a_data_dir_without_permission(file, tmp_path, capsys):
    (tmp_path / "data").mkdir(mode=0o500)
    assert "no permission to write" in checked(capsys, file)[1]
