"""Queue ids of which nothing will come again: the hello names them, and their marks are the first to go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_transport_zmq import QUEUE, Bench, info, send

from headrace import QueueSpan
from headrace.testing import ScriptedDeliver, run
from headrace_transport_zmq import identities, spoken
from headrace_transport_zmq.identities import Identities
from headrace_transport_zmq.spoken import Ledger, Spoken

IDS = [f"00000000-0000-4000-8000-{number:012d}" for number in range(20)]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def held(*ids: str) -> Any:
    return info()._replace(spans=tuple(QueueSpan(name, 1, None) for name in ids))


def test_marks_of_ids_that_are_gone_are_dropped_in_their_order_beyond_a_bound(bench: Bench, monkeypatch: Any) -> None:
    monkeypatch.setattr(identities, "RELEASED_MAX", 2)

    async def check() -> None:
        deliver = ScriptedDeliver(info=info())
        async with bench.far(deliver):
            for life in range(6):  # each open of the queue takes a new id, and has nothing of the one before
                async with bench.near() as near:
                    await near.transport_queue(held(IDS[life]), b"s" * 16)
                    assert await near.transport_resume(IDS[life]) is None
            async with bench.near() as near:
                await near.transport_queue(held(QUEUE), b"s" * 16)
                assert await near.transport_resume(QUEUE) is None
                await send(near, 1, 10)
                assert await near.transport_resume(QUEUE) == 10

    marks: list[str] = []

    async def forget(self: ScriptedDeliver, origins: Any) -> None:
        marks.extend(origins)

    monkeypatch.setattr(ScriptedDeliver, "forget", forget)
    run(check())
    assert marks == [f"{name}/uplink.1" for name in IDS[:4]]


def test_what_the_queue_still_has_or_speaks_for_is_never_named(bench: Bench, monkeypatch: Any) -> None:
    monkeypatch.setattr(identities, "RELEASED_MAX", 0)

    async def check() -> None:
        deliver = ScriptedDeliver(info=info())
        async with bench.far(deliver):
            for _ in range(2):
                async with bench.near() as near:
                    await near.transport_queue(held(QUEUE), b"s" * 16)
                    await near.transport_resume(QUEUE)
                    await send(near, 1, 10)
            async with bench.near() as near:  # nothing of it is there, but it is asked for all the same
                await near.transport_queue(held(), b"s" * 16)
                assert await near.transport_resume(QUEUE) == 10
            async with bench.near(secret=b"another queue's") as near:
                await near.transport_queue(held(), b"another queue's")
                await near.transport_resume(IDS[9])
            async with bench.near() as near:
                await near.transport_queue(held(QUEUE), b"s" * 16)
                assert await near.transport_resume(QUEUE) == 10, "the mark is there"

    run(check())


def test_an_id_is_named_until_the_far_side_has_noted_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "proof")
    for name in IDS[:3]:
        ledger.speaks(Spoken(name, 1))
    assert Ledger(tmp_path, "proof").over({IDS[2]}) == [Spoken(IDS[0], 1), Spoken(IDS[1], 1)]
    assert Ledger(tmp_path, "of another queue").over(()) == []
    ledger.noted([Spoken(IDS[0], 1), Spoken(IDS[9], 1)])
    assert Ledger(tmp_path, "proof").over(()) == [Spoken(IDS[1], 1), Spoken(IDS[2], 1)]
    for damaged in ("{", "[]", '{"proof": "proof"}', '{"proof": "proof", "spoken": [1]}'):
        (tmp_path / spoken.FILE).write_text(damaged)
        assert Ledger(tmp_path, "proof").over(()) == []


def test_the_ledger_is_bounded(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(spoken, "SPOKEN_MAX", 3)
    monkeypatch.setattr(spoken, "NAMED_MAX", 2)
    ledger = Ledger(tmp_path, "proof")
    for name in IDS[:5]:
        ledger.speaks(Spoken(name, 1))
    assert ledger.over(()) == [Spoken(IDS[2], 1), Spoken(IDS[3], 1)]


def test_only_who_owns_an_id_can_say_that_it_is_over(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(identities, "RELEASED_MAX", 1)
    known = Identities(tmp_path / "identities.db")
    assert known.proves(IDS[0], "mine")
    assert known.proves(IDS[1], "mine")
    assert known.proves(IDS[2], "theirs")
    over = [(name, f"{name}/up.1") for name in IDS[:4]]
    assert known.release(over, f"{IDS[5]}/up.1", "stranger") == []
    assert known.release(over, f"{IDS[5]}/up.1", "mine") == [f"{IDS[0]}/up.1"], "of two the older one, and nothing of theirs or of nobody's"
    assert known.release([], f"{IDS[0]}/up.1", "mine") == [], "it came back"
    assert known.release(over[:1], f"{IDS[5]}/up.1", "mine") == [f"{IDS[1]}/up.1"]
    known.forgotten([f"{IDS[1]}/up.1"])
    assert known.release(over[:1], f"{IDS[5]}/up.1", "mine") == []
    known.close()
