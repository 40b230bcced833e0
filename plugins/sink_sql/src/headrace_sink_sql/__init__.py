"""The output `sink_sql`: events in a table of a SQL database, each once."""

from headrace_sink_sql.config import Column, SqlConfig
from headrace_sink_sql.sink import SinkSql

__all__ = ["Column", "SinkSql", "SqlConfig"]
