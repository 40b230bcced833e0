"""Whom a listening end cuts off: the logic, without sockets."""

from __future__ import annotations

import socket as sockets
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio

from headrace.testing import fake_context
from headrace_transport_zmq.config import TransportConfig
from headrace_transport_zmq.connections import GRACE_S, NONSENSE_MAX, SUBSCRIPTIONS_MAX, Connections
from headrace_transport_zmq.door import Door
from headrace_transport_zmq.guard import monitored


def test_too_many_that_say_nothing_are_cut_the_oldest_first() -> None:
    connections = Connections(silent_max=2, connections_max=100)
    for fd in (1, 2, 3, 4):
        assert connections.accepted(fd, 0.1 * fd) == [], "a newcomer has a moment"
    connections.spoke(1, b"key")
    assert connections.crowding(0.2 + GRACE_S) == [2]
    assert [connections.closed(fd) for fd in (2, 1)] == ["crowded", ""]
    assert connections.crowding(10.0) == []


def test_a_flood_is_bounded_whatever_its_age_and_costs_no_link() -> None:
    connections = Connections(silent_max=2, connections_max=4)
    for fd in (1, 2):
        connections.accepted(fd, 0.0)
        connections.spoke(fd, b"")
    cut = [victim for fd in range(3, 103) for victim in connections.accepted(fd, 0.0)]
    assert cut == list(range(3, 101))
    assert len(connections) == 4
    assert {connections.closed(fd) for fd in cut} == {"crowded"}
    assert [connections.closed(fd) for fd in (1, 2)] == ["", ""]


def test_when_all_speak_the_oldest_makes_room() -> None:
    connections = Connections(silent_max=2, connections_max=2)
    for fd in (1, 2):
        connections.accepted(fd, 0.0)
        connections.spoke(fd, b"")
    assert connections.accepted(3, 0.0) == [3], "who says nothing goes first"
    assert connections.closed(3) == "crowded"


def test_why_a_connection_ended_is_told_once() -> None:
    connections = Connections(silent_max=2, connections_max=9)
    connections.accepted(1, 0.0)
    connections.failing("key")
    assert connections.closed(1) == "key"
    connections.accepted(1, 0.0)
    assert connections.closed(1) == "silent"
    connections.accepted(1, 0.0)
    connections.spoke(1, b"")
    assert connections.closed(1) == ""
    assert connections.closed(1) == "", "never heard of"


def test_a_key_taken_out_ends_its_connections_and_those_that_have_shown_none() -> None:
    connections = Connections(silent_max=9, connections_max=9)
    for fd, key in ((1, b"a"), (2, b"b"), (3, b"a"), (4, b"")):
        connections.accepted(fd, 0.0)
        if key:
            connections.spoke(fd, key)
    assert connections.revoked({b"b"}) == [4, 1, 3]
    assert connections.revoked({b"b"}) == [], "each once"
    assert connections.closed(1) == "revoked"
    assert len(connections) == 1


def test_who_subscribes_without_end_is_cut() -> None:
    connections = Connections(silent_max=9, connections_max=9)
    for fd in (1, 2):
        connections.accepted(fd, 0.0)
        connections.spoke(fd, b"")
    assert [connections.subscribed(1, 1) for _ in range(SUBSCRIPTIONS_MAX)] == [[]] * SUBSCRIPTIONS_MAX
    assert [connections.subscribed(1, change) for change in (-1, 1, 1)] == [[], [], [1]]
    assert [connections.subscribed(2, change) for change in (1, -1) * SUBSCRIPTIONS_MAX] == [[]] * 2 * SUBSCRIPTIONS_MAX
    assert connections.closed(1) == "subscriptions"


def test_who_says_nothing_but_nonsense_is_cut() -> None:
    connections = Connections(silent_max=9, connections_max=9)
    for fd in (1, 2):
        connections.accepted(fd, 0.0)
    connections.spoke(2, b"")
    assert [connections.nonsense(1) for _ in range(NONSENSE_MAX)] == [[]] * (NONSENSE_MAX - 1) + [[1]]
    assert [connections.nonsense(2) for _ in range(2 * NONSENSE_MAX)] == [[]] * 2 * NONSENSE_MAX
    assert connections.nonsense(1) == [], "once"
    assert connections.closed(1) == "nonsense"


def test_no_two_monitors_have_one_address() -> None:
    """libzmq frees that of a closed one when it gets to it: a link that opened its next socket meanwhile ended (Address already in use)."""

    class Socket:
        def monitor(self, address: str, events: int) -> None:
            addresses.append(address)

    addresses: list[str] = []
    context = zmq.asyncio.Context()
    socket: Any = Socket()  # the same, as where Python puts the next one in its place
    for _ in range(2):
        monitored(socket, context, zmq.EVENT_ALL).close()
    context.term()
    assert len(set(addresses)) == 2


def test_an_event_of_a_socket_that_nobody_watches_any_more_stops_no_other(tmp_path: Path) -> None:
    """A far side that goes at the very moment in which its link gives it up: the link never reached any far side again."""
    context = zmq.asyncio.Context()
    door = Door(TransportConfig(connect="tcp://127.0.0.1:1"), fake_context(tmp_path), context)
    with sockets.create_server(("127.0.0.1", 0)) as far_side:
        far_side.settimeout(20.0)
        for _ in range(2):
            near = zmq.Socket(context, zmq.DEALER)
            near.setsockopt(zmq.LINGER, 0)
            door.arm(near)
            near.connect(f"tcp://127.0.0.1:{far_side.getsockname()[1]}")
            connection, _ = far_side.accept()
            assert connection.recv(1), "it shakes hands"
            door.shut()
            connection.close()
            again, _ = far_side.accept()  # so the end of the first has been told, or was to be
            near.close()
            again.close()
    context.term()
