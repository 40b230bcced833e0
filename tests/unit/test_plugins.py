"""Registration: what pluggy would let pass is refused with place and remedy; wrappers and facts work."""

import asyncio
import dataclasses
import functools
import logging
import random

import pluggy
import pytest

from headrace import Component, HookError, hookimpl
from headrace.hookcheck import FACTS, SPECS, hook_problems, roles_of
from headrace.hookspecs import NAMESPACES, ROLES
from headrace.log import Log
from headrace.metrics import Metrics
from headrace.plugins import ComponentPlugins, SitePlugins


class Sink(Component):
    """A whole sink."""

    idempotence = "key"

    def __init__(self):
        self.calls = []

    @hookimpl
    async def sink_write(self, batch, key):
        self.calls.append(("write", batch, key))

    @hookimpl
    async def sink_flush(self, key):
        self.calls.append(("flush", key))

    @hookimpl
    async def sink_reset(self):
        self.calls.append(("reset",))


class Source(Component):
    def __init__(self):
        pass

    @hookimpl
    async def ingest_serve(self, deliver):
        return None


def refused(component, role="output", participants=()):
    with pytest.raises(HookError) as caught:
        ComponentPlugins(component, role, "demo", participants)
    return str(caught.value)


def test_hooks_reach_the_component():
    sink = Sink()
    plugins = ComponentPlugins(sink, "output", "demo")
    asyncio.run(plugins.hook.sink_write(batch="b", key="k"))
    assert sink.calls == [("write", "b", "k")]


def test_has_tells_what_the_component_itself_implements():
    class Audit(Component):
        @hookimpl(wrapper=True)
        def sink_resume(self, queue_id):
            return (yield)

    plugins = ComponentPlugins(Sink(), "output", "demo", [Audit(None, None)])
    assert plugins.has("sink_write")
    assert not plugins.has("sink_resume")
    with pytest.raises(ValueError, match="no hook named 'sink_wirte'"):
        plugins.has("sink_wirte")


def test_two_components_of_one_class_do_not_meet():
    first, second = Sink(), Sink()
    one, _two = ComponentPlugins(first, "output", "demo"), ComponentPlugins(second, "output", "demo")
    asyncio.run(one.hook.sink_reset())
    assert (first.calls, second.calls) == ([("reset",)], [])


def test_every_role_has_hooks_and_every_hook_a_spec():
    assert {hook for sets in ROLES.values() for whole in sets for hook in whole} <= SPECS.keys()
    assert {spec.namespace for spec in SPECS.values()} == set(NAMESPACES)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_missing_hook_names_the_nearest_whole_set():
    class Half(Component):
        @hookimpl
        async def sink_write(self, batch, key): ...

        @hookimpl
        async def sink_flush(self, key): ...

    text = refused(Half(None, None))
    assert "plugin 'demo': Half in the role output needs sink_flush, sink_reset, sink_write; missing: sink_reset" in text


def test_component_without_any_hook_is_told_all_choices():
    text = refused(Component(None, None))
    assert "sink_flush, sink_reset, sink_write or transport_resume, transport_send or transport_publish; it has none of them" in text


def test_component_in_the_wrong_place_is_told_the_right_one():
    text = refused(Sink(), "source")
    assert "it can be output: move its table to [tiers.<tier>.outputs.<id>]" in text


def test_method_named_like_a_hook_without_marker_is_refused():
    class Unmarked(Sink):
        async def sink_resume(self, queue_id): ...

    text = refused(Unmarked())
    assert "Unmarked.sink_resume" in text
    assert "has no @hookimpl" in text
    assert f"{__file__}:" in text


def test_sync_where_async_is_declared_is_refused():
    class Sync(Sink):
        @hookimpl
        def sink_flush(self, key): ...

    assert "must be `async def` without a yield: sink_flush is async" in refused(Sync())


def test_async_generator_is_not_taken_for_a_coroutine():
    class Generator(Sink):
        @hookimpl
        async def sink_flush(self, key):
            yield

    assert "must be `async def` without a yield" in refused(Generator())


