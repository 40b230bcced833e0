"""The options of sink_lake."""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta

from headrace import EVENT_COLUMNS, Config


class LakeConfig(Config, frozen=True):
    """Where the lake lies and how its files look. When a roll ends is the host's (`flush_rows`, `flush_bytes`, ...)."""

    path: Annotated[
        str | None,
        Meta(
            description="Folder of the lake, or URI of a pyarrow filesystem (s3://...); by default `lake` below the component's own data."
        ),
    ] = None
    partition_by: Annotated[
        tuple[str, ...],
        Meta(
            max_length=6,
            description="Keys of the hive partitions, outermost first: fields of the context, `date` or `hour` (of time, UTC).",
        ),
    ] = ("class", "date")
    compression_level: Annotated[int, Meta(ge=1, le=22, description="zstd level; higher is smaller and slower.")] = 3
    row_group_rows: Annotated[int, Meta(ge=1_000, le=10_000_000, description="Most rows in a row group, the unit that readers skip.")] = (
        131_072
    )
    file_bytes: Annotated[
        int, Meta(ge=1_048_576, le=1 << 32, description="A file ends behind the row group that makes it so large; the next one goes on.")
    ] = 134_217_728
    buffer_bytes_max: Annotated[
        int, Meta(ge=1_048_576, le=1 << 40, description="Bytes of unflushed rows held in memory; beyond it they go to temporary files.")
    ] = 268_435_456
    partition_files_max: Annotated[int, Meta(ge=1, le=4096, description="Most temporary files open at a time.")] = 64
    partitions_max: Annotated[
        int, Meta(ge=1, le=100_000, description="Most partitions in a roll; events of further ones are filed under the value `_other`.")
    ] = 1000

    def __post_init__(self) -> None:
        for key in self.partition_by:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", key) or key in EVENT_COLUMNS:
                raise ValueError(f"partition_by: expected date, hour or a field of the context, not a column of the lake, got {key!r}")
        if len(set(self.partition_by)) != len(self.partition_by):
            raise ValueError(f"partition_by: expected different keys, got {list(self.partition_by)}")
