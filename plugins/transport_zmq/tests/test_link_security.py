"""Links with keys over real sockets, and what those get who have none, the wrong ones, or no manners."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio
from test_transport_zmq import LABELS, QUEUE, Bench, info, numbers, send, until

from headrace import ConfigError
from headrace.log import ROOT, JsonFormatter
from headrace.testing import ScriptedDeliver, run
from headrace_transport_zmq import TransportZmq, guard
from headrace_transport_zmq.config import TransportConfig
from headrace_transport_zmq.keys import Pair, new_pair, write_pair


class Keyed(Bench):
    """A bench with the keys of one middle and of one edge that it lets in."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.middle, self.edge, self.stranger = (self.pair(name) for name in ("middle", "edge", "stranger"))
        self.list = folder / "edges.keys"
        self.allow(self.edge)

    def pair(self, name: str) -> Pair:
        pair = new_pair()
        write_pair(pair, name, self.folder)
        return pair

    def allow(self, *pairs: Pair) -> None:
        fresh = self.list.with_suffix(".new")
        fresh.write_text("".join(f"{pair.public.decode()} edge\n" for pair in pairs))
        fresh.replace(self.list)

    @property
    def listening(self) -> dict[str, Any]:
        return {"key_file": str(self.folder / "middle.key"), "allow_keys_file": str(self.list)}

    def connecting(self, name: str = "edge", server: Pair | None = None) -> dict[str, Any]:
        return {"key_file": str(self.folder / f"{name}.key"), "server_key": (server or self.middle).public.decode()}


