"""The contract of sinks, run against a lake on this machine's disk and read back by DuckDB."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa

from headrace import Context
from headrace.testing import SinkContract, event_batch
from headrace_sink_lake import LakeConfig, SinkLake


class TestSinkLake(SinkContract):
    #: A lake's order is that of its files: by partition, device and time.
    ordered = False
    #: Passed in rolls of two files, so only where a roll lies around the end of an hour; test_lake_crash kills there each time.
    fault_points_rare = frozenset({"sink_lake.mid_rename"})

    def make(self, context: Context) -> SinkLake:
        return SinkLake(LakeConfig(path=str(self.lake(context)), partition_by=("class", "date", "hour")), context)

    def lake(self, context: Context) -> Path:
        return context.data_dir / "lake"

    def read_back(self, context: Context) -> pa.Table:
        if not any(self.lake(context).glob("**/*.parquet")):
            return pa.table({"origin": pa.array([], pa.string()), "position": pa.array([], pa.uint64())})
        with duckdb.connect() as database:
            files = f"read_parquet('{self.lake(context)}/**/*.parquet', hive_partitioning=true, union_by_name=true)"
            return database.sql(f"select * from {files} order by origin, position").to_arrow_table()

    def break_store(self, context: Context) -> None:
        self.lake(context).rename(context.data_dir / "away")
        self.lake(context).write_text("a file where the lake was")

    def heal_store(self, context: Context) -> None:
        self.lake(context).unlink()
        (context.data_dir / "away").rename(self.lake(context))

    def refused(self, context: Context) -> tuple[pa.RecordBatch, list[int]]:
        batch = event_batch(5, 1, readings={"note": ["a", "b", "c", "d", "e"]})
        text = pa.StringArray.from_buffers(5, pa.array([0, 1, 3, 4, 5, 6], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff\xfecde"))
        return batch.set_column(3, batch.schema.field(3), pa.StructArray.from_arrays([text], ["note"])), [1]
