"""docs/protocol.md says what the server does."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace

import websockets
from websockets.typing import Subprotocol

from headrace_ingest_ws import IngestWs, protocol

PAGE = Path(__file__).parents[3] / "docs" / "protocol.md"


def test_the_documented_session_happens_word_for_word(kit: SimpleNamespace) -> None:
    (session,) = re.findall(r"```session\n(.*?)```", PAGE.read_text(), re.DOTALL)

    async def scenario() -> None:
        async with kit.running() as site, site.connect(hello=True) as ws:
            for line in session.splitlines():
                side, _, text = line.partition(" ")
                if text == "close 1000" and side == ">":
                    await ws.close(1000)
                elif text == "close 1000":
                    assert (ws.close_code, ws.protocol.close_rcvd.code) == (1000, 1000)
                elif side == ">":
                    await ws.send(text)
                else:
                    assert await asyncio.wait_for(ws.recv(), 5) == text

    asyncio.run(scenario())


def test_the_documented_resume_happens_word_for_word(kit: SimpleNamespace) -> None:
    (dialogue,) = re.findall(r"```resume\n(.*?)```", PAGE.read_text(), re.DOTALL)

    async def scenario() -> None:
        async with kit.running() as site:
            ws, sent = None, 0
            for line in dialogue.splitlines():
                side, _, text = line.partition(" ")
                if text.startswith("connect "):
                    url = f"{site.url()}?{text.removeprefix('connect ')}"
                    ws = await websockets.connect(url, subprotocols=[Subprotocol(protocol.SUBPROTOCOL)])
                    continue
                assert ws is not None
                if "(the connection is lost)" in text:
                    await kit.until(lambda: site.deliver.marks["d1/7f3a"].last == 3)
                    ws.transport.abort()
                elif text == "close 1000" and side == ">":
                    await ws.close(1000)
                elif text == "close 1000":
                    assert (ws.close_code, ws.protocol.close_rcvd and ws.protocol.close_rcvd.code) == (1000, 1000)
                elif side == ">":
                    sent += 1
                    await ws.send(text)
                else:
                    assert await asyncio.wait_for(ws.recv(), 5) == text
            assert len(site.deliver.rows) == sent - 1

    asyncio.run(scenario())


def test_the_documented_limits_are_the_defaults() -> None:
    limits = PAGE.read_text().partition("## Limits")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+)[^|]*\|", limits, re.MULTILINE)
    config = IngestWs.Config(auth="none")
    assert len(rows) == 22
    assert {name: float(value.replace(",", "")) for name, value in rows} == {name: float(getattr(config, name)) for name, _ in rows}


def test_every_option_stands_in_the_readme() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    assert [name for name in IngestWs.Config.__struct_fields__ if f"`{name}`" not in text] == []


def test_every_code_is_documented() -> None:
    text = PAGE.read_text()
    numbers = {value for name, value in vars(protocol).items() if name.startswith("CLOSE_") and isinstance(value, int)}
    assert [number for number in numbers - {protocol.CLOSE_NO_CODE} if str(number) not in text] == []
    sources = "".join(path.read_text() for path in Path(protocol.__file__).parent.glob("*.py"))
    codes = {
        protocol.PAYLOAD_INVALID,
        protocol.TOO_LARGE,
        protocol.BUSY,
        protocol.QUOTA,
        protocol.RATE,
        *re.findall(r'Refusal\("(\w+)"', sources),
    }
    assert [code for code in codes if f"`{code}`" not in text] == []
    assert protocol.SUBPROTOCOL in text
