"""The schedules that DELIVERY 12-15 answers, one by one, on the logic alone."""

from __future__ import annotations

from typing import Any

import pytest

from headrace import NO_ORIGINS, Missing
from headrace.testing import raw_batch
from headrace_transport_zmq import wire
from headrace_transport_zmq.receiver import Options as ReceiverOptions
from headrace_transport_zmq.receiver import Receiver, Taken
from headrace_transport_zmq.sender import Broken, Dead, Done, Emit, Flight, Options, Refused, Rewound, Sender, Unwelcome, Welcomed
from headrace_transport_zmq.wire import Frame

QUEUE = "00000000-0000-4000-8000-000000000001"
OTHER = "00000000-0000-4000-8000-000000000002"
ORIGIN = f"{QUEUE}/uplink.1"


def flight(first: int, last: int, queue_id: str = QUEUE, size: int = 10) -> Flight:
    return Flight(queue_id, first, last, last - first + 1, (), b"", b"x" * size, 0)


def welcome(level: str = "process", **grant: int) -> wire.Welcome:
    return wire.Welcome(level=level, **{"window_bytes": 1 << 20, "window_events": 1000, "frame_bytes": 1000, **grant})


class Edge:
    """A sender, and what it put on the wire."""

    def __init__(self, level: str = "process", **options: Any) -> None:
        self.nonces = iter(range(1, 100))
        hello = wire.Hello(queue_id=QUEUE, output="uplink", level=level, proof="0" * 64)
        settings = Options(**{"window_events": 1000, "window_bytes": 1 << 20, "heartbeat_s": 1.0, "dead_after_s": 5.0, **options})
        self.sender = Sender(
            settings,
            lambda queue_id: wire.Hello(**{**as_dict(hello), "queue_id": queue_id}),
            1,
            lambda: next(self.nonces).to_bytes(16, "little"),
        )
        self.sender.connected(0.0)
        self.told: list[Any] = []

    def sent(self) -> list[Frame]:
        """The frames since the last look; the other effects go to `told`."""
        effects = self.sender.effects()
        self.told += [effect for effect in effects if not isinstance(effect, Emit)]
        return [wire.decode(effect.message) for effect in effects if isinstance(effect, Emit)]

    def hears(
        self, kind: int, mark: int | None = None, text: Any = None, now: float = 0.0, session: bytes | None = None, **fields: int
    ) -> None:
        flags, last = (0, fields.pop("last", 0)) if mark is None else (wire.MARKED, mark)
        parts = () if text is None else (wire.pack_text(text),)
        self.sender.received(Frame(kind, session or self.sender.session, flags, last=last, parts=parts, **fields), now)

    def begin(self, mark: int | None = None, queue_id: str = QUEUE) -> None:
        self.sender.ask(queue_id, 0.0)
        self.hears(wire.WELCOME, mark, welcome())
        self.sent()


def as_dict(hello: wire.Hello) -> dict[str, Any]:
    return {name: getattr(hello, name) for name in hello.__struct_fields__}


class Middle:
    """A receiver whose frames have no content, and what it answered."""

    def __init__(self, staged_bytes_max: int = 1 << 20) -> None:
        self.discarded: list[str] = []
        empty = raw_batch(0)
        self.receiver = Receiver(
            ReceiverOptions(staged_bytes_max, 10, 5.0),
            lambda frame: Taken(empty, wire.unpack_missing(frame), NO_ORIGINS),
            self.discarded.append,
        )

    def greet(self, edge: Edge, mark: int | None, routing: bytes = b"r") -> None:
        hello = next(frame for frame in edge.sent() if frame.type == wire.HELLO)
        self.receiver.supersede(ORIGIN)
        answer = self.receiver.welcome(routing, hello, ORIGIN, mark, welcome(), 0.0)
        edge.sender.received(wire.decode(answer.message), 0.0)

    def takes(self, frames: list[Frame], routing: bytes = b"r") -> list[Frame]:
        self.receiver.drained()
        answers = [answer for frame in frames for answer in self.receiver.received(routing, frame, 0.0)]
        return [wire.decode(answer.message) for answer in answers]

    def commits(self) -> list[Frame]:
        return [wire.decode(answer.message) for answer in self.receiver.committed(self.receiver.next(1 << 20))]


