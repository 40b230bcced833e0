"""A headless Chromium, driven through its own DevTools protocol: one WebSocket, no driver package."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
)
WAIT_S = 30


class ProtocolError(Exception):
    """The browser refused a call, for example because the page that it was for is gone."""


class Page:
    """One tab: evaluate, wait, resize, take a picture. `problems` collects exceptions, errors and policy violations."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._last = 0
        self._session: str | None = None
        self.problems: list[str] = []

    async def listen(self) -> None:
        """Hand out answers until the browser ends."""
        async for message in self._socket:
            document = json.loads(message.data)
            if "id" in document:
                answer = self._answers.pop(document["id"])
                if not answer.done():  # nobody waits any more
                    answer.set_result(document)
            elif document["method"] == "Runtime.exceptionThrown":
                self.problems.append(json.dumps(document["params"]["exceptionDetails"]))
            elif document["method"] == "Log.entryAdded" and document["params"]["entry"]["level"] == "error":
                self.problems.append(document["params"]["entry"]["text"])

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._last += 1
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[self._last] = answer
        message = {"id": self._last, "method": method, "params": parameters}
        await self._socket.send_json(message if self._session is None else {**message, "sessionId": self._session})
        async with asyncio.timeout(WAIT_S):
            document = await answer
        if "error" in document:
            raise ProtocolError(f"{method}: {document['error']}")
        result: dict[str, Any] = document["result"]
        return result

    async def open_tab(self) -> None:
        """Make a tab and speak to it from now on."""
        target = await self.send("Target.createTarget", url="about:blank")
        attached = await self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            await self.send(f"{domain}.enable")

    async def open(self, url: str) -> None:
        """Go to an address; the page of before is gone on return."""
        await self.evaluate("window.before = true")
        await self.send("Page.navigate", url=url)
        await self.wait_for("!window.before")

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        answer = await self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def wait_for(self, condition: str) -> None:
        """Return when a JavaScript condition holds. While a page loads, what it speaks of need not be there yet."""
        try:
            async with asyncio.timeout(WAIT_S):
                while True:
                    if await self._holds(condition):
                        return
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            text = await self.evaluate("document.body.innerText")
            raise AssertionError(f"never true: {condition}\nproblems: {self.problems}\nthe page says:\n{text[:2000]}") from error

    async def _holds(self, condition: str) -> bool:
        try:
            return bool(await self.evaluate(f"(() => {{ try {{ return Boolean({condition}); }} catch {{ return false; }} }})()"))
        except ProtocolError:
            return False  # asked between two pages

    async def resize(self, width: int, height: int, *, dark: bool = False, scale: float = 1) -> None:
        """Set the window's size in CSS pixels, and the preferred colours."""
        await self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=width < 700)
        await self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    async def picture(self) -> bytes:
        """What is in the window, as PNG."""
        answer = await self.send("Page.captureScreenshot", format="png")
        return base64.b64decode(answer["data"])


@contextlib.asynccontextmanager
async def browse(profile: Path) -> AsyncIterator[Page]:
    """A fresh browser with one empty tab."""
    assert CHROMIUM is not None
    process = await asyncio.create_subprocess_exec(
        CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        port, path = await devtools(profile / "DevToolsActivePort", process)
        async with aiohttp.ClientSession() as session, session.ws_connect(f"ws://127.0.0.1:{port}{path}", max_msg_size=0) as socket:
            page = Page(socket)
            listening = asyncio.create_task(page.listen())
            await page.open_tab()
            yield page
            listening.cancel()
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def devtools(file: Path, process: asyncio.subprocess.Process) -> tuple[str, str]:
    """Port and path of the browser's protocol, from the file that it writes when it listens."""
    for _ in range(WAIT_S * 50):
        lines = words(file)
        if len(lines) == 2:
            return lines[0], lines[1]
        assert process.returncode is None, f"chromium ended with {process.returncode}"
        await asyncio.sleep(0.02)
    raise AssertionError(f"chromium did not listen within {WAIT_S} s")


def words(file: Path) -> list[str]:
    """The words of a file; none while it is not there."""
    return file.read_text().split() if file.exists() else []


@pytest.fixture
def chromium(tmp_path: Path) -> Callable[[], AbstractAsyncContextManager[Page]]:
    """`async with chromium() as page`; skips where there is no Chromium."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install the package chromium to run the browser tests")
    return lambda: browse(tmp_path / "profile")
