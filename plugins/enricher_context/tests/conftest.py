from __future__ import annotations

import sys
from pathlib import Path

from headrace.testing.postgres import postgres, postgres_server

__all__ = ["postgres", "postgres_server"]

# Under --import-mode=importlib a test file cannot import its neighbours by itself.
sys.path.insert(0, str(Path(__file__).parent))
