"""Outputs that publish, and tiers whose outputs hold nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from headrace import NO_ORIGINS, Component, TransientError, hookimpl
from headrace.component import SystemClock
from headrace.engine.buffer import Buffer
from headrace.engine.output_publishing import PublishingOutput
from headrace.engine.pipeline_thread import _kind_of, check_driven
from headrace.errors import ConfigError
from headrace.plugins import ComponentPlugins
from headrace.testing import event_batch, fake_context, raw_batch


class Feed(Component):
    published: list[tuple[str, list[float]]]
    refuse: int

    def __init_subclass__(cls) -> None:
        cls.published, cls.refuse = [], 0

    @hookimpl
    async def transport_publish(self, batch: pa.RecordBatch, topic: str) -> None:
        cls = type(self)
        if cls.refuse:
            cls.refuse -= 1
            raise TransientError("not now")
        cls.published.append((topic, [row["n"] for row in batch.column("readings").to_pylist()]))


def feed_class() -> type[Feed]:
    class Live(Feed):
        pass

    return Live


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not reached():  # noqa: ASYNC110  the engine has no event for it
            await asyncio.sleep(0.001)


async def publish(bench: Any, feed: type[Feed], sizes: list[int], **keys: Any) -> None:
    bench.buffer = Buffer("t", SystemClock(), holding=False)
    pipeline = bench.pipeline()
    async with bench.running(pipeline) as tasks:
        (output,) = bench.outputs(pipeline, [(PublishingOutput, bench.unit(feed, hold="none", **keys))])
        running = asyncio.ensure_future(output.run())
        await output.unit.is_open()
        await until(lambda: output.activity[0] == "idle")
        for size in sizes:
            before = len(feed.published), feed.refuse
            await bench.feed(tasks, [size])
            await until(lambda: (len(feed.published), feed.refuse) != before)  # noqa: B023
        output.drain()
        await running


def test_hook_transport_publish(bench: Any) -> None:
    feed = feed_class()
    asyncio.run(publish(bench, feed, [2, 3], topic="{device}"))
    assert feed.published == [("d1", [1.0]), ("d2", [2.0]), ("d0", [3.0]), ("d1", [4.0]), ("d2", [5.0])], "decoded, and split by topic"
    labels = {"tier": "t", "component": "live", "plugin": "Live"}
    assert bench.counted("sink_written_events_total", **labels) == 5


def test_what_a_publisher_fails_on_is_counted_and_gone(bench: Any) -> None:
    feed = feed_class()
    feed.refuse = 1
    asyncio.run(publish(bench, feed, [2, 3], topic="all"))
    assert feed.published == [("all", [3.0, 4.0, 5.0])]
    labels = {"tier": "t", "component": "live", "plugin": "Live"}
    assert bench.counted("output_missing_events_total", **labels, reason="failed") == 2


def test_a_reader_behind_what_a_buffer_has_given_up_gets_it_as_missing() -> None:
    async def scenario() -> None:
        buffer = Buffer("t", SystemClock(), holding=False)
        for first in (1, 6):
            await buffer.queue_append(raw_batch(5, first), NO_ORIGINS)
        await buffer.queue_release("(nobody)", 5)
        read = await buffer.queue_read("live", 2, 100, 1 << 20)
        assert [(hole.first, hole.last) for hole in read.missing] == [(3, 5)]
        await buffer.queue_release("(nobody)", 10)
        read = await buffer.queue_read("live", 5, 100, 1 << 20)
        assert [(hole.first, hole.last, hole.reason) for hole in read.missing] == [(6, 10, "released")]
        assert read.batch is None

    asyncio.run(scenario())


def test_events_pass_a_buffer_and_decode_as_they_are(bench: Any) -> None:
    feed = feed_class()

    async def scenario() -> None:
        bench.buffer = Buffer("t", SystemClock(), holding=False)
        pipeline = bench.pipeline()
        async with bench.running(pipeline):
            batch = event_batch(6, 1000, context={"class": ["pump", "door"] * 3})
            await bench.buffer.queue_append(batch, NO_ORIGINS)
            events = await pipeline.after("live", 0)
            assert events.batch.equals(batch), "with the names that they have already"

    asyncio.run(scenario())
    assert feed.published == []


class Either(Feed):
    """A class that is a link or a publisher, by its config."""

    class Config(Component.Config, frozen=True, kw_only=True):
        publish: bool = True

    @classmethod
    def hooks_for(cls, config: Any) -> frozenset[str] | None:
        return frozenset({"transport_publish"} if config.publish else {"transport_send", "transport_resume"})

    @hookimpl
    async def transport_send(self, batch: Any, origins: Any, key: Any) -> None: ...

    @hookimpl
    async def transport_resume(self, queue_id: str) -> int | None: ...


def test_a_class_that_can_be_several_things_is_driven_by_what_its_config_says(bench: Any, tmp_path: Any) -> None:
    unit = bench.unit(Either, hold="none")
    check_driven(unit)
    assert _kind_of(unit) is PublishingOutput
    assert unit.entry.hooks == {"transport_publish"}
    link = ComponentPlugins(Either(Either.Config(publish=False), fake_context(tmp_path)), "output", "either")
    assert link.has("transport_send")
    assert not link.has("transport_publish")


def test_a_link_still_needs_to_hold(bench: Any) -> None:
    class Link(Either):
        @classmethod
        def hooks_for(cls, config: Any) -> frozenset[str] | None:
            return frozenset({"transport_send", "transport_resume"})

    with pytest.raises(ConfigError, match="a link resumes"):
        check_driven(bench.unit(Link, hold="none"))
