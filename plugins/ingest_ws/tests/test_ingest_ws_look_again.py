"""Credentials that nobody knows yet: one look more before the answer, shared, bounded, and for nobody whom it cannot help."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
import websockets
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from headrace.config import Secret
from headrace.testing import FakeClock, fake_context, run
from headrace_ingest_ws import IngestWs
from headrace_ingest_ws.auth import admission as admissions
from headrace_ingest_ws.auth.admission import Admission
from headrace_ingest_ws.auth.command import main as token_command
from headrace_ingest_ws.auth.guard import Guard
from headrace_ingest_ws.auth.identity import Identity, NotReady
from headrace_ingest_ws.auth.token_file import TokenFile
from headrace_ingest_ws.auth.tokens import new_token


class Scripted(Guard):
    """Counts the looks; each takes until `gate` is open."""

    def __init__(self) -> None:
        super().__init__()
        self.looks, self.gate, self.problem_is = 0, asyncio.Event(), ""
        self.gate.set()

    async def refresh(self) -> None:
        self.looks += 1
        await self.gate.wait()

    def stands(self, identity: Identity) -> bool:
        return True

    @property
    def problem(self) -> str:
        return self.problem_is


class Door:
    """A server without connections."""

    def accept_with(self, tls: Any) -> None:
        pass

    async def end_unauthorized(self, guard: Guard, now: float) -> None:
        pass


def watched(folder: Path, scenario: Callable[[Admission, Scripted, FakeClock], Any], **options: Any) -> None:
    """Run the scenario beside an admission that watches, with a scripted guard and a clock that stands still."""

    async def beside() -> None:
        context = fake_context(folder)
        admission = Admission(IngestWs.Config(auth="none", listen="127.0.0.1:0", **options), context)
        guard = admission.guard = Scripted()
        watching = asyncio.create_task(admission.watch(Door()))
        await asyncio.sleep(0)
        assert isinstance(context.clock, FakeClock)
        await scenario(admission, guard, context.clock)
        watching.cancel()
        await asyncio.wait([watching])

    run(beside())


async def some_turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_all_who_wait_share_one_look_and_it_begins_after_they_came(tmp_path: Path) -> None:
    async def scenario(admission: Admission, guard: Scripted, clock: FakeClock) -> None:
        guard.gate.clear()
        first = [asyncio.create_task(admission.look_again()) for _ in range(50)]
        await some_turns()
        assert guard.looks == 1
        late = asyncio.create_task(admission.look_again())
        await some_turns()
        guard.gate.set()
        await asyncio.gather(*first)
        await some_turns()
        assert not late.done(), "the look had begun before it came"
        assert guard.looks == 1, "and the next has to wait"
        await clock.advance(guard.pause_s)
        await late
        assert guard.looks == 2

    watched(tmp_path, scenario)


def test_whoever_asks_all_the_time_causes_few_looks(tmp_path: Path) -> None:
    async def scenario(admission: Admission, guard: Scripted, clock: FakeClock) -> None:
        async def attacker() -> None:
            while True:
                await admission.look_again()

        attackers = [asyncio.create_task(attacker()) for _ in range(10)]
        for _ in range(100):
            await clock.advance(0.1)
        for task in attackers:
            task.cancel()
        by_themselves = 10 / admissions.LOOK_S
        assert 10 / guard.pause_s / 2 < guard.looks <= 10 / guard.pause_s + by_themselves + 1

    watched(tmp_path, scenario)


def test_the_look_that_comes_anyway_serves_those_who_wait(tmp_path: Path) -> None:
    async def scenario(admission: Admission, guard: Scripted, clock: FakeClock) -> None:
        guard.pause_s = 60.0
        await admission.look_again()
        second = asyncio.create_task(admission.look_again())
        await clock.advance(admissions.LOOK_S)
        await second
        assert guard.looks == 2

    watched(tmp_path, scenario)


def test_who_cannot_be_helped_is_told_to_come_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admissions, "WAIT_S", 0.05)

    async def scenario(admission: Admission, guard: Scripted, clock: FakeClock) -> None:
        guard.gate.clear()
        waiting = [asyncio.create_task(admission.look_again()) for _ in range(3)]
        await some_turns()
        with pytest.raises(NotReady, match="too many"):
            await admission.look_again()
        assert [type(came) for came in await asyncio.gather(*waiting, return_exceptions=True)] == [NotReady] * 3, "a slow database"
        monkeypatch.setattr(admissions, "WAIT_S", 60.0)
        guard.gate.set()
        guard.problem_is = "no such file"
        later = asyncio.create_task(admission.look_again())
        await clock.advance(guard.pause_s)
        with pytest.raises(NotReady, match="cannot be read"):
            await later
        guard.problem_is = ""
        last = asyncio.create_task(admission.look_again())
        await clock.advance(guard.pause_s)
        await last

    watched(tmp_path, scenario, handshakes_max=8)


def test_while_nobody_watches_nobody_waits(tmp_path: Path) -> None:
    async def scenario() -> None:
        admission = Admission(IngestWs.Config(auth="none", listen="127.0.0.1:0"), fake_context(tmp_path))
        with pytest.raises(NotReady):
            await admission.look_again()

    run(scenario())


# --- a real server ---------------------------------------------------------------------------------------------------

live = [pytest.mark.usefixtures("each_loop"), pytest.mark.parametrize("each_loop", ["uvloop-c"], indirect=True)]


def marked(test: Any) -> Any:
    for mark in live:
        test = mark(test)
    return test


def bearer(token: str) -> dict[str, Any]:
    return {"additional_headers": {"Authorization": f"Bearer {token}"}}


def adding_tokens(where: list[str], capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    def add(device: str) -> str:
        assert token_command(["add", device, *where]) == 0
        return capsys.readouterr().out.split()[-1]

    return add


def adding_keys(file: Path) -> Callable[[str], str]:
    keys: list[dict[str, Any]] = []

    def add(device: str) -> str:
        key = ec.generate_private_key(ec.SECP256R1())
        keys.append({**json.loads(ECAlgorithm.to_jwk(key.public_key())), "kid": device})
        file.write_text(json.dumps({"keys": keys}))
        return str(jwt.encode({"sub": device, "exp": time.time() + 3600}, key, "ES256", {"kid": device}))

    return add


@marked
@pytest.mark.parametrize("kind", ["file", "database", "jwks_file"])
def test_what_was_added_is_used_in_the_next_moment(
    kit: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """With the real pace of looking, by upgrade and by POST."""
    path = str(tmp_path / "credentials")
    if kind == "jwks_file":
        add = adding_keys(Path(path))
        options: dict[str, Any] = {"auth": "jwt", "jwt": {"algorithms": ["ES256"], "jwks_file": path}}
    elif kind == "database":
        add = adding_tokens(["--database", f"sqlite:///{path}"], capsys)
        options = {"auth": "tokens", "tokens": {"database": Secret(f"sqlite:///{path}")}}
    else:
        add = adding_tokens(["--file", path], capsys)
        options = {"auth": "tokens", "tokens": {"file": path}}
    add("d0")

    async def scenario() -> None:
        async with kit.running(data_dir=tmp_path, **options) as site:
            async with site.connect("d1", **bearer(add("d1"))) as ws:
                await ws.send("{}")
                await kit.receive_until_ack(ws, 1)
            head = "POST /v1/devices/d2/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n"
            status, _, _ = await kit.http(site.address, f"{head}Authorization: Bearer {add('d2')}\r\n\r\n{{}}".encode())
            assert status == 200

    asyncio.run(scenario())


@marked
def test_invalid_tokens_at_speed_cause_few_looks_and_those_that_cannot_be_new_none(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tokens.csv"
    token, record = new_token("d1")
    TokenFile(file).add([record])
    looks: list[float] = []
    stamp = TokenFile.stamp
    monkeypatch.setattr(TokenFile, "stamp", lambda self: looks.append(time.monotonic()) or stamp(self))

    async def refused(site: Any, token: str) -> None:
        with pytest.raises(websockets.InvalidStatus, match="401"):
            await site.connect("d1", **bearer(token))

    async def scenario() -> None:
        async with kit.running(auth="tokens", tokens={"file": str(file)}) as site:
            begun, before = time.monotonic(), len(looks)
            for hopeless in (token[:-4] + "2222", "hrt_x", "x" * 80) * 5:  # a wrong secret, and no tokens at all
                await refused(site, hopeless)
            by_themselves = (time.monotonic() - begun) / admissions.LOOK_S + 1
            assert len(looks) - before <= by_themselves
            begun, before = time.monotonic(), len(looks)
            await asyncio.gather(*(refused(site, new_token("d1")[0]) for _ in range(60)))
            took = time.monotonic() - begun
            assert 1 <= len(looks) - before <= took / Guard.pause_s + took / admissions.LOOK_S + 2
            assert site.metric("ingest_auth_failures_total", reason="unknown") == 65

    asyncio.run(scenario())
