"""Where the C parser cannot be built, the plugin installs all the same and says which parser runs."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from headrace_ingest_ws import parser

PLUGIN = Path(__file__).parents[1]


def copy_of_the_plugin(folder: Path) -> Path:
    copy = folder / "ingest_ws"
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "build", "*.egg-info", "tests")
    shutil.copytree(PLUGIN, copy, ignore=ignore)
    return copy


@pytest.mark.parametrize("compiler", ["a compiler", "no compiler"])
def test_the_install_succeeds_with_and_without_a_compiler(tmp_path: Path, compiler: str) -> None:
    if compiler == "a compiler" and not shutil.which(os.environ.get("CC", "cc")):
        pytest.skip("there is no C compiler here")
    copy = copy_of_the_plugin(tmp_path)
    environment = {**os.environ, **({"CC": "/nonexistent/cc"} if compiler == "no compiler" else {})}
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", str(tmp_path / "built")]
    run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    built = tmp_path / "built" / "headrace_ingest_ws"
    assert (built / "parser_python.py").exists()
    assert len(list(built.glob("_wsframes*"))) == (compiler == "a compiler")


def test_without_the_c_parser_python_does_the_work_and_the_log_says_so(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setitem(sys.modules, "headrace_ingest_ws._wsframes", None)
    monkeypatch.delitem(sys.modules, "headrace_ingest_ws.parser_c", raising=False)
    assert parser.frame_buffer()[1] == "python"
    with pytest.raises(ImportError):
        parser.frame_buffer("c")

    async def scenario() -> None:
        async with kit.running() as site, site.connect() as ws:
            await ws.send("{}")
            assert await ws.recv() == '{"ack":1}'

    asyncio.run(scenario())
    records = {record.getMessage(): record for record in caplog.records}
    assert any("frames are parsed in Python" in message for message in records)
    assert "python" in str(vars(next(record for message, record in records.items() if "serving" in message)))
