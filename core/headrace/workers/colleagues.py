"""The other workers of a tier, seen from one of them: by way of the supervisor."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from headrace.hookspecs import Elsewhere
from headrace.position import OriginMark
from headrace.workers.messages import Channel, Found, Questions, Take, Taken


class ByChannel:
    """`Colleagues` over the channel of a worker."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._questions: Questions[Found] = Questions()

    @contextlib.asynccontextmanager
    async def taking(self, origin: str) -> AsyncIterator[Elsewhere]:
        asked = 0

        def say(number: int) -> None:
            nonlocal asked
            asked = number
            self._channel.send(Take(number, origin))

        try:
            found = await self._questions.ask(say)
            if found is None or found.busy:
                raise TimeoutError(f"another worker cannot be asked about {origin} now")
            yield Elsewhere(None if found.last is None else OriginMark(found.last, found.note), found.known)
        finally:
            self._channel.send(Taken(asked))

    def told(self, message: Found) -> None:
        self._questions.answer(message.number, message)

    def gone(self) -> None:
        """The supervisor is: nobody will answer."""
        self._questions.nobody_answers()
