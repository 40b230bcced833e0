"""The connection of a device that names a session: its messages join commits with an origin, and a newer one may take over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from headrace_ingest_ws.connection import Connection
from headrace_ingest_ws.directory import Standing
from headrace_ingest_ws.protocol import CLOSE_POLICY, CLOSE_TAKEN_OVER, Refusal
from headrace_ingest_ws.refusals import NOTE_BYTES_PER_REFUSAL
from headrace_ingest_ws.session import DeviceSession

if TYPE_CHECKING:  # these are not there without the C parser
    from headrace_ingest_ws.gathering import Gatherer
    from headrace_ingest_ws.polling import PolledTransport


class SessionConnection(Connection):
    """As `Connection`, and a `Holder` of its session. `resume` comes before `serve`."""

    __slots__ = ("_handed_over", "_leave")

    _session: DeviceSession

    def __init__(self, *facts: Any) -> None:
        super().__init__(*facts)
        self._handed_over: asyncio.Future[None] | None = None

    def resume(self, session: str, at: Standing, leave: Callable[[], None]) -> None:
        """Go on with this session (`<device>/<session>`). `leave` is called when the connection and all it took are done with."""
        self._session = DeviceSession(self._config.window_messages, session, at.start, at.refused)
        self._leave = leave

    def start(self, transport: asyncio.Transport, greeting: bytes, already_read: bytes) -> None:
        super().start(transport, greeting, b"")
        if already_read:  # counted from a number that this client cannot know yet, so that acks would mislead it
            self._close_for(CLOSE_POLICY, "expected no message of a session before its hello")

    @property
    def session_peer(self) -> SessionConnection:
        return self

    @property
    def member(self) -> DeviceSession:
        return self._session

    def join_at(self, row: int) -> None:
        self._session.join(row)

    def _gather(self, gatherer: Gatherer, transport: PolledTransport) -> None:
        super()._gather(gatherer, transport)
        self._gathered.origin_bytes = self._session.origin_bytes

    # --- messages ----------------------------------------------------------------------------------------------------

    def took_run(self, run: bytes, count: int) -> None:
        if not self._session.in_batch:
            self._join()
        super().took_run(run, count)

    def took(self, message: bytes, is_text: bool) -> None:
        if not self._session.in_batch:
            self._join()
        super().took(message, is_text)

    def _refuse(self, refusal: Refusal, size: int) -> None:
        if not self._session.in_batch:
            self._join()
        self._intake.weigh(NOTE_BYTES_PER_REFUSAL)
        super()._refuse(refusal, size)
        if self._gathered is not None:
            self._gathered.origin_bytes = self._session.origin_bytes

    def _join(self) -> None:
        self._session.join(self._intake.join(self._session))

    # --- the end -----------------------------------------------------------------------------------------------------

    def settled(self, last: int) -> None:
        super().settled(last)
        self._look_settled()

    def ack_begun(self, sent: int) -> None:
        super().ack_begun(sent)
        self._look_settled()

    def _look_settled(self) -> None:
        if self._session.settled:
            if self._handed_over is not None and not self._handed_over.done():
                self._handed_over.set_result(None)
            if self._lost:
                self._leave()

    async def hand_over(self) -> None:
        """Give the session to a newer connection: take no more messages, return when all that was taken is settled."""
        self.end(CLOSE_TAKEN_OVER, "a newer connection has taken over the session")  # before it is served, too
        if self._session.settled:
            return
        if self._handed_over is None:
            self._handed_over = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._handed_over)

    def ended(self, code: int) -> None:
        super().ended(code)
        if self._session.settled:  # else what it took is still on its way, and decides where a newer connection goes on
            self._leave()