def test_async_where_sync_is_declared_is_refused():
    class Enricher(Component):
        @hookimpl
        async def enrich_fields(self): ...

        @hookimpl
        def enrich(self, batch):
            yield batch

    text = refused(Enricher(None, None), "enricher")
    assert "enrich_fields is not async, its coroutine would never be awaited" in text
    assert "must return its result, it has a yield" in text


def test_misspelt_hook_gets_a_suggestion():
    class Misspelt(Sink):
        @hookimpl
        async def sink_resum(self, queue_id): ...

    assert "this host has no hook 'sink_resum'; did you mean 'sink_resume'?" in refused(Misspelt())


def test_misspelt_method_without_marker_is_guessed_when_its_hook_is_missing():
    class Misspelt(Component):
        @hookimpl
        async def sink_write(self, batch, key): ...

        @hookimpl
        async def sink_flush(self, key): ...

        async def sink_rest(self): ...

    text = refused(Misspelt(None, None))
    assert "Misspelt.sink_rest" in text
    assert "meant to be sink_reset?" in text


def test_specname_counts_as_the_hook():
    class Renamed(Component):
        @hookimpl(specname="ingest_serve")
        async def listen(self, deliver):
            return deliver

    plugins = ComponentPlugins(Renamed(None, None), "source", "demo")
    assert asyncio.run(plugins.hook.ingest_serve(deliver=7)) == 7


def test_optional_hook_of_a_newer_host_is_left_alone():
    class Newer(Sink):
        @hookimpl(optionalhook=True)
        async def sink_compact(self, key): ...

    ComponentPlugins(Newer(), "output", "demo")


@pytest.mark.parametrize(
    ("method", "problem"),
    [
        ("async def sink_flush(self, key=None): ...", "'key' has a default, and pluggy before 1.7 would never pass it"),
        ("async def sink_flush(self, *, key): ...", "'key' is keyword-only and would never be passed"),
        ("async def sink_flush(self, kye): ...", "sink_flush(key) has no parameter 'kye'; did you mean 'key'?"),
        ("async def sink_flush(self, **facts): ...", "**facts would never be filled"),
        ("async def sink_flush(): ...", "the first parameter must be self"),
        ("async def sink_flush(key): ...", "the first parameter must be self, got 'key'; put self before it"),
        ("@staticmethod\n    async def sink_flush(key): ...", "is a staticmethod; a hook is a plain method"),
        ("@property\n    def sink_flush(self): raise SystemExit", "is a property; a hook is a plain method"),
    ],
)
def test_parameters_and_kinds_that_pluggy_would_drop_are_refused(method, problem):
    lines = method.split("\n")
    lines.insert(len(lines) - 1, ("    " if len(lines) > 1 else "") + "@hookimpl")
    space = {"Sink": Sink, "hookimpl": hookimpl}
    exec("class Bad(Sink):\n    " + "\n".join(lines).replace("\n@", "\n    @").replace("\nasync", "\n    async"), space)
    assert problem in refused(space["Bad"]())


def test_property_named_like_a_hook_is_refused_and_never_evaluated():
    class Bad(Sink):
        @property
        def sink_resume(self):
            raise AssertionError("evaluated")

    assert "Bad.sink_resume" in refused(Bad())


def test_properties_are_never_evaluated_at_registration():
    class Lazy(Sink):
        @property
        def connection(self):
            raise AssertionError("evaluated")

        @functools.cached_property
        def pool(self):
            raise AssertionError("evaluated")

    ComponentPlugins(Lazy(), "output", "demo")
    SitePlugins(Log("test"), Metrics()).add(Lazy(), "demo")


def test_newer_hooks_api_is_refused():
    class Newer(Sink):
        hooks_api = 2

    assert "Newer.hooks_api is 2, this host knows up to 1; upgrade headrace" in refused(Newer())