def test_a_reconnect_that_skips_frames_loses_nothing() -> None:
    """DELIVERY 12: after the ROUTER was killed, the DEALER's first frame to its successor was up to 190 frames ahead."""
    edge, first, second = Edge(), Middle(), Middle()
    edge.sender.ask(QUEUE, 0.0)
    first.greet(edge, None)
    for number in range(1, 9):
        edge.sender.send(flight(number, number), 0.0)
    frames = edge.sent()
    assert [frame.prev for frame in frames] == list(range(8))
    first.takes(frames[:2])
    (ack,) = first.commits()
    edge.sender.received(ack, 0.0)
    # the first one is killed; its successor holds up to 2, and hears frame 7 first
    (answer,) = second.takes(frames[6:], b"new")
    assert (answer.type, answer.mark) == (wire.RESUME, None)
    assert second.receiver.waiting == 0
    edge.sender.received(answer, 0.0)
    second.greet(edge, 2, b"new")
    again = edge.sent()
    assert [(frame.prev, frame.first) for frame in again] == [(number - 1, number) for number in range(3, 9)]
    assert second.takes(again, b"new") == []
    assert second.receiver.waiting == 6


def test_the_same_session_with_a_gap_goes_back_too() -> None:
    edge, middle = Edge(), Middle()
    edge.sender.ask(QUEUE, 0.0)
    middle.greet(edge, 0)
    for number in range(1, 6):
        edge.sender.send(flight(number, number), 0.0)
    frames = edge.sent()
    answers = middle.takes([frames[0], *frames[2:]])
    assert [(frame.type, frame.mark) for frame in answers] == [(wire.RESUME, 1)], "told once"
    assert middle.discarded == ["gap"] * 3
    edge.sender.received(answers[0], 0.0)
    assert any(isinstance(effect, Rewound) for effect in (edge.sent(), edge.told)[1])


def test_a_queue_id_that_is_not_known_begins_with_its_first_frame_only() -> None:
    edge, middle = Edge(), Middle()
    edge.sender.ask(QUEUE, 0.0)
    middle.greet(edge, None)
    edge.sender.send(flight(81, 85), 0.0)
    edge.sender.send(flight(86, 90), 0.0)
    first, second = edge.sent()
    assert (first.flags & wire.START, second.flags & wire.START) == (wire.START, 0)
    (answer,) = middle.takes([second])
    assert (answer.type, answer.mark) == (wire.RESUME, None)
    assert middle.receiver.waiting == 0


def test_frames_of_an_older_session_are_not_taken() -> None:
    edge, middle = Edge(), Middle()
    edge.sender.ask(QUEUE, 0.0)
    middle.greet(edge, 10)
    edge.sender.send(flight(11, 12), 0.0)
    old = edge.sent()
    edge.sender.ask(QUEUE, 0.0)
    middle.greet(edge, 10)
    answers = middle.takes(old)
    assert [answer.type for answer in answers] == [wire.RESUME]
    assert middle.receiver.waiting == 0
    edge.sender.received(answers[0], 0.0)
    assert edge.sent() == [], "it is about a session that is over"


def test_a_hello_on_another_connection_ends_the_session_before() -> None:
    edge, middle = Edge(), Middle()
    edge.sender.ask(QUEUE, 0.0)
    middle.greet(edge, 10, b"old")
    edge.sender.send(flight(11, 12), 0.0)
    middle.takes(edge.sent(), b"old")
    edge.sender.connected(0.0)
    middle.greet(edge, 10, b"new")
    assert middle.receiver.waiting == 0, "what was staged comes again"
    assert list(middle.receiver.peers) == [b"new"]


def test_an_old_hello_that_comes_again_ends_no_session() -> None:
    edge, middle = Edge(), Middle()
    edge.sender.ask(QUEUE, 0.0)
    (old,) = [frame for frame in edge.sent() if frame.type == wire.HELLO]
    middle.receiver.welcome(b"r", old, ORIGIN, 0, welcome(), 0.0)
    assert middle.receiver.again(b"r", old, welcome()) is not None, "on its own connection it is only late"
    assert middle.receiver.replayed(old)
    edge.sender.ask(QUEUE, 0.0)
    middle.greet(edge, 0)
    assert middle.receiver.again(b"thief", old, welcome()) is None
    assert middle.receiver.replayed(old), "also when a newer session has begun"
    edge.sender.send(flight(1, 5), 0.0)
    assert middle.takes(edge.sent()) == []
    assert [frame.mark for frame in middle.commits()] == [5]


