"""The hub and the newest events without sockets: who gets what when clients come, go and change while events are under way."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from headrace.testing import FakeContext, fake_context, run
from headrace_live_ws.client import Client, Mode
from headrace_live_ws.filters import Facets, Filter
from headrace_live_ws.hub import Hub
from headrace_live_ws.latest import Compacted, Latest
from headrace_live_ws.meters import Meters

MakeBatch = Callable[..., pa.RecordBatch]


def client(mode: Mode = "all", **wanted: tuple[str, ...]) -> Client:
    return Client(Filter(**wanted), mode, events_max=1000, bytes_max=1 << 20)


def take(subscriber: Client) -> dict[str, Any]:
    """What the subscriber's frames say, added up."""
    total: dict[str, Any] = {"devices": [], "missed": 0, "conflated": 0}
    for frame in subscriber.frames():
        document = msgspec.json.decode(frame.text)
        total["devices"] += [event["device"] for event in document.get("events", [])]
        total["missed"] += document.get("gap", {}).get("events", 0)
        total["conflated"] += document.get("conflated", 0)
    return total


@pytest.fixture
def context(tmp_path: Path) -> FakeContext:
    return fake_context(tmp_path)


def hub_of(context: FakeContext, budget: int = 100) -> Hub:
    return Hub(budget, Meters(context))


def test_without_clients_a_batch_is_let_go(context: FakeContext, event_batch: MakeBatch) -> None:
    async def scenario() -> None:
        hub = hub_of(context)
        subscriber = client()
        for joined in (False, True):
            batch = event_batch([{"device": "a"}])
            gone = weakref.ref(batch)
            hub.add(batch)
            del batch
            assert (gone() is not None) == joined
            hub.join(subscriber)
        hub.leave(subscriber)
        assert gone() is None  # nor is what waited for the last client kept

    run(scenario())


def test_filter_changed_in_the_middle_of_a_tick_takes_effect_from_the_next_event(context: FakeContext, event_batch: MakeBatch) -> None:
    async def scenario() -> None:
        hub = hub_of(context)
        changed, back, steady = client(device=("a",)), client(device=("a",)), client()
        for subscriber in (changed, back, steady):
            hub.join(subscriber)
        hub.add(event_batch([{"device": "a"}, {"device": "b"}]))
        tick = asyncio.create_task(hub.tick())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        hub.change(changed, Filter(device=("b",)))
        hub.change(back, Filter(device=("a",)))  # to what it was: still a new beginning
        await tick
        assert (take(changed)["devices"], take(back)["devices"], take(steady)["devices"]) == ([], [], ["a", "b"])
        hub.add(event_batch([{"device": "a"}, {"device": "b"}]))
        await hub.tick()
        assert (take(changed)["devices"], take(back)["devices"], take(steady)["devices"]) == (["b"], ["a"], ["a", "b"])

    run(scenario())


def test_what_waited_under_the_old_filter_is_given_up_and_counted(context: FakeContext, event_batch: MakeBatch) -> None:
    async def scenario() -> None:
        hub = hub_of(context)
        for mode in ("all", "latest"):
            subscriber = client(mode)
            hub.join(subscriber)
            hub.add(event_batch([{"device": "a"}, {"device": "b"}]))
            await hub.tick()
            hub.change(subscriber, Filter(device=("b",)))
            assert take(subscriber)["devices"] == []
            hub.leave(subscriber)
        assert context.metric("live_gap_events_total", reason="filter changed") == 4

    run(scenario())


@pytest.mark.parametrize("mode", ["all", "latest"])
def test_every_event_is_accounted_for_when_more_come_than_may_wait(context: FakeContext, event_batch: MakeBatch, mode: Mode) -> None:
    async def scenario() -> None:
        hub = hub_of(context, budget=4)
        subscriber = client(mode, device=("a", "b*"))
        hub.join(subscriber)
        for _ in range(20):
            hub.add(event_batch([{"device": device} for device in ("a", "b1", "b2", "c", "a")]))
        await hub.tick()
        got = take(subscriber)
        assert len(got["devices"]) + got["missed"] + got["conflated"] == 80
        assert (len(got["devices"]), got["missed"] > 0) == (4 if mode == "all" else 3, True)

    run(scenario())


def test_client_that_left_in_the_middle_of_a_tick_gets_nothing_more(context: FakeContext, event_batch: MakeBatch) -> None:
    async def scenario() -> None:
        hub = hub_of(context)
        leaving, staying = client(), client()
        hub.join(leaving)
        hub.join(staying)
        hub.add(event_batch([{"device": "a"}]))
        tick = asyncio.create_task(hub.tick())
        await asyncio.sleep(0)
        hub.leave(leaving)
        await tick
        assert (take(leaving)["devices"], take(staying)["devices"]) == ([], ["a"])

    run(scenario())


def test_batches_that_come_while_the_newest_are_sought_are_not_lost(event_batch: MakeBatch) -> None:
    async def scenario() -> None:
        latest = Latest(devices_max=10, bytes_max=1 << 20)
        latest.add(event_batch([{"device": "a", "position": 1}]))

        async def slowly(work: Callable[..., Compacted], *arguments: Any) -> Compacted:
            result = work(*arguments)
            latest.add(event_batch([{"device": "b", "position": 2}]))
            return result

        async def at_once(work: Callable[..., Compacted], *arguments: Any) -> Compacted:
            return work(*arguments)

        assert [piece.column("device").to_pylist() for piece in (await latest.thin(slowly)).pieces] == [["a"]]
        assert [piece.column("device").to_pylist() for piece in (await latest.thin(at_once)).pieces] == [["a", "b"]]

    run(scenario())


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("a%*", ["a%b"]),
        ("a_*", ["a_b"]),
        ("a\\*", ["a\\b"]),
        ("a*", ["a%b", "a_b", "a\\b", "axb", "a"]),
        ("*b", ["a%b", "a_b", "a\\b", "axb"]),
    ],
)
def test_only_the_star_is_special_in_a_glob(event_batch: MakeBatch, glob: str, expected: list[str]) -> None:
    names = ["a%b", "a_b", "a\\b", "axb", "a", "B"]
    rows = Facets([event_batch([{"device": name} for name in names])]).select(Filter(device=(glob,)))
    assert [names[row] for row in rows] == expected
