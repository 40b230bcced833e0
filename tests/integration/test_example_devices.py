"""The device clients of examples/ against the real site, which is killed under them: nothing is lost, nothing doubled."""

from __future__ import annotations

import asyncio
import ctypes
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import websockets

from headrace.testing.site import SiteProcess

EXAMPLES = Path(__file__).parents[2] / "examples"
SKETCH = EXAMPLES / "device_esp32"
LISTEN = "tiers.site.sources.devices.listen=127.0.0.1:"


def start_on_one_port(site: SiteProcess) -> str:
    """Start the site; its next start takes the same port, as a real one does. Where it listens."""
    site.start()
    url = site.wait_for_url("devices")
    site.overrides = [override for override in site.overrides if not override.startswith(LISTEN)]
    site.overrides.append(LISTEN + url.rpartition(":")[2])
    return url.replace("http", "ws", 1)


def kill_after(site: SiteProcess, acked: int) -> None:
    site.wait_for_metric("ingest_acked_events_total", acked)
    site.kill()
    site.start()


# --- Python ----------------------------------------------------------------------------------------------------------


def example() -> Any:
    spec = importlib.util.spec_from_file_location("example_device", EXAMPLES / "device.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_python_device_tells_of_what_is_refused_and_sends_later_what_may_come_later(capsys: Any) -> None:
    async def server(ws: websockets.ServerConnection) -> None:
        query.append(str(ws.request.path).partition("?")[2] if ws.request else "")
        await ws.send('{"hello":{"window":10,"resume":0,"refused":[]}}')
        got.extend([await ws.recv() for _ in range(3)])
        await ws.send('{"reject":1,"code":"payload_invalid","reason":"why"}')
        await ws.send('{"reject":2,"code":"rate","reason":"too fast","retry_ms":1}')
        await ws.send('{"ack":3}')
        got.append(await ws.recv())
        await ws.send('{"ack":4}')
        await ws.wait_closed()

    got: list[Any] = []
    query: list[str] = []

    async def scenario() -> None:
        listening = await websockets.serve(server, "127.0.0.1", 0, subprotocols=[websockets.Subprotocol("headrace.v1.json")])
        port = listening.sockets[0].getsockname()[1]
        held = [json.dumps({"n": number}) for number in (1, 2, 3)]
        running = asyncio.create_task(example().run(f"ws://127.0.0.1:{port}/v1/devices/d/events?session=s", held))
        async with asyncio.timeout(20):
            while held:
                await asyncio.wait([running], timeout=0.005)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        listening.close()
        assert query == ["session=s&acked=0"]

    asyncio.run(scenario())
    assert [json.loads(text)["n"] for text in got] == [1, 2, 3, 2]
    assert "payload_invalid" in capsys.readouterr().err
    assert len((EXAMPLES / "device.py").read_text().splitlines()) <= 60


# --- C for microcontrollers ------------------------------------------------------------------------------------------

HELD, BYTES = 16, 96


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The portable part of the sketch, with little memory, as a library."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("sketch")
    header = (SKETCH / "headrace_session.h").read_text()
    exported = header.replace("static inline ", "")  # else a library has nothing to call
    (folder / "session.c").write_text(exported + "\nsize_t size_of_session(void) { return sizeof(hr_session); }\n")
    (folder / "strict.c").write_text(f'#include "{SKETCH}/headrace_session.h"\n')
    subprocess.run([compiler, "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", folder / "strict.c"], check=True)
    flags = [f"-DHR_HELD={HELD}", f"-DHR_BYTES={BYTES}", "-O1", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", folder / "session.so", folder / "session.c"], check=True)
    library = ctypes.CDLL(str(folder / "session.so"))
    library.hr_next.restype = ctypes.c_char_p
    library.size_of_session.restype = ctypes.c_size_t
    return library


class Facts(ctypes.Structure):
    """The beginning of `hr_session`."""

    _fields_ = (
        ("id", ctypes.c_char * 65),
        ("acked", ctypes.c_uint64),
        *((name, ctypes.c_uint) for name in ("first", "count", "sent", "window", "refused", "unsure")),
        ("pause_ms", ctypes.c_uint32),
    )


class Sketch:
    """What the sketch does, with the bytes moved by Python."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._memory = ctypes.create_string_buffer(library.size_of_session())
        self.facts = Facts.from_buffer(self._memory)
        library.hr_begin(self._memory, b"1f0c9a7e")

    def add(self, text: str) -> bool:
        return bool(self._library.hr_add(self._memory, text.encode()))

    def path(self, device: str) -> str:
        path = ctypes.create_string_buffer(200)
        self._library.hr_path(self._memory, device.encode(), path, ctypes.c_size_t(200))
        return path.value.decode()

    def connected(self) -> None:
        self._library.hr_connected(self._memory)

    def text(self, text: str) -> None:
        encoded = text.encode()
        self._library.hr_text(self._memory, encoded, ctypes.c_size_t(len(encoded)))

    def sends(self) -> list[str]:
        sent = []
        while (message := self._library.hr_next(self._memory)) is not None:
            sent.append(message.decode())
        return sent


def test_the_examples_lose_and_double_nothing_when_the_site_is_killed(site: SiteProcess, lake: Any, portable: Any) -> None:
    url = start_on_one_port(site)
    sketch, total = Sketch(portable), 400
    bad = [number for number in range(1, total + 1) if number % 9 == 0]

    async def device() -> None:
        number = 0
        while number < total or sketch.facts.count:
            try:
                async with websockets.connect(url + sketch.path("pump-7"), subprotocols=[websockets.Subprotocol("headrace.v1.json")]) as ws:
                    sketch.connected()
                    assert sketch.sends() == []
                    while number < total or sketch.facts.count:
                        sketch.text(str(await ws.recv()))
                        while number < total and sketch.add(f'{{"number":{number + 1}{"" if number + 1 in bad else "}"}'):
                            number += 1
                        for message in sketch.sends():
                            await ws.send(message)
            except (OSError, websockets.WebSocketException):
                await asyncio.sleep(0.02)

    async def scenario() -> tuple[str, str]:
        command = [str(EXAMPLES / "device.py"), url, "pump-8"]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        in_python = await asyncio.create_subprocess_exec(sys.executable, *command, **pipes)  # type: ignore[arg-type]

        async def measurements() -> tuple[bytes, bytes]:
            assert in_python.stdin is not None
            for number in range(1, 251):
                in_python.stdin.write(b'{"number":%d}\n' % number)
                await asyncio.sleep(0.01)
            in_python.stdin.close()
            return await in_python.communicate()

        async with asyncio.timeout(100):
            ends = await asyncio.gather(device(), asyncio.to_thread(kill_after, site, 200), measurements())
        return ends[2][0].decode(), ends[2][1].decode()

    out, err = asyncio.run(scenario())
    assert out == "held 0\n", err
    assert (sketch.facts.acked, sketch.facts.refused, sketch.facts.unsure) == (total, len(bad), 0)
    site.stop()
    good = total - len(bad)
    stored = lake.query("select device, count(*), count(distinct readings.number), max(readings.number) from {lake} group by 1 order by 1")
    assert stored == [("pump-7", good, good, total), ("pump-8", 250, 250, 250)]


def test_the_sketch_settles_resends_and_repeats_as_the_protocol_says(portable: Any) -> None:
    sketch = Sketch(portable)
    assert all(sketch.add(f"m{number}") for number in range(1, HELD + 1))
    assert not sketch.add("one too many")
    assert sketch.path("d") == "/v1/devices/d/events?session=1f0c9a7e&acked=0"
    sketch.connected()
    assert sketch.sends() == []
    sketch.text('{"hello":{"queue":null,"window":6,"session":"1f0c9a7e","resume":0,"refused":[]}}')
    assert sketch.sends() == [f"m{number}" for number in range(1, 7)]
    sketch.text('{"reject":2,"code":"payload_invalid","reason":"expected no \\\\"ack\\\\":9, nor {\\\\"retry_ms\\\\":1}"}')
    sketch.text('{"reject": 3, "code": "rate", "reason": "too fast", "retry_ms": 250}')
    assert (sketch.facts.pause_ms, sketch.sends()) == (250, [])
    sketch.facts.pause_ms = 0
    sketch.text('{"ack":3}')
    assert (sketch.facts.acked, sketch.facts.refused, sketch.facts.count) == (3, 1, HELD - 2)
    assert sketch.sends() == ["m7", "m8", "m9"]
    sketch.connected()
    assert sketch.path("d").endswith("&acked=3")
    refused = '[{"reject":4,"code":"too_large"},{"reject":6,"code":"rate","retry_ms":0}]'
    sketch.text(f'{{"hello":{{"window":100,"resume":7,"refused":{refused}}}}}')
    assert (sketch.facts.acked, sketch.facts.refused) == (7, 2)
    assert sketch.sends() == [*(f"m{number}" for number in range(8, HELD + 1)), "m3", "m6"]
    sketch.connected()
    sketch.text('{"hello":{"window":1,"resume":null,"refused":[]}}')
    assert (sketch.facts.unsure, sketch.facts.acked, sketch.sends()) == (1, 7, ["m8"])


STUBS = """
#include <cstdint>
#include <cstddef>
#include <functional>
#include <algorithm>
using std::min;
enum WStype_t { WStype_ERROR, WStype_DISCONNECTED, WStype_CONNECTED, WStype_TEXT };
struct WebSocketsClient {
    void begin(const char *host, uint16_t port, const char *url, const char *protocol);
    void setReconnectInterval(unsigned long ms);
    void onEvent(std::function<void(WStype_t, uint8_t *, size_t)> event);
    void enableHeartbeat(uint32_t every_ms, uint32_t timeout_ms, uint8_t count);
    bool sendTXT(const char *text, size_t size = 0, bool with_header = false);
    void loop();
};
enum wl_status_t { WL_IDLE_STATUS, WL_CONNECTED };
struct WiFiClass { void begin(const char *name, const char *password); wl_status_t status(); };
extern WiFiClass WiFi;
uint32_t millis(); long random(long below); uint32_t esp_random(); float temperatureRead();
"""


def test_the_sketch_compiles_against_the_functions_that_it_calls(tmp_path: Path) -> None:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    for name in ("WiFi.h", "WebSocketsClient.h"):
        (tmp_path / name).write_text("#pragma once\n" + (STUBS if name == "WebSocketsClient.h" else ""))
    command = [
        compiler,
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fsyntax-only",
        "-x",
        "c++",
        "-I",
        tmp_path,
        SKETCH / "device_esp32.ino",
    ]
    subprocess.run(command, check=True)
    assert re.search(r'^#include "headrace_session.h"$', (SKETCH / "device_esp32.ino").read_text(), re.MULTILINE)
