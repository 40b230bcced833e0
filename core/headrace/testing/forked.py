"""What the process that `forking` forks imports at its start, and nothing else may."""

from headrace.testing.forking import import_all

import_all()
