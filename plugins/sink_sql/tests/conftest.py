from __future__ import annotations

import sys
from pathlib import Path

from headrace.testing.postgres import postgres, postgres_server

# Under --import-mode=importlib a test file cannot import its neighbours by itself.
sys.path.insert(0, str(Path(__file__).parent))

from mariadb_server import mariadb, mariadb_server
from timescale_server import timescale, timescale_server

__all__ = ["mariadb", "mariadb_server", "postgres", "postgres_server", "timescale", "timescale_server"]
