"""The whole extension surface: every hook that a plugin can implement, and what the host promises about it.

A plugin is a `headrace.component.Component` class whose methods carry `@hookimpl`. The place of its table in the config
decides its *role*, and the role the hooks that must be there (`ROLES`, at the end). Rules for all hooks:

- Hooks take batches (`pyarrow.RecordBatch`), never single events: a hook call costs about 2 us, a direct call 0.1 us.
- A hook declared `async def` here must be `async def` in the plugin, and a plain one plain; the host refuses anything else
  at registration, as it does a required hook that is missing, a method named like a hook without `@hookimpl`, a misspelt
  hook, and parameters that pluggy would never pass (keyword-only, or with a default).
- An implementation may leave out trailing parameters that it does not need.
- Errors that cross a hook are `TransientError` (the host backs off and calls again) or `PermanentError` (the host sets the
  rows aside in the dead letters). Any other exception is a bug of the plugin: the host restarts the component with backoff.
- Sources run on the loop that acks devices; decoders, enrichers and outputs on another thread with a loop of its own. An
  async hook may hold its loop for 1 ms at most; longer work goes to `context.call_blocking`. Whoever holds a loop for more than
  a second is named in the log, by the line of code (`a loop is held`).
- Hooks and trailing parameters may be added in a minor version. A plugin marks a hook that it can live without
  `@hookimpl(optionalhook=True)`, so that it still loads where the host does not know it yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Literal, NamedTuple, Protocol

import pluggy
import pyarrow as pa
from aiohttp import web

from headrace.position import Missing, OriginMark, RangeKey

PROJECT: Final = "headrace"
HOOKS_API: Final = 1

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


# --- what crosses the hooks beside batches ---------------------------------------------------------------------------


class Deliver(Protocol):
    """What a source gets to hand over its batches.

    It may be called again before an earlier call returned; the order of the calls is the order of the positions.
    """

    async def __call__(self, batch: pa.RecordBatch, origins: pa.RecordBatch = ...) -> tuple[int, int]:
        """Store one batch (RAW_SCHEMA, or an event batch); return its first and last position once it is durable here.

        `origins` (ORIGIN_SCHEMA) says where the rows came from; rows that this tier holds already are dropped and counted.
        Raises `QueueFull` at once, having taken nothing. Cancelled means unknown: do not acknowledge.
        """

    async def room(self) -> None:
        """Return when there is room again, so that reading may go on."""

    async def position(self, origin: str) -> int | None:
        """The highest position held from that origin, or None: how a receiver tells its sender where to go on.

        Waits until nothing of that origin is in flight.
        """

    async def mark(self, origin: str) -> OriginMark | None:
        """As `position`, with the note that came with it: what a session needs to go on."""

    async def forget(self, origins: Sequence[str]) -> None:
        """Nothing of these origins will come any more (a queue id is fully released, a session is over): drop their marks."""

    def taking(self, origin: str) -> AbstractAsyncContextManager[Elsewhere]:
        """The origin's sender is here now: no other worker of the tier takes anything of it any more, and what theirs is worth.

        One worker at a time is in the block, for each origin: set up there whoever holds the origin here. Raises `TimeoutError`
        when another worker cannot be asked now, for example while it is started again: let the sender try again soon. With
        one worker there is nobody to ask.
        """

    def hurry(self) -> None:
        """Whoever sent what was handed over cannot go on before it is durable: the tier is not to wait for more (DELIVERY 11).

        Of use in a tier without a queue; else nothing waits.
        """

    def queue_info(self) -> QueueInfo | None:
        """The queue's facts (id, level, bounds), or None in a tier without one."""


class Elsewhere(NamedTuple):
    """What the other workers of a tier hold of an origin: the highest of their marks. known: False when one of them could not be
    asked for so long that nobody waits for it any more; then nobody knows what it holds."""

    mark: OriginMark | None
    known: bool


class Plan(NamedTuple):
    """A range that an output is about to write, kept durably beside its cursor.

    first, last: positions, inclusive. attempts: how often it was begun without an end. excluded: positions left out
    (dead-lettered), so that a repetition after a crash has the identical content.
    """

    first: int
    last: int
    attempts: int
    excluded: tuple[int, ...] = ()


