"""Against a real akumulid, where there is one on the PATH: killed in mid-ingest, and started in two phases."""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path

import pytest
from akumuli_bench import count, numbers, one_life, series, sink, store
from akumuli_queue import expected, feed
from akumuli_real import Akumulid
from test_akumuli_lake import DEVICES as LAKE_DEVICES
from test_akumuli_lake import lake_holds, nothing
from test_akumuli_rebuild import site_of

from headrace import TransientError
from headrace.cli import main
from headrace.testing import living, run
from headrace.testing.batches import QUEUE_ID
from headrace.testing.crash import rounds, test_seed
from headrace_sink_akumuli import SinkAkumuli
from headrace_sink_akumuli.guard import SERIES

pytestmark = pytest.mark.skipif(shutil.which("akumulid") is None, reason="no akumulid on the PATH")

DEVICES = 100
KILLS = 4


def stored(server: Akumulid) -> dict[tuple[str, str], list[float]]:
    """By reading and device the values, as the server has them; the times must grow strictly."""
    found = {}
    for reading in ("n", "rare"):
        for name, points in server.points(reading).items():
            times = [stamp for stamp, _ in points]
            assert times == sorted(set(times)), f"{name}: out of order, or double"
            found[reading, dict(tag.split("=") for tag in name.split(" ")[1:])["device"]] = [value for _, value in points]
    return found


async def reached(component: SinkAkumuli, points: float) -> None:
    """Until so many points were applied."""
    async with asyncio.timeout(120):
        while (component.context.metric("akumuli_points_total") or 0) < points:  # noqa: ASYNC110  a metric has no event
            await asyncio.sleep(0.005)


def test_four_kills_in_mid_ingest_leave_every_point_once_and_in_order(tmp_path: Path) -> None:
    seed = test_seed()
    rng = random.Random(seed)
    kills, goal = rounds(KILLS), 400_000
    done = 0

    async def work() -> None:
        nonlocal done
        component = sink(server, tmp_path, timeout_s=30.0)

        async def revive() -> None:
            if not server.running:
                await asyncio.to_thread(server.start)

        async def killer() -> None:
            nonlocal done
            for number in range(kills):
                await reached(component, goal * (number + 0.5) / (kills + 1))
                await asyncio.sleep(rng.random() * 0.05)
                if server.running:
                    await asyncio.to_thread(server.kill)
                    done += 1

        killing = asyncio.create_task(killer())
        await feed(lambda: component, goal, DEVICES, rng, revive)
        await killing
        # one may have come behind the last flush
        await revive()
        await feed(lambda: sink(server, tmp_path), goal, DEVICES, rng, revive)

    with Akumulid(tmp_path / "akumuli") as server:
        run(work(), timeout_s=240)
        assert done >= kills - 1
        assert stored(server) == expected(goal, DEVICES), f"seed {seed}"
        assert server.stop() == 0
        server.start()
        assert stored(server) == expected(goal, DEVICES), "after a clean restart"


def test_series_that_a_kill_left_in_name_only_are_made_good(tmp_path: Path) -> None:
    """The server notes names and where their points are in two steps. In between it may be killed; here that is done by hand."""
    rng = random.Random(1)
    with Akumulid(tmp_path / "akumuli") as server:
        component = sink(server, tmp_path)
        run(feed(lambda: component, 20_000, 10, rng, nothing))
        server.kill()
        assert server.forget_where_points_are() > 0
        server.start()
        again = sink(server, tmp_path)
        run(feed(lambda: again, 30_000, 10, rng, nothing))
        assert stored(server) == expected(30_000, 10)


def test_a_rebuild_and_a_kill_right_behind_it_are_made_good_from_the_lake(tmp_path: Path) -> None:
    lake_holds(tmp_path, 1, 20_000, roll=5000)
    with Akumulid(tmp_path / "akumuli") as server:
        site = site_of(server, tmp_path)
        assert main(["akumuli", "rebuild", site]) == 0
        assert stored(server) == expected(20_000, LAKE_DEVICES)
        server.kill()
        server.start()
        assert stored(server) != expected(20_000, LAKE_DEVICES)
        (tmp_path / "data" / "akumuli").rename(tmp_path / "data" / "data")  # where `sink` has its files
        component = sink(server, tmp_path / "data", lake=str(tmp_path / "lake"))
        run(feed(lambda: component, 22_000, LAKE_DEVICES, random.Random(1), nothing, oldest=20_001))
        assert stored(server) == expected(22_000, LAKE_DEVICES)


def test_a_server_that_was_started_once_after_a_kill_is_not_written_to(tmp_path: Path) -> None:
    component = sink(server := Akumulid(tmp_path / "akumuli"), tmp_path)

    async def work() -> None:
        async with living(component, "output") as hook:
            await store(hook, count(5000))
            last = 5000
            while server.series_with_leaves() < SERIES:  # it often notes them with the next connection that ends
                last += 1
                await store(hook, count(1, last))
            server.kill()
            server.start_once()
            for _ in range(2):
                with pytest.raises(TransientError, match="two phases"):
                    await hook.sink_resume(queue_id=QUEUE_ID)
            server.kill()
            server.start()
            held = await hook.sink_resume(queue_id=QUEUE_ID)
            assert held == 0
            await store(hook, count(last))
            assert [value for _, value in server.points("n")[series()]] == [float(n) for n in range(1, last + 1)]

    with server:
        run(work())


def test_escaped_names_and_numbers_come_back_as_they_were(tmp_path: Path) -> None:
    values = [0.1, -0.0, 5e-324, 1.7976931348623157e308, 1 / 3, -123456.789, 1e21, 0.0001, 1e-7, 2.0**53]
    with Akumulid(tmp_path / "akumuli") as server:
        one_life(sink(server, tmp_path), numbers(values, site='Bär\'s | "1"; drop, 100% = x'))
        (name,) = server.points("n")
        assert name == series(site="B%C3%A4r%27s%20%7C%20%221%22%3B%20drop%2C%20100%25%20%3D%20x")
        assert [value for _, value in server.points("n")[name]] == values
