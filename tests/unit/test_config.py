"""A site's file: what it says arrives typed; what is wrong is refused with file, key path, expected, came, and a hint."""

import random
from pathlib import Path

import msgspec
import pytest

from headrace.config import Secret, changed, examine, load, passes, redacted, reload
from headrace.errors import ConfigError, HeadraceError, HookError, PluginBroken, PluginNotFound
from headrace.tables import RESERVED

PLUGINS = """
from pathlib import Path
from typing import Annotated, Literal
import msgspec
from msgspec import Meta
import headrace
from headrace import Component, hookimpl
from headrace.config import Secret

class Tls(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    certificate: str = ""
    depth: Annotated[int, Meta(ge=0, le=9)] = 2

class Source(Component):
    class Config(headrace.Config, frozen=True, kw_only=True):
        listen: Annotated[str, Meta(description="Where to listen.")] = "127.0.0.1:0"
        rows_max: Annotated[int, Meta(ge=1, le=100)] = 10
        ratio: float = 0.5
        mode: Literal["fast", "slow"] = "fast"
        verbose: bool = False
        token: Secret = Secret("")
        tokens: dict[str, Secret] = {}
        url: str = ""
        folder: Path = Path("here")
        tls: Tls = Tls()
        codes: dict[str, list[int]] = {}
        low: int = 1
        def __post_init__(self):
            if self.low > self.rows_max:
                raise ValueError(f"low {self.low} above rows_max {self.rows_max}")

    @hookimpl
    async def ingest_serve(self, deliver): ...

class Sink(Component):
    idempotence = "key"
    @hookimpl
    async def sink_write(self, batch, key): ...
    @hookimpl
    async def sink_flush(self, key): ...
    @hookimpl
    async def sink_reset(self): ...

class Forgetful(Sink):
    idempotence = "none"

class Resuming(Forgetful):
    @hookimpl
    async def sink_resume(self, queue_id): ...

class Live(Sink):
    holds = False

class Links(Component):
    @hookimpl
    async def transport_serve(self, deliver): ...

class Publisher(Component):
    @hookimpl
    async def transport_publish(self, batch, topic): ...

class Enricher(Component):
    class Config(headrace.Config, frozen=True, kw_only=True):
        database: str
    @hookimpl
    def enrich_fields(self): ...
    @hookimpl
    def enrich(self, batch): ...

class Queue(Component):
    @hookimpl
    def queue_info(self): ...
    @hookimpl
    async def queue_append(self, batch, origins): ...
    @hookimpl
    async def queue_origin_position(self, origin): ...
    @hookimpl
    async def queue_origin_mark(self, origin): ...
    @hookimpl
    async def queue_origin_forget(self, origins): ...
    @hookimpl
    async def queue_reader_open(self, reader, start): ...
    @hookimpl
    async def queue_reader_drop(self, reader): ...
    @hookimpl
    async def queue_read(self, reader, after, rows_max, bytes_max): ...
    @hookimpl
    async def queue_plan(self, reader, plan): ...
    @hookimpl
    async def queue_release(self, reader, upto): ...

class Greedy(Sink):
    class Config(headrace.Config, frozen=True, kw_only=True):
        start: str = ""
        hold: str = ""

class Loose(Sink):
    class Config(msgspec.Struct):
        pass

class Listener(Component):
    @hookimpl
    def host_started(self): ...

class Audit(Component):
    @hookimpl(wrapper=True)
    def sink_flush(self, key):
        return (yield)

class Needy(Audit):
    class Config(headrace.Config, frozen=True, kw_only=True):
        file: str
"""

SITE = """
[tiers.site.sources.dev]
use = "./p.py:Source"
[tiers.site.queue]
use = "./p.py:Queue"
[[tiers.site.enrichers]]
use = "./p.py:Enricher"
id = "context"
database = "sqlite:///context.db"
[tiers.site.outputs.lake]
use = "./p.py:Sink"
"""


@pytest.fixture
def write(tmp_path):
    """Write the file (with the plugins beside it) and return its path."""
    (tmp_path / "p.py").write_text(PLUGINS)

    def put(text=SITE):
        file = tmp_path / "site.toml"
        file.write_text(text)
        return file

    return put


@pytest.fixture
def site(write):
    """Load SITE under overrides and an environment."""

    def make(*overrides, **environ):
        return load(write(), overrides, environ)

    return make