class QueueSpan(NamedTuple):
    """The positions that one queue id names; `last` is None for the id in use."""

    queue_id: str
    first: int
    last: int | None


class ReaderInfo(NamedTuple):
    """One reader: name, where it began, its cursor (the last position released), its plan, and what it has yet to release.

    oldest_event_s: when the oldest event of that came, as a Unix time; None when there is none, or the queue cannot tell.
    """

    name: str
    start: int
    cursor: int
    plan: Plan | None
    lag_events: int
    lag_bytes: int
    oldest_event_s: float | None = None


class QueueInfo(NamedTuple):
    """The facts of a queue, without I/O.

    queue_id is None before the first append of this open. head is the last committed position (0: none yet), tail the
    oldest position still held. Sizes in bytes, oldest_event_s as a Unix time (None when empty). spans lists every queue id
    that still has positions here, oldest first. level is `"process"` or `"power"`, or `"none"` in a tier without a queue.
    medium and method say what is really done, for example `ext4` and `fdatasync`; the method `BY_FLUSH` is that of a tier without a queue
    that links lead to: what was handed over is durable, at `level`, when its output has flushed it. batch_bytes_max is the largest batch
    that is ever taken, as Arrow serialises it with its origins; None: as large as the queue.
    """

    name: str
    queue_id: str | None
    level: str
    medium: str
    method: str
    head: int
    tail: int
    size_events: int
    size_bytes: int
    size_bytes_max: int
    oldest_event_s: float | None
    readers: tuple[ReaderInfo, ...]
    spans: tuple[QueueSpan, ...]
    batch_bytes_max: int | None = None


class QueueRead(NamedTuple):
    """What `queue_read` gives: positions first..last of one queue id; each is a row of `batch` or lies in `missing`.

    batch is None when every position is missing. origins (ORIGIN_SCHEMA) has row offsets into `batch`; those of device sessions
    may be left out, for message numbers are the source's affair.
    """

    queue_id: str
    first: int
    last: int
    batch: pa.RecordBatch | None
    origins: pa.RecordBatch
    missing: tuple[Missing, ...]


#: `QueueInfo.method` where `deliver` returns when the tier's output is safe: whoever calls it should not wait for one call before the next.
BY_FLUSH: Final = "flush"

#: What is durable survives: nothing, `kill -9` of any process, a power cut too. The lowest first.
LEVELS: Final = ("none", "process", "power")

Start = str  # "oldest", "head" or "after:READER"
Status = Literal["starting", "ok", "degraded", "stopped"]


# --- sources ---------------------------------------------------------------------------------------------------------


class SourceHooks(Protocol):
    """Role source: one of these. Accept until cancelled; acknowledge a sender only after `deliver` returned."""

    @hookspec(firstresult=True)
    async def ingest_serve(self, deliver: Deliver) -> None:
        """Take messages from outside until cancelled.

        Called once after `open`. The order is: `await deliver(batch)`, then acknowledge. On `QueueFull` stop reading until
        `await deliver.room()` returns. At `drain` refuse new work, and return when nothing is in flight.
        """

    @hookspec(firstresult=True)
    async def ingest_give_up(self, origin: str) -> None:
        """Optional: the origin's sender is at another worker of this tier now.

        Take nothing more of it, and return when all that was taken of it is durable or was refused. Whoever does not hold
        the origin returns at once. The host asks the queue for the origin's mark then.
        """

    @hookspec(firstresult=True)
    async def transport_serve(self, deliver: Deliver) -> None:
        """The receiving half of a durable link: as `ingest_serve`, with every batch's origins passed to `deliver`.

        The sender is told a position only after `deliver` returned, and `deliver.position` when it asks where to go on.
        """

    @hookspec(firstresult=True)
    async def transport_subscribe(self, deliver: Deliver) -> None:
        """The receiving half of a best-effort fan-out: what is lost on the way stays lost, and is counted.

        Events keep the `origin` and `position` that they come with.
        """


