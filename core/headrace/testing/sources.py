"""The contract of sources: acknowledge last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import pyarrow as pa

from headrace.component import Component
from headrace.schema import RAW_SCHEMA
from headrace.testing.context import has, living, run
from headrace.testing.contract import Contract
from headrace.testing.deliver import ScriptedDeliver

#: How long an acknowledgement that must not come is waited for.
NO_ACK_WAIT_S: Final = 0.15


@dataclass
class Sender:
    """What the outside world saw: how many messages were acknowledged as stored, and how many refused."""

    acked: int = 0
    refused: int = 0


class SourceContract(Contract):
    """Subclass it as `TestMySource`, with `make(context)` and the driver `send`. Listen on port 0, and on loopback."""

    role = "source"
    #: Messages per test.
    messages: ClassVar[int] = 20

    async def send(self, component: Component, first: int, count: int, sender: Sender) -> None:
        """Be the outside world: send the messages `first` to `first + count - 1`, all at once where the protocol allows it.

        Each message is one event that has its number in the payload (`payload_number` finds it). Add to `sender.acked` and
        `sender.refused` as the answers come; return when all are answered, or the connection has ended. May be cancelled.
        """
        raise NotImplementedError(f"{type(self).__name__} must define send(self, component, first, count, sender)")

    def payload_number(self, payload: bytes) -> int:
        """The number of a message, from the payload that the source delivered; by default all its digits."""
        return int(bytes(byte for byte in payload if byte in b"0123456789"))

    def test_every_message_is_delivered_once_in_order_and_then_acked(self, tmp_path: Path) -> None:
        async def check() -> None:
            deliver, sender = ScriptedDeliver(), Sender()
            async with self._serving(tmp_path, deliver) as component:
                await self.send(component, 1, self.messages, sender)
                await self.send(component, self.messages + 1, self.messages, sender)
            assert self._delivered(deliver) == list(range(1, 2 * self.messages + 1))
            assert (sender.acked, sender.refused) == (2 * self.messages, 0)

        run(check())

    def test_nothing_is_acked_before_deliver_returned(self, tmp_path: Path) -> None:
        async def check() -> None:
            deliver, sender = ScriptedDeliver(then="hold"), Sender()
            async with self._serving(tmp_path, deliver) as component:
                sending = asyncio.create_task(self.send(component, 1, self.messages, sender))
                await deliver.until_held()
                await asyncio.sleep(NO_ACK_WAIT_S)
                assert sender.acked == 0, f"expected no ack while the first commit is under way, got {sender.acked}"
                while not sending.done():
                    deliver.let_go()
                    await asyncio.wait((sending,), timeout=0.005)
                    assert sender.acked <= deliver.rows, f"expected at most {deliver.rows} acks, for what is committed, got {sender.acked}"
                await sending
            assert self._delivered(deliver) == list(range(1, self.messages + 1))
            assert sender.acked == self.messages

        run(check())

    def test_a_full_queue_stops_the_source_until_there_is_room(self, tmp_path: Path) -> None:
        async def check() -> None:
            deliver, sender = ScriptedDeliver("full"), Sender()
            async with self._serving(tmp_path, deliver) as component:
                sending = asyncio.create_task(self.send(component, 1, self.messages, sender))
                await deliver.until_room_awaited()
                calls = deliver.calls
                await asyncio.sleep(NO_ACK_WAIT_S)
                assert sender.acked == 0, f"expected no ack while the queue is full, got {sender.acked}"
                assert deliver.calls <= calls + 1, (
                    f"expected the source to wait for room, it called deliver {deliver.calls - calls} more times"
                )
                deliver.make_room()
                await sending
            assert sender.acked == deliver.rows, f"expected an ack for each of {deliver.rows} committed messages, got {sender.acked}"
            assert sender.acked + sender.refused == self.messages, f"expected {self.messages} answers, got {sender}"
            delivered = self._delivered(deliver)
            assert delivered == sorted(set(delivered)), f"expected each message at most once and in order, got {delivered}"

        run(check())

    def test_a_commit_that_was_cancelled_is_not_acked(self, tmp_path: Path) -> None:
        async def check() -> None:
            deliver, sender = ScriptedDeliver(then="cancel"), Sender()
            async with self._serving(tmp_path, deliver) as component:
                sending = asyncio.create_task(self.send(component, 1, self.messages, sender))
                await deliver.until_held()
                deliver.cancel_held()
                await asyncio.wait((sending,), timeout=NO_ACK_WAIT_S)
                deliver.cancel_held()
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            assert sender.acked == 0, f"expected no ack, nobody knows whether it is durable; got {sender.acked}"

        run(check())

    def test_a_commit_that_failed_is_not_acked(self, tmp_path: Path) -> None:
        async def check() -> None:
            deliver, sender = ScriptedDeliver(then="transient"), Sender()
            async with self._serving(tmp_path, deliver) as component:
                sending = asyncio.create_task(self.send(component, 1, self.messages, sender))
                await deliver.until_called(1)
                await asyncio.wait((sending,), timeout=NO_ACK_WAIT_S)
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            assert sender.acked == 0, f"expected no ack for what was not stored, got {sender.acked}"

        run(check())

    def test_a_source_that_is_stopped_in_mid_commit_does_not_ack(self, tmp_path: Path) -> None:
        async def check() -> None:
            deliver, sender = ScriptedDeliver(then="hold"), Sender()
            async with self._serving(tmp_path, deliver) as component:
                sending = asyncio.create_task(self.send(component, 1, self.messages, sender))
                await deliver.until_held()
                self._serve.cancel()
                await asyncio.wait((self._serve,), timeout=5)
                await asyncio.wait((sending,), timeout=NO_ACK_WAIT_S)
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            assert sender.acked == 0, f"expected no ack after serve was cancelled in mid-commit, got {sender.acked}"

        run(check())

    def _delivered(self, deliver: ScriptedDeliver) -> list[int]:
        numbers: list[int] = []
        for taken in deliver.committed:
            assert taken.batch.schema.equals(RAW_SCHEMA, check_metadata=True), f"expected a batch of RAW_SCHEMA, got {taken.batch.schema}"
            taken.batch.validate(full=True)
            payloads: pa.BinaryArray = taken.batch.column("payload")
            numbers += [self.payload_number(payload) for payload in payloads.to_pylist()]
        return numbers

    @asynccontextmanager
    async def _serving(self, tmp_path: Path, deliver: ScriptedDeliver) -> AsyncIterator[Component]:
        component = self.make(self.context(tmp_path))
        async with living(component, self.role) as hook:
            serve: Any = hook.ingest_serve if has(hook.ingest_serve) else hook.transport_serve
            self._serve: asyncio.Task[None] = asyncio.create_task(serve(deliver=deliver))
            try:
                yield component
            finally:
                deliver.let_go()
                self._serve.cancel()
                await asyncio.wait((self._serve,), timeout=5)
