"""The options of a queue."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from headrace import Config

MIB = 1 << 20


class QueueConfig(Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the queue lies, how durable it is, and how large it may get."""

    path: Annotated[str, Meta(description="The queue's directory; made when it is missing. One queue, one directory, one process.")]
    level: Annotated[
        Literal["process", "power"],
        Meta(description="What an acknowledged event survives: the death of any process, or power loss too (every commit is synced)."),
    ] = "process"
    medium: Annotated[
        Literal["auto", "pmem", "file"],
        Meta(description="libpmemobj pools (pmem), preallocated files (file), or pools where libpmemobj is installed (auto)."),
    ] = "auto"
    size_bytes_max: Annotated[
        int, Meta(ge=16 * MIB, le=1 << 50, description="Most bytes on disk for events; rounded down to whole segments. Then QueueFull.")
    ] = 1024 * MIB
    segment_bytes: Annotated[
        int, Meta(ge=8 * MIB, le=1 << 31, description="Bytes of one segment file, the unit in which space is taken and given back.")
    ] = 64 * MIB
    commit_wait_us_max: Annotated[
        int, Meta(ge=0, le=1_000_000, description="How long a commit waits for company before it starts, at level power, in microseconds.")
    ] = 0
    commit_bytes_max: Annotated[int, Meta(ge=4096, le=1 << 30, description="Most bytes of frames in one commit.")] = 8 * MIB
    readers_max: Annotated[int, Meta(ge=1, le=64, description="Most named readers (outputs with a cursor).")] = 64
    sessions_max: Annotated[
        int, Meta(ge=1, le=1 << 24, description="Device sessions whose last message number is remembered; the oldest idle goes first.")
    ] = 65_536
    sessions_per_device_max: Annotated[int, Meta(ge=1, le=65_536, description="Remembered sessions of one device.")] = 64
    queue_origins_max: Annotated[
        int,
        Meta(
            ge=1, le=1 << 24, description="Upstream queues and lanes whose mark is kept; these are never evicted, further ones are refused."
        ),
    ] = 65_536
    view_bytes_max: Annotated[
        int,
        Meta(
            ge=0, le=1 << 40, description="Most bytes of the queue that read batches may keep mapped at a time; beyond it they are copies."
        ),
    ] = 256 * MIB
    cursor_interval_ms: Annotated[
        int, Meta(ge=10, le=1000, description="Released positions become durable at the latest after this time.")
    ] = 200
