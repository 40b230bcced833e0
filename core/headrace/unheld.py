"""Queues that let go of acked events before any output has them safe."""

from __future__ import annotations

from typing import NamedTuple

from headrace.config import Site
from headrace.log import Log


class Unheld(NamedTuple):
    """A queue none of whose outputs holds always. windows: its outputs that hold a window; the others hold nothing."""

    path: str
    windows: tuple[str, ...]

    @property
    def what(self) -> str:
        """What is lost from it, and when."""
        if self.windows:
            of = f"the window{'s' * (len(self.windows) > 1)} of {' and '.join(self.windows)}"
            return f"no output holds always: events that fall out of {of} are in no store"
        return "no output holds: acked events are gone once they were read, whether an output has them or not"

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return 'add an output that holds always, such as a sink_lake, or set hold = "always" where it may wait for its store'


def unheld(site: Site) -> list[Unheld]:
    """Those of the site's tiers. A tier without a queue is not among them: senders are told how safe its output is."""
    found = []
    for tier in site.tiers.values():
        if tier.queue is not None and all(entry.output.hold != "always" for entry in tier.outputs.values()):
            windows = tuple(entry.id for entry in tier.outputs.values() if entry.output.hold == "window")
            found.append(Unheld(tier.queue.path, windows))
    return found


def report_unheld(site: Site, log: Log) -> None:
    """Say so in the log, at a start and after a reload."""
    for queue in unheld(site):
        log.warning("queue lets go of events that no output has safe", queue=queue.path, reason=queue.what, remedy=queue.remedy)
