"""Who is let in by a real server, for whom they may write, and when they have to go."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import websockets

from headrace.config import Secret
from headrace_ingest_ws.auth.command import main as token_command
from headrace_ingest_ws.auth.credential import BEARER_SUBPROTOCOL
from headrace_ingest_ws.auth.token_file import TokenFile, replace_file

pytestmark = pytest.mark.usefixtures("each_loop")

#: On the host's loop alone: what is tested there depends neither on it nor on the parser.
on_one_loop = pytest.mark.parametrize("each_loop", ["uvloop-c"], indirect=True)

Add = Callable[..., str]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.csv"


@pytest.fixture
def add(file: Path, capsys: pytest.CaptureFixture[str]) -> Add:
    """`add("d1")` makes a token as the command does."""

    def make(name: str, *options: str) -> str:
        assert token_command(["add", name, "--file", str(file), *options]) == 0
        printed, token = capsys.readouterr().out.rstrip("\n").rsplit(" ", 1)
        assert printed == name
        return token

    return make


@pytest.fixture
def looking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace_ingest_ws.auth.admission.LOOK_S", 0.02)
    monkeypatch.setattr("headrace_ingest_ws.auth.admission.ASK_S", 0.02)


def tokens(file: Path) -> dict[str, Any]:
    return {"auth": "tokens", "tokens": {"file": str(file)}}


def bearer(token: str) -> dict[str, Any]:
    return {"additional_headers": {"Authorization": f"Bearer {token}"}}


async def refused(connecting: Any) -> tuple[int, dict[str, Any], Any]:
    """The status, the body and the headers of an upgrade that was refused."""
    with pytest.raises(websockets.InvalidStatus) as error:
        async with connecting:
            pass
    response = error.value.response
    return response.status_code, json.loads(response.body or b"{}"), response.headers


async def post(kit: SimpleNamespace, site: Any, device: str, body: bytes, token: str = "", kind: str = "application/json") -> Any:
    head = f"POST /v1/devices/{device}/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {kind}\r\n"
    auth = f"Authorization: Bearer {token}\r\n" if token else ""
    status, headers, answer = await kit.http(site.address, f"{head}{auth}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return status, json.loads(answer), headers


async def closed_with(ws: Any) -> tuple[int, str]:
    await asyncio.wait_for(ws.wait_closed(), 10)
    return ws.close_code, ws.close_reason


def test_a_device_with_its_token_writes_as_itself_and_as_nobody_else(kit: SimpleNamespace, file: Path, add: Add) -> None:
    token, other = add("pump 7"), add("d2")

    async def scenario() -> None:
        async with kit.running(**tokens(file)) as site:
            async with site.connect("pump%207", **bearer(token)) as ws:
                await ws.send('{"n":1}')
                await kit.receive_until_ack(ws, 1)
            assert (await post(kit, site, "d2", b'{"n":2}', other))[:2] == (200, {"accepted": 1, "rejected": []})
            assert site.deliver.rows == [("pump 7", b'{"n":1}'), ("d2", b'{"n":2}')]

            status, body, headers = await refused(site.connect("pump%207", **bearer(other)))
            assert (status, body["code"]) == (403, "not_authorized")
            assert "WWW-Authenticate" not in headers
            status, body, headers = await refused(site.connect("d2"))
            assert (status, body["code"], headers["WWW-Authenticate"]) == (401, "not_authorized", "Bearer")
            status, body, headers = await post(kit, site, "d2", b"{}", token[:-1])
            assert (status, body["code"], headers["www-authenticate"]) == (401, "not_authorized", "Bearer")
            assert (await post(kit, site, "pump%207", b"{}", other))[0] == 403
            assert len(site.deliver.rows) == 2
            failures = {why: site.metric("ingest_auth_failures_total", reason=why) for why in ("missing", "malformed", "device")}
            assert failures == {"missing": 1, "malformed": 1, "device": 2}
            assert site.metric("ingest_connections_opened_total") == 1

    asyncio.run(scenario())


@on_one_loop
def test_a_browser_offers_its_token_as_a_subprotocol(kit: SimpleNamespace, file: Path, add: Add) -> None:
    import base64

    offer = BEARER_SUBPROTOCOL + base64.urlsafe_b64encode(add("d1").encode()).decode().rstrip("=")

    async def scenario() -> None:
        async with kit.running(**tokens(file)) as site:
            async with websockets.connect(site.url(), subprotocols=["headrace.v1.json", offer]) as ws:  # type: ignore[list-item]
                assert ws.subprotocol == "headrace.v1.json"
                assert "hello" in json.loads(await ws.recv())
            client = await site.raw(extra=f"Sec-WebSocket-Protocol: {offer}\r\n")
            assert b"Sec-WebSocket-Protocol" not in client.head, "a token is never echoed"
            client.writer.transport.abort()

    asyncio.run(scenario())


@on_one_loop
def test_a_token_in_the_url_is_not_looked_at_and_not_logged(
    kit: SimpleNamespace, file: Path, add: Add, caplog: pytest.LogCaptureFixture
) -> None:
    token = add("d1")
    caplog.set_level(logging.DEBUG)

    async def scenario() -> None:
        async with kit.running(**tokens(file)) as site:
            status, *_ = await refused(websockets.connect(f"{site.url()}?token={token}&access_token={token}"))
            assert status == 401
            status, *_ = await refused(site.connect("d9", **bearer(token)))
            assert status == 403
            status, *_ = await refused(site.connect(**bearer(token + "x")))
            assert status == 401
            async with site.connect(**bearer(token)):
                pass
            await kit.until(lambda: site.metric("ingest_connections") == 0)
            secrets = {token, token.rpartition("_")[2]}
            ours = [one for one in caplog.records if not one.name.startswith("websockets")]
            seen = [*(f"{one.getMessage()} {vars(one)}" for one in ours), site.exposition(), str(site.component.health())]
            assert not [text for text in seen for secret in secrets if secret in text]
            assert any("not authorized" in one.getMessage() for one in caplog.records)

    asyncio.run(scenario())


# --- gateways --------------------------------------------------------------------------------------------------------


def test_a_gateway_writes_for_its_devices_and_for_no_other(kit: SimpleNamespace, file: Path, add: Add) -> None:
    token = add("gw", "--writes-for", "meter-*", "--writes-for", "valve")

    async def scenario() -> None:
        async with kit.running(**tokens(file)) as site, site.connect("gw", **bearer(token)) as ws:
            await ws.send('{"device":"meter-1","n":1}')
            await ws.send('[{"device":"valve","n":2},{"n":3},{"device":"meter-2","n":4}]')
            await ws.send('[{"device":"meter-1"},{"device":"pump"}]')
            await ws.send('{"device":"pump"}')
            await ws.send('{"device":7}')
            await ws.send("[]")
            await ws.send('{"device":"gw","n":5}')
            frames = await kit.receive_until_ack(ws, 7)
            rejects = {frame["reject"]: (frame["code"], frame.get("index")) for frame in frames if "reject" in frame}
            assert rejects == {
                3: ("not_authorized", 1), 4: ("not_authorized", 0), 5: ("payload_invalid", 0), 6: ("payload_invalid", None),
            }  # fmt: skip
            assert [(device, json.loads(payload)["n"]) for device, payload in site.deliver.rows] == [
                ("meter-1", 1), ("valve", 2), ("gw", 3), ("meter-2", 4), ("gw", 5),
            ]  # fmt: skip
            assert site.deliver.payloads[0] == b'{"device":"meter-1","n":1}'
            assert site.metric("ingest_rejected_events_total", reason="not_authorized") == 3
            status, *_ = await refused(site.connect("meter-1", **bearer(token)))
            assert status == 403, "a gateway connects under its own name"

    asyncio.run(scenario())


def test_many_pipelined_messages_of_a_gateway_keep_their_devices(kit: SimpleNamespace, file: Path, add: Add) -> None:
    token, count = add("gw", "--writes-for", "m-*"), 500

    async def scenario() -> None:
        async with kit.running(**tokens(file)) as site, site.connect("gw", **bearer(token)) as ws:
            for number in range(count):
                await ws.send(json.dumps({"device": f"m-{number % 7}", "n": number}))
            await kit.receive_until_ack(ws, count)
            assert [(device, json.loads(payload)["n"]) for device, payload in site.deliver.rows] == [
                (f"m-{number % 7}", number) for number in range(count)
            ]

    asyncio.run(scenario())


def test_a_post_of_a_gateway(kit: SimpleNamespace, file: Path, add: Add) -> None:
    token = add("gw", "--writes-for", "m-*")

    async def scenario() -> None:
        async with kit.running(**tokens(file)) as site:
            lines = b'{"device":"m-1"}\n{"device":"x"}\n[{"device":"m-2"},{}]\n'
            status, body, _ = await post(kit, site, "gw", lines, token, "application/x-ndjson")
            assert (status, body["accepted"]) == (200, 3)
            assert [(one["code"], one["index"]) for one in body["rejected"]] == [("not_authorized", 1)]
            assert [device for device, _ in site.deliver.rows] == ["m-1", "m-2", "gw"]
            status, body, _ = await post(kit, site, "gw", b'[{"device":"m-1"},{"device":"x"},{"device":7},3,{}]', token)
            assert (status, body["accepted"]) == (200, 2)
            codes = [("not_authorized", 1), ("payload_invalid", 2), ("payload_invalid", 3)]
            assert [(one["code"], one["index"]) for one in body["rejected"]] == codes
            assert [device for device, _ in site.deliver.rows][3:] == ["m-1", "gw"]
            status, body, _ = await post(kit, site, "gw", b'[{"device":"y"},{"device":"x"}]', token)
            assert (status, body["accepted"], [one["index"] for one in body["rejected"]]) == (403, 0, [0, 1])

    asyncio.run(scenario())


def test_a_device_that_is_no_gateway_names_a_device_to_no_effect(kit: SimpleNamespace, file: Path, add: Add) -> None:
    token = add("d1")

    async def scenario() -> None:
        async with kit.running(**tokens(file)) as site, site.connect(**bearer(token)) as ws:
            await ws.send('{"device":"d2"}')
            await kit.receive_until_ack(ws, 1)
            assert site.deliver.rows == [("d1", b'{"device":"d2"}')]

    asyncio.run(scenario())


# --- revocation ------------------------------------------------------------------------------------------------------


def test_a_revoked_token_ends_its_connections_after_their_acks_and_no_others(kit: SimpleNamespace, file: Path, add: Add) -> None:
    """With the real pace of looking: within the 5 s that the docs promise."""
    token, kept = add("d1"), add("d2")

    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        async with kit.running(deliver, **tokens(file)) as site:
            async with site.connect("d1", **bearer(token)) as ws, site.connect("d2", **bearer(kept)) as other:
                await ws.send('{"n":1}')
                await kit.receive_until_ack(ws, 1)
                deliver.gate.clear()
                await ws.send('{"n":2}')
                await kit.until(lambda: deliver.under_way == 1)
                assert token_command(["revoke", "--device", "d1", "--file", str(file)]) == 0
                await kit.until(lambda: any(one.ending for one in site.component._server._connections), 5.0)
                deliver.gate.set()
                assert json.loads(await ws.recv()) == {"ack": 2}
                assert await closed_with(ws) == (1008, "credentials revoked")
                await other.send('{"n":3}')
                await kit.receive_until_ack(other, 1)
            status, body, _ = await refused(site.connect("d1", **bearer(token)))
            assert (status, body["reason"]) == (401, "this token is not known, or was revoked")
            assert site.metric("ingest_auth_failures_total", reason="unknown") == 1
            assert site.metric("ingest_connections_closed_total", code="1008") == 1

    asyncio.run(scenario())


@on_one_loop
@pytest.mark.usefixtures("looking_often")
def test_a_new_token_is_known_soon_and_another_pattern_ends_a_gateway(kit: SimpleNamespace, file: Path, add: Add) -> None:
    token = add("gw", "--writes-for", "m-*")

    async def scenario() -> None:
        async with kit.running(**tokens(file)) as site, site.connect("gw", **bearer(token)) as ws:
            late = add("late")
            await kit.until(lambda: len(site.component._admission.guard._tokens.value) == 2)
            async with site.connect("late", **bearer(late)):
                pass
            narrower = [record._replace(devices=record.devices.replace("m-*", "m-1")) for record in TokenFile(file).records()]
            replace_file(file, narrower)
            assert (await closed_with(ws))[0] == 1008
            async with site.connect("gw", **bearer(token)) as again:
                await again.send('{"device":"m-2"}')
                assert (await kit.receive_until_ack(again, 1))[0]["code"] == "not_authorized"

    asyncio.run(scenario())


@on_one_loop
@pytest.mark.usefixtures("looking_often")
@pytest.mark.parametrize("broken", ["", "id,sha256,name,devices,created\nx,y\n", "\0\xff", None])
def test_a_broken_file_keeps_the_last_tokens_and_degrades(kit: SimpleNamespace, file: Path, add: Add, broken: str | None) -> None:
    token = add("d1")

    def read() -> str:
        return file.read_text()

    def change(text: str | None) -> None:
        file.unlink() if text is None else file.write_text(text, "latin-1")

    async def scenario() -> None:
        async with kit.running(**tokens(file)) as site, site.connect(**bearer(token)) as ws:
            good = read()
            change(broken)
            await kit.until(lambda: site.component.health().status == "degraded")
            assert str(file) in site.component.health().reason
            await ws.send("{}")
            await kit.receive_until_ack(ws, 1)
            async with site.connect(**bearer(token)):
                pass
            assert (await refused(site.connect()))[0] == 401
            change(good)
            await kit.until(lambda: site.component.health().status == "ok")

    asyncio.run(scenario())


@on_one_loop
@pytest.mark.usefixtures("looking_often")
def test_without_tokens_at_the_start_devices_are_told_to_come_again(kit: SimpleNamespace, file: Path, add: Add) -> None:
    async def scenario() -> None:
        async with kit.running(**tokens(file)) as site:
            status, body, headers = await refused(site.connect(**bearer("hrt_x")))
            assert (status, body["code"], headers["Retry-After"]) == (503, "busy", "5")
            token = add("d1")
            await kit.until(lambda: site.component.health().status == "ok")
            async with site.connect(**bearer(token)):
                pass

    asyncio.run(scenario())


@on_one_loop
def test_a_post_whose_token_is_revoked_while_its_body_comes_is_refused(kit: SimpleNamespace, file: Path, add: Add) -> None:
    token = add("d1")

    async def scenario() -> None:
        async with kit.running(**tokens(file)) as site:
            reader, writer = await asyncio.open_connection(*site.address)
            head = "POST /v1/devices/d1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n"
            writer.write(f"{head}Authorization: Bearer {token}\r\n\r\n{{".encode())
            await writer.drain()
            await kit.until(lambda: site.component._server._posting._posts)
            token_command(["revoke", "--device", "d1", "--file", str(file)])
            await site.component.reread()
            writer.write(b"}")
            assert (await reader.read()).startswith(b"HTTP/1.1 401 ")
            assert site.deliver.calls == 0
            writer.close()

    asyncio.run(scenario())


# --- a database ------------------------------------------------------------------------------------------------------


def in_database(url: str) -> dict[str, Any]:
    return {"auth": "tokens", "tokens": {"database": Secret(url)}}


def database_token(url: str, name: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert token_command(["add", name, "--database", url]) == 0
    return capsys.readouterr().out.split()[-1]


@on_one_loop
@pytest.mark.usefixtures("looking_often")
def test_tokens_in_sqlite(kit: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path}/tokens.db"
    token = database_token(url, "d1", capsys)

    async def scenario() -> None:
        async with kit.running(data_dir=tmp_path, **in_database(url)) as site, site.connect(**bearer(token)) as ws:
            await ws.send("{}")
            await kit.receive_until_ack(ws, 1)
            second = database_token(url, "d1", capsys)
            assert token_command(["revoke", token.split("_")[1], "--database", url]) == 0
            assert await closed_with(ws) == (1008, "credentials revoked")
            async with site.connect(**bearer(second)):
                pass

    asyncio.run(scenario())


@on_one_loop
@pytest.mark.xdist_group("postgres")
@pytest.mark.usefixtures("looking_often")
def test_tokens_in_postgresql_that_dies_and_comes_back(
    kit: SimpleNamespace, tmp_path: Path, postgres: Any, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    url, data = postgres.url, tmp_path / "data"
    data.mkdir()
    token, doomed = database_token(url, "d1", capsys), database_token(url, "d2", capsys)

    async def scenario() -> None:
        async with kit.running(data_dir=data, **in_database(url)) as site, site.connect("d2", **bearer(doomed)) as ws:
            await kit.until(lambda: list(data.glob("tokens-*.csv")))
            await asyncio.to_thread(postgres.kill)
            await kit.until(lambda: site.component.health().status == "degraded")
            async with site.connect(**bearer(token)) as during:
                await during.send("{}")
                await kit.receive_until_ack(during, 1)
        # another start while the database is away: with the tokens of the run before
        async with kit.running(data_dir=data, **in_database(url)) as site, site.connect("d2", **bearer(doomed)) as ws:
            assert site.component.health().status == "degraded"
            await asyncio.to_thread(postgres.start)
            await kit.until(lambda: site.component.health().status == "ok")
            # somebody else's program, which knows nothing of us
            await asyncio.to_thread(postgres.execute, "DELETE FROM headrace_tokens WHERE name = 'd2'")
            assert await closed_with(ws) == (1008, "credentials revoked")
            async with site.connect(**bearer(token)):
                pass
        seen = [*(f"{one.getMessage()} {vars(one)}" for one in caplog.records), *map(str, site.statuses)]
        assert any("127.0.0.1" in text for text in seen)
        assert not [text for text in seen if "not-to-be-printed" in text]

    asyncio.run(scenario())


@on_one_loop
def test_no_database_is_asked_for_an_attempt(
    kit: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    from headrace_ingest_ws.auth import token_database

    url = f"sqlite:///{tmp_path}/tokens.db"
    token = database_token(url, "d1", capsys)
    connections = []
    create = token_database.sa.create_engine
    monkeypatch.setattr(token_database.sa, "create_engine", lambda *args, **more: connections.append(1) or create(*args, **more))

    async def scenario() -> None:
        async with kit.running(data_dir=tmp_path, **in_database(url)) as site:
            before = len(connections)
            assert before
            reader, writer = await asyncio.open_connection(*site.address)
            for number in range(300):
                bad = token[:-1] + "a234567bcd"[number % 10]
                head = "POST /v1/devices/d1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
                writer.write(f"{head}Authorization: Bearer {bad}\r\n\r\n{{}}".encode())
                answer = await reader.readuntil(b"\r\n\r\n")
                await reader.readuntil(b"}")
                if token != bad:
                    assert answer.startswith(b"HTTP/1.1 401 ")
            writer.close()
            assert site.metric("ingest_auth_failures_total", reason="unknown") >= 270
            assert len(connections) - before <= 1, "but for the look that comes every two seconds"

    asyncio.run(scenario())
