"""live_ws without sockets: filters, rendering, the newest event per device, backlogs, the rendering budget."""

from __future__ import annotations

import fnmatch
import math
import random
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from headrace import Missing, RangeKey
from headrace_live_ws.client import Chunk, Client, EveryEvent, NewestPerDevice
from headrace_live_ws.filters import Facets, Filter, FilterError, filter_of_json, filter_of_query
from headrace_live_ws.hub import Subscription, share_out
from headrace_live_ws.latest import compact
from headrace_live_ws.live import positions_skipped
from headrace_live_ws.render import render
from headrace_live_ws.server import host_and_port, is_loopback, origin_allowed

SEED = random.randrange(1 << 32)


MakeBatch = Callable[..., pa.RecordBatch]


def decoded(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    return [msgspec.json.decode(event) for event in render(batch)]


# --- filters


def test_query_values_may_be_repeated_or_separated_by_commas() -> None:
    wanted = filter_of_query({"class": ["a,b", "c"], "device": ["x*"], "site": [""]})
    assert wanted == Filter(class_=("a", "b", "c"), device=("x*",))


def test_json_filter_takes_a_string_or_a_list_and_a_comma_is_part_of_the_value() -> None:
    assert filter_of_json({"site": "a,b", "type": ["x", "y", "x"]}) == Filter(site=("a,b",), type=("x", "y"))


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "expected filter to be an object"),
        ({"clas": "a"}, "expected the fields device, class, type, site, got 'clas'"),
        ({"class": 5}, "class: expected a string or a list of strings, got 5"),
        ({"class": [None]}, "class: expected a string"),
        ({"site": [str(number) for number in range(300)]}, "site: expected at most 256 values, got 300"),
        ({"device": "x" * 300}, "device: expected values of at most 256 characters"),
    ],
)
def test_bad_filter_is_refused_with_what_was_expected(document: object, said: str) -> None:
    with pytest.raises(FilterError, match=said):
        filter_of_json(document)


def test_selection_equals_a_row_by_row_filter_on_random_batches(event_batch: MakeBatch) -> None:
    print("seed", SEED)
    chance = random.Random(SEED)
    values = ["a", "b", "a%", "a_", "axb", "Ä", "a\\b", None]
    for _ in range(60):
        batches, rows = [], []
        for _ in range(chance.randrange(1, 4)):
            names = chance.sample(["class", "type", "site", "latitude"], chance.randrange(5))
            some = [
                {
                    "device": chance.choice(["pump-1", "pump-2", "p_mp%1", "meter\\1", "Zähler"]),
                    "context": {name: 1.5 if name == "latitude" else chance.choice(values) for name in names},
                }
                for _ in range(chance.randrange(1, 30))
            ]
            kind = pa.struct([(name, pa.float64() if name == "latitude" else pa.string()) for name in names])
            batches.append(event_batch(some, context=kind))
            rows += some
        devices = chance.sample(["pump-*", "*1", "p_mp*", "meter\\*", "Z*r", "pump-2", "*"], chance.randrange(3))
        wanted = Filter(
            device=tuple(devices),
            class_=tuple(chance.sample(["a", "b", "a%", "Ä", "none"], chance.randrange(3))),
            type=tuple(chance.sample(["a", "a_", "a\\b"], chance.randrange(2))),
        )

        def passes(row: dict[str, Any], wanted: Filter = wanted) -> bool:
            return (
                (not wanted.device or any(fnmatch.fnmatchcase(row["device"], glob) for glob in wanted.device))
                and (not wanted.class_ or row["context"].get("class") in wanted.class_)
                and (not wanted.type or row["context"].get("type") in wanted.type)
            )

        assert Facets(batches).select(wanted).tolist() == [index for index, row in enumerate(rows) if passes(row)]


def test_filter_on_a_context_field_that_is_a_number_or_a_dictionary_compares_its_text(event_batch: MakeBatch) -> None:
    numbers = event_batch([{"device": "d", "context": {"site": 7}}, {"device": "e", "context": {"site": 8}}])
    sites = pa.StructArray.from_arrays([pa.array(["7", "9"]).dictionary_encode()], ["site"])
    coded = numbers.set_column(4, "context", sites)
    assert Facets([numbers, coded]).select(Filter(site=("7",))).tolist() == [0, 2]


# --- rendering