def test_who_is_told_that_its_session_began_before_begins_another() -> None:
    """The welcome was lost with its connection, and the hello went out again on the next one."""
    edge = Edge()
    edge.sender.ask(QUEUE, 0.0)
    first = edge.sender.session
    edge.sender.send(flight(1, 5), 0.0)
    edge.hears(wire.REFUSE, text=wire.Refusal(code="replayed"))
    assert edge.sender.session != first
    assert [frame.type for frame in edge.sent()] == [wire.HELLO, wire.HELLO]
    edge.hears(wire.WELCOME, 0, welcome())
    assert [frame.last for frame in edge.sent()] == [5]


def test_a_hello_without_an_answer_is_said_again_in_its_session() -> None:
    edge, middle = Edge(), Middle()
    edge.sender.ask(QUEUE, 0.0)
    (hello,) = edge.sent()
    middle.receiver.welcome(b"r", hello, ORIGIN, 7, welcome(), 0.0)  # the answer is lost
    edge.sender.tick(1.0)
    (again,) = edge.sent()
    assert (again.type, again.session) == (wire.HELLO, hello.session)
    answer = middle.receiver.again(b"r", again, welcome())
    assert answer is not None
    edge.sender.received(wire.decode(answer.message), 1.0)
    edge.sent()
    assert [(effect.queue_id, effect.mark) for effect in edge.told if isinstance(effect, Welcomed)] == [(QUEUE, 7)]


def test_a_late_answer_to_an_older_hello_begins_nothing() -> None:
    edge = Edge()
    edge.sender.ask(QUEUE, 0.0)
    old = edge.sender.session
    edge.sender.ask(OTHER, 0.0)
    edge.sent()
    edge.hears(wire.WELCOME, 50, welcome(), session=old)
    edge.hears(wire.ACK, 50, session=old)
    edge.sent()
    assert edge.told == []
    assert (edge.sender.state, edge.sender.mark) == ("greeting", None)


def test_a_frame_of_another_lane_is_not_taken() -> None:
    """DELIVERY 13: a mark speaks only for its lane."""
    edge, middle = Edge(), Middle()
    edge.sender.ask(QUEUE, 0.0)
    middle.greet(edge, 10)
    edge.sender.send(flight(11, 12), 0.0)
    (frame,) = edge.sent()
    answers = middle.takes([frame._replace(lane=2)])
    assert [(answer.type, answer.mark) for answer in answers] == [(wire.RESUME, 10)]
    assert middle.receiver.waiting == 0


def test_a_mark_behind_the_end_of_a_queue_id_means_that_all_of_it_is_held() -> None:
    """DELIVERY 2: a tail was lost here after it had arrived there; the next id goes out whole, from its first position."""
    edge = Edge()
    edge.sender.ask(QUEUE, 0.0)
    edge.sender.send(flight(1, 5), 0.0)
    edge.sender.send(flight(6, 9, OTHER), 0.0)
    edge.hears(wire.WELCOME, 8, welcome())
    (hello,) = [frame for frame in edge.sent() if frame.session == edge.sender.session]
    assert [effect.flight.last for effect in edge.told if isinstance(effect, Done)] == [5]
    assert wire.unpack_text(hello, wire.Hello).queue_id == OTHER
    edge.hears(wire.WELCOME, None, welcome())
    (frame,) = edge.sent()
    assert (frame.first, frame.last, bool(frame.flags & wire.START)) == (6, 9, True)


def test_a_gap_that_nobody_declared_makes_the_sender_go_back_once_and_refuses_nobody_for_good() -> None:
    """DELIVERY 3."""
    edge, middle = Edge(), Middle()
    edge.sender.ask(QUEUE, 0.0)
    middle.greet(edge, 10)
    edge.sender.send(flight(11, 12), 0.0)
    edge.sent()  # lost
    edge.sender.send(flight(13, 14), 0.0)
    (answer,) = middle.takes(edge.sent())
    edge.sender.received(answer, 0.0)
    middle.greet(edge, 10)
    assert middle.takes(edge.sent()) == []
    assert [frame.mark for frame in middle.commits()] == [14]