@pytest.fixture
def refused(write):
    """The one problem of SITE under these overrides."""

    def make(*overrides, text=SITE, **environ):
        _, problems = examine(write(text), overrides, environ)
        assert len(problems) == 1, problems
        return problems[0]

    return make


DEV = "tiers.site.sources.dev"
LAKE = "tiers.site.outputs.lake"


# --- what arrives ----------------------------------------------------------------------------------------------------


def test_entries_arrive_typed_with_defaults(site):
    loaded = site(f"{DEV}.rows_max=7", f"{LAKE}.hold=none")
    dev, lake = loaded.tiers["site"].sources["dev"], loaded.tiers["site"].outputs["lake"]
    assert (dev.id, dev.role, dev.path, dev.config.rows_max, dev.config.ratio) == ("dev", "source", DEV, 7, 0.5)
    assert (lake.output.hold, lake.output.flush_rows, lake.holds) == ("none", 1_000_000, False)
    assert [entry.id for entry in loaded.entries()] == ["dev", "queue", "context", "lake"]
    with pytest.raises(TypeError, match="is a source, not an output"):
        _ = dev.output


def test_host_tables_have_defaults(site):
    loaded = site()
    assert (loaded.admin.listen, loaded.host.drain_deadline_s, loaded.tiers["site"].engine.read_rows_max) == ("127.0.0.1:9464", 30, 16384)


def test_data_dir_follows_the_environment_unless_it_is_set(site):
    assert site().host.data_dir == "./data"
    assert site(HEADRACE_DATA="/var/lib/x").host.data_dir == "/var/lib/x"
    assert site("host.data_dir=/srv", HEADRACE_DATA="/var/lib/x").host.data_dir == "/srv"


def test_id_of_a_listed_entry_defaults_to_its_use_or_its_file(write):
    loaded = load(write(SITE.replace('id = "context"\n', "")), environ={})
    assert [entry.id for entry in loaded.tiers["site"].enrichers] == ["p"]


def test_disabled_entry_is_as_if_it_were_not_there(write):
    text = SITE + '[tiers.site.outputs.broken]\nuse = "not_installed"\nenabled = false\nsecret = "${file:/not/there}"\nwhat = 3\n'
    assert list(load(write(text), environ={}).tiers["site"].outputs) == ["lake"]


def test_enabled_may_come_from_the_environment(write):
    text = SITE + '[tiers.site.outputs.more]\nuse = "./p.py:Sink"\nenabled = "${MORE:-false}"\n'
    assert list(load(write(text), environ={}).tiers["site"].outputs) == ["lake"]
    assert list(load(write(text), environ={"MORE": "true"}).tiers["site"].outputs) == ["lake", "more"]


def test_listeners_and_wrappers(write):
    loaded = load(write(SITE + 'wrap = ["./p.py:Audit"]\n[listeners.log]\nuse = "./p.py:Listener"\n'), environ={})
    assert loaded.listeners["log"].role == "listener"
    assert [one.__name__ for one in loaded.tiers["site"].outputs["lake"].wrappers] == ["Audit"]


# --- ${...} and --set ------------------------------------------------------------------------------------------------


def test_references_are_filled_in(site, tmp_path):
    secret = tmp_path / "token"
    secret.write_text("s3cret\n")
    loaded = site(f"{DEV}.token=${{file:{secret}}}", f"{DEV}.url=http://${{HOST}}:${{PORT:-80}}/$${{x}}", HOST="h")
    config = loaded.tiers["site"].sources["dev"].config
    assert config.token.reveal() == "s3cret"
    assert config.url == "http://h:80/${x}"
    assert type(config.url) is str


def test_empty_variable_takes_the_default(site):
    assert site(f"{DEV}.url=${{URL:-there}}", URL="").tiers["site"].sources["dev"].config.url == "there"
    assert site(f"{DEV}.url=${{URL}}", URL="").tiers["site"].sources["dev"].config.url == ""


def test_whole_reference_may_stand_for_a_number_or_boolean(site):
    config = (
        site(f"{DEV}.rows_max=${{ROWS}}", f"{DEV}.verbose=${{V:-true}}", f"{DEV}.ratio=${{R:-0.25}}", ROWS="12")
        .tiers["site"]
        .sources["dev"]
    )
    assert (config.config.rows_max, config.config.verbose, config.config.ratio) == (12, True, 0.25)


def test_a_number_for_a_string_option_stays_a_string(site):
    assert site(f"{DEV}.url=${{URL}}", URL="12").tiers["site"].sources["dev"].config.url == "12"