# --- queue -----------------------------------------------------------------------------------------------------------


class QueueHooks(Protocol):
    """Role queue: all of these. `queue_append` is called on the sources' loop, the others on that of the outputs."""

    @hookspec(firstresult=True)
    def queue_info(self) -> QueueInfo:
        """The queue's facts. Called often, from any thread: no I/O, no waiting."""

    @hookspec(firstresult=True)
    def queue_secret(self) -> bytes:
        """Optional: a secret that lies in the queue's own files, the same at every open, and nowhere else.

        A link proves with it that it speaks for this queue; it must not be logged, and never goes over the wire itself.
        """

    @hookspec(firstresult=True)
    async def queue_append(self, batch: pa.RecordBatch, origins: pa.RecordBatch) -> tuple[int, int]:
        """Store one batch with its origins in one commit; return (first, last) position once it is durable.

        Calls may overlap: the plugin commits them in groups, with positions in the order of the calls. Rows at or below a
        queue origin's mark, frames in flight included, are dropped (of kind `rows`, those whose position is; `last` is the
        mark of either kind, whether or not there is a row at it); the call then returns when the frame that it relies on
        is durable, and (first, last) covers the rows that were new, with last = first - 1 when there was none.
        Raises `QueueFull` at once when it has no room; nothing was taken then. When a commit fails, everything behind it
        fails, calls included that were made before the caller of the failed one ran again: nothing of a session becomes
        durable behind a message that was given up.
        """

    @hookspec(firstresult=True)
    async def queue_origin_position(self, origin: str) -> int | None:
        """The highest position held from that origin (None: never seen), once nothing of it is in flight."""

    @hookspec(firstresult=True)
    async def queue_origin_mark(self, origin: str) -> OriginMark | None:
        """As `queue_origin_position`, with the note of the origin's last row: opaque bytes, durable in the same commit.

        Of a device session they are the numbers that were refused. A batch without rows may bring a mark of its own.
        """

    @hookspec(firstresult=True)
    async def queue_origin_forget(self, origins: Sequence[str]) -> None:
        """Drop the marks of these origins, to make room: nothing of them will come any more. Unknown names are fine.

        Need not be durable: after a crash they may be known again.
        """

    @hookspec(firstresult=True)
    async def queue_reader_open(self, reader: str, start: Start) -> ReaderInfo:
        """Open the named reader, creating it when it is new; `start` (oldest, head, after:OTHER) counts only then."""

    @hookspec(firstresult=True)
    async def queue_reader_drop(self, reader: str) -> None:
        """Forget the named reader with its cursor; nothing is held for it from now on. Unknown names are fine."""

    @hookspec(firstresult=True)
    async def queue_read(self, reader: str, after: int, rows_max: int, bytes_max: int) -> QueueRead:
        """The next positions behind `after`; waits while there are none. Only committed entries are seen.

        Joins small entries up to `rows_max` and `bytes_max`, but gives at least one entry; never spans two queue ids.
        Starts at `after` + 1 exactly, inside an entry where need be: what is no longer there comes as `missing`.
        `reader` may be a name that was never opened (an output with `hold = "none"`): it reads, and holds nothing.
        Moves no cursor. Cancel-safe: nothing is lost when it is cancelled. Buffers stay valid while the batch lives.
        """

    @hookspec(firstresult=True)
    async def queue_plan(self, reader: str, plan: Plan | None) -> None:
        """Keep the range that the reader's output is about to write; durable on return. None clears it."""

    @hookspec(firstresult=True)
    async def queue_release(self, reader: str, upto: int) -> None:
        """Move the reader's cursor: everything up to `upto` is safe elsewhere. Repeatable; never moves back.

        May become durable lazily (at the latest with the next commit, or within a second): after a crash the cursor may be
        a little older, never newer.
        """


# --- decode and enrich -----------------------------------------------------------------------------------------------