def test_nothing_is_acknowledged_before_it_is_committed() -> None:
    edge, middle = Edge(), Middle()
    edge.sender.ask(QUEUE, 0.0)
    middle.greet(edge, None)
    edge.sender.send(flight(1, 5), 0.0)
    edge.sender.send(flight(6, 9), 0.0)
    assert middle.takes(edge.sent()) == []
    heartbeat = Frame(wire.HEARTBEAT, edge.sender.session, wire.MARKED, last=9, lane=1)
    assert [(frame.type, frame.mark) for frame in middle.takes([heartbeat])] == [(wire.HEARTBEAT, None)]
    (ack,) = middle.commits()
    assert (ack.type, ack.mark) == (wire.ACK, 9)
    edge.sender.received(ack, 0.0)
    edge.sent()
    assert [effect.flight.last for effect in edge.told if isinstance(effect, Done)] == [5, 9]


def test_a_lost_ack_is_said_again_with_the_next_heartbeat() -> None:
    edge, middle = Edge(), Middle()
    edge.sender.ask(QUEUE, 0.0)
    middle.greet(edge, None)
    edge.sender.send(flight(1, 5), 0.0)
    middle.takes(edge.sent())
    middle.commits()
    edge.sender.tick(1.5)
    (answer,) = middle.takes(edge.sent())
    edge.sender.received(answer, 1.5)
    edge.sent()
    assert [effect.flight.last for effect in edge.told if isinstance(effect, Done)] == [5]


def test_a_last_frame_that_was_lost_is_missed_with_the_next_heartbeat() -> None:
    edge, middle = Edge(), Middle()
    edge.sender.ask(QUEUE, 0.0)
    middle.greet(edge, 0)
    edge.sender.send(flight(1, 5), 0.0)
    edge.sent()
    edge.sender.tick(1.5)
    assert [(answer.type, answer.mark) for answer in middle.takes(edge.sent())] == [(wire.RESUME, 0)]


def test_without_room_a_frame_comes_again_when_there_is_some() -> None:
    edge, middle = Edge(), Middle(staged_bytes_max=150)
    edge.sender.ask(QUEUE, 0.0)
    middle.greet(edge, 0)
    edge.sender.send(flight(1, 1), 0.0)
    edge.sender.send(flight(2, 2), 0.0)
    assert middle.takes(edge.sent()) == []
    assert middle.discarded == ["room"]
    heartbeat = Frame(wire.HEARTBEAT, edge.sender.session, wire.MARKED, last=2, lane=1)
    assert [answer.type for answer in middle.takes([heartbeat])] == [wire.HEARTBEAT], "it would only come in vain"
    assert [(answer.type, answer.mark) for answer in middle.commits()] == [(wire.ACK, 1), (wire.RESUME, 1)]


def test_who_waits_for_room_is_told_even_when_nothing_is_committed() -> None:
    edge, other, middle = Edge(), Edge(), Middle(staged_bytes_max=150)
    other.sender.ask(QUEUE, 0.0)
    hello = next(frame for frame in other.sent() if frame.type == wire.HELLO)
    middle.receiver.welcome(b"other", hello, "other/uplink.1", 0, welcome(), 0.0)
    edge.sender.ask(QUEUE, 0.0)
    middle.greet(edge, 0)
    for peer, routing in ((other, b"other"), (edge, b"r")):
        peer.hears(wire.WELCOME, 0, welcome())
        peer.sender.send(flight(1, 1), 0.0)
        middle.takes(peer.sent(), routing)
    assert middle.discarded == ["room"]
    middle.receiver.supersede("other/uplink.1")  # what took the room is dropped
    heartbeat = Frame(wire.HEARTBEAT, edge.sender.session, wire.MARKED, last=1, lane=1)
    assert [(answer.type, answer.mark) for answer in middle.takes([heartbeat])] == [(wire.RESUME, 0)]


def test_small_batches_are_appended_together_and_large_ones_alone() -> None:
    edge, middle = Edge(), Middle(staged_bytes_max=1 << 24)
    edge.sender.ask(QUEUE, 0.0)
    middle.greet(edge, 0)
    edge.hears(wire.WELCOME, 0, welcome(frame_bytes=1 << 20))
    sizes = [100, 100, 300 << 10, 100, 100, 300 << 10, 300 << 10]
    for number, size in enumerate(sizes, 1):
        edge.sender.send(flight(number, number, size=size), 0.0)
    edge.sender._frame_bytes = 1 << 20  # what the far side of this test grants is less
    edge.sender._pump(0.0)
    middle.takes(edge.sent())
    groups = []
    while group := middle.receiver.next(1 << 22):
        groups.append([staged.last for staged in group])
    assert groups == [[1, 2], [3], [4, 5], [6], [7]]