@pytest.mark.parametrize(
    ("value", "path", "text"),
    [
        ("${NOPE}", "url", "expected the environment variable NOPE, got none of that name; set it, or write ${NOPE:-default}"),
        ("${file:/not/there}", "url", "expected a readable file /not/there, got No such file or directory"),
        ("${not a name}", "url", "expected ${NAME}, ${NAME:-default} or ${file:/path}, got ${not a name}"),
        ("${", "url", "expected `}` after `${`"),
        ("half ${ROWS:-3}", "rows_max", "expected an integer, got what half ${ROWS:-3} stands for"),
    ],
)
def test_references_that_cannot_be_filled_in(refused, value, path, text):
    error = refused(f"{DEV}.{path}={value}")
    assert isinstance(error, ConfigError)
    assert error.path == f"{DEV}.{path}"
    assert text in str(error)


def test_values_from_the_environment_are_not_shown_in_errors(refused):
    assert "hunter2" not in str(refused(f"{DEV}.rows_max=${{PASSWORD}}", PASSWORD="hunter2"))


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("url=plain text", "plain text"),
        ('url="x"', "x"),
        ("url=1.2.3", "1.2.3"),
        ("url=a=b", "a=b"),
        ("url=", ""),
        ('url=1\nrows_max = 3"', '1\nrows_max = 3"'),
    ],
)
def test_override_is_toml_or_a_bare_string(site, assignment, value):
    assert site(f"{DEV}.{assignment}").tiers["site"].sources["dev"].config.url == value


def test_override_reaches_lists_by_id_and_index_and_makes_tables(site):
    for name in ("context", "0"):
        assert site(f"tiers.site.enrichers.{name}.database=x").tiers["site"].enrichers[0].config.database == "x"
    assert site("tiers.site.engine.stall_s=3").tiers["site"].engine.stall_s == 3
    assert site(f"{DEV}.tls.depth=3").tiers["site"].sources["dev"].config.tls.depth == 3


@pytest.mark.parametrize(
    ("assignment", "text"),
    [
        ("rows_max", "--set: expected KEY.PATH=VALUE, got 'rows_max'"),
        ("=3", "--set: expected KEY.PATH=VALUE"),
        ("a..b=3", "--set: expected KEY.PATH=VALUE"),
        ("tiers.site.enrichers.contex.x=1", "tiers.site.enrichers.contex: expected one of context, got 'contex'"),
        (f"{LAKE}.use.x=1", f"{LAKE}.use: expected a table, got './p.py:Sink' (from --set {LAKE}.use.x=1)"),
        (f"{LAKE}.use.x.y=1", f"{LAKE}.use.x: expected a table, got './p.py:Sink'"),
    ],
)
def test_overrides_that_lead_nowhere(refused, assignment, text):
    assert text in str(refused(assignment))


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("rows_max=101", "rows_max: expected an integer <= 100, got 101"),
        ("rows_max='5'", "rows_max: expected an integer, got '5'"),
        ("verbose=1", "verbose: expected true or false, got 1"),
        ("mode=fats", "mode: expected 'fast' or 'slow', got 'fats'; did you mean 'fast'?"),
        ("rowsmax=3", "got the unknown key 'rowsmax'; did you mean 'rows_max'?"),
        ("hodl='none'", "got the unknown key 'hodl'"),
        ("tls.depth=10", "tls.depth: expected an integer <= 9, got 10"),
        ("tls.depht=1", "tls.depht: expected one of certificate, depth, got the unknown key 'depht'; did you mean 'depth'?"),
        ("tls=3", "tls: expected a table, got 3"),
        ("codes={a=[1,'x']}", "codes.*[1]: expected an integer, got str"),
        ("token=5", "token: expected a string, got int"),
        ("low=11", "dev: expected options that fit together, got low 11 above rows_max 10"),
        ("wrap='x'", "wrap: expected a list, got 'x'"),
        ("id='x'", "id: expected no id here, got 'x'; the table's name is the id: dev"),
        ("enabled=3", "enabled: expected true or false, got 3"),
        ("use=3", "use: expected a string, got 3"),
        ("use=''", "use: expected a string of length >= 1, got ''"),
        ("hold='none'", "got the unknown key 'hold'"),
    ],
)
def test_wrong_options_say_what_was_expected(refused, write, override, text):
    error = refused(f"{DEV}.{override}")
    assert str(error).startswith(f"{write()}: {DEV}")
    assert text in str(error)


