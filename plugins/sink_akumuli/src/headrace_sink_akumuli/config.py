"""The options of sink_akumuli."""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta

from headrace import Config
from headrace_sink_akumuli.names import DEVICE, TAGS_MAX

_ADDRESS = r"^.+:\d{1,5}$"


class AkumuliConfig(Config, frozen=True):
    """Where Akumuli listens, what its series are called, and where the lake is that fills its gaps."""

    connect: Annotated[str, Meta(pattern=_ADDRESS, description="Address and port of the server's [TCP] section, where points go.")] = (
        "127.0.0.1:8282"
    )
    query: Annotated[str, Meta(pattern=_ADDRESS, description="Address and port of its [HTTP] section, which says what it holds.")] = (
        "127.0.0.1:8181"
    )
    tags: Annotated[
        tuple[str, ...],
        Meta(max_length=TAGS_MAX, description="Fields of the context that become tags, beside `device`. What is not known is `unknown`."),
    ] = ("class", "type", "site")
    metric_prefix: Annotated[
        str, Meta(max_length=100, pattern=r"^[A-Za-z0-9_.-]*$", description="Put before each reading's name; makes the metric's name.")
    ] = ""
    series_max: Annotated[
        int,
        Meta(ge=1, le=10_000_000, description="Most series: one for each reading of each device. Each takes 4 KiB of the server's memory."),
    ] = 100_000
    lake: Annotated[
        str | None, Meta(description="Path of the lake that this tier's sink_lake writes: what the queue no longer has is read from there.")
    ] = None
    routes: Annotated[
        bool, Meta(description="Answer dashboards on the admin server, below /akumuli; of several such outputs only one can.")
    ] = False
    timeout_s: Annotated[float, Meta(ge=0.1, le=600, description="Longest wait for the server, at each step.")] = 30.0

    def __post_init__(self) -> None:
        for name in self.tags:
            if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or name == DEVICE:
                raise ValueError(f"tags: expected fields of the context, of letters, digits, `_`, `.`, `-`; not `device`; got {name!r}")
        if len(set(self.tags)) != len(self.tags):
            raise ValueError(f"tags: expected different fields, got {list(self.tags)}")
