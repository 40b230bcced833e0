"""Tests of a folder share their modules."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
