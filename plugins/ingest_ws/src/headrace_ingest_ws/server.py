"""The HTTP side: routes, limits, refusals, the sweep over connections, and the end.

aiohttp serves HTTP; what a connection does after its upgrade is `connection.py`'s business.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random
from typing import Any, Final

import msgspec
from aiohttp import web

from headrace import Clock, Deliver
from headrace.log import Log
from headrace_ingest_ws.acceptor import Acceptor
from headrace_ingest_ws.ages import ends_at
from headrace_ingest_ws.auth.admission import Admission
from headrace_ingest_ws.auth.asking import Asking
from headrace_ingest_ws.auth.guard import Guard
from headrace_ingest_ws.auth.identity import Identity, NotAuthorized, NotReady, Unknown
from headrace_ingest_ws.config import IngestWsConfig
from headrace_ingest_ws.connection import Connection
from headrace_ingest_ws.counters import Counters
from headrace_ingest_ws.directory import HostSessions, LocalSessions, Standing, standing
from headrace_ingest_ws.handshake import VERSION, chosen_subprotocol, handshake_problem, wants_upgrade
from headrace_ingest_ws.intake import Intake
from headrace_ingest_ws.lobby import Handler, Lobby
from headrace_ingest_ws.parser import FrameBuffer
from headrace_ingest_ws.places import Arrivals, Place, Places
from headrace_ingest_ws.polling import Poller
from headrace_ingest_ws.posting import Posting
from headrace_ingest_ws.protocol import (
    BUSY,
    CLOSE_POLICY,
    NOT_AUTHORIZED,
    SUBPROTOCOL,
    TOO_LARGE,
    Refusal,
    Refused,
    SessionClaim,
    device_problem,
    encoding_claim,
    hello,
    session_claim,
)
from headrace_ingest_ws.rates import PythonLevels, Rates, limit_of
from headrace_ingest_ws.session_connection import SessionConnection
from headrace_ingest_ws.turnstile import Turnstile

EVENTS_PATH: Final = "/v1/devices/{device}/events"

HANDSHAKE_HEADERS: Final = {"Upgrade": "websocket", "Sec-WebSocket-Version": VERSION}

#: Requests begun in one turn of the loop. One costs 0.2 to 0.5 ms, whoever asks and whether or not it is granted.
REQUESTS_PER_TURN: Final = 2

#: Connections looked after before the loop gets a turn: about 0.5 ms of work. One that has to be closed costs as much as so many.
TICKS_PER_TURN: Final = 64
TICKS_PER_END: Final = 8


class Server:
    """Serves devices on one listening socket while it is used as a context of `serving`."""

    def __init__(
        self,
        config: IngestWsConfig,
        intake: Intake,
        deliver: Deliver,
        admission: Admission,
        counters: Counters,
        clock: Clock,
        random: Random,
        log: Log,
        buffer: FrameBuffer,
    ) -> None:
        self._config, self._intake, self._deliver, self._buffer = config, intake, deliver, buffer
        self._admission = admission
        self._counters, self._clock, self._random, self._log = counters, clock, random, log
        limit = limit_of(config.device_events_per_s_max, config.device_bytes_per_s_max, config.device_burst_s)
        gatherer = intake.gatherer
        self._rates = Rates(limit, levels_of=gatherer.levels if gatherer is not None else PythonLevels) if limit is not None else None
        self._places = Places(config.handshakes_max, config.connections_per_address_max)
        self._connections: dict[Connection, Place] = {}
        self._apart: dict[Connection, None] = {}  # those of which C does not know whether they need to be looked after
        self._asking = Asking()
        self.sessions = HostSessions(deliver, LocalSessions(deliver, counters.sessions_taken_over.inc))
        self._posting = Posting(config, intake, deliver, self.sessions, self._rates, counters, clock, log, self._admit_new, self._admit)
        self._taking = 0  # upgrades that wait for a session; they will be connections
        self._requests = Turnstile(REQUESTS_PER_TURN)
        self._draining = False
        self._lobby: Lobby | None = None
        self._acceptor: Acceptor | None = None
        app = web.Application(client_max_size=config.post_bytes_max, middlewares=[self._answer_errors])
        app.router.add_get(EVENTS_PATH, self._get, allow_head=False, expect_handler=_continue_later)
        app.router.add_post(EVENTS_PATH, self._post, expect_handler=_continue_later)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=config.request_timeout_s,
            lingering_time=config.close_timeout_s,
            shutdown_timeout=config.close_timeout_s,
        )
        self._poller = Poller(buffer, intake)

    async def start(self, listening: socket.socket) -> None:
        """Accept connections on a bound socket."""
        await self._runner.setup()
        config, server = self._config, self._runner.server
        assert server is not None
        self._lobby = Lobby(server, self._counters, self._clock, config.request_timeout_s, config.write_timeout_s, self._refuse_malformed)
        self._acceptor = Acceptor(
            listening,
            self._admission.tls,
            self._places,
            Arrivals(config.connections_per_address_per_s_max) if config.connections_per_address_per_s_max else None,
            self._lobby,
            self._counters,
            self._clock,
            self._log,
            retry_after_s=config.retry_after_s,
            handshake_timeout_s=config.request_timeout_s,
            close_timeout_s=config.close_timeout_s,
        )
        self._acceptor.start()

    def accept_with(self, tls: ssl.SSLContext | None) -> None:
        """New connections shake hands with this context; those that are there stay."""
        if self._acceptor is not None:
            self._acceptor.tls = tls

    async def end_unauthorized(self, guard: Guard, now: float) -> None:
        """Close every connection whose credentials do not hold any more, with 1008; `now` is Unix time."""
        if not self._asking.due(guard, now):
            return
        self._asking.begins(guard)
        left = TICKS_PER_TURN
        for connection in list(self._connections):
            left -= 1
            if not connection.ending and (why := guard.why_ended(connection.identity, now)) is not None:
                self._log.warning("connection ended with its credentials", device=connection.identity.name, reason=why)
                connection.end(CLOSE_POLICY, why)
                left -= TICKS_PER_END
            elif not connection.ending:
                self._asking.came(connection.identity)
            if left <= 0:
                left = TICKS_PER_TURN
                await asyncio.sleep(0)

    async def sweep(self) -> None:
        """Look after all connections about once a second, until cancelled."""
        config = self._config
        period_s = min(1.0, config.idle_timeout_s / 4, config.write_timeout_s / 4, config.request_timeout_s / 4)
        async with asyncio.TaskGroup() as closing:
            while True:
                await self._clock.sleep(period_s)
                now = self._clock.monotonic()
                while self._lobby is not None and self._lobby.sweep(now):  # noqa: ASYNC110  the loop has to turn
                    await asyncio.sleep(0)
                if self._rates is not None:
                    self._rates.sweep(now)
                await self._look_after(list(self._apart), now, closing)
                for restless in self._poller.restless(now):
                    await self._look_after([one for one in restless if isinstance(one, Connection)], now, closing)

    async def _look_after(self, connections: Sequence[Connection], now: float, closing: asyncio.TaskGroup) -> None:
        left = TICKS_PER_TURN
        for connection in connections:
            left -= 1
            if not connection.ending and (end := connection.tick(now)) is not None:
                closing.create_task(connection.finish(*end))
                left -= TICKS_PER_END
            if left <= 0:
                left = TICKS_PER_TURN
                await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def refuse_new(self) -> None:
        """Stop listening; refuse requests on open connections and ignore their further messages."""
        self._draining = True
        if self._acceptor is not None:
            self._acceptor.close()
        for connection in self._connections:
            connection.refuse_from_now_on()
        self._poller.finish()

    async def close_connections(self, code: int, reason: str) -> None:
        """Close every connection, each after its own acks."""
        self._draining = True
        async with asyncio.TaskGroup() as tasks:
            for connection in list(self._connections):
                tasks.create_task(connection.finish(code, reason))

    async def stop(self, code: int, reason: str) -> None:
        """Close everything. POSTs that wait get 503: nobody knows about their events."""
        self._posting.fail()
        await self.refuse_new()
        await self.close_connections(code, reason)
        self._poller.close()
        if self._lobby is not None and self._acceptor is not None:
            self._lobby.close()
            await self._acceptor.closed()
        await self._runner.cleanup()

    # --- requests ----------------------------------------------------------------------------------------------------

    @web.middleware
    async def _answer_errors(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        headers: Mapping[str, str] = {}
        counted_as = None
        try:
            await self._requests.passed()
            return await handler(request)
        except NotAuthorized as error:
            self._counters.not_authorized(error.why)
            self._counters.request_refused(error.status, NOT_AUTHORIZED)
            self._log.warning("device not authorized", reason=error.reason, path=request.path[:200], address=request.remote)
            # what it sends next has to prove itself again, so the connection may stay
            challenge = {"WWW-Authenticate": "Bearer"} if error.status == 401 and self._config.auth != "mtls" else {}
            answer = self._error(error.status, Refusal(NOT_AUTHORIZED, error.reason), challenge)
            if self._config.auth == "mtls":
                answer.force_close()  # it can show another certificate only on another connection
            return answer
        except NotReady as error:
            status, refusal, counted_as = 503, Refusal(BUSY, error.reason), "not_ready"
        except Refused as error:
            status, refusal, headers, counted_as = error.status, error.refusal, error.headers, error.reason
        except web.HTTPRequestEntityTooLarge:
            status, refusal = 413, Refusal(TOO_LARGE, f"expected a body of at most {self._config.post_bytes_max} bytes")
        except web.HTTPException as error:
            status, refusal = error.status, Refusal("http_error", error.reason)
        except (ConnectionError, asyncio.CancelledError):
            raise  # the client left
        except Exception as error:
            self._counters.request_refused(500, "bug")
            self._log.exception("request failed", error, path=request.path[:200])
            raise
        self._counters.request_refused(status, counted_as or refusal.code)
        self._log.warning("request refused", status=status, code=refusal.code, reason=refusal.reason, path=request.path[:200])
        return self._error(status, refusal, headers)

    def _refuse_malformed(self, status: int) -> web.Response:
        """The answer to what is no HTTP request; the middleware above does not see it."""
        self._counters.request_refused(status, "malformed")
        self._log.warning("request refused", status=status, code="http_error", reason="malformed")
        return self._error(status, Refusal("http_error", "expected an HTTP/1.1 request"), {})

    def _error(self, status: int, refusal: Refusal, headers: Mapping[str, str]) -> web.Response:
        if status == 503:
            headers = {"Retry-After": str(self._config.retry_after_s)}
            refusal = refusal._replace(retry_ms=self._config.retry_after_s * 1000)
        return web.Response(status=status, headers=headers, body=msgspec.json.encode(refusal.fields()), content_type="application/json")

    def _admit(self, request: web.Request) -> Identity:
        """Who sends. Raises Refused, NotAuthorized or NotReady."""
        device = request.match_info["device"]
        if (problem := device_problem(device)) is not None:
            raise Refused(400, Refusal("device_invalid", problem))
        if self._draining or self._intake.stopped:
            raise Refused(503, Refusal(BUSY, "the server is restarting"), reason="draining")
        if self._intake.paused:
            raise Refused(503, Refusal(BUSY, "the queue is full"), reason="queue_full")
        return self._admission.identify(request, device)

    async def _admit_new(self, request: web.Request) -> Identity:
        """As `_admit`, but whose credentials nobody knows waits for one look: they may have been added just now."""
        try:
            return self._admit(request)
        except Unknown:
            await self._admission.look_again()
            await self._requests.passed()  # all who waited for that look would go on in one turn
        return self._admit(request)  # draining may have begun meanwhile

    async def _get(self, request: web.Request) -> web.StreamResponse:
        if not wants_upgrade(request):
            raise Refused(426, Refusal("upgrade_required", "expected a WebSocket upgrade, or a POST with events"), HANDSHAKE_HEADERS)
        identity = await self._admit_new(request)
        if len(self._connections) + self._taking >= self._config.connections_max:
            raise Refused(503, Refusal(BUSY, f"all {self._config.connections_max} connections are in use"), reason="connections")
        if (problem := handshake_problem(request)) is not None:
            raise Refused(400, Refusal("http_error", problem), HANDSHAKE_HEADERS)
        try:
            encoding = encoding_claim(request.query)
        except ValueError as error:
            raise Refused(400, Refusal("encoding_unknown", str(error))) from None
        try:
            claim = session_claim(request.query)
        except ValueError as error:
            raise Refused(400, Refusal("session_invalid", str(error))) from None
        if claim is None:
            self._serve(Connection(*self._facts(identity), encoding), request, self._hello)
        elif chosen_subprotocol(request, SUBPROTOCOL) is None:
            problem = f"expected the subprotocol {SUBPROTOCOL} with a session: the hello says where it goes on"
            raise Refused(400, Refusal("session_invalid", problem))
        else:
            await self._serve_session(SessionConnection(*self._facts(identity), encoding), request, identity, claim)
        return web.Response()  # goes nowhere: aiohttp has lost this connection

    def _facts(self, identity: Identity) -> tuple[Identity, IngestWsConfig, Intake, Counters, Log, float, FrameBuffer]:
        return identity, self._config, self._intake, self._counters, self._log, self._clock.monotonic(), self._buffer

    def _serve(self, connection: Connection, request: web.Request, greet: Callable[[], bytes]) -> bool:
        handler = request.protocol
        assert isinstance(handler, Handler)
        place, handler.place = handler.place, None
        config, now = self._config, self._clock.monotonic()
        connection.ends_at = ends_at(now, config.connection_age_s_max, config.connection_age_jitter_ratio, self._random)
        if self._rates is not None:
            connection.rate = self._rates.enter(connection.identity.name, now)
        served = False
        try:
            served = connection.serve(request, greet, self._ended, self._poller)
        finally:
            if not served:
                self._leave_rate(connection)
                if place is not None:
                    place.give_back()
        if served:
            assert place is not None
            place.upgraded()
            self._connections[connection] = place
            self._asking.came(connection.identity)
            if not connection.gathered:
                self._apart[connection] = None
            self._counters.connections.set(len(self._connections))
        return served

    def _leave_rate(self, connection: Connection) -> None:
        if self._rates is not None and connection.rate is not None:
            self._rates.leave(connection.rate)

    async def _serve_session(self, connection: SessionConnection, request: web.Request, identity: Identity, claim: SessionClaim) -> None:
        session = f"{identity.name}/{claim.id}"
        at = await self._take(session, claim, connection)

        def leave() -> None:
            self.sessions.leave(session, connection)

        def greet() -> bytes:
            refused = [message.fields() for message in at.refused]
            return self._hello({"session": claim.id, "resume": at.start if at.known else None, "refused": refused})

        connection.resume(session, at, leave)
        try:
            self._admit(request)  # draining may have begun meanwhile
            served = self._serve(connection, request, greet)
        except BaseException:
            leave()
            raise
        if not served:
            leave()

    async def _take(self, session: str, claim: SessionClaim, connection: SessionConnection) -> Standing:
        """Where the session goes on, once no other connection holds it."""
        self._taking += 1
        try:
            async with asyncio.timeout(self._config.close_timeout_s):
                found = await self.sessions.take(session, connection)
        except TimeoutError:
            raise Refused(503, Refusal(BUSY, "an older connection of this session still waits for its commit"), reason="session") from None
        finally:
            self._taking -= 1
        at = standing(claim, found)
        self._counters.session_told(known=at.known, new=at.known and not at.start)
        return at

    def _ended(self, connection: Connection) -> None:
        if (place := self._connections.pop(connection, None)) is not None:
            place.give_back()
            self._leave_rate(connection)
        self._apart.pop(connection, None)
        self._counters.connections.set(len(self._connections))

    def _hello(self, session: Mapping[str, Any] | None = None) -> bytes:
        info, config = self._deliver.queue_info(), self._config
        queue, level = (info.queue_id, info.level) if info else (None, "none")
        limits = config.window_messages, config.message_bytes_max, config.events_per_message_max, config.idle_timeout_s
        return hello(queue, level, *limits, session)

    async def _post(self, request: web.Request) -> web.StreamResponse:
        return await self._posting.answer(request)


async def _continue_later(request: web.Request) -> None:
    """aiohttp would ask for the body before it is known whether the client may send one, and refuse other expectations uncounted."""
