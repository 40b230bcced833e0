"""How an output talks to a store by a blocking client: one call at a time, and what fails told as its status."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from headrace.component import Context
from headrace.errors import TransientError

T = TypeVar("T")


class StoreCalls:
    """The calls of one output to its store, each in a thread of the component, never two at once.

    What is of `failures` is the store's fault: it is raised as TransientError with what `say(step, error)` makes of it, without
    the error itself, whose own text may have what devices sent. From such a failure, or a TransientError of the call's own, until
    `healed`, the output is degraded.
    """

    def __init__(self, context: Context, failures: tuple[type[Exception], ...], say: Callable[[str, Exception], str]) -> None:
        self._context, self._failures, self._say = context, failures, say
        self._degraded = False
        # A cancelled caller does not stop its thread: the next call must not meet it.
        self._lock = threading.Lock()

    async def make(self, step: str, work: Callable[..., T], *args: Any) -> T:
        """Make a call. TransientError as above; what else the call raises comes as it is. `step` says what it does: "write"."""
        try:
            return await self.quietly(work, *args)
        except TransientError as error:
            self.failed(str(error))
            raise
        except self._failures as error:
            raise self.failed(self._say(step, error)) from None

    async def quietly(self, work: Callable[..., T], *args: Any) -> T:
        """Make a call whose failure says nothing about the store: a reset, a close."""
        return await self._context.call_blocking(self._alone, work, *args)

    def failed(self, reason: str) -> TransientError:
        """Say that the store cannot be used now. Returns the error to raise."""
        self._degraded = True
        self._context.status("degraded", reason)
        return TransientError(reason)

    def healed(self) -> None:
        """Say that the store has answered."""
        if self._degraded:
            self._degraded = False
            self._context.status("ok", "")

    def _alone(self, work: Callable[..., T], *args: Any) -> T:
        with self._lock:
            return work(*args)
