"""What the queue no longer has is read from the lake: after a kill of the server, and behind the window."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
from akumuli_bench import sink
from akumuli_queue import events, expected, feed
from akumuli_standin import StandIn
from test_akumuli_kill import stored

from headrace import Missing, RangeKey, TransientError
from headrace.testing import fake_context, living, run
from headrace.testing.batches import QUEUE_ID
from headrace_sink_akumuli.lake import Span, windows
from headrace_sink_lake import LakeConfig, SinkLake

DEVICES = 7


def lake_holds(folder: Path, first: int, last: int, roll: int = 700) -> str:
    """A lake that has these positions, in rolls; its path."""
    path = str(folder / "lake")

    async def work() -> None:
        async with living(SinkLake(LakeConfig(path=path, partition_by=("date",)), fake_context(folder / "lake-data")), "output") as hook:
            for begin in range(first, last + 1, roll):
                end = min(last, begin + roll - 1)
                key = RangeKey(QUEUE_ID, begin, end)
                await hook.sink_write(batch=events(begin, end, DEVICES), key=key)
                await hook.sink_flush(key=key)

    run(work())
    return path


async def nothing() -> None:
    raise AssertionError("nothing was expected to fail")


def test_after_a_kill_what_the_queue_has_released_comes_from_the_lake(tmp_path: Path) -> None:
    rng = random.Random(1)
    lake = lake_holds(tmp_path, 1, 5000)
    with StandIn() as server:
        run(feed(lambda: sink(server, tmp_path), 4800, DEVICES, rng, nothing))
        server.kill()
        server.start()
        assert server.count() < 4800
        component = sink(server, tmp_path, lake=lake)
        # of what the lake has the queue has nothing any more; it begins where the output had come to
        run(feed(lambda: component, 7000, DEVICES, rng, nothing, oldest=4801))
        assert stored(server) == expected(7000, DEVICES)
        assert component.context.metric("akumuli_rebuild_positions") == 0


def test_positions_behind_the_window_come_from_the_lake(tmp_path: Path) -> None:
    lake = lake_holds(tmp_path, 1, 3000)
    with StandIn() as server:
        component = sink(server, tmp_path, lake=lake)

        async def work() -> None:
            async with living(component, "output") as hook:
                key = RangeKey(QUEUE_ID, 1, 1000)
                await hook.sink_write(batch=events(1, 1000, DEVICES), key=key)
                await hook.sink_flush(key=key)
                gone = RangeKey(QUEUE_ID, 1001, 2500, (Missing(1001, 2500, "window"),))
                with pytest.raises(TransientError, match="looked for in the lake"):
                    await hook.sink_write(batch=events(1, 1, DEVICES).slice(0, 0), key=gone)
                await hook.sink_reset()
                assert await hook.sink_resume(queue_id=QUEUE_ID) == 3000
                key = RangeKey(QUEUE_ID, 3001, 3500)
                await hook.sink_write(batch=events(3001, 3500, DEVICES), key=key)
                await hook.sink_flush(key=key)

        run(work())
        assert stored(server) == expected(3500, DEVICES)
        assert component.context.metric("akumuli_rebuild_positions") == 0


def test_what_the_lake_does_not_have_either_is_told_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = lake_holds(tmp_path, 1, 1000)
    monkeypatch.setattr("headrace_sink_akumuli.sink.LAKE_TRIES_MAX", 2)
    with StandIn() as server:
        component = sink(server, tmp_path, lake=lake)

        async def work() -> None:
            async with living(component, "output") as hook:
                key = RangeKey(QUEUE_ID, 1, 1000)
                await hook.sink_write(batch=events(1, 1000, DEVICES), key=key)
                await hook.sink_flush(key=key)
                gone = RangeKey(QUEUE_ID, 1001, 1500, (Missing(1001, 1500, "window"),))
                for _ in range(2):
                    with pytest.raises(TransientError, match="1001 to 1500 are looked for in the lake"):
                        await hook.sink_write(batch=events(1, 1, DEVICES).slice(0, 0), key=gone)
                    await hook.sink_reset()
                    assert await hook.sink_resume(queue_id=QUEUE_ID) == 1000
                await hook.sink_write(batch=events(1, 1, DEVICES).slice(0, 0), key=gone)
                await hook.sink_flush(key=gone)

        run(work())
        assert component.context.metric("akumuli_rebuild_positions") == 500


def test_a_long_filling_goes_on_where_it_was_and_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(2)
    lake = lake_holds(tmp_path, 1, 5000)
    monkeypatch.setattr("headrace_sink_akumuli.link.FILL_S", 0.0)
    monkeypatch.setattr("headrace_sink_akumuli.filling.WINDOW_ROWS", 800)
    with StandIn() as server:
        run(feed(lambda: sink(server, tmp_path), 5000, DEVICES, rng, nothing))
        server.kill()
        server.start()
        component = sink(server, tmp_path, lake=lake)

        async def go_on() -> None:
            return None

        run(feed(lambda: component, 5500, DEVICES, rng, go_on, oldest=5001))
        assert stored(server) == expected(5500, DEVICES)
        told = [reason for status, reason in component.context.statuses if "sent again from the lake" in reason]
        assert len(told) > 3
        assert component.context.metric("akumuli_resyncs_total", reason="connect") == 1


def test_windows_cover_every_span_and_hold_about_so_many_rows() -> None:
    spans = [Span("a", 0, 1000, 0, 999), Span("b", 0, 10, 500, 100_000), Span("c", 0, 5000, 7, 7)]
    planned = windows(spans, 600)
    assert planned[0][0] == 0
    assert planned[-1][1] == 100_000
    assert all(one[1] + 1 == other[0] for one, other in itertools.pairwise(planned))
    # one microsecond cannot be divided
    assert [rows for first, last, rows in planned if rows > 600] == [5001]
    assert sum(rows for _, _, rows in planned) == pytest.approx(6010, abs=5)
