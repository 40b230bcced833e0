"""The live page in a real browser: devices appear and move, filters work, and a restarted server is found again."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from headrace import EVENT_COLUMNS, TIMESTAMP, RangeKey
from headrace.component import SystemClock
from headrace.testing import fake_context, living
from headrace_live_ws import LiveWs

pytestmark = pytest.mark.browser

Chromium = Callable[[], AbstractAsyncContextManager[Any]]
CLASSES = ("thermostat", "meter", "pump")
SITES = ("harbour", "mill", "north field")


class Site:
    """A LiveWs fed with a made-up fleet. `listen` may name the port of one that ended."""

    def __init__(self, live: LiveWs) -> None:
        self.live = live
        self.position = 0

    async def write(self, count: int, value: float = 20.0, names: Sequence[str] = ()) -> None:
        """One event of each of `count` devices (or of the named ones), received now."""
        devices = list(names) or [f"device-{index:04}" for index in range(count)]
        rows = range(len(devices))
        first = self.position + 1
        self.position += len(devices)
        now = pa.array([int(time.time() * 1e6)] * len(devices), TIMESTAMP)
        columns = [
            pa.array(devices),
            now,
            now,
            pa.array([{"temperature": value + index % 7, "running": index % 2 == 0, "note": "ok"} for index in rows]),
            pa.array([{"class": CLASSES[index % 3], "type": f"type {index % 2}", "site": SITES[index // 3 % 3]} for index in rows]),
            pa.array(["queue"] * len(devices)).dictionary_encode(),
            pa.array(range(first, self.position + 1), pa.uint64()),
        ]
        batch = pa.RecordBatch.from_arrays(columns, names=list(EVENT_COLUMNS))
        await self.live.sink_write(batch, RangeKey("queue", first, self.position))

    @contextlib.asynccontextmanager
    async def beating(self, count: int, period_s: float = 0.05) -> AsyncIterator[None]:
        """Write the whole fleet again and again, with values that move."""

        async def beat() -> None:
            while True:
                await self.write(count, random.uniform(10, 30))
                await asyncio.sleep(period_s)

        beats = asyncio.create_task(beat())
        try:
            yield
        finally:
            beats.cancel()


@contextlib.asynccontextmanager
async def serving(folder: Path, listen: str = "127.0.0.1:0") -> AsyncIterator[Site]:
    """An open and running LiveWs; drained and closed at the end, as the host does."""
    live = LiveWs(msgspec.convert({"listen": listen}, LiveWs.Config), fake_context(folder, clock=SystemClock()))
    async with living(live, "output"):
        yield Site(live)


def choose(name: str, value: str) -> str:
    """JavaScript that does what a person does who gives a filter a value."""
    return f"""{{
        const input = document.querySelector('[name={name}]');
        input.value = '{value}';
        input.dispatchEvent(new Event('input', {{bubbles: true}}));
    }}"""


CARDS = "document.querySelectorAll('.card').length"


def test_page_shows_the_devices_by_site_and_their_numbers_move(chromium: Chromium, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as site, chromium() as page:
            await site.write(30)  # before anybody looks: the snapshot brings it
            await page.open(site.live.url)
            await page.wait_for(f"{CARDS} === 30")
            assert await page.evaluate("[...document.querySelectorAll('h2')].map((h) => h.firstChild.textContent)") == list(SITES)
            await page.wait_for("document.getElementById('state').dataset.phase === 'live'")
            value = "document.querySelector('.card dd').textContent"
            before = await page.evaluate(value)
            async with site.beating(30):
                await page.wait_for(f"{value} !== {before!r}")
                await page.wait_for("parseFloat(document.getElementById('rate').textContent) > 100")
                await page.wait_for("/ (ms|s)$/.test(document.getElementById('delay').textContent)")
            assert await page.evaluate("document.getElementById('devices').textContent") == "30"
            drawn = "[...document.querySelector('.spark').getContext('2d').getImageData(0, 0, 200, 34).data].some((byte) => byte > 0)"
            assert await page.evaluate(drawn)
            assert page.problems == []

    asyncio.run(scenario())


def test_filters_of_the_page_change_what_is_followed_and_stay_in_the_address(chromium: Chromium, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as site, chromium() as page:
            await page.open(site.live.url)
            async with site.beating(30):
                await page.wait_for(f"{CARDS} === 30 && document.querySelector('[name=class]').options.length === 4")
                await page.evaluate(choose("class", "pump"))
                await page.wait_for(f"{CARDS} === 10")
                kinds = "[...document.querySelectorAll('.card .kind')].every((kind) => kind.textContent.startsWith('pump'))"
                await page.wait_for(kinds)
                await page.evaluate(choose("device", "*-000*"))
                await page.wait_for(f"{CARDS} === 3")
                await page.open(await page.evaluate("location.href"))
                await page.wait_for(f"{CARDS} === 3 && document.querySelector('[name=class]').value === 'pump'")
                await page.evaluate("document.querySelector('[type=reset]').click()")
                await page.wait_for(f"{CARDS} === 30 && location.search === ''")
            assert page.problems == []

    asyncio.run(scenario())


def test_page_finds_a_restarted_server_again_and_keeps_what_it_showed(chromium: Chromium, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with chromium() as page:
            async with serving(tmp_path) as site:
                listen = site.live.url.removeprefix("http://")
                await page.open(site.live.url)
                async with site.beating(9):
                    await page.wait_for(f"{CARDS} === 9")
            await page.wait_for("document.getElementById('state').dataset.phase === 'waiting'")
            assert "not connected" in await page.evaluate("document.getElementById('state-text').textContent")
            assert await page.evaluate(CARDS) == 9
            async with serving(tmp_path, listen) as site:
                await page.wait_for("document.getElementById('state').dataset.phase === 'live'")
                await site.write(1, 77.0)
                await page.wait_for("document.querySelector('.card dd').textContent === '77'")
                assert await page.evaluate(CARDS) == 9
                async with site.beating(12):
                    await page.wait_for(f"{CARDS} === 12")
                assert "Connected again after" in await page.evaluate("document.getElementById('notices').textContent")

    asyncio.run(scenario())


def test_what_devices_send_is_shown_as_text_and_never_as_markup(chromium: Chromium, tmp_path: Path) -> None:
    name = "<img src=x onerror=\"document.title='owned'\"><b>漢 & 🌊"

    async def scenario() -> None:
        async with serving(tmp_path) as site, chromium() as page:
            await site.write(1, names=[name])
            await page.open(site.live.url)
            await page.wait_for(f"{CARDS} === 1")
            assert await page.evaluate("document.querySelector('.card h3').textContent") == name
            assert await page.evaluate("document.querySelectorAll('.card img, .card b').length") == 0
            assert await page.evaluate("document.title") == "headrace live"
            assert page.problems == []

    asyncio.run(scenario())


def test_page_fits_a_phone_and_names_all_its_controls(chromium: Chromium, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as site, chromium() as page:
            await page.resize(360, 740)
            await site.write(12, names=[f"a-device-with-quite-a-long-name-{index}" * 2 for index in range(12)])
            await page.open(site.live.url)
            await page.wait_for(f"{CARDS} === 12")
            assert await page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            tree = await page.send("Accessibility.getFullAXTree")
            roles = {"combobox", "searchbox", "button", "log", "status", "image", "heading"}
            nodes = [node for node in tree["nodes"] if not node["ignored"] and node["role"]["value"] in roles]
            nameless = [node["role"]["value"] for node in nodes if not node.get("name", {}).get("value")]
            assert nameless == []
            assert {node["role"]["value"] for node in nodes} >= roles - {"log"}

    asyncio.run(scenario())
