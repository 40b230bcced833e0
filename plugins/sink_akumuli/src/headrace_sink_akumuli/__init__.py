"""A time-series view in Akumuli: derived from the queue and the lake, and rebuilt from them when it is lost."""

from headrace_sink_akumuli.config import AkumuliConfig
from headrace_sink_akumuli.sink import SinkAkumuli

__all__ = ["AkumuliConfig", "SinkAkumuli"]
