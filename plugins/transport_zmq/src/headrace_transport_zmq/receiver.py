"""All lanes, seen by their receiver: what is taken, what is told to whom. No I/O: frames and time come in, answers go out.

A frame is taken when its session is the newest of its lane and the receiver holds what goes before it. What is taken is
*staged*: handed over to the queue with everything else that came, and acknowledged only when that is durable. Whatever is not
taken costs nothing but a new session: the sender still has it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import pyarrow as pa

from headrace import Missing
from headrace.position import Named
from headrace.scattered import Scattered
from headrace_transport_zmq import wire
from headrace_transport_zmq.wire import Buffer, Frame, MalformedError

#: A peer that said nothing for so many times its sender's patience is forgotten.
FORGET_AFTER: Final = 3
#: From this size on, copying a batch to join it with others costs more than a commit of its own.
ALONE_BYTES: Final = 256 << 10
#: Sessions that were begun here are remembered, so that none begins twice: the last so many.
SPENT_MAX: Final = 16_384


class Taken(NamedTuple):
    """What is in a DATA frame, looked at and found good."""

    batch: pa.RecordBatch
    missing: tuple[Missing, ...]
    #: the names that rows have already, by the first queue that took them
    named: tuple[Named, ...] = ()
    #: which positions the rows are, and their names, where the frame says so
    rows: Scattered | None = None


@dataclass(slots=True, eq=False)
class Peer:
    """One connection whose hello was accepted. `staged` is the last position taken, `durable` the last acknowledged."""

    routing: bytes
    session: bytes
    origin: str
    lane: int
    staged: int | None
    durable: int | None
    heard: float
    #: something of the session was not taken: nothing behind it can be
    lost: bool = False
    #: lost for want of room: told when there is room again
    crowded: bool = False
    owes_ack: bool = False


class Staged(NamedTuple):
    """One batch on its way into the queue: `first`-`last` of `peer.origin`."""

    peer: Peer
    first: int
    last: int
    taken: Taken
    size: int


class Answer(NamedTuple):
    """A message for the peer behind this routing id."""

    routing: bytes
    message: list[Buffer]


class Options(NamedTuple):
    """The bounds of a receiver."""

    staged_bytes_max: int
    peers_max: int
    dead_after_s: float


class Receiver:
    """The receiver's half of every lane that ends here. `discarded(reason)` is told of each frame that was not taken."""

    def __init__(self, options: Options, take: Callable[[Frame], Taken], discarded: Callable[[str], None]) -> None:
        self._options, self._take, self._discarded = options, take, discarded
        self._staged: deque[Staged] = deque()
        self._staged_bytes = 0
        self._told: set[tuple[bytes, bytes]] = set()
        self._spent: dict[bytes, None] = {}
        #: a sender waits for what it has sent
        self.hurried = False
        self.peers: dict[bytes, Peer] = {}
        self.lanes: dict[str, Peer] = {}

    # --- hello -------------------------------------------------------------------------------------------------------

    def supersede(self, origin: str) -> None:
        """A hello came for this lane: whoever spoke for it until now does so no more. Then ask the queue for its mark."""
        old = self.lanes.pop(origin, None)
        if old is not None:
            self._drop(old)

    def other_lane(self, origin: str) -> str | None:
        """Another lane of the same queue id that is here."""
        queue_id = origin.partition("/")[0]
        return next((lane for lane in self.lanes if lane != origin and lane.partition("/")[0] == queue_id), None)

    def full(self) -> bool:
        """Whether no further peer is welcome."""
        return len(self.peers) >= self._options.peers_max

    def again(self, routing: bytes, hello: Frame, text: wire.Welcome) -> Answer | None:
        """The answer to a hello that was answered before: that answer is late, or was lost. None: it is a new session."""
        peer = self.peers.get(routing)
        if peer is None or peer.session != hello.session:
            return None
        return self._answer(peer, wire.WELCOME, peer.durable, (wire.pack_text(text),))

    def replayed(self, hello: Frame) -> bool:
        """Whether the hello is one that began a session already (and was not repeated on that connection, see `again`): an old
        one that was delayed, or that somebody says once more. It must not end the session that its sender has now."""
        return hello.session in self._spent

    def welcome(self, routing: bytes, hello: Frame, origin: str, mark: int | None, text: wire.Welcome, now: float) -> Answer:
        """The hello is accepted; `mark` is what the queue holds of the lane."""
        if (old := self.peers.get(routing)) is not None:
            self._drop(old)
        peer = Peer(routing, hello.session, origin, hello.lane, mark, mark, now)
        self.peers[routing] = self.lanes[origin] = peer
        self._spent[hello.session] = None
        if len(self._spent) > SPENT_MAX:
            del self._spent[next(iter(self._spent))]
        return self._answer(peer, wire.WELCOME, mark, (wire.pack_text(text),))

    def refuse(self, routing: bytes, frame: Frame, code: str, reason: str) -> Answer:
        """Why a hello or a batch is not taken."""
        text = wire.pack_text(wire.Refusal(code=code, reason=reason[:500]))
        return Answer(routing, wire.encode(Frame(wire.REFUSE, frame.session, first=frame.first, last=frame.last, parts=(text,))))

    # --- what comes in -----------------------------------------------------------------------------------------------

    def drained(self) -> None:
        """A new drain of the socket begins: each stranger is answered once more."""
        self._told.clear()

    def received(self, routing: bytes, frame: Frame, now: float) -> list[Answer]:
        """DATA, HEARTBEAT or BYE of a peer."""
        peer = self.peers.get(routing)
        if peer is None or peer.session != frame.session:
            return self._stranger(routing, frame)
        peer.heard = now
        if frame.type == wire.BYE:
            self._forget(peer)  # what it sent is taken all the same; only nobody waits for the answer
            return []
        if frame.type == wire.HEARTBEAT:
            return self._heartbeat(peer, frame)
        return self._data(peer, frame)

    def _stranger(self, routing: bytes, frame: Frame) -> list[Answer]:
        """It may be a sender that does not know yet that we, or the connection, began anew."""
        if frame.type == wire.BYE or (routing, frame.session) in self._told:
            return []
        if frame.type == wire.DATA:
            self._discarded("session")
        self._told.add((routing, frame.session))
        return [Answer(routing, wire.encode(Frame(wire.RESUME, frame.session)))]

    def _heartbeat(self, peer: Peer, frame: Frame) -> list[Answer]:
        self.hurried = self.hurried or bool(frame.flags & wire.HURRY)
        if peer.crowded and self._staged:
            return [self._answer(peer, wire.HEARTBEAT, peer.durable)]
        # all that it sent came before this: what is missing now will not come any more
        if peer.lost or (frame.mark is not None and (peer.staged is None or frame.mark > peer.staged)):
            peer.lost, peer.crowded = True, False
            return [self._answer(peer, wire.RESUME, peer.staged)]
        return [self._answer(peer, wire.HEARTBEAT, peer.durable)]

    def _data(self, peer: Peer, frame: Frame) -> list[Answer]:
        if peer.lost:
            self._discarded("gap")
            return []
        held = peer.staged
        follows = frame.prev <= held if held is not None else bool(frame.flags & wire.START)
        if not follows or frame.lane != peer.lane:
            peer.lost = True
            self._discarded("gap")
            return [self._answer(peer, wire.RESUME, held)]
        if held is not None and frame.last <= held:
            peer.owes_ack = True
            self._discarded("duplicate")
            return [self._ack(peer)] if held == peer.durable else []
        if self._staged and self._staged_bytes + frame.size > self._options.staged_bytes_max:
            peer.lost = peer.crowded = True
            self._discarded("room")
            return []
        try:
            taken = self._take(frame)
        except MalformedError as error:
            peer.lost = True
            self._discarded("content")
            return [self.refuse(peer.routing, frame, "batch", str(error))]
        self._staged.append(Staged(peer, frame.first, frame.last, taken, frame.size))
        self._staged_bytes += frame.size
        peer.staged = frame.last
        return []

    # --- into the queue ----------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Batches that are staged."""
        return len(self._staged)

    def next(self, bytes_max: int) -> list[Staged]:
        """The oldest staged batches of one schema, up to `bytes_max` (one at least): to be appended together. A large one goes alone."""
        group: list[Staged] = []
        size = 0
        while self._staged and (not group or size + self._staged[0].size <= bytes_max):
            if group and max(size, self._staged[0].size) >= ALONE_BYTES:
                break
            if group and not self._staged[0].taken.batch.schema.equals(group[0].taken.batch.schema):
                break
            group.append(self._staged.popleft())
            size += group[-1].size
        self._staged_bytes -= size
        return group

    def committed(self, group: Sequence[Staged]) -> list[Answer]:
        """The group is durable: acknowledge it, one answer to each peer, and tell those for whom there was no room."""
        peers: dict[bytes, Peer] = {}
        for staged in group:
            staged.peer.durable = max(staged.last, staged.peer.durable or 0)
            peers[staged.peer.routing] = staged.peer
        answers = [self._ack(peer) for peer in peers.values() if self.peers.get(peer.routing) is peer]
        for peer in self.peers.values():
            if peer.crowded and peer.durable == peer.staged:
                peer.crowded = False
                answers.append(self._answer(peer, wire.RESUME, peer.staged))
            elif peer.owes_ack and peer.durable == peer.staged:
                answers.append(self._ack(peer))
        return answers

    def failed(self, group: Iterable[Staged]) -> list[Answer]:
        """The group was not taken: its peers begin anew, and what they sent since is dropped."""
        peers = {staged.peer.routing: staged.peer for staged in group}
        answers = []
        for peer in peers.values():
            self._drop(peer)
            answers.append(Answer(peer.routing, wire.encode(Frame(wire.RESUME, peer.session))))
        return answers

    def tick(self, now: float) -> None:
        """Forget peers that have been silent for long."""
        silent = [peer for peer in self.peers.values() if now - peer.heard > FORGET_AFTER * self._options.dead_after_s]
        for peer in silent:
            self._forget(peer)

    # --- small things ------------------------------------------------------------------------------------------------

    def _forget(self, peer: Peer) -> None:
        if self.peers.get(peer.routing) is peer:
            del self.peers[peer.routing]
        if self.lanes.get(peer.origin) is peer:
            del self.lanes[peer.origin]

    def _drop(self, peer: Peer) -> None:
        """Forget the peer, and what it sent that is not on its way into the queue yet."""
        self._forget(peer)
        self._staged = deque(staged for staged in self._staged if staged.peer is not peer)
        self._staged_bytes = sum(staged.size for staged in self._staged)

    def _ack(self, peer: Peer) -> Answer:
        peer.owes_ack = False
        return self._answer(peer, wire.ACK, peer.durable)

    def _answer(self, peer: Peer, kind: int, mark: int | None, parts: tuple[Buffer, ...] = ()) -> Answer:
        flags, last = (0, 0) if mark is None else (wire.MARKED, mark)
        return Answer(peer.routing, wire.encode(Frame(kind, peer.session, flags, last=last, lane=peer.lane, parts=parts)))