class Logged(logging.Handler):
    """All that was logged, as the log file has it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.text = ""
        self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.text += self.format(record) + "\n"


@pytest.fixture
def logged() -> Iterator[Logged]:
    handler, logger = Logged(), logging.getLogger()
    ours = logging.getLogger(ROOT)
    level = ours.level
    for one in (logger, ours):
        one.addHandler(handler)
    ours.setLevel(logging.DEBUG)
    yield handler
    for one in (logger, ours):
        one.removeHandler(handler)
    ours.setLevel(level)


@pytest.fixture
def bench(tmp_path: Path) -> Keyed:
    return Keyed(tmp_path)


def refused(far: TransportZmq, reason: str) -> float:
    labels = {**LABELS, "reason": reason}
    return far.context.metrics.registry.get_sample_value("headrace_link_refused_connections_total", labels) or 0.0


def says(component: TransportZmq, text: str) -> Callable[[], bool]:
    return lambda: any(text in reason for _, reason in component.context.statuses)  # type: ignore[attr-defined]


def test_a_link_with_keys_carries_batches_that_nobody_can_read(bench: Keyed) -> None:
    async def check() -> None:
        deliver = ScriptedDeliver(info=info())
        async with bench.far(deliver, **bench.listening):
            tap = Tap(bench.address)
            async with await asyncio.start_server(tap.serve, "127.0.0.1") as server:
                bench.address = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
                async with bench.near(**bench.connecting()) as near:
                    await near.transport_resume(QUEUE)
                    await send(near, 1, 50)
        assert numbers(deliver) == list(range(1, 51))
        assert len(tap.seen) > 1000
        for open_text in (b'{"n":', QUEUE.encode(), b"HRLK", bench.edge.secret):
            assert open_text not in tap.seen

    run(check())


def test_a_key_that_is_not_on_the_list_stays_outside_and_is_told_so(bench: Keyed, logged: Logged) -> None:
    async def check() -> None:
        deliver = ScriptedDeliver(info=info())
        async with bench.far(deliver, **bench.listening) as far, bench.near(**bench.connecting("stranger"), dead_after_s=0.5) as near:
            asking = asyncio.create_task(near.transport_resume(QUEUE))
            await until(says(near, "does not let this key in"))
            await until(lambda: refused(far, "key") >= 1)
            assert not asking.done()
            bench.allow(bench.edge, bench.stranger)
            await far.reread()
            assert await asking is None, "once it is on the list it comes in by itself"
            assert bench.stranger.public.decode() in logged.text
        assert deliver.calls == 0

    run(check())


def test_a_far_side_that_is_not_the_one_expected_gets_nothing(bench: Keyed) -> None:
    async def check() -> None:
        async with (
            bench.far(ScriptedDeliver(info=info()), **bench.listening) as far,
            bench.near(**bench.connecting(server=bench.stranger), dead_after_s=0.5) as near,
        ):
            asking = asyncio.create_task(near.transport_resume(QUEUE))
            await until(lambda: refused(far, "server_key") >= 1)
            await until(says(near, "is server_key its public key?"))
            asking.cancel()
            counted = far.context.metrics.registry.get_sample_value
            assert not counted("headrace_link_peers", LABELS)

    run(check())


def test_who_has_no_keys_stays_outside_and_is_told_so(bench: Keyed) -> None:
    async def check() -> None:
        async with bench.far(ScriptedDeliver(info=info()), **bench.listening) as far, bench.near(dead_after_s=0.5) as near:
            asking = asyncio.create_task(near.transport_resume(QUEUE))
            await until(says(near, "it wants keys"))
            await until(lambda: refused(far, "mechanism") + refused(far, "handshake") >= 1)
            asking.cancel()
            async with bench.near("other", **bench.connecting()) as good:
                assert await good.transport_resume(QUEUE) is None

    run(check())


def test_who_has_keys_does_not_talk_to_one_without(bench: Keyed) -> None:
    async def check() -> None:
        deliver = ScriptedDeliver(info=info())
        async with bench.far(deliver), bench.near(**bench.connecting(), dead_after_s=0.5) as near:
            asking = asyncio.create_task(near.transport_resume(QUEUE))
            await until(says(near, "it has no keys"))
            asking.cancel()

    run(check())


def test_a_key_taken_out_ends_its_link_and_no_other(bench: Keyed) -> None:
    async def check() -> None:
        deliver = ScriptedDeliver(info=info())
        bench.allow(bench.edge, bench.stranger)
        other = QUEUE.replace("1", "2")
        async with (
            bench.far(deliver, **bench.listening) as far,
            bench.near(**bench.connecting()) as near,
            bench.near("other", **bench.connecting("stranger"), dead_after_s=0.5) as leaving,
        ):
            await near.transport_resume(QUEUE)
            await leaving.transport_resume(other)
            bench.allow(bench.edge)
            await far.reread()
            await until(lambda: refused(far, "revoked") == 1)
            await until(says(leaving, "does not let this key in"))
            await send(near, 1, 5)
            labels = {**LABELS, "component": "uplink"}
            assert near.context.metrics.registry.get_sample_value("headrace_link_sessions_total", labels) == 1
        assert numbers(deliver) == [1, 2, 3, 4, 5]

    run(check())


def test_a_changed_list_is_noticed_by_itself(bench: Keyed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "LOOK_S", 0.05)

    async def check() -> None:
        async with bench.far(ScriptedDeliver(info=info()), **bench.listening), bench.near(**bench.connecting("stranger")) as near:
            asking = asyncio.create_task(near.transport_resume(QUEUE))
            await until(says(near, "does not let this key in"))
            bench.allow(bench.edge, bench.stranger)
            assert await asking is None
            bench.allow(bench.edge)
            near.context.statuses.clear()  # type: ignore[attr-defined]
            await until(says(near, "does not let this key in"))

    run(check())


def test_a_list_that_cannot_be_read_leaves_the_last_one_in_use(bench: Keyed) -> None:
    async def check() -> None:
        async with bench.far(ScriptedDeliver(info=info()), **bench.listening) as far, bench.near(**bench.connecting()) as near:
            await near.transport_resume(QUEUE)
            bench.list.write_text("not a key\n")
            await far.reread()
            assert says(far, "in line 1 of")()
            await send(near, 1, 5)
            bench.allow(bench.edge)
            await far.reread()
            assert far.context.statuses[-1] == ("ok", "")  # type: ignore[attr-defined]

    run(check())


@pytest.mark.parametrize("keys", [True, False], ids=["keys", "plain"])
def test_raw_sockets_with_no_manners_harm_nobody(bench: Keyed, keys: bool) -> None:
    """Garbage, half a greeting, a greeting and then garbage, none at all: cut, counted, and the link beside them goes on."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + (b"CURVE" if keys else b"NULL").ljust(20, b"\0") + bytes(32)
    says = [
        b"GET / HTTP/1.1\r\n\r\n", b"\x02\x00x" * 100, greeting[:20], greeting,
        greeting + b"\x04\xff\x05HELLO" + os.urandom(249), greeting + b"\x04\x19\x05READY" + os.urandom(19),
        greeting + b"\x06" + b"\xff" * 8 + os.urandom(64), b"",
    ]  # fmt: skip

    async def check() -> None:
        deliver = ScriptedDeliver(info=info())
        far_options = {**(bench.listening if keys else {}), "handshake_timeout_s": 0.3}
        async with bench.far(deliver, **far_options) as far, bench.near(**(bench.connecting() if keys else {})) as near:
            await near.transport_resume(QUEUE)
            before = total_refused(far)
            rude = [socket.create_connection(("127.0.0.1", port_of(bench.address))) for _ in says]
            for connection, words in zip(rude, says, strict=True):
                connection.sendall(words)
            await send(near, 1, 5)
            # without keys some of them pass for peers of ZMTP 1 or 3 that have not said anything yet
            await until(lambda: total_refused(far) - before >= (len(says) if keys else 4) and refused(far, "timeout") >= 1)
            await send(near, 6, 10)
            for connection in rude:
                connection.close()
            await until(lambda: total_refused(far) - before == len(says))
            assert refused(far, "protocol") >= 1
            assert far.context.metric("link_connections") == 1  # type: ignore[attr-defined]
            labels = {**LABELS, "component": "uplink"}
            assert near.context.metrics.registry.get_sample_value("headrace_link_sessions_total", labels) == 1
        assert numbers(deliver) == list(range(1, 11))

    run(check())


