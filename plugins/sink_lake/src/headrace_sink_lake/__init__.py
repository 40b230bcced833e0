"""A Parquet lake: hive partitions, one commit record for each roll, and a resume point that the lake itself holds."""

from headrace_sink_lake.arrow import ArrowStore
from headrace_sink_lake.config import LakeConfig
from headrace_sink_lake.ledger import Ledger
from headrace_sink_lake.local import LocalStore
from headrace_sink_lake.record import CommitRecord, LakeFile
from headrace_sink_lake.sink import SinkLake
from headrace_sink_lake.snapshot import live_files
from headrace_sink_lake.store import Store, open_store

__all__ = [
    "ArrowStore",
    "CommitRecord",
    "LakeConfig",
    "LakeFile",
    "Ledger",
    "LocalStore",
    "SinkLake",
    "Store",
    "live_files",
    "open_store",
]