@pytest.mark.parametrize(
    ("stated", "problem"),
    [
        ("idempotence = 'keys'", "Bad.idempotence must be one of 'none', 'key', 'event', got 'keys'; did you mean 'key'?"),
        ("idempotence = True", "Bad.idempotence must be one of 'none', 'key', 'event', got True"),
        ("takes = 'event'", "Bad.takes must be one of 'events', 'raw', got 'event'; did you mean 'events'?"),
        ("flush_level = 'none'", "Bad.flush_level must be one of 'process', 'power', got 'none'"),
        ("fault_points = ('sink.before_rename')", "Bad.fault_points must be a tuple of names, got 'sink.before_rename'"),
        ("def open(self): ...", "must be `async def` without a yield: the host awaits it"),
        ("async def run(self):\n        yield", "must be `async def` without a yield: the host awaits it"),
        ("async def check(self): return []", "must be a plain `def`: the host does not await it"),
    ],
)
def test_what_a_class_states_and_its_life_are_looked_at(stated, problem):
    space = {"Sink": Sink}
    exec("class Bad(Sink):\n    " + stated, space)
    assert problem in refused(space["Bad"]())


def test_stray_hook_of_another_role_is_refused():
    class Stray(Sink):
        @hookimpl
        def enrich(self, batch): ...

    text = refused(Stray())
    assert "Stray.enrich" in text
    assert "is a hook of the role enricher, and would never be called without enrich_fields" in text


def test_half_of_the_other_way_to_be_an_output_is_refused():
    class Half(Sink):
        @hookimpl
        async def transport_resume(self, queue_id): ...

    assert "would never be called without transport_send" in refused(Half())


def test_one_class_may_have_two_whole_roles():
    class Transport(Source):
        @hookimpl
        async def transport_publish(self, batch, topic): ...

    ComponentPlugins(Transport(), "source", "demo")
    ComponentPlugins(Transport(), "output", "demo")
    assert roles_of(Transport) == ("source", "output")


def test_listener_without_facts_is_refused():
    assert "hears no facts" in refused(Component(None, None), "listener")


def test_dataclass_components_are_refused_because_they_compare_by_value():
    @dataclasses.dataclass
    class Valued(Sink):
        pass

    assert "components are told apart by identity" in refused(Valued())


def test_all_problems_are_told_at_once():
    class Bad(Component):
        hooks_api = 9

        @hookimpl
        def sink_write(self, batch, key=None): ...

    assert len(hook_problems(Bad, "output")) == 4


# --- wrappers --------------------------------------------------------------------------------------------------------


def wrapper(name, calls):
    class Wrap(Component):
        @hookimpl(wrapper=True)
        def sink_flush(self, key):
            inner = yield

            async def wrapped():
                calls.append(f"{name} before {key}")
                try:
                    return await inner
                finally:
                    calls.append(f"{name} after")

            return wrapped()

    return Wrap(None, None)


def test_wrappers_of_async_hooks_wrap_the_coroutine_first_is_outermost():
    calls = []
    plugins = ComponentPlugins(Sink(), "output", "demo", [wrapper("outer", calls), wrapper("inner", calls)])
    coroutine = plugins.hook.sink_flush(key=3)
    assert calls == []  # nothing runs before somebody awaits it
    asyncio.run(coroutine)
    assert calls == ["outer before 3", "inner before 3", "inner after", "outer after"]


def test_wrapper_sees_the_error_of_the_component():
    class Failing(Sink):
        @hookimpl
        async def sink_flush(self, key):
            raise ValueError("disk")

    calls = []
    plugins = ComponentPlugins(Failing(), "output", "demo", [wrapper("w", calls)])
    with pytest.raises(ValueError, match="disk"):
        asyncio.run(plugins.hook.sink_flush(key=1))
    assert calls == ["w before 1", "w after"]


def test_wrappers_of_sync_hooks_may_change_the_result():
    class Decoder(Component):
        @hookimpl
        def decode_encodings(self):
            return {"lora": 130}

        @hookimpl
        def decode(self, payloads, encoding): ...

    class Renumber(Component):
        @hookimpl(wrapper=True)
        def decode_encodings(self):
            found = yield
            return {name: number + 1 for name, number in found.items()}

    plugins = ComponentPlugins(Decoder(None, None), "decoder", "demo", [Renumber(None, None)])
    assert plugins.hook.decode_encodings() == {"lora": 131}


def test_participant_that_would_replace_the_component_is_refused():
    assert "would run instead of the component's own hook" in refused(Sink(), "output", [Sink()])


def test_async_wrapper_is_refused():
    class Wrap(Component):
        @hookimpl(wrapper=True)
        async def sink_flush(self, key):
            yield

    assert "must be a plain generator (def, one yield)" in refused(Sink(), "output", [Wrap(None, None)])


