"""For all tests: sites start by a fork. Hundreds of them as commands would take three minutes of two cores to import the same."""

from headrace.testing.site import SiteProcess

SiteProcess.forks = True