def test_error_has_its_facts_as_attributes(refused):
    error = refused(f"{DEV}.rows_max=0")
    assert (error.path, error.expected, error.came) == (f"{DEV}.rows_max", "an integer >= 1", "0")


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("hots.x=1", "hots: expected one of admin, host, listeners, schema, tiers, got the unknown key 'hots'; did you mean 'host'?"),
        ("host.drain_deadline_ms=1", "got the unknown key 'drain_deadline_ms'; did you mean 'drain_deadline_s'?"),
        ("host.drain_deadline_s=-1", "host.drain_deadline_s: expected a number >= 0.0, got -1"),
        ("host=3", "host: expected a table, [host], got a number"),
        ("admin.listen='9464'", "admin.listen: expected"),
        ("tiers.site.engine.retry_base_s=1", "did you mean 'retry_base_ms'?"),
        ("tiers.site.source.x=1", "tiers.site.source: expected one of decoders"),
        ("tiers.site.queue=[]", "tiers.site.queue: expected a table, [tiers.<tier>.queue], got []"),
        ("tiers.site.enrichers={}", "tiers.site.enrichers: expected a list of tables, [[tiers.site.enrichers]], got a table"),
        ("tiers.site.enrichers=[3]", "tiers.site.enrichers[0]: expected a table"),
        ("tiers.site.enrichers=[{id='x'}]", "tiers.site.enrichers[0].use: expected a value, got none"),
        ("tiers.site.enrichers.context.id='X Y'", "tiers.site.enrichers[0].id: expected an id of a-z, 0-9, _ and -, got 'X Y'"),
        ("tiers.Site.engine={}", "tiers.Site: expected an id of a-z, 0-9, _ and -, got 'Site'"),
        ("tiers.site.sources={}", "tiers.site.sources: expected at least one [tiers.site.sources.<id>] table, got none"),
        ("tiers.site.outputs={}", "tiers.site.outputs: expected at least one [tiers.site.outputs.<id>] table, got none"),
        ("tiers={}", "tiers: expected at least one [tiers.<name>] table, got none"),
        ("tiers.site.enrichers.context.id='lake'", "tiers.site: expected ids that are unique in the tier, got 'lake' 2 times"),
    ],
)
def test_wrong_tables_are_refused(refused, override, text):
    assert text in str(refused(override))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[tiers\n", "expected valid TOML, got a syntax error: expected"),
        ("b\na = 1", "(at line 1, column "),
        ("a = 1\na = 2\n", "at line 2"),
    ],
)
def test_syntax_errors_name_the_line(refused, text, problem):
    assert problem in str(refused(text=text))


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="expected a readable file, got No such file"):
        load(tmp_path / "nope.toml")
    with pytest.raises(ConfigError, match="expected a readable file, got Is a directory"):
        load(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    with pytest.raises(ConfigError, match="expected UTF-8 text, got byte 0xe9 at offset 5"):
        load(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    ("use", "kind", "text"),
    [
        ("sink_lakr", PluginNotFound, "no plugin named 'sink_lakr'"),
        ("./q.py:Sink", PluginBroken, "No such file"),
        ("./p.py:Source", HookError, "it can be source: move its table to [tiers.<tier>.sources.<id>]"),
        ("./p.py:Greedy", HookError, "the option 'hold' has a name that the host keeps for itself; rename it"),
        ("./p.py:Loose", HookError, "must be a subclass of headrace.Config"),
    ],
)
def test_unusable_plugins_name_the_place_that_needs_them(refused, write, use, kind, text):
    error = refused(f"{LAKE}.use={use}")
    assert isinstance(error, kind)
    assert text in str(error)
    assert error.__notes__ == [f"needed by {write()}: {LAKE}.use"]


def test_wrappers_are_checked_like_plugins(refused):
    assert "would run instead of the component's own hook" in str(refused(f"{LAKE}.wrap=['./p.py:Sink']"))
    assert f"{LAKE}.wrap.file: expected a value, got none" in str(refused(f"{LAKE}.wrap=['./p.py:Needy']"))


def test_all_problems_are_found_at_once(write):
    site, problems = examine(write(), [f"{DEV}.rows_max=0", f"{LAKE}.x=1", "host.name=''", "nope=1", "tiers.site.engine.stall_s=0"], {})
    assert len(problems) == 5
    assert site is not None
    assert list(site.tiers["site"].outputs) == []
    with pytest.raises(ConfigError):
        load(write(), [f"{DEV}.rows_max=0"], {})


# --- rules of outputs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", ["Live", "Forgetful", "Publisher"])
def test_outputs_that_cannot_promise_safety_need_hold_none(refused, site, use):
    error = refused(f"{LAKE}.use=./p.py:{use}")
    assert error.path == f"{LAKE}.hold"
    assert error.expected == '"none"'
    assert site(f"{LAKE}.use=./p.py:{use}", f"{LAKE}.hold=none")


def test_resume_is_as_good_as_idempotence(site):
    assert site(f"{LAKE}.use=./p.py:Resuming").tiers["site"].outputs["lake"].holds


def test_window_needs_exactly_one_bound(refused, site):
    assert "got none" in str(refused(f"{LAKE}.hold=window"))
    assert "got both" in str(refused(f"{LAKE}.hold=window", f"{LAKE}.hold_window_s=1", f"{LAKE}.hold_window_bytes=1"))
    assert site(f"{LAKE}.hold=window", f"{LAKE}.hold_window_s=1").tiers["site"].outputs["lake"].output.hold_window_s == 1
    assert 'expected hold = "window" beside it, got hold = "always"' in str(refused(f"{LAKE}.hold_window_s=1"))


def test_start_after_names_another_output(refused, site, write):
    for start in ("after:nope", "after:lake"):
        assert "expected after: another output of the tier (none)" in str(refused(f"{LAKE}.start={start}"))
    assert "start: expected a string matching" in str(refused(f"{LAKE}.start=newest"))
    more = "tiers.site.outputs.more"
    assert site(f"{more}.use=./p.py:Sink", f"{more}.start=after:lake").tiers["site"].outputs["more"].output.start == "after:lake"
    assert site(f"{more}.use=./p.py:Sink", f"{more}.start=after:lake", f"{LAKE}.enabled=false")


def test_only_links_share_events(refused, site):
    assert "spread: expected the sending half of a link, got Sink" in str(refused(f"{LAKE}.spread=g"))
    assert "spread_retired: expected spread beside it, got none" in str(refused(f"{LAKE}.spread_retired=true"))


def test_tier_without_queue_has_one_holding_output(write):
    text = SITE.replace('[tiers.site.queue]\nuse = "./p.py:Queue"\n', "")
    more = "tiers.site.outputs.more"
    assert load(write(text), [f"{more}.use=./p.py:Live", f"{more}.hold=none"], {})
    _, problems = examine(write(text), [f"{more}.use=./p.py:Sink"], {})
    assert "expected at most one holding output in a tier without a queue, got lake, more" in str(problems[0])
    _, problems = examine(write(text), [f"{LAKE}.hold=window", f"{LAKE}.hold_window_s=9"], {})
    assert "in a tier without a queue, got 'window'" in str(problems[0])


def test_a_link_without_a_queue_needs_a_store_that_tells_what_it_holds(write):
    links = ["tiers.site.sources.links.use=./p.py:Links"]
    assert load(write(SITE), links, {})
    unqueued = SITE.replace('[tiers.site.queue]\nuse = "./p.py:Queue"\n', "")
    alone = unqueued.replace('[tiers.site.sources.dev]\nuse = "./p.py:Source"\n', "")
    assert alone != unqueued
    _, problems = examine(write(unqueued), [*links, f"{LAKE}.use=./p.py:Resuming"], {})
    assert ["tiers.site.sources.dev: expected links only" in str(problem) for problem in problems] == [True]
    _, problems = examine(write(alone), links, {})
    assert ["expected a sink that knows what it holds (sink_resume)" in str(problem) for problem in problems] == [True]
    _, problems = examine(write(alone), [*links, f"{LAKE}.use=./p.py:Live", f"{LAKE}.hold=none"], {})
    assert ["expected an output that holds" in str(problem) for problem in problems] == [True]
    assert passes(load(write(alone), [*links, f"{LAKE}.use=./p.py:Resuming"], {}).tiers["site"])


def test_reserved_names_are_those_of_the_host():
    assert {"use", "id", "wrap", "enabled", "hold", "start", "flush_rows", "send_window"} <= RESERVED


# --- secrets and reload ----------------------------------------------------------------------------------------------


def test_secret_prints_as_stars_everywhere(site, tmp_path):
    file = tmp_path / "url"
    file.write_text("http://h/?key=hunter2")
    loaded = site(
        f"{DEV}.token=hunter2", f"{DEV}.tokens={{a='hunter2'}}", f"{DEV}.url=${{file:{file}}}",
        "tiers.site.enrichers.context.database=postgresql://me:hunter2@db/x",
    )  # fmt: skip
    dev = loaded.tiers["site"].sources["dev"]
    shown = [repr(loaded), str(dev), repr(dev.config.token), f"{dev.config.token}", repr(dev.options), str(redacted(loaded))]
    shown.append(msgspec.json.encode(redacted(loaded)).decode())
    assert not [text for text in shown if "hunter2" in text]
    assert redacted(loaded)[DEV]["token"] == "***"
    assert redacted(loaded)["tiers.site.enrichers.context"]["database"] == "postgresql://me:***@db/x"
    assert dev.config.url.endswith("hunter2")
    with pytest.raises(TypeError):
        msgspec.json.encode(dev.config)


def test_secrets_compare_by_content_and_know_emptiness():
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert hash(Secret("a")) == hash(Secret("a"))
    assert not Secret("")


def test_redacted_shows_defaults(site):
    assert redacted(site())[DEV]["rows_max"] == 10
    assert redacted(site())["host"]["data_dir"] == "./data"


def test_changed_names_exactly_what_differs(site):
    more = "tiers.site.outputs.more"
    old = site()
    assert changed(old, site()) == []
    assert changed(old, site(f"{DEV}.token=x")) == [DEV]
    assert changed(old, site(f"{LAKE}.flush_rows=5", "host.name=x", "tiers.site.engine.stall_s=5")) == ["host", "tiers.site.engine", LAKE]
    assert changed(old, site(f"{more}.use=./p.py:Sink")) == [more]
    assert changed(site(f"{more}.use=./p.py:Sink"), old) == [more]


def test_an_edited_plugin_file_is_a_change(site, tmp_path, write):
    old = site()
    (tmp_path / "p.py").write_text(PLUGINS + "\n# a fix\n")
    assert LAKE in changed(old, load(Path(tmp_path / "site.toml"), environ={}))


def test_reload_keeps_the_overrides(write):
    first = load(write(), [f"{DEV}.rows_max=7"], {})
    write(SITE + "flush_rows = 9\n")
    second = reload(first, {})
    assert second.tiers["site"].sources["dev"].config.rows_max == 7
    assert changed(first, second) == [LAKE]


def test_only_the_tiers_asked_for_need_their_plugins_and_secrets(write):
    text = SITE + '[tiers.store.sources.a]\nuse = "not_installed"\ntoken = "${file:/not/there}"\n'
    assert examine(write(text), (), {})[1]
    loaded = load(write(text), (), {}, only=["site"])
    assert list(loaded.tiers) == ["site"]
    assert list(reload(loaded, {}).tiers) == ["site"]
    _, problems = examine(write(text), (), {}, only=["stor"])
    assert "tiers: expected a tier named 'stor', got site, store; did you mean 'store'?" in str(problems[0])


PLACES = ["", "host.", "admin.", "tiers.", "tiers.site.", "tiers.site.engine.", "tiers.site.queue.", "tiers.site.enrichers.0."]
PLACES += [f"{DEV}.", f"{DEV}.tls.", f"{LAKE}.", "tiers.site.outputs.more.", "tiers.site.decoders.", "listeners.x."]
KEYS = ["tiers", "host", "admin", "listeners", "site", "sources", "queue", "enrichers", "decoders", "outputs", "engine"]
KEYS += ["use", "id", "wrap", "enabled", "hold", "start", "hold_window_s", "tls", "depth", "codes", "tokens", "rows_max", "listen", "name"]
VALUES = ["3", "-1.5", "true", "[]", "{}", "[[]]", "[{}]", "'x'", "''", "{a = 1}", "['${X}']", "${", "${X:-3}", "1979-05-27", "nan"]
VALUES += ["window", "after:lake", "./p.py:Nope", "['./p.py:Audit', 3]", "a:b/c:d", "${file:/}", "{'A B' = {}}", "{a = [1, {}]}"]
VALUES += ["[{use = 3}]", "[{use = './p.py:Sink', id = []}]", "{use = './p.py:Sink'}", "{a = {use = './p.py:Source', tls = []}}"]


def test_no_value_anywhere_makes_the_reader_raise(write):
    """Whatever stands wherever: problems are told, never an exception that is a bug."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance, file = random.Random(seed), write()
    for _ in range(100):
        overrides = [chance.choice(PLACES) + chance.choice(KEYS) + "=" + chance.choice(VALUES) for _ in range(chance.randint(1, 3))]
        _, problems = examine(file, overrides, {})
        assert all(isinstance(problem, HeadraceError) and str(problem) for problem in problems), overrides
