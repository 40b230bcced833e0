"""For all tests: processes start by a fork. As commands, hundreds of them would take minutes of two cores to import the same."""

from headrace.testing import forking

forking.enable()
