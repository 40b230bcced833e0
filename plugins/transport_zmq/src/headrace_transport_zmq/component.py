"""The component: a source where links arrive, or an output where one begins; either half of a fan-out."""

from __future__ import annotations

from typing import Any, ClassVar, Final, Literal

import pyarrow as pa

from headrace import Component, ConfigError, Deliver, QueueInfo, RangeKey, hookimpl
from headrace.hookspecs import Role, TransportHooks
from headrace_transport_zmq import receiving, sending
from headrace_transport_zmq.broadcasting import Broadcasting
from headrace_transport_zmq.config import TransportConfig, problem
from headrace_transport_zmq.fleet import Fleet
from headrace_transport_zmq.key_options import read_keys
from headrace_transport_zmq.keys import KeysError
from headrace_transport_zmq.peers import sending_to
from headrace_transport_zmq.publishing import Publishing
from headrace_transport_zmq.receiving import Receiving
from headrace_transport_zmq.sending import Sending
from headrace_transport_zmq.subscribing import Subscribing

_SENDING: Final = frozenset(name for name in vars(TransportHooks) if name.startswith("transport_")) - {"transport_publish"}
_HOOKS: Final = {
    "listen": frozenset({"transport_serve"}),
    "subscribe": frozenset({"transport_subscribe"}),
    "connect": _SENDING,
    "peers": _SENDING,
    "publish": frozenset({"transport_publish"}),
}


class TransportZmq(Component):
    """A durable link between two tiers: nothing is released before the far tier has it durably. See PROTOCOL.md.

    Or a best-effort fan-out of events to whoever subscribes. See FANOUT.md.
    """

    Config = TransportConfig
    takes: ClassVar[Literal["events", "raw"]] = "raw"
    #: each worker's link speaks for its own queue; the port of the receiving half is one
    many_workers = ("output",)
    fault_points: ClassVar[tuple[str, ...]] = (*sending.FAULT_POINTS, *receiving.FAULT_POINTS)
    config: TransportConfig

    _sending: Sending | Fleet | None = None
    _receiving: Receiving | None = None
    _publishing: Publishing | Broadcasting | None = None
    _subscribing: Subscribing | None = None

    @classmethod
    def hooks_for(cls, config: Any) -> frozenset[str] | None:
        """A config names one end, which is one role; a wrong one is told by `check`."""
        ends = config.ends.keys()
        return frozenset().union(*(_HOOKS[end] for end in ends)) if ends else None

    @classmethod
    def fault_points_in(cls, role: Role, config: Any) -> tuple[str, ...]:
        return (sending.FAULT_POINTS if config.sends else ()) + (receiving.FAULT_POINTS if config.listen else ())

    def check(self) -> list[str]:
        found = problem(self.config) or self._crowd()
        if not found:
            try:
                for config in [self.config.of_peer(peer) for peer in self.config.peers] or [self.config]:
                    read_keys(config)
            except KeysError as error:
                found = f"{error.option}: {error}"
        return [found] if found else []

    async def open(self) -> None:
        """Take the port, or make ready to connect. ConfigError; TransientError while the port is taken."""
        if found := problem(self.config) or self._crowd():
            raise ConfigError("config", self._place, "a link", found)
        try:
            if self.config.listen is not None and self._receiving is None:
                self._receiving = Receiving(self.config, self.context)
            if self.config.sends and self._sending is None:
                self._sending = sending_to(self.config, self.context)
            if self.config.publish is not None and self._publishing is None:
                kind = Broadcasting if self.config.pattern == "radio" else Publishing
                self._publishing = kind(self.config, self.context)
            if self.config.subscribe is not None and self._subscribing is None:
                self._subscribing = Subscribing(self.config, self.context)
        except KeysError as error:
            raise ConfigError("config", f"{self._place}.{error.option}", error.expected, error.came, error.hint) from error

    def _crowd(self) -> str:
        if self.config.publish is None or self.context.workers == 1:
            return ""
        return (
            f"publish: one process can have that address, and the tier has {self.context.workers} workers; publish from a tier behind them"
        )

    @property
    def _place(self) -> str:
        place = "sources" if self.config.listen or self.config.subscribe else "outputs"
        return f"tiers.{self.context.tier}.{place}.{self.context.id}"

    async def run(self) -> None:
        """Keep the connection."""
        if self._sending is not None:
            await self._sending.run()
        if self._publishing is not None:
            await self._publishing.run()

    async def drain(self, deadline_s: float) -> None:
        if self._receiving is not None:
            await self._receiving.drain(deadline_s)

    async def reread(self) -> None:
        if self._receiving is not None:
            await self._receiving.reread()
        if self._publishing is not None:
            await self._publishing.reread()

    async def close(self) -> None:
        if self._sending is not None:
            self._sending.close()
        if self._receiving is not None:
            self._receiving.close()
        if self._publishing is not None:
            self._publishing.close()
        if self._subscribing is not None:
            self._subscribing.close()
        self._sending = self._receiving = self._publishing = self._subscribing = None

    # --- as a source -------------------------------------------------------------------------------------------------

    @hookimpl
    async def transport_serve(self, deliver: Deliver) -> None:
        """Take what links bring, acknowledge after `deliver` returned."""
        if self._receiving is None:
            raise self._misplaced("listen")
        await self._receiving.serve(deliver)

    @hookimpl
    async def transport_subscribe(self, deliver: Deliver) -> None:
        """Take what is published."""
        if self._subscribing is None:
            raise self._misplaced("subscribe")
        await self._subscribing.serve(deliver)

    # --- as an output ------------------------------------------------------------------------------------------------

    @hookimpl
    async def transport_queue(self, queue: QueueInfo, secret: bytes) -> None:
        """The queue that this link speaks for."""
        self._link().queue(queue, secret)

    @hookimpl
    async def transport_resume(self, queue_id: str) -> int | None:
        """What the far tier holds of the queue id."""
        return await self._link().resume(queue_id)

    @hookimpl
    async def transport_send(self, batch: pa.RecordBatch, origins: pa.RecordBatch, key: RangeKey) -> None:
        """Send one batch; return when the far tier has it durable."""
        await self._link().send(batch, origins, key)

    @hookimpl
    async def transport_publish(self, batch: pa.RecordBatch, topic: str) -> None:
        """Publish events to those who want the topic."""
        if self._publishing is None:
            raise self._misplaced("publish")
        self._publishing.publish(batch, topic)

    @hookimpl
    async def transport_hurry(self) -> None:
        """Have the far tier make safe what it has got."""
        self._link().hurry()

    @hookimpl
    def transport_bound(self) -> int:
        """Calls that wait for a far tier that is away, while new ones can go to another."""
        return self._sending.bound() if isinstance(self._sending, Fleet) else 0

    def _link(self) -> Sending | Fleet:
        if self._sending is None:
            raise self._misplaced("connect")
        return self._sending

    def _misplaced(self, needed: str) -> ConfigError:
        return ConfigError(
            "config", f"tiers.{self.context.tier}.<sources or outputs>.{self.context.id}.{needed}", "an address here", "none",
            "a source has `listen` or `subscribe`, an output `connect` or `publish`",
        )  # fmt: skip
