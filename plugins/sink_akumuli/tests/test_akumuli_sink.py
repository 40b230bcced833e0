"""The sink against the stand-in: what goes over the wire, what becomes a point, and what is counted instead."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from akumuli_bench import T0_US, at, count, key_of, ns, numbers, one_life, sent, series, sink, store
from akumuli_standin import StandIn

from headrace import Missing, PermanentError, RangeKey, TransientError
from headrace.testing import event_batch, living, run
from headrace.testing.batches import QUEUE_ID

S = 1_000_000  # microseconds in a second


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as server:
        yield server


# --- the wire --------------------------------------------------------------------------------------------------------


def test_points_are_sent_series_by_series_in_order_of_time(server: StandIn, tmp_path: Path) -> None:
    readings: dict[str, list[Any]] = {"t": [1.5, -2.0, None, 1e300], "on": [True, None, False, None]}
    batch = event_batch(4, 1, devices=["even", "odd"], readings=readings, context={"class": ["x"] * 4})
    one_life(sink(server, tmp_path, tags=("class",)), at(batch, [T0_US + us for us in (1, 4, 3, 2)]))
    assert sent(server) == (
        b"+t class=x device=odd\r\n:1795435200000001000\r\n+1.5\r\n"
        b"+t class=x device=even\r\n:1795435200000002000\r\n+1e+300\r\n"
        b"+t class=x device=even\r\n:1795435200000004000\r\n+-2\r\n"
        b"+on class=x device=odd\r\n:1795435200000001000\r\n+1\r\n"
        b"+on class=x device=odd\r\n:1795435200000003000\r\n+0\r\n"
    )


def test_numbers_arrive_to_the_last_bit(server: StandIn, tmp_path: Path) -> None:
    values = [0.1, -0.0, 5e-324, 1.7976931348623157e308, 2.0**53 + 2, 1 / 3, -123456.789, 1e21, 123456789012345680.0, 0.0001, 1e-7]
    one_life(sink(server, tmp_path), numbers(values))
    assert [value.hex() for _, value in server.points()[series()]] == [value.hex() for value in values]


def test_a_flush_returns_when_the_server_has_applied_everything_over_one_connection(server: StandIn, tmp_path: Path) -> None:
    async def work() -> None:
        async with living(sink(server, tmp_path), "output") as hook:
            for first in (1, 5001, 10_001):
                await store(hook, count(5000, first))
                assert len(server.points()[series()]) == first + 4999
                # one that is open, and none that waits to be used; the server may accept it a moment later
                async with asyncio.timeout(30):
                    while server.connections < 2 + first // 5000:  # noqa: ASYNC110  the server is in another thread
                        await asyncio.sleep(0.01)
                assert server.connections == 2 + first // 5000

    run(work())


def test_any_text_reaches_the_server_escaped_and_never_an_apostrophe(server: StandIn, tmp_path: Path) -> None:
    texts = [
        "Bär's",
        "a b",
        "x|y",
        "!e",
        "q\"';drop table",
        "tab\tnew\r\nline",
        "100%",
        "%41",
        "~",
        "",
        "\0",
        "🌊",
        "plain-1_2.3:4/5",
        "a=b,c",
    ]
    batch = event_batch(
        len(texts), 1, devices=texts, readings={text or "_": [1.0] * len(texts) for text in texts}, context={"class": texts}
    )
    one_life(sink(server, tmp_path), batch)
    assert not server.aborted
    assert not server.replies
    assert len(server.points()) == len(texts) ** 2
    names = b"".join(line for line in sent(server).splitlines() if line.startswith(b"+") and b"=" in line)
    assert set(names) <= set(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.:/-%=+ ")


# --- what becomes a point --------------------------------------------------------------------------------------------


def test_points_of_one_microsecond_are_numbered_in_nanoseconds_across_batches(server: StandIn, tmp_path: Path) -> None:
    one_life(sink(server, tmp_path), numbers([1.0, 2.0, 3.0], 1, [7, 7, 8]), numbers([4.0, 5.0], 4, [8, 9]))
    assert server.points()[series()] == [(ns(7), 1.0), (ns(7, 1), 2.0), (ns(8), 3.0), (ns(8, 1), 4.0), (ns(9), 5.0)]


def test_more_points_than_a_microsecond_has_nanoseconds_are_counted(server: StandIn, tmp_path: Path) -> None:
    component = sink(server, tmp_path)
    one_life(component, numbers([float(n) for n in range(1005)], 1, [7] * 1005), numbers([1.0], 1006, [7]), numbers([2.0], 1007, [8]))
    assert [stamp for stamp, _ in server.points()[series()]] == [*range(ns(7), ns(7) + 1000), ns(8)]
    assert component.context.metric("akumuli_refused_points_total", reason="crowded") == 6


def test_late_points_are_counted_and_left_to_the_lake(server: StandIn, tmp_path: Path) -> None:
    component = sink(server, tmp_path)
    one_life(component, numbers([1.0, 3.0, 2.0], 1, [1, 3, 2]), numbers([9.0, 4.0], 4, [1, 4]))
    assert [value for _, value in server.points()[series()]] == [1.0, 2.0, 3.0, 4.0]
    assert component.context.metric("akumuli_late_points_total") == 1
    assert not server.replies


def test_what_is_no_finite_number_is_counted_by_reason(server: StandIn, tmp_path: Path) -> None:
    component = sink(server, tmp_path)
    readings: dict[str, list[Any]] = {
        "x": [float("nan"), float("inf"), -float("inf"), None, 1.0],
        "state": ["on", None, "off", None, None],
        "list": [[1.0], None, None, None, None],
    }
    batch = event_batch(5, 1, devices=["a"], readings=readings)
    one_life(component, batch, at(numbers([1.0, 2.0], 6), [0, -5]))
    assert server.points() == {series("x"): [(ns(5 * S), 1.0)]}
    counted = {
        reason: component.context.metric("akumuli_refused_points_total", reason=reason)
        for reason in ("nonfinite", "string", "type", "time")
    }
    assert counted == {"nonfinite": 3, "string": 2, "type": 1, "time": 2}
    assert component.context.metric("akumuli_points_total") == 1


def test_series_beyond_the_bounds_are_counted_and_the_others_go_on(server: StandIn, tmp_path: Path) -> None:
    component = sink(server, tmp_path, series_max=2)
    devices = ["a", "x" * 2000, "b", "c"]
    one_life(component, event_batch(8, 4, devices=devices, readings={"n": [float(n) for n in range(8)]}))
    assert sorted(server.points()) == [series(device="a"), series(device="b")]
    assert component.context.metric("akumuli_refused_points_total", reason="name") == 2
    assert component.context.metric("akumuli_refused_points_total", reason="series_max") == 2
    assert component.context.metric("akumuli_series") == 2


def test_tags_are_those_of_the_first_event_for_good(server: StandIn, tmp_path: Path) -> None:
    one_life(sink(server, tmp_path), count(2, site="north"))
    one_life(
        sink(server, tmp_path), count(2, 3, site="south"), event_batch(1, 5, devices=["b"], readings={"n": [1.0]}, context={"site": [7.0]})
    )
    points = server.points()
    assert [len(points[name]) for name in (series(site="north"), series(device="b", site="7"))] == [4, 1]
    assert len(points) == 2


def test_a_series_is_durable_before_its_first_point_is_sent(server: StandIn, tmp_path: Path) -> None:
    async def killed() -> None:
        async with living(sink(server, tmp_path, faults="sink_akumuli.after_send=error"), "output") as hook:
            await hook.sink_write(batch=count(2, site="north"), key=key_of(count(2)))

    with pytest.raises(Exception, match="after_send"):
        run(killed())
    one_life(sink(server, tmp_path), count(2, site="south"))
    assert list(server.points()) == [series(site="north")]


# --- positions -------------------------------------------------------------------------------------------------------


def test_resume_is_the_last_flush_and_what_comes_again_is_left_out(server: StandIn, tmp_path: Path) -> None:
    async def work() -> None:
        component = sink(server, tmp_path)
        async with living(component, "output") as hook:
            assert await hook.sink_resume(queue_id=QUEUE_ID) is None
            await store(hook, count(10))
            await hook.sink_write(batch=count(5, 11), key=key_of(count(5, 11)))
            await hook.sink_reset()
            assert await hook.sink_resume(queue_id=QUEUE_ID) == 10
            await store(hook, count(3, 9), count(6, 12))
            assert await hook.sink_resume(queue_id=QUEUE_ID) == 17
            assert component.context.metric("akumuli_points_total") == 12
            assert component.context.metric("akumuli_held_points_total") == 5

    run(work())
    assert [value for _, value in server.points()[series()]] == [float(n) for n in range(1, 18)]


def test_positions_that_the_queue_could_not_give_are_told_as_a_range_to_rebuild(server: StandIn, tmp_path: Path) -> None:
    component = sink(server, tmp_path)

    async def work() -> None:
        async with living(component, "output") as hook:
            await store(hook, count(10))
            key = RangeKey(QUEUE_ID, 11, 60, (Missing(11, 20, "window"), Missing(30, 34, "corrupt")))
            kept = event_batch(35, positions=[*range(21, 30), *range(35, 61)], devices=["a"], readings={"n": [1.0] * 35})
            await hook.sink_write(batch=kept, key=key)
            await hook.sink_flush(key=key)

    run(work())
    # what no lake has either is not to be rebuilt
    assert component.context.metric("akumuli_rebuild_positions") == 10
    again = sink(server, tmp_path)
    one_life(again, count(1, 61))
    assert again.context.metric("akumuli_rebuild_positions") == 10


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_server_that_is_down_is_a_transient_error_and_a_status(server: StandIn, tmp_path: Path) -> None:
    server.stop()
    component = sink(server, tmp_path)

    async def work() -> None:
        async with living(component, "output") as hook:
            with pytest.raises(TransientError, match="no Akumuli at 127"):
                await hook.sink_resume(queue_id=QUEUE_ID)
            assert component.context.statuses[-1][0] == "degraded"
            server.start()
            await store(hook, count(3))
            assert component.context.statuses[-1] == ("ok", "")

    run(work())
    assert server.count() == 3


def test_a_late_write_of_another_writer_leads_to_a_resync_and_no_loop(server: StandIn, tmp_path: Path) -> None:
    component = sink(server, tmp_path)

    async def work() -> None:
        async with living(component, "output") as hook:
            await store(hook, count(3))
            server.series[series()].points.append((ns(5 * S), 0.5))
            server.series[series()].guard = ns(5 * S)
            with pytest.raises(TransientError, match="late write"):
                await store(hook, count(4, 4))
            await hook.sink_reset()
            assert await hook.sink_resume(queue_id=QUEUE_ID) == 3
            await store(hook, count(4, 4))

    run(work())
    assert [value for _, value in server.points()[series()]] == [1.0, 2.0, 3.0, 0.5, 6.0, 7.0]
    assert server.replies == ["DB late write"] * 2  # the offending point, and the guard, as it should be
    assert component.context.metric("akumuli_resyncs_total", reason="late") == 1
    assert component.context.metric("akumuli_held_points_total") == 2


def test_what_the_server_always_refuses_is_permanent_after_three_tries(server: StandIn, tmp_path: Path) -> None:
    component = sink(server, tmp_path)
    server.refuse = series().encode()

    async def work() -> None:
        async with living(component, "output") as hook:
            for expected in (TransientError, TransientError, PermanentError):
                with pytest.raises(expected, match="PARSER"):
                    await store(hook, count(3))
                await hook.sink_reset()
                assert await hook.sink_resume(queue_id=QUEUE_ID) is None

    run(work())


def test_a_server_that_was_killed_and_started_once_is_not_written_to(server: StandIn, tmp_path: Path) -> None:
    component = sink(server, tmp_path)

    async def work() -> None:
        async with living(component, "output") as hook:
            await store(hook, count(500))
            server.kill()
            server.start(two_phase=False)
            for _ in range(2):  # asking must not make it look repaired
                with pytest.raises(TransientError, match="two phases"):
                    await hook.sink_resume(queue_id=QUEUE_ID)
            before = server.points()
            server.stop()
            server.start()
            assert await hook.sink_resume(queue_id=QUEUE_ID) == 0
            assert server.points() == before
            await store(hook, count(500))

    run(work())
    assert [value for _, value in server.points()[series()]] == [float(n) for n in range(1, 501)]