class DecodeHooks(Protocol):
    """Role decoder: both. JSON, MessagePack and CBOR are in the core; a decoder adds other encodings."""

    @hookspec(firstresult=True)
    def decode_encodings(self) -> Mapping[str, int]:
        """Name -> number of the encodings that it decodes (128-255 are a site's own)."""

    @hookspec(firstresult=True)
    def decode(self, payloads: pa.BinaryArray, encoding: int) -> tuple[pa.StructArray, Sequence[int]]:
        """The readings of each payload as one struct array of the same length, and the indexes of rows that do not decode.

        A child `ts` (string or float64) is the event's own time. Bad rows hold nulls; they go to the dead letters.
        """


class EnrichHooks(Protocol):
    """Role enricher: `enrich_fields` and `enrich`."""

    @hookspec(firstresult=True)
    def enrich_fields(self) -> pa.Schema:
        """The fields that this enricher adds, constant for the component's life. Two that add one name: refused at boot."""

    @hookspec(firstresult=True)
    async def enrich_prepare(self, batch: pa.RecordBatch) -> None:
        """Optional: fetch what `enrich` will need for this event batch. Cut off after `prepare_wait_ms_max`."""

    @hookspec(firstresult=True)
    def enrich(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Only the added fields (`enrich_fields`) for this event batch: same row count, same order, no I/O.

        The host merges them into `context`, so that a plugin cannot drop, reorder or alter rows. Unknown: nulls. A text may be a
        dictionary of int32 to string, of few words: outputs see strings, but for those that declare `takes_dictionaries`.
        """


# --- outputs ---------------------------------------------------------------------------------------------------------


class SinkHooks(Protocol):
    """Role output: `sink_write`, `sink_flush` and `sink_reset`, and `sink_resume` where the store can tell.

    Calls of one component never overlap. A sink that holds (the default) needs `sink_resume`, or idempotence by key,
    declared as `idempotence = "key"` (or "event") in the class.
    """

    @hookspec(firstresult=True)
    async def sink_write(self, batch: pa.RecordBatch, key: RangeKey) -> None:
        """Take one event batch. It need not be safe yet. Keys follow each other without a hole until `sink_flush`.

        `batch` has a row for each position of `key` that is neither in `key.missing` nor in `key.dead`; it may have none.
        An event batch may be kept: its memory is no part of the queue. Where the store can tell what it holds, small ones are
        gathered first: it need not gather itself.
        """

    @hookspec(firstresult=True)
    async def sink_flush(self, key: RangeKey) -> None:
        """Make safe all that was written since the last flush; `key` spans it. On return the queue may forget the range.

        The host flushes by `flush_rows`, `flush_bytes` and `flush_interval_s`, before the queue id changes, when the queue
        passes half of its size, and at drain. The same key may come again after a crash.
        """

    @hookspec(firstresult=True)
    async def sink_reset(self) -> None:
        """Forget what is unflushed: it will be written again. Called after every error."""

    @hookspec(firstresult=True)
    async def sink_resume(self, queue_id: str) -> int | None:
        """Optional: up to which position the store itself holds that queue's range (the contiguous prefix); None: nothing.

        What it returns is never written again, and what lies behind it is, even below the reader's cursor. In a tier without a
        queue it is also asked between writes, for queue ids of which nothing was written yet.
        """


class TransportHooks(Protocol):
    """Role output, the sending half of a transport: `transport_send` and `transport_resume`, or `transport_publish`."""

    @hookspec(firstresult=True)
    async def transport_queue(self, queue: QueueInfo, secret: bytes) -> None:
        """Optional: which queue the batches come from, and its secret (`queue_secret`; empty where it has none).

        Called before the first `transport_resume`, and again after each error.
        """

    @hookspec(firstresult=True)
    async def transport_resume(self, queue_id: str) -> int | None:
        """Up to which position the far side holds that queue's range (the contiguous prefix); None: nothing.

        Called for the queue ids that are still there, oldest first, at the start and after each error; an id that begins
        later is not asked for. Waits while the far side cannot be asked. What lies behind the answer is sent next, even
        below the cursor; after None, what lies behind the cursor.
        """

    @hookspec(firstresult=True)
    async def transport_send(self, batch: pa.RecordBatch, origins: pa.RecordBatch, key: RangeKey) -> None:
        """Send one batch as the queue holds it; return when the far side reports it durable.

        Up to `send_window` calls are in flight, started in the order of their positions, without a hole and of one queue
        id; the cursor moves by the contiguous prefix. `batch` has a row for each position of `key` that is neither in
        `key.missing` nor in `key.dead`; it may have none. Where `key.share` is not None, events are spread over several
        outputs, and those of the others are no rows either; `key.positions()` are those that are. The far side must know
        them from missing ones. `origins` (ORIGIN_SCHEMA) says where the rows came from before.
        Raise TransientError when the far side can no longer be relied on: all calls are cancelled then, and it goes on with
        `transport_resume`. Cancelled and unanswered batches may come again with other bounds: positions decide. `close` must
        end the calls under way.
        """

    @hookspec(firstresult=True)
    async def transport_hurry(self) -> None:
        """Optional: nothing more is sent before calls under way are answered, so the far side is not to wait for more.

        Called when `send_window` calls are under way, when the queue passes half of its size, and at drain. Must not wait for
        the answer.
        """

    @hookspec(firstresult=True)
    def transport_bound(self) -> int:
        """Optional: how many of the calls under way wait for one of several far tiers that is away, while another one takes new batches.

        They do not count against `send_window`, and ranges of the next queue id may go out beside them. Called often: no I/O.
        """

    @hookspec(firstresult=True)
    async def transport_publish(self, batch: pa.RecordBatch, topic: str) -> None:
        """Send one event batch to whoever listens, best effort; only with `hold = "none"`.

        The host splits what it reads by the output's `topic`. Must not wait for anybody who listens: who is slow loses. What
        it raises costs that batch, which is counted.
        """


# --- facts -----------------------------------------------------------------------------------------------------------


class FactHooks(Protocol):
    """Facts that the host tells everybody who listens: components, and the `[listeners]` of the config.

    Plain functions, called on the sources' loop; they must return at once. What a listener raises is logged and ends there.
    """

    @hookspec
    def host_started(self) -> None:
        """Every component is open and every source serves."""

    @hookspec
    def host_draining(self, deadline_s: float) -> None:
        """The host stops: sources refuse new work, outputs have `deadline_s` seconds to make safe what is queued."""

    @hookspec
    def component_status(self, tier: str, component: str, status: Status, reason: str) -> None:
        """A component's status changed."""

    @hookspec
    def batch_quarantined(self, tier: str, component: str, reason: str, key: RangeKey, count: int) -> None:
        """`count` events of `key` went to the dead letters, refused by that component."""

    @hookspec
    def register_routes(self, app: web.Application) -> None:
        """Add routes to the admin server, below a path of the plugin's own; called once, before it starts."""


NAMESPACES: Final[tuple[type[Any], ...]] = (
    SourceHooks,
    QueueHooks,
    DecodeHooks,
    EnrichHooks,
    SinkHooks,
    TransportHooks,
    FactHooks,
)

Role = Literal["source", "queue", "decoder", "enricher", "output", "listener"]

#: Per role the sets of hooks of which a component must implement at least one whole set.
ROLES: Final[dict[Role, tuple[frozenset[str], ...]]] = {
    "source": (frozenset({"ingest_serve"}), frozenset({"transport_serve"}), frozenset({"transport_subscribe"})),
    "queue": (
        frozenset(
            {
                "queue_info",
                "queue_append",
                "queue_origin_position",
                "queue_origin_mark",
                "queue_origin_forget",
                "queue_reader_open",
                "queue_reader_drop",
                "queue_read",
                "queue_plan",
                "queue_release",
            }
        ),
    ),
    "decoder": (frozenset({"decode_encodings", "decode"}),),
    "enricher": (frozenset({"enrich_fields", "enrich"}),),
    "output": (
        frozenset({"sink_write", "sink_flush", "sink_reset"}),
        frozenset({"transport_send", "transport_resume"}),
        frozenset({"transport_publish"}),
    ),
    "listener": (frozenset(),),
}
