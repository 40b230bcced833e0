import sys
from pathlib import Path

# Under --import-mode=importlib a test file cannot import its neighbours by itself.
sys.path.insert(0, str(Path(__file__).parent))