def test_who_sends_nothing_but_nonsense_is_cut(bench: Keyed) -> None:
    async def check() -> None:
        deliver = ScriptedDeliver(info=info())
        stranger = zmq.asyncio.Context()
        async with bench.far(deliver) as far, bench.near() as near:
            await near.transport_resume(QUEUE)
            rude = stranger.socket(zmq.DEALER)
            rude.connect(bench.address)
            for _ in range(100):
                await rude.send(b"x" * 1000)
            await until(lambda: refused(far, "nonsense") >= 1)
            rude.close(linger=0)
            await send(near, 1, 5)
            labels = {**LABELS, "component": "uplink"}
            assert near.context.metrics.registry.get_sample_value("headrace_link_sessions_total", labels) == 1
        stranger.destroy(linger=0)
        assert numbers(deliver) == [1, 2, 3, 4, 5]

    run(check())


def test_half_open_connections_are_bounded_and_cost_no_link(bench: Keyed) -> None:
    async def check() -> None:
        deliver = ScriptedDeliver(info=info())
        options = {**bench.listening, "handshakes_max": 4, "peers_max": 8, "handshake_timeout_s": 30.0}
        async with bench.far(deliver, **options) as far, bench.near(**bench.connecting()) as near:
            await near.transport_resume(QUEUE)
            flood = [socket.create_connection(("127.0.0.1", port_of(bench.address))) for _ in range(60)]
            await until(lambda: refused(far, "crowded") >= 60 - (2 * 8 + 4))
            await send(near, 1, 5)
            async with bench.near("late", **bench.connecting()) as late:
                assert await late.transport_resume(QUEUE.replace("1", "3")) is None, "newcomers still get in"
            counted = far.context.metrics.registry.get_sample_value
            assert (counted("headrace_link_connections", LABELS) or 0) <= 2 * 8 + 4
            for connection in flood:
                connection.close()
        assert numbers(deliver) == [1, 2, 3, 4, 5]

    run(check())


def test_secrets_are_in_no_log_and_no_status(bench: Keyed, logged: Logged) -> None:
    async def check() -> None:
        bench.allow(bench.edge)
        (bench.folder / "edge.key").chmod(0o644)
        async with bench.far(ScriptedDeliver(info=info()), **bench.listening) as far, bench.near(**bench.connecting()) as near:
            await near.transport_resume(QUEUE)
            assert "chmod 600" in logged.text
            assert bench.middle.public.decode() in logged.text
            said = logged.text + repr(far.context.statuses) + repr(near.context.statuses)  # type: ignore[attr-defined]
            for pair in (bench.middle, bench.edge):
                assert pair.secret.decode() not in said

    run(check())


@pytest.mark.parametrize(
    ("options", "place", "expected"),
    [
        ({"listen": "", "key_file": "none.key", "allow_keys_file": "edges.keys"}, "sources.links.key_file", "no such file"),
        ({"listen": "", "key_file": "middle.key", "allow_keys_file": "no.keys"}, "sources.links.allow_keys_file", "No such file"),
        ({"connect": "", "key_file": "edge.key", "server_key": "middle.pub"}, "outputs.links.server_key", "'middle.pub'"),
    ],
)
def test_wrong_keys_end_the_start_and_say_which(bench: Keyed, options: dict[str, str], place: str, expected: str) -> None:
    paths = {name: str(bench.folder / value) for name, value in options.items() if name.endswith("_file")}
    address = {name: bench.address for name in ("listen", "connect") if name in options}
    component = TransportZmq(TransportConfig(**{**options, **paths, **address}), bench.context("links"))
    with pytest.raises(ConfigError) as told:
        run(component.open())
    assert f"tiers.site.{place}: expected" in str(told.value)
    assert expected in str(told.value)
    assert any(place.rpartition(".")[2] in complaint for complaint in component.check())
    run(component.close())


def total_refused(far: TransportZmq) -> float:
    families = far.context.metrics.registry.collect()
    samples = [sample for family in families for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name == "headrace_link_refused_connections_total")


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


class Tap:
    """Passes bytes on between who connects and a link's far end, and keeps them."""

    def __init__(self, target: str) -> None:
        self.target, self.seen = port_of(target), bytearray()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pass(reader, far_writer))
            tasks.create_task(self._pass(far_reader, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while came := await reader.read(65_536):
            self.seen += came
            writer.write(came)
        writer.close()
