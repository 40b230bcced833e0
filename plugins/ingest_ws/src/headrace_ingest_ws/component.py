"""The component: its socket, its intake and its server, put together in the order that the promise needs."""

from __future__ import annotations

import asyncio
import resource
import socket
from typing import ClassVar, Final

from headrace import Component, ConfigError, Context, Deliver, Health, QueueFull, TransientError, hookimpl
from headrace_ingest_ws.acceptor import BACKLOG
from headrace_ingest_ws.auth.admission import Admission
from headrace_ingest_ws.bounds import batch_bounds
from headrace_ingest_ws.config import IngestWsConfig, exposed, listen_problem, only_credentials_differ, parse_listen
from headrace_ingest_ws.counters import Counters
from headrace_ingest_ws.intake import AFTER_ACK, AFTER_DELIVER, BEFORE_DELIVER, Intake
from headrace_ingest_ws.parser import frame_buffer, gatherer_on
from headrace_ingest_ws.protocol import CLOSE_BUG, CLOSE_RESTART, CLOSE_TRY_LATER
from headrace_ingest_ws.server import Server

#: Open files besides the sockets of devices: of the queue, of the outputs, of the other components of this process.
FILES_BESIDES: Final = 512


class IngestWs(Component):
    """Devices send over WebSocket or POST; each is acknowledged after `deliver` returned."""

    Config = IngestWsConfig
    many_workers = True
    fault_points: ClassVar[tuple[str, ...]] = (BEFORE_DELIVER, AFTER_DELIVER, AFTER_ACK)

    config: IngestWsConfig

    def __init__(self, config: IngestWsConfig, context: Context) -> None:
        super().__init__(config, context)
        self._counters = Counters(context.metrics)
        self._socket: socket.socket | None = None
        self._intake: Intake | None = None
        self._server: Server | None = None
        self._admission: Admission | None = None
        self._draining = False
        self.url = ""
        """`http://HOST:PORT` (`https` with TLS), with the real port, once open."""

    def check(self) -> list[str]:
        problem = listen_problem(self.config)
        return [*([f"listen: {problem}"] if problem else []), *Admission.check(self.config, self.context)]

    async def open(self) -> None:
        """Take the port. Devices that connect before `ingest_serve` wait in the kernel."""
        if (problem := listen_problem(self.config)) is not None:
            raise self._refused(problem)
        need = self.config.connections_max + self.config.handshakes_max + FILES_BESIDES
        if (files := allow_open_files(need)) < need:
            self.context.log.warning("fewer files may be open than all connections need", files=files, needed=need)
        admission = self._admission = Admission(self.config, self.context)
        await admission.open()
        host, port = parse_listen(self.config.listen)
        listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self.context.workers > 1:
                # the kernel spreads connections over the workers, by address and port of the client
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listening.bind((host, port))
            listening.listen(BACKLOG)
        except OSError as error:
            listening.close()
            raise TransientError(
                f"cannot listen on {self.config.listen}: {error.strerror}; choose another port or end what uses it"
            ) from error
        self._socket = listening
        real_port = listening.getsockname()[1]
        scheme = "https" if self.config.tls is not None else "http"
        self.url = f"{scheme}://[{host}]:{real_port}" if ":" in host else f"{scheme}://{host}:{real_port}"
        if self.config.insecure and (exposure := exposed(self.config)):
            self.context.log.warning("insecure by its own config", reason=exposure)
        self.context.log.info("listening", url=self.url)

    def _refused(self, problem: str) -> ConfigError:
        where = f"tiers.{self.context.tier}.sources.{self.context.id}.listen"
        return ConfigError("config", where, "an address where devices can be served", problem)

    @hookimpl
    async def ingest_serve(self, deliver: Deliver) -> None:
        """Accept until drained or cancelled; the first error of `deliver` other than QueueFull ends it."""
        config, context = self.config, self.context
        admission = self._admission
        assert self._socket is not None, "open comes before ingest_serve"
        assert admission is not None
        buffer, parser, no_c = frame_buffer()
        buffer.bound(self.config.unfinished_bytes_max)
        if no_c:
            context.log.warning("frames are parsed in Python, which is several times slower", reason=no_c)
        try:
            bounds = batch_bounds(config, deliver.queue_info())
        except ValueError as refusal:
            raise ConfigError("config", f"tiers.{context.tier}.sources.{context.id}", *refusal.args) from None
        intake = self._intake = Intake(
            rows_max=bounds.rows,
            bytes_max=bounds.bytes,
            wait_us_max=config.batch_wait_us_max,
            commits_in_flight=config.commits_in_flight,
            clock=context.clock,
            counters=self._counters,
            log=context.log,
            fault=context.fault,
            gatherer=gatherer_on(buffer),
        )
        server = self._server = Server(
            config, intake, deliver, admission, self._counters, context.clock, context.random, context.log, buffer
        )
        goodbye = (CLOSE_RESTART, "service restart")
        try:
            await server.start(self._socket)
            context.log.info("serving", parser=parser)
            async with asyncio.TaskGroup() as tasks:
                background = [tasks.create_task(server.sweep()), tasks.create_task(admission.watch(server))]
                error = await _outcome(intake, deliver)
                for task in background:
                    task.cancel()
            if error is not None:
                again = isinstance(error, (TransientError, QueueFull))
                goodbye = (CLOSE_TRY_LATER, "try again later") if again else (CLOSE_BUG, "internal error")
                raise error
        finally:
            await server.stop(*goodbye)
            self._intake = self._server = None

    async def reload(self, config: IngestWsConfig) -> bool:
        """Take other certificates, tokens, keys and rules for them without a restart; anything else needs one."""
        if self._admission is None or not only_credentials_differ(self.config, config):
            return False
        if (problem := listen_problem(config)) is not None:
            raise self._refused(problem)
        await self._admission.change(config)
        self.config = config
        return True

    async def reread(self) -> None:
        """SIGHUP: look at certificates, tokens and keys at once."""
        if self._admission is not None:
            await self._admission.refresh()

    @hookimpl
    async def ingest_give_up(self, origin: str) -> None:
        """Another worker takes this session over: its connection here ends with 4409, after its commits."""
        if self._server is not None:
            await self._server.sessions.give_up(origin)

    async def drain(self, deadline_s: float) -> None:
        """Take nothing more, acknowledge what was taken, close every connection with 1012; `ingest_serve` returns then."""
        server, intake = self._server, self._intake
        if server is None or intake is None:
            return
        try:
            async with asyncio.timeout(deadline_s):
                await server.refuse_new()
                await intake.quiet()
                await server.close_connections(CLOSE_RESTART, "service restart")
        except TimeoutError:
            self.context.log.warning("not everything in flight was acked before the drain's deadline", deadline_s=deadline_s)
            return
        intake.stop()

    async def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def health(self) -> Health:
        if self._intake is not None and self._intake.paused:
            return Health("degraded", "the queue is full; devices are not read")
        if self._admission is not None and self._admission.problem:
            return Health("degraded", self._admission.problem)
        return Health("ok")


def allow_open_files(need: int) -> int:
    """Raise this process's limit of open files to `need`, or as far as it may; how many it has then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= need:
        return need
    allowed = need if hard == resource.RLIM_INFINITY else min(need, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed


async def _outcome(intake: Intake, deliver: Deliver) -> Exception | None:
    """Run the intake; its error as a value, so that no task group wraps it."""
    try:
        await intake.run(deliver)
    except Exception as error:
        return error
    return None