def test_a_failed_append_begins_the_session_anew() -> None:
    edge, middle = Edge(), Middle()
    edge.sender.ask(QUEUE, 0.0)
    middle.greet(edge, 0)
    for number in (1, 2):
        edge.sender.send(flight(number, number), 0.0)
    frames = edge.sent()
    middle.takes(frames[:1])
    group = middle.receiver.next(1 << 20)
    middle.takes(frames[1:])
    (answer,) = [wire.decode(answer.message) for answer in middle.receiver.failed(group)]
    assert (answer.type, middle.receiver.waiting) == (wire.RESUME, 0), "what came behind it cannot be taken either"


def test_a_far_side_that_went_back_in_time_is_asked_anew_by_the_host() -> None:
    edge = Edge()
    edge.begin(mark=50)
    edge.sender.send(flight(51, 60), 0.0)
    edge.sent()
    edge.hears(wire.RESUME, None)
    edge.hears(wire.WELCOME, 20, welcome())
    assert edge.sent()[0].type == wire.HELLO
    assert any(isinstance(effect, Broken) for effect in edge.told)
    assert edge.sender.flying_events == 0


def test_what_the_host_has_no_more_is_declared_released() -> None:
    edge = Edge()
    edge.begin(mark=50)
    edge.sender.send(flight(81, 85), 0.0)
    (frame,) = edge.sent()
    assert (frame.prev, frame.first, frame.last) == (50, 51, 85)
    assert wire.unpack_missing(frame) == (Missing(51, 80, "released"),)


def test_what_was_durable_before_the_reply_was_lost_is_not_sent_again() -> None:
    edge = Edge()
    edge.begin(mark=0)
    for number in range(1, 5):
        edge.sender.send(flight(number * 10 - 9, number * 10), 0.0)
    edge.sent()
    edge.hears(wire.RESUME)
    edge.hears(wire.WELCOME, 25, welcome())
    frames = [frame for frame in edge.sent() if frame.type == wire.DATA]
    assert [(frame.first, frame.last) for frame in frames] == [(21, 30), (31, 40)]
    assert [effect.flight.last for effect in edge.told if isinstance(effect, Done)] == [10, 20]


def test_the_window_is_bounded_in_events_and_in_bytes() -> None:
    edge = Edge(window_events=10)
    edge.begin(mark=0)
    for number in range(1, 6):
        edge.sender.send(flight(number * 4 - 3, number * 4), 0.0)
    assert [frame.last for frame in edge.sent()] == [4, 8]
    edge.hears(wire.ACK, 4)
    assert [frame.last for frame in edge.sent()] == [12]
    small = Edge()
    small.sender.ask(QUEUE, 0.0)
    small.hears(wire.WELCOME, 0, welcome(window_bytes=60))
    small.sender.send(flight(1, 1, size=100), 0.0)
    small.sender.send(flight(2, 2), 0.0)
    assert [frame.last for frame in small.sent() if frame.type == wire.DATA] == [1], "one that is larger goes alone"


def test_a_tier_without_a_queue_is_told_when_nothing_more_can_come() -> None:
    edge = Edge(window_events=10)
    edge.sender.ask(QUEUE, 0.0)
    edge.hears(wire.WELCOME, 0, welcome(by_flush=True))
    for number in range(1, 3):
        edge.sender.send(flight(number * 4 - 3, number * 4), 0.0)
    assert not [frame for frame in edge.sent() if frame.type == wire.HEARTBEAT], "there is room still"
    edge.sender.send(flight(9, 12), 0.0)
    (full,) = edge.sent()
    assert (full.type, full.flags, full.last) == (wire.HEARTBEAT, wire.MARKED | wire.HURRY, 8)
    edge.sender.send(flight(13, 16), 0.0)
    assert edge.sent() == [], "once is enough"
    edge.sender.tick(1.5)
    assert [frame.flags & wire.HURRY for frame in edge.sent()] == [wire.HURRY], "it may have been lost"
    edge.hears(wire.ACK, 8)
    assert [(frame.type, frame.last) for frame in edge.sent()] == [(wire.DATA, 12), (wire.DATA, 16)]
    edge.hears(wire.ACK, 16)
    edge.sender.tick(3.0)
    assert [frame.flags for frame in edge.sent()] == [wire.MARKED], "nobody waits any more"
    edge.sender.send(flight(17, 18), 3.0)
    edge.sender.hurry(3.0)
    assert [frame.flags & wire.HURRY for frame in edge.sent() if frame.type == wire.HEARTBEAT] == [wire.HURRY], "the host says so"


