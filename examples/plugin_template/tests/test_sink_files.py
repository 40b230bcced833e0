"""The kit's contract for sinks, `kill -9` included; and what is this sink's own."""

from __future__ import annotations

import json

import pyarrow as pa
from headrace_plugin_template.sink_files import SinkFiles

from headrace import Context, RangeKey
from headrace.testing import SinkContract, event_batch, fake_context, living, run


def make(context: Context) -> SinkFiles:
    return SinkFiles(SinkFiles.Config(path=str(context.data_dir / "files")), context)


class TestContract(SinkContract):
    def make(self, context: Context) -> SinkFiles:
        return make(context)

    def read_back(self, context: Context) -> pa.Table:
        files = sorted((context.data_dir / "files").glob("*.ndjson"))
        rows = [json.loads(line) for file in files for line in file.open(encoding="utf-8")]
        return pa.Table.from_pylist([{name: row[name] for name in ("origin", "position", "device", "readings")} for row in rows])

    def break_store(self, context: Context) -> None:
        (context.data_dir / "files").rename(context.data_dir / "away")

    def heal_store(self, context: Context) -> None:
        (context.data_dir / "away").rename(context.data_dir / "files")


def test_a_file_is_named_by_its_range(tmp_path) -> None:
    async def check() -> None:
        key = RangeKey("q", 5, 7)
        async with living(make(fake_context(tmp_path)), "output") as hook:
            await hook.sink_write(batch=event_batch(3, 5), key=key)
            await hook.sink_flush(key=key)

    run(check())
    assert [file.name for file in (tmp_path / "files").iterdir()] == ["q_00000000000000000005-00000000000000000007.ndjson"]
