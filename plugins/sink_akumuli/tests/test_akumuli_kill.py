"""The server is killed in mid-ingest and loses of each series its tail; headrace is killed; nothing is missing and nothing double."""

from __future__ import annotations

import random
from pathlib import Path

from akumuli_bench import sink
from akumuli_queue import events, expected, feed
from akumuli_standin import StandIn

from headrace.testing import run
from headrace.testing.crash import rounds, test_seed

DEVICES = 7


def stored(server: StandIn) -> dict[tuple[str, str], list[float]]:
    """By reading and device the values, in the order in which the server has them; the times must grow strictly."""
    found = {}
    for name, points in server.points().items():
        times = [stamp for stamp, _ in points]
        assert times == sorted(set(times)), f"{name}: out of order, or double"
        metric, *tags = name.split(" ")
        found[metric, dict(tag.split("=") for tag in tags)["device"]] = [value for _, value in points]
    return found


def test_a_killed_server_has_every_point_once_and_in_order(tmp_path: Path) -> None:
    seed = test_seed()
    rng = random.Random(seed)
    goal = 12_000
    with StandIn() as server:
        kills = 0
        planned = rounds(6)

        def plan() -> None:
            server.kill_at = len(server.received) + rng.randint(1, 700_000) if kills < planned else None

        async def revive() -> None:
            nonlocal kills
            if not server.running:
                kills += 1
                plan()
                server.start()

        plan()
        run(feed(lambda: sink(server, tmp_path), goal, DEVICES, rng, revive))
        assert stored(server) == expected(goal, DEVICES), f"seed {seed}, {kills} kills"
        assert kills >= 2
        server.stop()
        server.start()
        assert stored(server) == expected(goal, DEVICES), "after a clean restart"


def test_what_was_safe_when_the_server_started_is_not_sent_again(tmp_path: Path) -> None:
    rng = random.Random(1)

    async def nothing() -> None:
        if not server.running:
            server.start()

    with StandIn() as server:
        run(feed(lambda: sink(server, tmp_path), 3000, DEVICES, rng, nothing))
        server.stop()
        server.start()
        # the queue has released what was flushed
        run(feed(lambda: sink(server, tmp_path), 6000, DEVICES, rng, nothing, oldest=3001))
        server.kill()
        server.start()
        run(feed(lambda: sink(server, tmp_path), 9000, DEVICES, rng, nothing, oldest=3001))
        assert stored(server) == expected(9000, DEVICES)


def test_a_series_whose_volume_was_recycled_is_not_taken_for_lost(tmp_path: Path) -> None:
    rng = random.Random(2)

    async def nothing() -> None:
        raise AssertionError("the server was not killed")

    with StandIn() as server:
        run(feed(lambda: sink(server, tmp_path), 3000, DEVICES, rng, nothing))
        server.stop()
        server.start()
        run(feed(lambda: sink(server, tmp_path), 4000, DEVICES, rng, nothing, oldest=3001))
        for name in list(server.points("rare")):
            del server.series[name]
        component = sink(server, tmp_path)
        run(feed(lambda: component, 4001, DEVICES, rng, nothing, oldest=4001))
        assert component.context.metric("akumuli_lost_series_total") == sum(
            1 for (reading, _), values in expected(4000, DEVICES).items() if reading == "rare" and values[-1] > 3000 / 4
        )


def test_a_lost_state_folder_is_made_again_from_the_server(tmp_path: Path) -> None:
    rng = random.Random(3)

    async def nothing() -> None:
        raise AssertionError("the server was not killed")

    with StandIn() as server:
        run(feed(lambda: sink(server, tmp_path / "one"), 5000, DEVICES, rng, nothing))
        run(feed(lambda: sink(server, tmp_path / "two"), 7000, DEVICES, rng, nothing))
        assert stored(server) == expected(7000, DEVICES)


def test_a_database_that_was_emptied_is_told_and_filled_from_the_last_safe_point(tmp_path: Path) -> None:
    rng = random.Random(4)

    async def nothing() -> None:
        raise AssertionError("the server was not killed")

    with StandIn() as server:
        run(feed(lambda: sink(server, tmp_path), 3000, DEVICES, rng, nothing))
        server.stop()
        server.start()
        run(feed(lambda: sink(server, tmp_path), 3500, DEVICES, rng, nothing))
        server.stop()
        server.series.clear()
        server.start()
        component = sink(server, tmp_path)
        run(feed(lambda: component, 4000, DEVICES, rng, nothing))
        assert component.context.metric("akumuli_rebuild_positions") == 3000
        assert min(values[0] for (reading, _), values in stored(server).items() if reading == "n") == 3001.0
        assert events(1, 1, DEVICES).num_rows == 1
