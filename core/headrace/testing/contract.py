"""What every contract class shares: how pytest finds it, the component's life, and the checks of its hooks."""

from __future__ import annotations

import inspect
import socket
import tempfile
import traceback
from pathlib import Path
from typing import ClassVar

from headrace.component import Component, Context, SystemClock
from headrace.hookspecs import Role
from headrace.plugins import ComponentPlugins
from headrace.testing.context import FakeContext, fake_context, living, run


class Contract:
    """Base of the contract classes: subclass one of those, in a test module, under a name that begins with `Test`.

    An author gives `make(context)`. The component's store lies under `context.data_dir`, or wherever `make` puts it as a
    function of that directory: the kit makes the component again over the same directory, in other processes too.
    """

    role: ClassVar[Role]

    def make(self, context: Context) -> Component:
        """Build the component under test, not yet open, over `context.data_dir`."""
        raise NotImplementedError(f"{type(self).__name__} must define make(self, context)")

    def context(self, folder: Path, seed: int = 1, faults: str = "") -> FakeContext:
        """The context that `make` gets; with the machine's clock, as in production."""
        return fake_context(folder / "data", clock=SystemClock(), seed=seed, faults=faults)

    def test_the_hooks_fit_the_hookspecs(self, tmp_path: Path) -> None:
        component = self.make(self.context(tmp_path))
        ComponentPlugins(component, self.role, type(component).__name__)

    def test_a_component_closes_without_open_and_twice(self, tmp_path: Path) -> None:
        async def check() -> None:
            never_opened = self.make(self.context(tmp_path))
            await never_opened.close()
            await never_opened.close()
            component = self.make(self.context(tmp_path))
            await component.open()
            await component.close()
            await component.close()

        run(check())

    def test_a_component_opens_again_where_another_closed(self, tmp_path: Path) -> None:
        async def check() -> None:
            for _ in range(3):
                async with living(self.make(self.context(tmp_path)), self.role):
                    pass

        run(check())

    def test_build_and_health_do_no_work(self, tmp_path: Path) -> None:
        context = self.context(tmp_path)
        component = self.make(context)
        assert component.context is context, "__init__ must keep the context; call super().__init__(config, context)"
        assert component.health().status in ("starting", "ok", "degraded", "stopped")
        assert all(isinstance(problem, str) for problem in component.check())
        assert all(isinstance(warning, str) for warning in component.check_tier([])), "check_tier must bear a tier that it does not know"


class HalvesContract(Contract):
    """Base of the contracts of components in two halves, that talk to each other over `self.port` on loopback."""

    _port: int | None = None

    @property
    def port(self) -> int:
        """A port that was free when the test began, the same for both halves."""
        if self._port is None:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self._port = probe.getsockname()[1]
        return self._port


def failures(contract: type[Contract], *names: str) -> dict[str, str]:
    """Run a contract class (or its tests `names`) without pytest: the names of the tests that fail, with the traceback.

    For tests of the kit itself: a plugin that is bad on purpose must fail. Skipped tests count as passed.
    """
    failed: dict[str, str] = {}
    for name, _ in inspect.getmembers(contract, inspect.isfunction):
        if not name.startswith("test_") or (names and name not in names):
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                getattr(contract(), name)(Path(folder))
            except BaseException as error:
                if type(error).__name__ == "Skipped":
                    continue
                if not isinstance(error, Exception) and type(error).__name__ != "Failed":
                    raise
                failed[name] = traceback.format_exc()
    return failed


def skip(reason: str) -> None:
    """Skip the running test: the plugin does not declare what it is about."""
    import pytest

    pytest.skip(reason)
