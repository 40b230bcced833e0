"""`python -m headrace.workers FILE NAME CHANNEL ADMIN`: how a supervisor starts a worker; FILE and NAME are for whoever reads `ps`."""

import sys

from headrace.cli import answered
from headrace.workers.child import run

sys.exit(answered(lambda: run(*map(int, sys.argv[3:5]))))
