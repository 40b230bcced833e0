"""`workers = N`: one tier as several processes under a supervisor.

`plan` says which processes a site needs and what each of them runs, `supervisor` and `process` start and restart them, `child` is
the other end, `messages` is what they say to each other, `merging` and `pages` make one admin server of all of theirs.
"""

from __future__ import annotations

from pathlib import Path

from headrace.config import Site
from headrace.register import QueueRegister
from headrace.workers.plan import processes


def needed(site: Site) -> bool:
    """Whether the site is several processes, and needs a supervisor."""
    try:
        registered = QueueRegister(Path(site.host.data_dir)).entries()
    except ValueError:  # whoever runs the site sets it aside
        registered = []
    return len(processes(site, registered)) > 1
