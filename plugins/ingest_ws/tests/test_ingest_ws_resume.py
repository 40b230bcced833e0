"""Where a device session goes on: its numbers, its origins, who holds it, and what a device is told. No sockets."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import Elsewhere, Origin, OriginMark
from headrace.position import ORIGIN_SESSION
from headrace_ingest_ws.directory import UNKNOWN, Found, HostSessions, LocalSessions, Standing, standing
from headrace_ingest_ws.protocol import Refusal, SessionClaim, session_claim, text_frame
from headrace_ingest_ws.refusals import RefusedMessage, decode, encode
from headrace_ingest_ws.session import DeviceSession

BAD = Refusal("payload_invalid", "because")
LATER = Refusal("rate", "too fast", retry_ms=500)


# --- the claim -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("session", ["a", "x" * 64, "A.b_c-9"])
@pytest.mark.parametrize("acked", ["0", "17", str(10**15)])
def test_a_session_is_named_with_the_highest_number_that_is_acked(session: str, acked: str) -> None:
    assert session_claim({"session": session, "acked": acked}) == SessionClaim(session, int(acked))


def test_without_acked_nothing_is_acked_and_without_session_there_is_none() -> None:
    assert session_claim({"session": "s"}) == SessionClaim("s", 0)
    assert session_claim({"acked": "5"}) is None


@pytest.mark.parametrize("session", ["", "x" * 65, "a/b", "a b", "é", "a\n", "%41"])
def test_other_session_ids_are_refused(session: str) -> None:
    with pytest.raises(ValueError, match="expected a session of 1 to 64 characters"):
        session_claim({"session": session})


@pytest.mark.parametrize("acked", ["", "-1", "1.5", "x", "+1", "٣", str(10**15 + 1), "1" * 5000])
def test_other_acked_numbers_are_refused(acked: str) -> None:
    with pytest.raises(ValueError, match="expected acked as a whole number"):
        session_claim({"session": "s", "acked": acked})


# --- numbers and origins ---------------------------------------------------------------------------------------------


def test_messages_count_on_from_where_the_session_stopped() -> None:
    session = DeviceSession(10, "d/s", start=7)
    assert session.quiet
    assert session.settled
    assert [session.take(), session.refuse(BAD), session.take(2)] == [8, 9, 11]
    assert not session.settled
    session.settle(11)
    assert session.settled
    assert session.due()[-1] == b'{"ack":11}'


def test_each_batch_has_one_origin_with_the_numbers_since_the_last() -> None:
    session = DeviceSession(10, "d/s", start=7)
    session.join(row=3)
    session.take(2)
    session.take()
    assert session.origin() == Origin("d/s", 8, 10, 3, ORIGIN_SESSION, None)
    assert not session.in_batch
    session.join(row=0)
    session.take()
    assert session.origin() == Origin("d/s", 11, 11, 0, ORIGIN_SESSION, None)


def test_a_batch_that_was_joined_and_got_nothing_has_no_origin() -> None:
    session = DeviceSession(10, "d/s")
    session.join(row=3)
    assert session.origin() is None
    assert not session.in_batch


def test_refused_messages_stand_in_the_note_until_they_lie_a_window_back() -> None:
    session = DeviceSession(4, "d/s", start=7, refused=[RefusedMessage(6, "rate", True)])
    session.join(0)
    session.refuse(BAD)
    origin = session.origin()
    assert origin is not None
    assert decode(origin.note) == [RefusedMessage(6, "rate", True), RefusedMessage(8, "payload_invalid")]
    session.settle(8)
    session.due()
    session.join(0)
    session.refuse(LATER)
    session.take(3)
    origin = session.origin()
    assert origin is not None
    assert (origin.first, origin.last) == (9, 12)
    assert decode(origin.note) == [RefusedMessage(9, "rate", True)]


@given(st.lists(st.sampled_from(["take", "refuse", "retry", "commit", "settle"]), max_size=100), st.integers(0, 50), st.integers(1, 8))
def test_origins_cover_every_number_one_time_and_notes_every_refusal_within_a_window(steps: list[str], start: int, window: int) -> None:
    session = DeviceSession(window, "d/s", start)
    refused: dict[int, str] = {}
    upto = committed = start
    for step in [*steps, "commit"]:
        if step in ("take", "refuse", "retry") and session.open:
            if not session.in_batch:
                session.join(0)
            if step == "take":
                session.take()
            else:
                refusal = BAD if step == "refuse" else LATER
                refused[session.refuse(refusal)] = refusal.code
        elif step == "commit" and (origin := session.origin()) is not None:
            assert (origin.first, origin.last) == (upto + 1, session.count)
            upto = origin.last
            expected = {number: code for number, code in refused.items() if upto - window < number <= upto}
            assert {message.number: message.code for message in decode(origin.note)} == expected
        elif step == "settle":
            committed = upto
            session.settle(committed)
            session.due()
    assert upto == session.count


# --- what the device is told -----------------------------------------------------------------------------------------

REFUSED = [RefusedMessage(3, "payload_invalid"), RefusedMessage(9, "rate", True)]
MARK = OriginMark(9, encode(REFUSED))


@pytest.mark.parametrize(
    ("acked", "found", "told"),
    [
        (0, None, Standing(0, True)),
        (0, MARK, Standing(9, True, tuple(REFUSED))),
        (3, MARK, Standing(9, True, (REFUSED[1],))),
        (9, MARK, Standing(9, True)),
        (9, OriginMark(9, None), Standing(9, True)),
        (5, None, Standing(5, False)),  # evicted, or the queue was lost, or it was another host's
        (12, MARK, Standing(12, False)),  # somebody else acked 10 to 12, or this queue went back in time
        (0, UNKNOWN, Standing(0, False)),  # a tier without a queue
        (5, UNKNOWN, Standing(5, False)),
        (3, OriginMark(9, b"unreadable"), Standing(3, False)),
    ],
)
def test_a_session_goes_on_behind_the_mark_and_never_below_what_is_acked(acked: int, found: Found, told: Standing) -> None:
    assert standing(SessionClaim("s", acked), found) == told


def test_a_hello_with_thousands_of_refusals_fits_into_a_frame() -> None:
    text = b"x" * 70_000
    assert text_frame(text)[:10] == b"\x81\x7f" + (70_000).to_bytes(8, "big")
    assert text_frame(text[:65_535])[:4] == b"\x81\x7e\xff\xff"


# --- who holds it ----------------------------------------------------------------------------------------------------


class FakeHolder:
    """Hands over once `settled` is set; writes down what happened."""

    def __init__(self, name: str, story: list[str]) -> None:
        self.name, self.story, self.settled = name, story, asyncio.Event()

    async def hand_over(self) -> None:
        self.story.append(f"{self.name} asked")
        await self.settled.wait()
        self.story.append(f"{self.name} handed over")


class Kit:
    """A directory over a fake queue."""

    def __init__(self, deliver: object) -> None:
        self.story: list[str] = []
        self.deliver = deliver
        self.taken_over = 0
        self.sessions = LocalSessions(deliver, self._count)  # type: ignore[arg-type]

    def _count(self) -> None:
        self.taken_over += 1

    def holder(self, name: str, settled: bool = True) -> FakeHolder:
        holder = FakeHolder(name, self.story)
        if settled:
            holder.settled.set()
        return holder


def test_the_mark_is_asked_for_only_when_the_older_connection_has_nothing_in_flight(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.marks["d/s"] = OriginMark(4, None)
        k = Kit(deliver)
        old, new = k.holder("old", settled=False), k.holder("new")
        assert await k.sessions.take("d/s", old) == OriginMark(4, None)
        taking = asyncio.create_task(k.sessions.take("d/s", new))
        await kit.until(lambda: k.story == ["old asked"])
        deliver.marks["d/s"] = OriginMark(6, None)
        assert not taking.done()
        old.settled.set()
        assert await taking == OriginMark(6, None)
        assert k.taken_over == 1
        k.sessions.leave("d/s", old)  # it closes later, and takes nothing away from the new one
        assert await k.sessions.take("d/s", k.holder("newest")) == OriginMark(6, None)
        assert k.story[-2:] == ["new asked", "new handed over"]

    asyncio.run(scenario())


def test_newcomers_take_over_one_after_the_other(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        k = Kit(kit.FakeDeliver())
        old = k.holder("1", settled=False)
        await k.sessions.take("d/s", old)
        taking = [asyncio.create_task(k.sessions.take("d/s", k.holder(name))) for name in ("2", "3", "4")]
        await kit.until(lambda: k.story)
        old.settled.set()
        await asyncio.gather(*taking)
        assert k.story == ["1 asked", "1 handed over", "2 asked", "2 handed over", "3 asked", "3 handed over"]

    asyncio.run(scenario())


def test_who_gives_up_waiting_holds_nothing_and_the_next_still_waits(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        k = Kit(kit.FakeDeliver())
        old, new = k.holder("old", settled=False), k.holder("new")
        await k.sessions.take("d/s", old)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await k.sessions.take("d/s", k.holder("impatient"))
        taking = asyncio.create_task(k.sessions.take("d/s", new))
        await kit.until(lambda: k.story.count("old asked") == 2)
        old.settled.set()
        await taking
        assert k.story[-1] == "old handed over"

    asyncio.run(scenario())


def test_nothing_is_kept_of_sessions_that_nobody_holds(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        k = Kit(kit.FakeDeliver())
        holder = k.holder("a")
        await k.sessions.take("d/s", holder)
        await k.sessions.give_up("d/s")
        await k.sessions.give_up("d/other")
        again = k.holder("b")
        await k.sessions.take("d/s", again)
        k.sessions.leave("d/s", holder)
        k.sessions.leave("d/s", again)
        k.sessions.leave("d/s", again)
        assert k.sessions._places == {}

    asyncio.run(scenario())


def test_a_tier_without_a_queue_remembers_no_session(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        k = Kit(kit.FakeDeliver())
        k.deliver.level = "none"  # type: ignore[attr-defined]
        assert await k.sessions.take("d/s", k.holder("a")) == UNKNOWN

    asyncio.run(scenario())


# --- over several workers ---


@pytest.mark.parametrize(
    ("here", "elsewhere", "found"),
    [
        (None, Elsewhere(None, True), None),
        (None, Elsewhere(OriginMark(4, b"x"), True), OriginMark(4, b"x")),
        (OriginMark(3, None), Elsewhere(None, True), OriginMark(3, None)),
        (OriginMark(3, None), Elsewhere(OriginMark(9, b"x"), True), OriginMark(9, b"x")),
        (OriginMark(12, b"y"), Elsewhere(OriginMark(9, b"x"), True), OriginMark(12, b"y")),
        (OriginMark(12, b"y"), Elsewhere(OriginMark(9, b"x"), False), UNKNOWN),
        (None, Elsewhere(None, False), UNKNOWN),
    ],
)
def test_the_queue_that_took_the_session_last_says_where_it_goes_on(
    kit: SimpleNamespace, here: OriginMark | None, elsewhere: Elsewhere, found: Found
) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        deliver.elsewhere = elsewhere
        if here is not None:
            deliver.marks["d/s"] = here
        k = Kit(deliver)
        assert await HostSessions(deliver, k.sessions).take("d/s", k.holder("new")) == found
        assert deliver.taken == ["d/s"]

    asyncio.run(scenario())


def test_while_another_worker_cannot_be_asked_nothing_changes(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        deliver = kit.FakeDeliver()
        k = Kit(deliver)
        sessions = HostSessions(deliver, k.sessions)
        await sessions.take("d/s", k.holder("old"))
        deliver.elsewhere = None
        with pytest.raises(TimeoutError):
            await sessions.take("d/s", k.holder("new"))
        assert k.story == [], "the older connection goes on"

    asyncio.run(scenario())
