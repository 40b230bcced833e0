"""When open connections are asked whether their credentials still hold: whenever something may have changed, and not otherwise."""

from __future__ import annotations

from headrace_ingest_ws.auth.asking import Asking
from headrace_ingest_ws.auth.guard import Open
from headrace_ingest_ws.auth.identity import Identity


def test_nobody_is_asked_twice_while_the_same_credentials_hold() -> None:
    asking, guard = Asking(), Open()
    assert asking.due(guard, 1.0), "nobody was asked yet"
    asking.begins(guard)
    asking.came(Identity("d1"))
    assert not asking.due(guard, 1e12)
    guard.changed()
    assert asking.due(guard, 2.0)
    asking.begins(guard)
    assert not asking.due(guard, 3.0)


def test_all_are_asked_when_the_first_credentials_expire() -> None:
    asking, guard = Asking(), Open()
    asking.begins(guard)
    for expires in (50.0, 20.0, 30.0):
        asking.came(Identity("d1", expires=expires))
    assert not asking.due(guard, 19.9)
    assert asking.due(guard, 20.0)
    asking.begins(guard)
    asking.came(Identity("d1", expires=50.0))  # those that stay say so
    asking.came(Identity("d1", expires=30.0))
    assert not asking.due(guard, 29.9)
    assert asking.due(guard, 30.0)


def test_who_was_let_in_by_credentials_of_before_is_asked_when_it_is_there() -> None:
    asking, guard = Asking(), Open()
    late = Identity("d1", generation=guard.generation)
    guard.changed()
    asking.begins(guard)
    assert not asking.due(guard, 1.0)
    asking.came(late)
    assert asking.due(guard, 1.0)


def test_another_guard_in_its_place_asks_all() -> None:
    asking, guard, other = Asking(), Open(), Open()
    guard.changed()
    asking.begins(guard)
    other.follow(guard, same_rules=False)
    assert asking.due(other, 1.0)