def test_old_style_wrapper_is_refused():
    class Wrap(Component):
        @hookimpl(hookwrapper=True)
        def sink_flush(self, key):
            yield

    assert "write @hookimpl(wrapper=True)" in refused(Sink(), "output", [Wrap(None, None)])


def test_component_that_is_its_own_wrapper_is_refused():
    class Own(Sink):
        @hookimpl(wrapper=True)
        def sink_resume(self, queue_id):
            yield

    assert "a component implements hooks, wrappers go into `wrap`" in refused(Own())


# --- facts -----------------------------------------------------------------------------------------------------------


class Listener(Component):
    def __init__(self, heard, name, error=None):
        self.heard, self.name, self.error = heard, name, error

    @hookimpl
    def host_started(self):
        self.heard.append(self.name)
        if self.error:
            raise self.error

    @hookimpl
    def component_status(self, component, status):  # leaves out tier and reason
        self.heard.append((self.name, component, status))


@pytest.fixture
def heard():
    return []


def test_facts_reach_every_listener_whatever_one_raises(heard, caplog):
    metrics = Metrics()
    site = SitePlugins(Log("test"), metrics)
    for name, error in (("a", None), ("b", RuntimeError("boom")), ("c", None)):
        site.add(Listener(heard, name, error), name)
    logging.getLogger("headrace").propagate = True
    with caplog.at_level(logging.ERROR, "headrace"):
        site.tell("host_started")
    assert sorted(heard) == ["a", "b", "c"]
    assert [record.message for record in caplog.records] == ["listener raised"]
    value = metrics.registry.get_sample_value("headrace_listener_errors_total", {"component": "b", "hook": "host_started"})
    assert value == 1


def test_listener_may_leave_out_parameters(heard):
    site = SitePlugins(Log("test"), Metrics())
    site.add(Listener(heard, "a"), "a")
    site.tell("component_status", tier="t", component="lake", status="ok", reason="")
    assert heard == [("a", "lake", "ok")]


def test_telling_half_a_fact_is_a_bug_of_the_host(heard):
    site = SitePlugins(Log("test"), Metrics())
    with pytest.raises(TypeError, match="component_status needs reason, tier"):
        site.tell("component_status", component="lake", status="ok")


def test_removed_listener_hears_nothing(heard):
    site = SitePlugins(Log("test"), Metrics())
    site.add(Listener(heard, "a"), "a")
    site.remove("a")
    site.remove("never there")
    site.tell("host_started")
    assert heard == []


def test_site_manager_takes_only_the_facts_of_a_component(heard):
    class Both(Sink):
        @hookimpl
        def host_started(self):
            heard.append("both")

    site = SitePlugins(Log("test"), Metrics())
    site.add(Both(), "both")
    assert {spec.name for spec in SPECS.values() if getattr(site._manager.hook, spec.name).get_hookimpls()} == {"host_started"}
    assert "host_started" in FACTS
    site.tell("host_started")
    assert heard == ["both"]


def test_random_adds_and_removes_never_call_a_stranger():
    """What subset_hook_caller gets wrong: whoever registers later must not be called by an earlier one's manager."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance, managers = random.Random(seed), []
    for _ in range(20):
        sink = Sink()
        managers.append((sink, ComponentPlugins(sink, "output", "demo")))
        target, plugins = chance.choice(managers)
        before = sum(len(one.calls) for one, _ in managers)
        asyncio.run(plugins.hook.sink_reset())
        assert sum(len(one.calls) for one, _ in managers) == before + 1
        assert target.calls[-1] == ("reset",)


def test_pluggy_itself_still_needs_these_checks():
    """If this fails, pluggy learned to refuse what hookcheck refuses: look whether the check can go."""
    manager = pluggy.PluginManager("headrace")
    for namespace in NAMESPACES:
        manager.add_hookspecs(namespace)

    class Bad(Component):
        @hookimpl
        def sink_flush(self, *, key=1):
            return key

        async def sink_reset(self): ...

    manager.register(Bad(None, None))
    manager.check_pending()
    assert manager.hook.sink_flush(key=2) == 1
    assert manager.hook.sink_reset() is None
