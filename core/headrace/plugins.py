"""Who takes part in this call? One pluggy manager per component, and one for the site's facts.

`ComponentPlugins` holds a component and its wrappers; the host calls its hooks. `SitePlugins` tells facts to whoever
listens, each listener by itself. What pluggy would let pass and then fail on, `headrace.hookcheck` refuses here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pluggy

from headrace.component import Component
from headrace.errors import HookError
from headrace.hookcheck import FACTS, SPECS, hook_problems, in_use, marker_of, roles_of, wrapper_problems
from headrace.hookspecs import NAMESPACES, PROJECT, Role
from headrace.log import Log
from headrace.metrics import Metrics

__all__ = ["ComponentPlugins", "SitePlugins", "roles_of"]


class ComponentPlugins:
    """A component and whoever takes part in its calls (metrics, fault points, the site's own wrappers).

    Call hooks by keyword: `await plugins.hook.sink_write(batch=batch, key=key)`. The first participant is the outermost.
    Raises HookError for all that is wrong with the component's or a participant's hooks.
    """

    def __init__(self, component: Component, role: Role, plugin_name: str, participants: Sequence[object] = ()) -> None:
        _refuse(plugin_name, hook_problems(type(component), role))
        for participant in participants:
            _refuse(plugin_name, wrapper_problems(type(participant)))
        self._manager = _Manager(set(SPECS))
        self._in_use = in_use(type(component), getattr(component, "config", None))
        self._manager.register(component, plugin_name)
        # pluggy calls the last registered first, so the outermost comes last.
        for index, participant in reversed(list(enumerate(participants))):
            self._manager.register(participant, f"{plugin_name}.wrap[{index}]")
        self._manager.check_pending()
        #: its hooks
        self.hook: Any = SimpleNamespace(**{name: _shortest(getattr(self._manager.hook, name)) for name in SPECS})

    def has(self, hook: str) -> bool:
        """Whether the component itself has that hook, and its config asks for it; wrappers do not count."""
        if hook not in SPECS:
            raise ValueError(f"no hook named {hook!r} in headrace.hookspecs")
        return hook in self._in_use


class SitePlugins:
    """The site-wide listeners for facts (`FactHooks`). What one of them raises is logged, counted, and ends there."""

    def __init__(self, log: Log, metrics: Metrics) -> None:
        self._log, self._metrics = log, metrics
        self._manager = _Manager(FACTS)

    def add(self, component: Component, name: str) -> None:
        """Let the component hear facts from now on, if it implements any fact hook. Names are unique."""
        self._manager.register(component, name)

    def remove(self, name: str) -> None:
        """Tell it nothing any more; unknown names are fine."""
        if self._manager.has_plugin(name):
            self._manager.unregister(name=name)

    def tell(self, fact: str, **facts: Any) -> None:
        """Call `fact` (`"host_started"`, ...) on every listener, whatever an earlier one raised."""
        caller: pluggy.HookCaller = getattr(self._manager.hook, fact)
        if missing := SPECS[fact].parameters.keys() - facts.keys():
            raise TypeError(f"{fact} needs {', '.join(sorted(missing))}")
        # One by one instead of caller(**facts): there, the first exception would keep the others from hearing.
        for impl in reversed(caller.get_hookimpls()):
            try:
                impl.function(*(facts[name] for name in impl.argnames))
            except Exception as error:
                labels = {"component": impl.plugin_name, "hook": fact}
                self._metrics.counter("listener_errors_total", "Facts on which a listener raised.", **labels).inc()
                self._log.exception("listener raised", error, **labels)


class _Manager(pluggy.PluginManager):
    """A manager that knows all hookspecs, and takes the hooks in `names` (and unknown optional ones) from classes."""

    def __init__(self, names: set[str] | frozenset[str]) -> None:
        super().__init__(PROJECT)
        self._names = names
        for namespace in NAMESPACES:
            self.add_hookspecs(namespace)

    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        # Looks at the class only: a property is never evaluated, whichever version of pluggy this is.
        options = marker_of(type(plugin), name)
        if options is None or (options.get("specname") or name) not in self._names:
            return None
        return dict(options)


def _shortest(caller: pluggy.HookCaller) -> Callable[..., Any]:
    """How to call a hook: the component's own function where nobody else takes part, at a tenth of what pluggy's call costs."""
    impls, spec = caller.get_hookimpls(), SPECS[caller.name]
    if len(impls) != 1 or caller.name in FACTS:
        return caller
    alone = impls[0]
    if alone.wrapper or alone.hookwrapper or set(alone.argnames) != set(spec.parameters):
        return caller
    function: Callable[..., Any] = alone.function
    return function


def _refuse(plugin_name: str, problems: Sequence[str]) -> None:
    if problems:
        raise HookError(plugin_name, "\n  ".join(problems))
