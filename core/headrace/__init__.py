"""headrace: an IoT telemetry service and the plugin framework that it is made of.

What a plugin needs is importable from here; the hooks and their contracts are in `headrace.hookspecs`.
"""

from headrace.component import Clock, Component, Config, Context, Health
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
from headrace.hookspecs import Deliver, Plan, QueueInfo, QueueRead, QueueSpan, ReaderInfo, hookimpl
from headrace.position import (
    NO_ORIGINS,
    ORIGIN_SCHEMA,
    Missing,
    Origin,
    RangeKey,
    origin_batch,
    origins_of,
)
from headrace.schema import ENCODING_JSON, EVENT_COLUMNS, RAW_SCHEMA, TIMESTAMP, event_schema

__all__ = [
    "ENCODING_JSON",
    "EVENT_COLUMNS",
    "NO_ORIGINS",
    "ORIGIN_SCHEMA",
    "RAW_SCHEMA",
    "TIMESTAMP",
    "Clock",
    "Component",
    "Config",
    "ConfigError",
    "Context",
    "Deliver",
    "HeadraceError",
    "Health",
    "HookError",
    "Missing",
    "Origin",
    "PermanentError",
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
    "TransientError",
    "event_schema",
    "hookimpl",
    "origin_batch",
    "origins_of",
]
