"""A context for components under test, and a way to run their coroutines without hanging a test suite."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import pluggy
from prometheus_client import CollectorRegistry

from headrace.component import Clock, Component, Context
from headrace.faults import Faults
from headrace.hookspecs import Role
from headrace.log import Log
from headrace.metrics import Metrics
from headrace.plugins import ComponentPlugins
from headrace.testing.clock import FakeClock

T = TypeVar("T")

#: Longer than any honest test of one component takes; shorter than anybody's patience.
RUN_TIMEOUT_S: Final = 60.0


@dataclass
class FakeContext(Context):
    """A context that remembers: `statuses` has every (status, reason), the newest last."""

    statuses: list[tuple[Literal["ok", "degraded"], str]] = field(default_factory=list)

    def metric(self, name: str, **labels: str) -> float | None:
        """The value of `headrace_<name>` with the preset labels and these; None when there is none yet."""
        preset = {"tier": self.tier, "component": self.id, "plugin": self.plugin}
        return self.metrics.registry.get_sample_value(f"headrace_{name}", {**preset, **labels})


def fake_context(
    data_dir: Path,
    *,
    clock: Clock | None = None,
    seed: int = 1,
    faults: str = "",
    id: str = "test",  # noqa: A002  the context's own name for it
    tier: str = "site",
    plugin: str = "plugin_under_test",
) -> FakeContext:
    """A context whose private directory is `data_dir` (made when absent).

    clock: a FakeClock unless given. faults: what HEADRACE_FAULTS would hold. Metrics have a registry of their own.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    statuses: list[tuple[Literal["ok", "degraded"], str]] = []

    def remember(status: Literal["ok", "degraded"], reason: str = "") -> None:
        statuses.append((status, reason))

    return FakeContext(
        id=id,
        tier=tier,
        plugin=plugin,
        log=Log(f"{tier}.{id}"),
        metrics=Metrics(CollectorRegistry(), tier=tier, component=id, plugin=plugin),
        clock=clock or FakeClock(),
        random=random.Random(seed),
        data_dir=data_dir,
        fault=Faults(faults).hit,
        status=remember,
        statuses=statuses,
    )


def run(work: Coroutine[Any, Any, T], timeout_s: float = RUN_TIMEOUT_S) -> T:
    """Run a test's coroutine on a loop of its own; TimeoutError instead of a hanging suite."""
    return asyncio.run(asyncio.wait_for(work, timeout_s))


def has(call: Any) -> bool:
    """Whether the component has this one of the hooks that `living` gives."""
    return not isinstance(call, pluggy.HookCaller) or bool(call.get_hookimpls())


@asynccontextmanager
async def living(component: Component, role: Role) -> AsyncIterator[Any]:
    """The component between open and close as the host does it; gives its hooks (call them by keyword).

    Opens it, lets `run` run beside, and at the end drains, cancels `run` and closes. What `run` raises fails the test.
    """
    plugins = ComponentPlugins(component, role, type(component).__name__)
    await component.open()
    running = asyncio.create_task(component.run())
    try:
        yield plugins.hook
        await component.drain(5.0)
    finally:
        running.cancel()
        ended = (await asyncio.gather(running, return_exceptions=True))[0]
        await component.close()
        component.context.close()
    if isinstance(ended, Exception):
        raise ended