def test_rendered_events_leave_nulls_out_and_keep_every_kind_of_value(event_batch: MakeBatch) -> None:
    rows: list[dict[str, Any]] = [
        {"device": "a", "readings": {"t": 1.5, "on": True, "note": 'quote " and \\ and \n <b>é 漢 🌊</b>'}, "position": 2**63},
        {"device": "b", "readings": {"t": math.nan, "on": None, "note": None}, "context": {"class": "meter", "tags": ["x", "y"]}},
        {"device": "c", "readings": {"t": math.inf, "on": False, "note": ""}, "context": {"class": None, "tags": None}},
    ]
    first, second, third = decoded(event_batch(rows))
    assert first == {
        "device": "a",
        "time": "2025-11-23T20:33:20.000000Z",
        "received": "2025-11-23T20:33:20.000000Z",
        "readings": rows[0]["readings"],
        "context": {},
        "origin": "5f0c7f9e",
        "position": 2**63,
    }
    assert (second["readings"], second["context"]) == ({"t": None}, {"class": "meter", "tags": ["x", "y"]})
    assert (third["readings"], third["context"]) == ({"t": None, "on": False, "note": ""}, {})


def test_null_structs_and_structs_without_children_render_as_empty_objects(event_batch: MakeBatch) -> None:
    batch = event_batch([{"device": "a", "readings": None}, {"device": "b", "readings": {"t": 1}}])
    assert [(event["readings"], event["context"]) for event in decoded(batch)] == [({}, {}), ({"t": 1}, {})]


@pytest.mark.parametrize(
    "more", [{}, {'a "quoted" name': 1.0, "back\\slash": 2.0, "new\nline": None}, {f"r{number}": 1.0 for number in range(100)}]
)
def test_names_that_need_escaping_and_very_many_names_render_as_all_others(event_batch: MakeBatch, more: dict[str, Any]) -> None:
    rows = [{"device": "a", "readings": {"temp": 1.5, "é": None, **more}}, {"device": "b", "readings": {"temp": None, "é": "x", **more}}]
    expected = [{name: value for name, value in row["readings"].items() if value is not None} for row in rows]
    assert [event["readings"] for event in decoded(event_batch(rows))] == expected


# --- the newest event per device


def test_compacting_equals_a_dict_of_the_last_event_on_random_batches_of_clashing_types(event_batch: MakeBatch) -> None:
    print("seed", SEED)
    chance = random.Random(SEED)
    for _ in range(20):
        model: dict[str, dict[str, Any]] = {}
        kept: list[pa.RecordBatch] = []
        for round_ in range(6):
            batches = []
            for _ in range(chance.randrange(1, 40)):
                value: Any = chance.choice([1.5, "text", True, None])
                name = chance.choice(["t", "u"])
                rows = [
                    {"device": f"d{chance.randrange(30)}", "readings": {name: value}, "position": round_ * 1000 + index}
                    for index in range(4)
                ]
                batches.append(event_batch(rows))
                for event in decoded(batches[-1]):
                    model.pop(event["device"], None)
                    model[event["device"]] = event
            compacted = compact([*kept, *batches], 20, 1 << 20)
            kept = compacted.pieces
            forgotten = len(model) - 20
            model = dict(list(model.items())[-20:])
            assert compacted.evicted == max(forgotten, 0)
            assert [event for piece in kept for event in decoded(piece)] == list(model.values())


def test_compacting_keeps_to_its_bytes_and_forgets_the_oldest_first(event_batch: MakeBatch) -> None:
    batches = [event_batch([{"device": f"d{index}", "readings": {"note": "x" * 1000}}]) for index in range(100)]
    pieces, evicted = compact(batches, 1000, 20_000)
    devices = [device for piece in pieces for device in piece.column("device").to_pylist()]
    assert sum(piece.nbytes for piece in pieces) <= 20_000
    assert 5 < len(devices) < 20
    assert devices == [f"d{index}" for index in range(100 - len(devices), 100)]
    assert evicted == 100 - len(devices)


# --- backlogs


def chunk(*devices: str, size: int = 10) -> Chunk:
    return Chunk([b"%d" % index * size for index in range(len(devices))], list(devices))


