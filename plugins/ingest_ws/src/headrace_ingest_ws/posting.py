"""POST: read a body within its bounds, hand its events over, and answer when they are durable.

A request with an `Idempotency-Key` is an origin of its own in the commit, as a device session is, so that its repetition is
known after a crash too: the directory of sessions lets one request of a key in at a time, and has the queue's mark.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from aiohttp import web

from headrace import Clock, Deliver, Origin
from headrace.log import Log
from headrace.position import ORIGIN_SESSION
from headrace_ingest_ws.auth.identity import Identity
from headrace_ingest_ws.config import IngestWsConfig
from headrace_ingest_ws.counters import Counters
from headrace_ingest_ws.directory import UNKNOWN, SessionDirectory
from headrace_ingest_ws.inflate import Gunzip, TooLong
from headrace_ingest_ws.intake import Intake
from headrace_ingest_ws.post import Body, Remembered, fingerprint, idempotency_key, key_origin, pack, read_body, type_problem, unpack
from headrace_ingest_ws.protocol import BUSY, PAYLOAD_INVALID, RATE, TOO_LARGE, Refusal, Refused
from headrace_ingest_ws.rates import Rate, Rates
from headrace_ingest_ws.turnstile import Turnstile

#: A longer body is read on another thread: one of this size may hold 512 events, each of which takes 4 us to be refused.
BLOCKING_BYTES: Final = 1024

#: About what the origin of a key takes in a commit.
ORIGIN_BYTES: Final = 200


class Post:
    """A POST as a peer of the intake: one message, answered when it is settled. With a key, a holder of its origin too."""

    def __init__(self) -> None:
        self._settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._origin: Origin | None = None
        self.handed_in = False

    @property
    def origin_bytes(self) -> int:
        return ORIGIN_BYTES

    def origin(self) -> Origin | None:
        return self._origin

    def settled(self, last: int) -> None:
        if not self._settled.done():
            self._settled.set_result(None)

    def fail(self) -> None:
        """The intake stopped: nobody knows whether the message is durable."""
        self._settled.cancel()

    def hand_in(self, intake: Intake, body: Body, origin: Origin | None = None) -> None:
        """Give the events to the intake, under this origin."""
        self.handed_in = True
        if origin is not None:
            self._origin = origin._replace(row_offset=intake.join(self))
        intake.add(self, 1, body.identity.name, body.encoding.stored, body.events, body.devices)

    def when_done(self, call: Callable[[], None]) -> None:
        """Call back once the events are durable, or nobody can tell any more."""
        self._settled.add_done_callback(lambda _: call())

    async def durable(self, until: float) -> bool:
        """True when the events are durable, False when nobody can tell, or not until then (a time of the loop)."""
        try:
            async with asyncio.timeout_at(until):
                await asyncio.shield(self._settled)
        except TimeoutError:
            return False
        except asyncio.CancelledError:
            if not self._settled.cancelled():
                raise  # the request itself was cancelled
            return False
        return True

    async def hand_over(self) -> None:
        """Another request has the same key: let it wait until this one is settled."""
        await asyncio.wait([self._settled])


class Posting:
    """The POSTs of a server. `admit` is asked for each request, `admit_still` again before anything is stored."""

    def __init__(
        self,
        config: IngestWsConfig,
        intake: Intake,
        deliver: Deliver,
        sessions: SessionDirectory,
        rates: Rates | None,
        counters: Counters,
        clock: Clock,
        log: Log,
        admit: Callable[[web.Request], Awaitable[Identity]],
        admit_still: Callable[[web.Request], Identity],
    ) -> None:
        self._config, self._intake, self._deliver, self._sessions = config, intake, deliver, sessions
        self._rates, self._counters, self._clock, self._log = rates, counters, clock, log
        self._admit, self._admit_still = admit, admit_still
        self._posts: set[Post] = set()
        self._keys: OrderedDict[str, float] = OrderedDict()  # origins of keys stored by this process, and when
        self._inflating = Turnstile(1)  # a step of one body in a turn of the loop, however many inflate

    async def answer(self, request: web.Request) -> web.Response:
        """Take one request. Raises Refused, NotAuthorized or NotReady."""
        identity = await self._admit(request)
        encodings = [name.strip().lower() for name in request.headers.get("Content-Encoding", "identity").split(",")]
        if (problem := type_problem(request.content_type)) is not None:
            raise Refused(415, Refusal(PAYLOAD_INVALID, problem))
        if encodings not in (["identity"], ["gzip"], ["x-gzip"]):
            problem = "expected a body without Content-Encoding, or with gzip"
            raise Refused(415, Refusal(PAYLOAD_INVALID, problem), {"Accept-Encoding": "gzip, identity"})
        key = request.headers.get("Idempotency-Key")
        try:
            origin = None if key is None else key_origin(identity.name, idempotency_key(key))
        except ValueError as error:
            raise Refused(400, Refusal("key_invalid", str(error))) from None
        if len(self._posts) >= self._config.posts_max:
            raise Refused(503, Refusal(BUSY, f"all {self._config.posts_max} posts are in use"), reason="posts")
        rate = self._rate_of(identity.name)
        post = Post()
        self._posts.add(post)
        try:
            raw = await self._read(request, encodings != ["identity"], rate)
            body = await self._parse(raw, request.content_type, identity)
            if rate is not None:
                rate.charge(len(body.events) + sum(refusal.events for refusal in body.refused), len(raw))
            if origin is None or not body.events:
                return await self._store(request, post, raw, body)
            return await self._store_once(request, post, raw, body, origin)
        finally:
            self._posts.discard(post)

    def fail(self) -> None:
        """The intake stopped: whoever waits gets 503, for nobody knows about the events."""
        for post in list(self._posts):
            post.fail()

    def _rate_of(self, device: str) -> Rate | None:
        """What the device may send, or Refused when that is nothing now."""
        if self._rates is None:
            return None
        now = self._clock.monotonic()
        rate = self._rates.of(device, now)
        if wait_ms := rate.wait_ms(now):
            raise Refused(429, Refusal(RATE, rate.reason(), retry_ms=wait_ms), {"Retry-After": str(-(-wait_ms // 1000))})
        return rate

    @property
    def _remembers(self) -> bool:
        """False in a tier without a queue: there is nothing to remember keys in."""
        info = self._deliver.queue_info()
        return info is not None and info.level != "none"

    # --- the body ----------------------------------------------------------------------------------------------------

    async def _read(self, request: web.Request, gzip: bool, rate: Rate | None) -> bytes:
        """The whole body, inflated; at most `post_bytes_max` bytes of it are ever held, and as many as came are read."""
        bytes_max = self._config.post_bytes_max
        try:
            async with asyncio.timeout(self._config.request_timeout_s):
                if (request.content_length or 0) > bytes_max:
                    raise TooLong
                await _continue(request)
                return await (self._inflated(request, bytes_max) if gzip else _plain(request, bytes_max))
        except TimeoutError:
            problem = f"expected the whole body in {self._config.request_timeout_s:g} s"
            raise Refused(408, Refusal(PAYLOAD_INVALID, problem), reason="body_timeout") from None
        except TooLong:
            if rate is not None:
                rate.charge(1, bytes_max)  # or compressed bombs would be free
            raise Refused(413, Refusal(TOO_LARGE, f"expected a body of at most {bytes_max} bytes")) from None
        except ValueError as error:
            raise Refused(400, Refusal(PAYLOAD_INVALID, str(error))) from None

    async def _inflated(self, request: web.Request, bytes_max: int) -> bytes:
        body, gunzip, came = bytearray(), Gunzip(bytes_max), 0
        async for piece in request.content.iter_any():
            came += len(piece)
            if came > bytes_max:
                raise TooLong
            steps = gunzip.feed(piece)
            while True:
                await self._inflating.passed()
                if (inflated := next(steps, None)) is None:
                    break
                body += inflated
        for inflated in gunzip.end():
            body += inflated
        return bytes(body)

    async def _parse(self, raw: bytes, content_type: str, identity: Identity) -> Body:
        facts = (raw, content_type, identity, self._clock.wall(), self._config.events_per_message_max)
        return await asyncio.to_thread(read_body, *facts) if len(raw) > BLOCKING_BYTES else read_body(*facts)

    # --- storing -----------------------------------------------------------------------------------------------------

    async def _store(self, request: web.Request, post: Post, raw: bytes, body: Body, origin: Origin | None = None) -> web.Response:
        until = asyncio.get_running_loop().time() + self._config.post_wait_s
        try:
            async with asyncio.timeout_at(until):
                await self._intake.room()
        except TimeoutError:
            raise Refused(503, Refusal(BUSY, "the queue is full"), reason="queue_full") from None
        self._admit_still(request)  # draining may have begun meanwhile, or the credentials have ended
        self._count(raw, body)
        if body.events:
            post.hand_in(self._intake, body, origin)
            if not await post.durable(until):
                problem = "the queue is full or the server restarts; it is unknown whether the events were stored"
                raise Refused(503, Refusal(BUSY, problem), reason="post_wait")
        if body.status != 200:
            self._counters.request_refused(body.status, body.refused[0].code)
        return web.Response(status=body.status, body=body.answer(), content_type="application/json")

    async def _store_once(self, request: web.Request, post: Post, raw: bytes, body: Body, name: str) -> web.Response:
        """Store the events unless they were stored under this key before; then give the same answer again."""
        try:
            async with asyncio.timeout(self._config.post_wait_s):
                found = await self._sessions.take(name, post)
        except TimeoutError:
            problem = "an earlier request with this key still waits for its commit"
            raise Refused(503, Refusal(BUSY, problem), reason="post_wait") from None
        post.when_done(lambda: self._sessions.leave(name, post))
        try:
            if found == UNKNOWN and self._remembers:
                problem = "another worker cannot be asked just now whether it has this key"
                raise Refused(503, Refusal(BUSY, problem), reason="session")
            if found is None or found == UNKNOWN:
                last, held = 0, None
            else:
                last, held = found.last, unpack(found.note)
            now, print_ = self._clock.wall(), fingerprint(raw, request.content_type)
            if held is not None and now - held.stored_s <= self._config.idempotency_keep_s:
                return self._again(body, held, print_)
            note = pack(Remembered(now, len(body.events), print_))
            origin = Origin(name, last + 1, last + 1, 0, ORIGIN_SESSION, note)
            response = await self._store(request, post, raw, body, origin)
        finally:
            if not post.handed_in:
                post.fail()  # lets the next request with this key in
        await self._remember(name, now)
        return response

    def _again(self, body: Body, held: Remembered, print_: bytes) -> web.Response:
        if held.fingerprint != print_:
            raise Refused(422, Refusal("key_reused", "another request was stored under this Idempotency-Key"))
        self._counters.posts_repeated.inc()
        # what was refused of the same body is refused again, for the same reasons
        rejected = [refusal.fields() for refusal in body.refused]
        answer = msgspec.json.encode({"accepted": held.accepted, "rejected": rejected})
        return web.Response(body=answer, content_type="application/json", headers={"Idempotent-Replayed": "true"})

    async def _remember(self, origin: str, now: float) -> None:
        """Keep the number of keys within its bound; a key's mark that is dropped leaves room for a device session's."""
        self._keys[origin] = now
        self._keys.move_to_end(origin)
        over: list[str] = []
        while (
            len(self._keys) > self._config.idempotency_keys_max or now - next(iter(self._keys.values())) > self._config.idempotency_keep_s
        ):
            over.append(self._keys.popitem(last=False)[0])
        if over:
            await self._deliver.forget(over)

    def _count(self, raw: bytes, body: Body) -> None:
        counters = self._counters
        counters.received_bytes.inc(len(raw))
        counters.received.inc(len(body.events))
        refused = Counter[str]()
        for refusal in body.refused:
            refused[refusal.code] += refusal.events
        for code, events in refused.items():
            counters.received.inc(events)
            counters.rejected(code, events)
        if body.refused:
            first = body.refused[0]
            self._log.warning("message refused", device=body.identity.name, code=first.code, reason=first.reason)


async def _plain(request: web.Request, bytes_max: int) -> bytes:
    body = bytearray()
    async for piece in request.content.iter_any():
        body += piece
        if len(body) > bytes_max:
            raise TooLong
    return bytes(body)


async def _continue(request: web.Request) -> None:
    """Say that the body may come, to a client that waits for that word (RFC 9110 section 10.1.1)."""
    if request.headers.get("Expect", "").strip().lower() == "100-continue" and request.version >= (1, 1):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # of the answer itself, nothing is written yet
