"""A component: one plugin's instance in one place of the config, and what the host hands it.

One life: build (`__init__`), `open`, `run`, `drain`, `close`. The host calls them in that order, on one loop.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar

import msgspec

from headrace.hookspecs import HOOKS_API, Role, Status
from headrace.log import Log
from headrace.metrics import Metrics
from headrace.scheduling import give_way

T = TypeVar("T")


class Clock(Protocol):
    """Time, so that tests can hold it. Durations use `monotonic`, `received` uses `wall`."""

    def wall(self) -> float:
        """Unix time in seconds; may jump."""

    def monotonic(self) -> float:
        """Seconds that only grow."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The machine's clocks."""

    def wall(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Health(NamedTuple):
    """What `/components` shows of a component."""

    status: Status
    reason: str = ""


class Placed(NamedTuple):
    """A component in its place of a tier: what others may know of it. hold: of an output; elsewhere empty. config: its typed Config."""

    id: str
    role: Role
    use: str
    hold: Literal["", "always", "window", "none"]
    config: Any


@dataclass
class Context:
    """What a component gets from the host. Nothing else is global.

    data_dir is private to the component and exists. `worker` of `workers` says which of the tier's processes this is, counted
    from 0. `fault(name)` marks a point at which tests kill or fail the process
    (the name must stand in the class's `fault_points`). `status` tells the host how the component fares; `far_level`, of an output, at
    which level the far side keeps what it is given, where that is lower than this tier's: sources tell it to their senders then.
    """

    id: str
    tier: str
    plugin: str
    log: Log
    metrics: Metrics
    clock: Clock
    random: random.Random
    data_dir: Path
    fault: Callable[[str], None]
    status: Callable[[Literal["ok", "degraded"], str], None]
    far_level: Callable[[str], None] = lambda level: None
    blocking_threads: int = 2
    worker: int = 0
    workers: int = 1
    nice: int = 0
    _pool: ThreadPoolExecutor | None = field(default=None, repr=False)

    @property
    def shared_dir(self) -> Path:
        """The folder of this component that all workers of its tier have in common: worker 0's `data_dir`."""
        return self.data_dir.parents[1] / self.tier / self.data_dir.name if self.worker else self.data_dir

    async def call_blocking(self, fn: Callable[..., T], *args: Any) -> T:
        """Run a blocking call (DB-API, SDK, file) in this component's small pool and await its result.

        A cancelled caller does not stop the call: the thread goes on to its end.
        """
        if self._pool is None:
            name = f"{self.tier}.{self.id}"
            self._pool = ThreadPoolExecutor(self.blocking_threads, name, initializer=give_way, initargs=(self.nice,))
        return await asyncio.get_running_loop().run_in_executor(self._pool, fn, *args)

    def close(self) -> None:
        """Let go of the pool; the host calls it after the component's `close`."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every component's `Config`: frozen, keyword-only, unknown fields refused.

    Subclass it with `frozen=True, kw_only=True`. Give each field a type, a default, and
    `Annotated[..., Meta(description=..., ge=..., le=...)]`; units stand in the name.
    """


# in the class body below, `Config` is the attribute
_Config = Config


class Component:
    """Base of every plugin class.

    `Config` is the type of its options; `hooks_api` the version of the hooks that it was written for; `fault_points` the
    names that it passes to `context.fault`. For outputs: `idempotence` says whether the store takes the same key (or the
    same event, by origin and position) twice without doubling it, `holds` whether it can promise safety at all (False for
    live feeds, which then need `hold = "none"`), `takes` whether it gets event batches or what the queue holds, undecoded
    ("raw": for links, archives and other stores of payloads; RAW_SCHEMA, or event batches where a source delivered those),
    `takes_dictionaries` whether a text of `context` may come as a dictionary of int32 to string rather than as strings.
    `flush_level` is what a flush of a sink survives, as for a queue: a tier without a queue tells it to the links that lead there.
    `many_workers` says (or names the roles in which) several processes may each have an instance of it, on the same options: a
    source then shares its address with the others (SO_REUSEPORT where `context.workers` is more than 1), an output its store.
    (Of a queue the host gives each worker another `path`.)
    """

    Config: ClassVar[type[_Config]] = _Config
    hooks_api: ClassVar[int] = HOOKS_API
    fault_points: ClassVar[tuple[str, ...]] = ()
    idempotence: ClassVar[Literal["none", "key", "event"]] = "none"
    holds: ClassVar[bool] = True
    takes: ClassVar[Literal["events", "raw"]] = "events"
    takes_dictionaries: ClassVar[bool] = False
    flush_level: ClassVar[Literal["process", "power"]] = "power"
    many_workers: ClassVar[bool | tuple[Role, ...]] = False

    @classmethod
    def hooks_for(cls, config: Any) -> frozenset[str] | None:
        """For a class that can be several things: the hooks for which an instance with this config stands. None: all that it has.

        The others are not called; its place in the config, `hold` and the rest are checked by what is given here.
        """
        return None

    def __init__(self, config: Any, context: Context) -> None:
        self.config = config
        self.context = context

    @classmethod
    def fault_points_in(cls, role: Role, config: Any) -> tuple[str, ...]:
        """Those of `fault_points` that an instance in this role passes: all, unless a plugin with several roles says otherwise."""
        return cls.fault_points

    async def open(self) -> None:
        """Take resources, or raise. Raise TransientError to be tried again with backoff."""

    async def run(self) -> None:
        """The component's own long loop, if it has one; cancelled before `close`."""

    async def drain(self, deadline_s: float) -> None:
        """Stop taking in; return when nothing is in flight, or after `deadline_s` seconds."""

    async def reload(self, config: Any) -> bool:
        """Take a changed config without a restart; False (the default) asks the host to restart the component.

        Raise ConfigError to refuse it: the component goes on as it was.
        """
        return False

    async def reread(self) -> None:
        """SIGHUP came and this config is as it was: look again at the files that it names (certificates, keys, tokens).

        What cannot be read leaves in use what was read before, and shows in `health` or by `context.status`.
        """

    async def close(self) -> None:
        """Give resources back. Safe twice, and safe without `open`."""

    def check(self) -> list[str]:
        """What `headrace check` should report of this config beyond its types, without opening anything: paths, ports."""
        return []

    def check_tier(self, placed: Sequence[Placed]) -> list[str]:
        """What `headrace check` should warn of, seeing all components of the tier in their places, this one among them. The site starts
        all the same."""
        return []

    def health(self) -> Health:
        """How the component fares, for those who would rather be asked than call `context.status`."""
        return Health("ok")
