"""docs/hooks.md is current, has every hook, and every hook has a test of its own."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import importlib.util
import json
import re
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest

from headrace import RAW_SCHEMA, Component, RangeKey, TransientError, event_schema, hookimpl
from headrace.component import SystemClock
from headrace.hookcheck import SPECS
from headrace.plugins import ComponentPlugins
from headrace.testing import ScriptedDeliver, enrichers, event_batch, failures, fake_context, living, run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "hooks.md").read_text()
HOW = "run `.venv/bin/python docs/generate_hooks.py`"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_part_is_current() -> None:
    generator = load(ROOT / "docs" / "generate_hooks.py")
    written, mark, generated = PAGE.partition(generator.MARK)
    assert mark
    assert written.startswith("# Hooks")
    assert generated.lstrip("\n") == generator.reference(), HOW


def test_methods_that_cross_the_hooks_are_told_by_their_own_docstrings() -> None:
    assert "str(object=" not in PAGE
    assert "- `async def forget(self, origins: Sequence[str]) -> None`: Nothing of these origins will come any more" in PAGE


@pytest.mark.parametrize("hook", SPECS)
def test_every_hook_has_a_section(hook: str) -> None:
    sections = re.findall(r"^### `(\w+)`$", PAGE, re.MULTILINE)
    assert sections.count(hook) == 1, HOW


@pytest.mark.parametrize("hook", SPECS)
def test_every_hook_has_a_test(hook: str) -> None:
    tests = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    assert any(f"def test_hook_{hook}(" in text for text in tests)


def test_the_example_plugin_keeps_its_contract(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```python\n# shift\.py\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "shift.py").write_text(block)
    shift = load(tmp_path / "shift.py").Shift

    class TestShift(enrichers.EnricherContract):
        def make(self, context):  # type: ignore[no-untyped-def]
            return shift(shift.Config(early_hour=5), context)

        def known_events(self):  # type: ignore[no-untyped-def]
            return event_batch(10)

    # it looks at the arrival alone, so it knows something of every device
    assert failures(TestShift).keys() == {"test_unknown_devices_get_nulls"}
    component = shift(shift.Config(early_hour=5), fake_context(tmp_path / "data"))
    received = [f"2026-11-23T{hour:02}:30:00+00:00" for hour in (4, 5, 12, 13, 20, 21)]
    column = pa.array(received).cast(pa.timestamp("us", tz="UTC"))
    batch = event_batch(6)
    batch = batch.set_column(batch.schema.names.index("received"), batch.schema.field("received"), column)
    assert component.enrich(batch).column("shift").to_pylist() == ["night", "early", "early", "late", "late", "night"]


def test_the_example_source_reads_messages() -> None:
    (block,) = re.findall(r"^```python\n(from headrace import ENCODINGS.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["read"](b'[{"a":1},{}]', "d", 0.0) == (1, [b'{"a":1}', b"{}"])
    assert names["read"](b'[{"n":"a","v":1}]', "d", 0.0, "senml") == (1, [b'{"a":1}'])
    assert names["read"](b"\xa0", "d", 0.0, "cbor") == (3, [b"\xa0"])
    assert names["read"](b"7", "d", 0.0) == "refused: expected a JSON object, got a number"


def test_the_example_that_is_read_again_neither_loses_nor_doubles(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```python\n# tail\.py\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "tail.py").write_text(block)
    tail = load(tmp_path / "tail.py").Tail
    lines = [
        b'{"device":"a","n":1}\n',
        b'{"device":"b","n":2}\n',
        b"no json\n",
        b'{"device":7}\n',
        b'{"device":"\\ud800"}\n',
        b'{"device":"c","n":3}\n',
    ]
    file = tmp_path / "lines"
    file.write_bytes(b"".join(lines[:2]) + lines[2][:4])

    async def check() -> None:
        deliver = ScriptedDeliver("full", "ok", "hold")
        context = fake_context(tmp_path / "data", clock=SystemClock())

        @contextlib.asynccontextmanager
        async def following() -> AsyncIterator[None]:
            async with living(tail(tail.Config(path=str(file)), context), "source") as hook:
                serving = asyncio.create_task(hook.ingest_serve(deliver=deliver))
                yield
                serving.cancel()
                await asyncio.wait((serving,))

        async with following():
            await deliver.until_room_awaited()
            deliver.make_room()
            await deliver.until_rows(2)
            with file.open("ab") as more:
                more.write(lines[2][4:])
            await deliver.until_held()
            deliver.cancel_held()  # nobody knows whether it is durable; here it is not
        with file.open("ab") as more:
            more.writelines(lines[3:])
        async with following():
            await deliver.until_rows(len(lines))
        rows = [row for taken in deliver.committed for row in taken.batch.to_pylist()]
        assert [(row["device"], row["payload"]) for row in rows] == [
            (device, line) for device, line in zip(["a", "b", "unknown", "unknown", "unknown", "c"], lines, strict=True)
        ]
        assert await deliver.position(f"/{context.id}") == file.stat().st_size

    run(check())


def test_the_columns_of_batches_are_those_of_the_schemas() -> None:
    raw, event = (
        [(name, kind) for name, kind in re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", table, re.MULTILINE)]
        for table in re.findall(r"^\| column \| type \| \|\n(.*?)\n\n", PAGE, re.DOTALL | re.MULTILINE)
    )
    assert raw == [(field.name, str(field.type)) for field in RAW_SCHEMA]
    known = [(field.name, str(field.type)) for field in event_schema(pa.struct([]), pa.struct([]))]
    short = {"struct<>": "struct", "dictionary<values=string, indices=int32, ordered=0>": "dictionary<string>"}
    assert event == [(name, short.get(kind, kind)) for name, kind in known]


def test_what_the_page_says_of_the_context_is_there(tmp_path: Path) -> None:
    table = PAGE[PAGE.index("### The context\n") : PAGE.index("### Errors\n")]
    context = fake_context(tmp_path)
    names = re.findall(r"`(\w+)`", " ".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `")))
    assert names == [name for name in names if hasattr(context, name)]
    for method in ("info", "debug", "warning", "error", "exception"):
        assert callable(getattr(context.log, method))
    for method in ("counter", "gauge", "histogram"):
        assert callable(getattr(context.metrics, method))


def test_the_example_wrapper_wraps(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```python\n(from headrace import Component, hookimpl\n.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(block, names)
    order: list[str] = []

    class Sink(Component):
        holds = False

        @hookimpl
        async def sink_write(self, batch: pa.RecordBatch) -> None: ...

        @hookimpl
        async def sink_flush(self, key: RangeKey) -> None:
            order.append("flush")

        @hookimpl
        async def sink_reset(self) -> None: ...

    class Log:
        def info(self, message: str, **fields: Any) -> None:
            order.append(f"{message} {fields['range']}")

    context = fake_context(tmp_path)
    context.log = Log()  # type: ignore[assignment]
    plugins = ComponentPlugins(Sink(None, context), "output", "sink", [names["Audit"](None, context)])
    asyncio.run(plugins.hook.sink_flush(key=RangeKey("q", 1, 2)))
    assert order == ["flush", "flushed q/1-2"]


def test_the_example_of_a_blocking_client_tells_how_its_store_fares(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```python\n(import json\nimport urllib.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    taken: list[list[dict[str, Any]]] = []

    class Service(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: Any) -> None: ...

    async def main(sink: Component, port: int) -> None:
        hook = ComponentPlugins(sink, "output", "sink").hook
        key = RangeKey("q", 1, 2)
        with pytest.raises(TransientError, match=r"^cannot write at the service: .*refused"):
            await hook.sink_write(batch=event_batch(2), key=key)
        with http.server.HTTPServer(("127.0.0.1", port), Service) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            await hook.sink_write(batch=event_batch(2), key=key)
            await hook.sink_flush(key=key)
            server.shutdown()
            thread.join()

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names: dict[str, Any] = {}
    exec(block.replace("9999", str(port)), names)
    context = fake_context(tmp_path)
    asyncio.run(main(names["SinkHttp"](None, context), port))
    context.close()
    assert [event["position"] for event in taken[0]] == [1, 2]
    assert [status for status, _ in context.statuses] == ["degraded", "ok"]
