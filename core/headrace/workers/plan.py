"""Which processes a site needs, and what each of them runs. No I/O.

A tier with `workers = N` has N processes of its own; all other tiers share one. Worker 0's queue is the one that the config names,
so that a site that goes from one worker to several continues it; worker K's lies beside it. What a worker keeps is in
`<data_dir>/<tier>` and `<data_dir>/<tier>.K`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from headrace.config import Entry, Site, Tier, single
from headrace.register import Registered
from headrace.tables import WORKERS_MAX


class Process(NamedTuple):
    """One process of a site.

    worker of workers: which copy of its tier it runs. former: the number of workers was lowered, this one only empties its queue.
    """

    name: str
    tiers: tuple[str, ...]
    worker: int = 0
    workers: int = 1
    former: bool = False

    @property
    def part(self) -> str:
        """What goes behind the names of what is private to it: nothing for worker 0."""
        return f".{self.worker}" if self.worker else ""


def processes(site: Site, registered: Sequence[Registered] = ()) -> list[Process]:
    """All processes of the site in the order of their tiers. One without workers: the site needs no supervisor."""
    found: list[Process] = []
    shared: list[str] = []
    for tier in site.tiers.values():
        former = former_workers(tier, registered)
        if tier.workers == 1 and not former:
            shared.append(tier.name)
            continue
        # beside former workers, a tier's only one is a worker too: they share its name
        workers = max(tier.workers, 2 if former else 1)
        found += [Process(f"{tier.name}.{number}", (tier.name,), number, workers) for number in range(tier.workers)]
        found += [Process(f"{tier.name}.{number}", (tier.name,), number, workers, former=True) for number in former]
    if shared:
        order = list(site.tiers)
        found.append(Process("+".join(shared), tuple(shared)))
        found.sort(key=lambda process: order.index(process.tiers[0]))
    return found


def former_workers(tier: Tier, registered: Iterable[Registered]) -> list[int]:
    """The numbers of workers that this tier has no more, and whose queues may still hold events; none where the tier cannot have
    a process beside it."""
    if tier.queue is None or not all(not single(entry) for entry in _emptying(tier).entries()):
        return []
    known = {entry.path for entry in registered if (entry.tier, entry.plugin) == (tier.name, tier.queue.use)}
    return [number for number in range(tier.workers, WORKERS_MAX) if str(Path(queue_path(tier.queue, number)).absolute()) in known]


def queue_path(queue: Entry, worker: int) -> str:
    """Where a worker's queue lies."""
    path = str(queue.config.path)
    return f"{Path(path)}.{worker}" if worker else path


def queue_paths(site: Site, registered: Iterable[Registered] = ()) -> set[str]:
    """The absolute paths of all queues that the site opens."""
    registered = list(registered)
    return {
        str(Path(queue_path(tier.queue, number)).absolute())
        for tier in site.tiers.values()
        if tier.queue is not None and hasattr(tier.queue.config, "path")
        for number in [*range(tier.workers), *former_workers(tier, registered)]
    }


def site_of(site: Site, process: Process, queue: Entry | None = None) -> Site:
    """The site as this process runs it: its tiers only, each with the queue of that worker (or with this one)."""
    tiers = {}
    for name in process.tiers:
        tier = _emptying(site.tiers[name]) if process.former else site.tiers[name]
        tiers[name] = msgspec.structs.replace(tier, queue=queue or worker_queue(tier.queue, process.worker))
    return msgspec.structs.replace(site, tiers=tiers, only=process.tiers)


def worker_queue(queue: Entry | None, worker: int) -> Entry | None:
    """The queue of a worker."""
    return queue if queue is None or worker == 0 else with_path(queue, queue_path(queue, worker))


def with_path(queue: Entry, path: str) -> Entry:
    """The queue at another place."""
    config = msgspec.structs.replace(queue.config, path=path)
    return msgspec.structs.replace(queue, config=config, options={**queue.options, "path": path})


def _emptying(tier: Tier) -> Tier:
    """What is needed to empty a queue of this tier: no sources, and no outputs that begin at the head."""
    return msgspec.structs.replace(tier, sources={}, outputs={name: entry for name, entry in tier.outputs.items() if entry.holds})
