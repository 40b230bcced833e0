"""The kit's contract of sources, over WebSocket and over POST."""

from __future__ import annotations

import json
from typing import Any

import websockets
from aiohttp import ClientError, ClientSession

from headrace import Component, Context
from headrace.testing import Sender, SourceContract
from headrace_ingest_ws import IngestWs


def make_component(context: Context) -> IngestWs:
    return IngestWs(IngestWs.Config(auth="none", listen="127.0.0.1:0", close_timeout_s=1.0), context)


class TestOverWebSocket(SourceContract):
    def make(self, context: Context) -> Component:
        return make_component(context)

    async def send(self, component: Any, first: int, count: int, sender: Sender) -> None:
        url = f"ws{component.url.removeprefix('http')}/v1/devices/d1/events"
        try:
            async with websockets.connect(url) as ws:
                for number in range(first, first + count):
                    await ws.send(json.dumps({"n": number}))
                settled, refused = 0, 0
                while settled < count:
                    answer = json.loads(await ws.recv())
                    refused += "reject" in answer
                    if "ack" in answer:
                        sender.acked += answer["ack"] - settled - refused
                        sender.refused += refused
                        settled, refused = answer["ack"], 0
        except (websockets.WebSocketException, OSError):
            return


class TestOverPost(SourceContract):
    def make(self, context: Context) -> Component:
        return make_component(context)

    async def send(self, component: Any, first: int, count: int, sender: Sender) -> None:
        body = "\n".join(json.dumps({"n": number}) for number in range(first, first + count))
        headers = {"Content-Type": "application/x-ndjson"}
        try:
            async with ClientSession() as http, http.post(f"{component.url}/v1/devices/d1/events", data=body, headers=headers) as answer:
                result = await answer.json()
                if answer.status == 200:
                    sender.acked += result["accepted"]
                    sender.refused += len(result["rejected"])
                else:
                    sender.refused += count
        except (ClientError, OSError):
            return