def test_backlog_of_all_events_drops_the_oldest_beyond_its_bounds_and_counts_them() -> None:
    backlog = EveryEvent(events_max=5, bytes_max=1000)
    assert [backlog.add(chunk("a", "b")) for _ in range(4)] == [(0, 0), (0, 0), (0, 2), (0, 2)]
    assert backlog.events == 4
    assert backlog.add(chunk("a", size=2000)) == (0, 5)  # larger than the whole bound
    assert (backlog.events, backlog.bytes) == (0, 0)


def test_backlog_of_newest_events_conflates_per_device_and_drops_the_longest_waiting() -> None:
    backlog = NewestPerDevice(events_max=3, bytes_max=1000)
    assert backlog.add(chunk("a", "b", "a")) == (1, 0)
    assert backlog.add(chunk("c", "d")) == (0, 1)
    assert backlog.take().events == 3
    assert (backlog.events, backlog.bytes) == (0, 0)


def test_client_is_told_of_a_gap_before_the_events_that_follow_it() -> None:
    client = Client(Filter(), "all", events_max=2, bytes_max=1000)
    client.offer(chunk("a", "b"))
    client.offer(chunk("c", "d"))
    frames = list(client.frames())
    assert [frame.events for frame in frames] == [0, 2]
    assert msgspec.json.decode(frames[0].text) == {"gap": {"events": 2, "reason": "slow client"}}
    assert list(client.frames()) == []


# --- the rendering budget


def test_budget_serves_the_narrowest_subscription_first_and_counts_what_the_others_miss() -> None:
    wide = Subscription(Filter(), "all", 0, [], np.arange(100))
    narrow = Subscription(Filter(site=("a",)), "all", 0, [], np.array([3, 50, 99]))
    chosen = share_out([wide, narrow], rows=100, budget=10)
    assert narrow.rows.tolist() == [3, 50, 99]
    assert narrow.skipped == 0
    assert wide.rows.tolist() == [3, 50, *range(92, 100)]  # seven of its own choice, the newest, and what is rendered anyway
    assert wide.skipped == 90
    assert chosen.tolist() == wide.rows.tolist()


# --- positions that never came


@pytest.mark.parametrize(
    ("before", "key", "skipped"),
    [
        (None, RangeKey("q", 100, 110), 0),
        (RangeKey("q", 1, 99), RangeKey("q", 100, 110), 0),
        (RangeKey("q", 1, 50), RangeKey("q", 100, 110), 49),
        (RangeKey("q", 1, 99), RangeKey("q", 50, 110), 0),
        (RangeKey("p", 1, 50), RangeKey("q", 100, 110), 0),
        (RangeKey("q", 1, 97), RangeKey("q", 100, 110, (Missing(103, 105, "corrupt"),), (106,)), 6),
    ],
)
def test_skipped_positions_are_between_keys_and_missing_or_dead_within(before: RangeKey | None, key: RangeKey, skipped: int) -> None:
    assert positions_skipped(before, key) == skipped


# --- addresses


@pytest.mark.parametrize(
    ("origin", "host", "allowed", "expected"),
    [
        (None, "127.0.0.1:8081", (), True),
        ("http://127.0.0.1:8081", "127.0.0.1:8081", (), True),
        ("http://LOCALHOST:8081", "localhost:8081", (), True),
        ("http://127.0.0.1:8082", "127.0.0.1:8081", (), False),
        ("https://evil.example", "127.0.0.1:8081", (), False),
        ("null", "127.0.0.1:8081", (), False),
        ("null", "", (), False),
        ("https://ops.example", "127.0.0.1:8081", ("https://ops.example",), True),
        ("https://evil.example", "127.0.0.1:8081", ("*",), True),
        ("http://[::1]:8081", "[::1]:8081", (), True),
        ("http://rebound.example:8081", "rebound.example:8081", (), False),
        ("http://proxied.example", "proxied.example", ("http://proxied.example",), True),
    ],
)
def test_origin_on_loopback_is_the_same_or_listed(origin: str | None, host: str, allowed: tuple[str, ...], expected: bool) -> None:
    assert origin_allowed(origin, host, allowed, loopback=True) is expected


def test_name_of_a_server_beyond_loopback_is_its_own_origin() -> None:
    assert origin_allowed("http://plant.example:8081", "plant.example:8081", (), loopback=False)
    assert not origin_allowed("http://other.example:8081", "plant.example:8081", (), loopback=False)


def test_listen_addresses() -> None:
    assert host_and_port("[::1]:80") == ("::1", 80)
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "example.org")] == [True, True, True, False, False]