def test_a_batch_larger_than_the_far_side_takes_is_refused_here() -> None:
    edge = Edge()
    edge.begin(mark=0)
    edge.sender.send(flight(1, 1, size=2000), 0.0)
    assert edge.sent() == []
    assert [type(effect) for effect in edge.told] == [Welcomed, Refused]


def test_a_far_side_of_a_lower_level_gets_nothing_unless_allowed() -> None:
    """DELIVERY 14."""
    edge = Edge(level="power")
    edge.sender.ask(QUEUE, 0.0)
    edge.hears(wire.WELCOME, 0, welcome(level="process"))
    edge.sender.send(flight(1, 1), 0.0)
    assert [frame.type for frame in edge.sent()] == [wire.HELLO]
    assert [effect.code for effect in edge.told if isinstance(effect, Unwelcome)] == ["level"]
    allowed = Edge(level="power", allow_lower_level=True)
    allowed.begin(mark=0)
    allowed.sender.send(flight(1, 1), 0.0)
    assert [frame.type for frame in allowed.sent()] == [wire.DATA]


def test_another_queue_id_begins_when_all_of_the_one_before_is_safe() -> None:
    edge = Edge()
    edge.begin(mark=0)
    edge.sender.send(flight(1, 5), 0.0)
    edge.sender.send(flight(6, 9, OTHER), 0.0)
    assert [frame.last for frame in edge.sent()] == [5]
    edge.hears(wire.ACK, 5)
    (hello,) = edge.sent()
    assert wire.unpack_text(hello, wire.Hello).queue_id == OTHER
    edge.hears(wire.WELCOME, None, welcome())
    (frame,) = edge.sent()
    assert (frame.prev, frame.first, bool(frame.flags & wire.START)) == (5, 6, True)


@pytest.mark.parametrize("state", ["greeting", "open"])
def test_a_silent_far_side_is_found_dead_and_greeted_again(state: str) -> None:
    edge = Edge()
    if state == "open":
        edge.begin(mark=0)
        edge.sender.send(flight(1, 5), 0.0)
    else:
        edge.sender.ask(QUEUE, 0.0)
    edge.sent()
    now = 0.0
    while not any(isinstance(effect, Dead) for effect in edge.told):
        at = edge.sender.next_at()
        assert at is not None
        now = max(now, at)
        edge.sender.tick(now)
        edge.sent()
    assert now == pytest.approx(5.0)
    assert edge.sender.next_at() is None
    edge.sender.connected(now)
    assert [frame.type for frame in edge.sent()] == [wire.HELLO]
    edge.hears(wire.WELCOME, 0, welcome(), now)
    assert [frame.last for frame in edge.sent()] == ([5] if state == "open" else [])


def test_a_refused_batch_is_named_and_the_others_are_given_up() -> None:
    edge = Edge()
    edge.begin(mark=0)
    for number in (1, 2, 3):
        edge.sender.send(flight(number, number), 0.0)
    edge.sent()
    edge.hears(wire.REFUSE, text=wire.Refusal(code="batch", reason="odd"), last=2)
    edge.sent()
    (refused,) = [effect for effect in edge.told if isinstance(effect, Refused)]
    assert (refused.flight.last, refused.reason, edge.sender.flying_events) == (2, "odd", 0)


def test_peers_that_are_silent_for_long_are_forgotten() -> None:
    edge, middle = Edge(), Middle()
    edge.sender.ask(QUEUE, 0.0)
    middle.greet(edge, 0)
    middle.receiver.tick(14.0)
    assert len(middle.receiver.peers) == 1
    middle.receiver.tick(16.0)
    assert (len(middle.receiver.peers), len(middle.receiver.lanes)) == (0, 0)
