"""Who sends, by which credential, and for which devices it may write. No I/O."""

from __future__ import annotations

import re
from typing import Final, Literal

from headrace_ingest_ws.protocol import device_problem

#: What stands between the patterns of one gateway: no device's name can hold it.
SEPARATOR: Final = "/"
PATTERNS_LENGTH_MAX: Final = 4096

#: Why somebody was not let in; a label of `ingest_auth_failures_total`.
Why = Literal["missing", "malformed", "unknown", "expired", "signature", "claims", "device"]


class NotAuthorized(Exception):
    """These credentials do not let this request in. The text goes to the client and into the log: it never holds a secret.

    status: 401 when nobody knows who it is, 403 when it is somebody else.
    """

    def __init__(self, why: Why, reason: str, status: int = 401) -> None:
        self.why, self.reason, self.status = why, reason, status
        super().__init__(reason)


class Unknown(NotAuthorized):
    """The token or its key has a name that nobody had when credentials were read last: it may have been added since."""

    def __init__(self, reason: str) -> None:
        super().__init__("unknown", reason)


class NotReady(Exception):
    """It cannot be told now whether these credentials hold: come again. The text goes to the client and into the log."""

    def __init__(self, reason: str = "no credentials could be read yet") -> None:
        self.reason = reason
        super().__init__(reason)


class DevicePatterns:
    """The names that a gateway may write for: `*` stands for any characters, `/` separates several patterns."""

    __slots__ = ("_matches", "text")

    def __init__(self, text: str) -> None:
        """Raises ValueError with what was expected."""
        if problem := patterns_problem(text):
            raise ValueError(problem)
        self.text = text
        self._matches = re.compile("|".join(map(_regular, text.split(SEPARATOR))), re.DOTALL).fullmatch

    def allow(self, device: str) -> bool:
        return self._matches(device) is not None


def patterns_problem(text: str) -> str | None:
    """What is wrong with patterns, or None."""
    if len(text) > PATTERNS_LENGTH_MAX:
        return f"expected patterns of at most {PATTERNS_LENGTH_MAX} characters, got {len(text)}"
    for pattern in text.split(SEPARATOR):
        if not pattern:
            return f"expected patterns of device names separated by {SEPARATOR}, got an empty one"
        if problem := device_problem(pattern.replace("*", "x")):
            return f"expected patterns of device names, got {pattern!r}: {problem}"
    return None


def _regular(pattern: str) -> str:
    """One pattern as a regular expression that takes time in proportion to pattern and name, whatever is in them.

    Each `*` takes the shortest run that lets the text behind it match, and never gives that up again (an atomic group).
    """
    first, *rest = map(re.escape, pattern.split("*"))
    if not rest:
        return first
    return first + "".join(f"(?>.*?{text})" for text in rest[:-1]) + ".*" + rest[-1]


class Identity:
    """Who a connection or a POST is.

    name: the device's, or the gateway's own. gateway: for whom it may write besides itself, None for a device. credential:
    what stands in logs for the credential. expires: Unix time at which it ends, or None. proof: what the guard compares to
    see whether the credential still stands. generation: the guard's when it last did.
    """

    __slots__ = ("credential", "expires", "gateway", "generation", "name", "proof")

    def __init__(
        self,
        name: str,
        gateway: DevicePatterns | None = None,
        *,
        credential: str = "",
        expires: float | None = None,
        proof: object = None,
        generation: int = 0,
    ) -> None:
        self.name, self.gateway, self.credential, self.expires = name, gateway, credential, expires
        self.proof, self.generation = proof, generation

    def expired(self, now: float) -> bool:
        """Whether it has ended by itself; `now` is Unix time."""
        return self.expires is not None and now >= self.expires

    def refuse_unless(self, device: str) -> None:
        """Raise NotAuthorized unless it may connect under this name: its own, for gateways too."""
        if device != self.name:
            kind = "device" if self.gateway is None else "gateway"
            raise NotAuthorized("device", f"these credentials are those of another {kind}", 403)
