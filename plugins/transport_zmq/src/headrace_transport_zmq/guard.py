"""Who may come in at a listening socket: keys by ZAP, connections by what libzmq's monitor tells of them.

ZAP is answered per ZeroMQ context, and every component has a context of its own: so each has its own list, whatever else
lives in the process. Lives on the loop of the component.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket as sockets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import zmq
import zmq.asyncio
from zmq.auth import Authenticator
from zmq.utils.monitor import parse_monitor_message

from headrace import Context
from headrace_transport_zmq.config import TransportConfig
from headrace_transport_zmq.connections import Connections
from headrace_transport_zmq.counters import GuardCounters
from headrace_transport_zmq.key_options import read_keys
from headrace_transport_zmq.keys import KeysError, others_may_read, read_allowed

#: How long a change of the list may go unnoticed.
LOOK_S: Final = 2.0
_MONITORED: Final = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
#: ZMQ_PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC and ..._MECHANISM_MISMATCH.
CRYPTOGRAPHIC: Final = 0x11000001
MECHANISM: Final = 0x11000002
#: Events looked at before other tasks get their turn.
_EVENTS_MAX: Final = 256
#: Numbers of monitors, for their addresses.
_MONITORS: Final = itertools.count()


class Guard:
    """Of one listening socket. `arm` it before it is bound, `run` it as long as it listens."""

    def __init__(self, config: TransportConfig, context: Context, zmq_context: zmq.asyncio.Context, mute: bool = False) -> None:
        """mute: the socket tells nothing of what its peers say. KeysError when the keys cannot be read."""
        self._config, self._context = config, context
        self._count = GuardCounters(context.metrics)
        self._connections = Connections(config.handshakes_max, 2 * config.peers_max + config.handshakes_max, mute)
        self._port = 0
        self._zmq = zmq_context
        keys = read_keys(config)
        self._pair, self._allowed = keys.pair, keys.allowed or {}
        self._stamp: object = None
        self._problem = ""
        self._monitor: zmq.Socket[bytes] | None = None
        self._authenticator: Authenticator | None = None
        if config.key_file is not None:
            if others_may_read(Path(config.key_file)):
                context.log.warning("others can read the secret key: chmod 600", path=config.key_file)
            self._authenticator = Authenticator(zmq_context)
            self._authenticator.configure_curve_callback(domain=self._domain, credentials_provider=self)
            self._authenticator.start()  # before the socket is bound: libzmq lets in whoever comes while nobody answers

    @property
    def _domain(self) -> str:
        return f"{self._context.tier}/{self._context.id}"

    def arm(self, socket: zmq.Socket[Any]) -> None:
        """Before `bind`."""
        socket.setsockopt(zmq.HANDSHAKE_IVL, int(self._config.handshake_timeout_s * 1000))
        if self._pair is not None:
            socket.curve_server = True
            socket.curve_secretkey = self._pair.secret
            socket.zap_domain = self._domain.encode()
            socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        self._monitor = monitored(socket, self._zmq, _MONITORED)

    def bound(self, socket: zmq.Socket[Any]) -> str:
        """After `bind`; gives the real address."""
        url: str = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._port = int(url.rpartition(":")[2])
        keys = {"keys": len(self._allowed), "public_key": self._pair.public.decode()} if self._pair else {}
        self._context.log.info("listening", url=url, **keys)
        return url

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            if self._authenticator is not None:
                tasks.create_task(self._answer_zap(self._authenticator))
                tasks.create_task(self._look())

    def close(self) -> None:
        """Before the context is destroyed. Safe twice."""
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None
        if self._monitor is not None:
            self._monitor.close(linger=0)
            self._monitor = None

    def spoke(self, part: zmq.Frame) -> None:
        """This part came from a peer that belongs here."""
        self._catch_up()  # it was accepted before
        if (fd := _connection_of(part)) is not None:
            self._connections.spoke(fd, key_of(part))

    def subscribed(self, part: zmq.Frame) -> None:
        """This part is a subscription, or takes one back."""
        self.spoke(part)
        if (fd := _connection_of(part)) is not None:
            self._shut(self._connections.subscribed(fd, 1 if part.bytes[:1] == b"\1" else -1))

    def nonsense(self, part: zmq.Frame) -> None:
        """This part came in a message that is none of ours."""
        self._catch_up()
        if (fd := _connection_of(part)) is not None:
            self._shut(self._connections.nonsense(fd))

    def name_of(self, part: zmq.Frame) -> str:
        """The name of the key by which this part came; empty without keys."""
        return self._allowed.get(key_of(part), "")

    # --- keys --------------------------------------------------------------------------------------------------------

    async def _answer_zap(self, authenticator: Authenticator) -> None:
        while True:
            await readable(authenticator.zap_socket)
            await authenticator.handle_zap_message(authenticator.zap_socket.recv_multipart())

    def callback(self, domain: str, key: bytes) -> bool:
        """Asked by the authenticator: may this key come in?"""
        if key in self._allowed:
            return True
        remedy = f"add it to {self._config.allow_keys_file} if it belongs here"
        self._context.log.warning("link refused a key", public_key=key.decode(), remedy=remedy)
        return False

    async def _look(self) -> None:
        while True:
            await self._context.clock.sleep(LOOK_S)
            await self.reread()

    async def reread(self) -> None:
        """Take a changed list: who is on it no more is cut off."""
        if self._pair is None:
            return
        before = self._allowed
        try:
            await self._context.call_blocking(self._read_allowed)
        except KeysError as error:
            if not self._problem:
                self._context.log.error("allowed keys cannot be read; those read last stay in use", error=str(error))
                self._context.status("degraded", str(error))
            self._problem = str(error)
            return
        if self._problem:
            self._problem = ""
            self._context.status("ok", "")
        gone = before.keys() - self._allowed.keys()
        if before.keys() != self._allowed.keys():
            self._context.log.info("allowed keys changed", keys=len(self._allowed), gone=len(gone))
        if gone:
            self._shut(self._connections.revoked(self._allowed))

    def _read_allowed(self) -> None:
        assert self._config.allow_keys_file is not None
        path = Path(self._config.allow_keys_file)
        try:
            stat = path.stat()
            # a fresh file may change again under the same stamp; file systems count time in steps
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino) if time.time() - stat.st_mtime > LOOK_S else None
        except OSError:
            stamp = None  # reading it says why
        if stamp is None or stamp != self._stamp:
            self._stamp = None
            self._allowed = read_allowed(path)
            self._stamp = stamp

    # --- connections -------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        assert self._monitor is not None
        while True:
            # always read: libzmq's own thread waits when nobody does
            await readable(self._monitor)
            self._catch_up()
            await asyncio.sleep(0)

    def _catch_up(self) -> None:
        for event, value in happened(self._monitor):
            self._happened(event, value)

    def _happened(self, event: int, value: int) -> None:
        now = self._context.clock.monotonic()
        if event == zmq.EVENT_ACCEPTED:
            self._shut(self._connections.accepted(value, now))
        elif event == zmq.EVENT_DISCONNECTED:
            if reason := self._connections.closed(value):
                self._count.refused(reason)
                if reason != "key":  # that was logged, with the key
                    self._context.log.warning("link refused a connection", reason=reason)
            self._shut(self._connections.crowding(now))
        else:
            self._connections.failing(failure_of(event, value))
        self._count.connections.set(len(self._connections))

    def _shut(self, fds: list[int]) -> None:
        for fd in fds:
            shut_down(fd, self._port)


def monitored(socket: zmq.Socket[Any], zmq_context: zmq.asyncio.Context, events: int, events_max: int = 1000) -> zmq.Socket[bytes]:
    """A plain socket that tells these events of `socket`; for `happened`, and `readable`. With `events_max` (0: no bound) unread, libzmq's
    own thread waits."""
    # one of its own for each: libzmq's threads free the address of a monitor that was closed in their own time
    address = f"inproc://monitor-{next(_MONITORS)}"
    socket.monitor(address, events)
    monitor = zmq.Socket(zmq_context, zmq.PAIR)  # a plain one, whatever the context makes
    monitor.setsockopt(zmq.LINGER, 0)
    monitor.setsockopt(zmq.RCVHWM, events_max)
    monitor.connect(address)
    return monitor


def happened(monitor: zmq.Socket[bytes] | None) -> Iterator[tuple[int, int]]:
    """What a monitor has to tell now, as (event, value)."""
    for _ in range(_EVENTS_MAX):
        if monitor is None or monitor.closed:
            return
        try:
            told = parse_monitor_message(monitor.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            return
        yield int(told["event"]), int(told["value"])


async def readable(socket: zmq.Socket[bytes]) -> None:
    """Wait until a plain socket has a message."""
    poller = zmq.asyncio.Poller()
    poller.register(socket, zmq.POLLIN)
    await poller.poll()


def key_of(part: zmq.Frame) -> bytes:
    """The public key that ZAP let in and by which this part came; empty without keys."""
    try:
        return str(part.get("User-Id")).encode()
    except zmq.ZMQError:  # no such property
        return b""


def _connection_of(part: zmq.Frame) -> int | None:
    """The descriptor of the connection by which a part came; None for peers that speak ZMTP 1 or 2."""
    try:
        return int(part.get(zmq.SRCFD))
    except zmq.ZMQError:
        return None


def failure_of(event: int, value: int) -> str:
    """Why a handshake failed, as a listening socket sees it."""
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return "key"
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
        return {CRYPTOGRAPHIC: "server_key", MECHANISM: "mechanism"}.get(value, "protocol")
    return "timeout" if value == zmq.EAGAIN else "handshake"


def shut_down(fd: int, port: int) -> None:
    """End a connection that libzmq holds; it closes it then. Only if it is one of this port: it may have been closed and its
    number given to another file since libzmq told of it."""
    try:
        copy = os.dup(fd)
    except OSError:
        return
    try:
        with sockets.socket(fileno=copy) as connection:
            copy = -1
            if connection.getsockname()[1] == port:
                connection.shutdown(sockets.SHUT_RDWR)
    except (OSError, IndexError):
        if copy >= 0:
            os.close(copy)
