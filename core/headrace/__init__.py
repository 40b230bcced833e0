"""headrace: an IoT telemetry service and the plugin framework that it is made of.

What a plugin needs is importable from here; the hooks and their contracts are in `headrace.hookspecs`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from headrace.component import Clock, Component, Config, Context, Health, Placed
    from headrace.encodings import ENCODINGS, Encoding, Sent, Unreadable
    from headrace.errors import (
        ConfigError,
        HeadraceError,
        HookError,
        PermanentError,
        PluginError,
        QueueError,
        QueueFormatError,
        QueueFull,
        QueueLocked,
        TransientError,
    )
    from headrace.event_time import CLOCK_FLOOR_US
    from headrace.hookspecs import BY_FLUSH, LEVELS, Deliver, Elsewhere, Plan, QueueInfo, QueueRead, QueueSpan, ReaderInfo, hookimpl
    from headrace.options import Secret
    from headrace.position import (
        NO_ORIGINS,
        ORIGIN_MISSING,
        ORIGIN_QUEUE,
        ORIGIN_SCHEMA,
        ORIGIN_SESSION,
        Missing,
        Origin,
        OriginMark,
        RangeKey,
        origin_batch,
        origins_of,
    )
    from headrace.schema import ENCODING_CBOR, ENCODING_JSON, ENCODING_MSGPACK, EVENT_COLUMNS, RAW_SCHEMA, TIMESTAMP, event_schema
    from headrace.store_calls import StoreCalls

__all__ = [
    "BY_FLUSH",
    "CLOCK_FLOOR_US",
    "ENCODINGS",
    "ENCODING_CBOR",
    "ENCODING_JSON",
    "ENCODING_MSGPACK",
    "EVENT_COLUMNS",
    "LEVELS",
    "NO_ORIGINS",
    "ORIGIN_MISSING",
    "ORIGIN_QUEUE",
    "ORIGIN_SCHEMA",
    "ORIGIN_SESSION",
    "RAW_SCHEMA",
    "TIMESTAMP",
    "Clock",
    "Component",
    "Config",
    "ConfigError",
    "Context",
    "Deliver",
    "Elsewhere",
    "Encoding",
    "HeadraceError",
    "Health",
    "HookError",
    "Missing",
    "Origin",
    "OriginMark",
    "PermanentError",
    "Placed",
    "Plan",
    "PluginError",
    "QueueError",
    "QueueFormatError",
    "QueueFull",
    "QueueInfo",
    "QueueLocked",
    "QueueRead",
    "QueueSpan",
    "RangeKey",
    "ReaderInfo",
    "Secret",
    "Sent",
    "StoreCalls",
    "TransientError",
    "Unreadable",
    "event_schema",
    "hookimpl",
    "origin_batch",
    "origins_of",
]

#: Imported when first asked for: the command line answers --help and mistakes without half a second of Arrow and aiohttp.
_HOMES: Final = {
    "headrace.component": ("Clock", "Component", "Config", "Context", "Health", "Placed"),
    "headrace.errors": (
        "ConfigError",
        "HeadraceError",
        "HookError",
        "PermanentError",
        "PluginError",
        "QueueError",
        "QueueFormatError",
        "QueueFull",
        "QueueLocked",
        "TransientError",
    ),
    "headrace.event_time": ("CLOCK_FLOOR_US",),
    "headrace.hookspecs": (
        "BY_FLUSH",
        "LEVELS",
        "Deliver",
        "Elsewhere",
        "Plan",
        "QueueInfo",
        "QueueRead",
        "QueueSpan",
        "ReaderInfo",
        "hookimpl",
    ),
    "headrace.options": ("Secret",),
    "headrace.position": (
        "NO_ORIGINS",
        "ORIGIN_MISSING",
        "ORIGIN_QUEUE",
        "ORIGIN_SCHEMA",
        "ORIGIN_SESSION",
        "Missing",
        "Origin",
        "OriginMark",
        "RangeKey",
        "origin_batch",
        "origins_of",
    ),
    "headrace.encodings": ("ENCODINGS", "Encoding", "Sent", "Unreadable"),
    "headrace.schema": ("ENCODING_CBOR", "ENCODING_JSON", "ENCODING_MSGPACK", "EVENT_COLUMNS", "RAW_SCHEMA", "TIMESTAMP", "event_schema"),
    "headrace.store_calls": ("StoreCalls",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(home), name)
            return value
    raise AttributeError(f"module 'headrace' has no attribute {name!r}")
