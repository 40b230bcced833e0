"""The two sides of the server: points in over RESP (TCP), questions over HTTP. Blocking sockets, for a thread of the output's pool.

There is no acknowledgement. An error is one line that begins with `-`, and the server closes; what was sent behind the bad message is
dropped. The one receipt is the end of the stream after we ended ours: everything was parsed and applied, in memory.
"""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

#: An error line is far below this; so is what a server that is none would say.
_REPLY_BYTES_MAX: Final = 65_536
#: Metrics in one question: an answer names all their series.
_METRICS_AT_ONCE: Final = 50


class ServerGone(OSError):
    """The connection broke, was refused, or nothing came in time."""


class ServerRefused(OSError):
    """The server said no, in its own words (`reply`)."""

    def __init__(self, reply: str) -> None:
        self.reply = reply
        super().__init__(f"the server said {reply!r}")

    @property
    def late(self) -> bool:
        """Whether a point was older than the last one of its series."""
        return self.reply.startswith("-DB late write")


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


class Session:
    """One connection for points. Raises ServerGone and ServerRefused; after either it is of no use."""

    def __init__(self, target: str, timeout_s: float) -> None:
        self._target = target
        try:
            self._socket = socket.create_connection(address(target), timeout_s)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raise ServerGone(f"no Akumuli at {target}: {error}") from error
        self.bytes = 0

    def send(self, data: bytes | memoryview) -> None:
        """Hand the bytes to the kernel."""
        try:
            self._socket.sendall(data)
        except OSError as error:
            # the reason often still waits to be read
            self._raise_reply()
            raise self._gone(error) from error
        self.bytes += len(data)

    def look(self) -> None:
        """Raise when the server has said something, or has closed."""
        if select.select([self._socket], [], [], 0)[0]:
            self._raise_reply()
            raise self._gone("closed by the server")

    def finish(self) -> None:
        """End our side, and wait until the server has applied everything that was sent."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._raise_reply()
            raise self._gone(error) from error
        reply, broken = self._read()
        self.close()
        self._refuse(reply)
        if broken is not None:
            raise self._gone(broken)

    def close(self) -> None:
        """Safe twice, and from another thread: a call under way ends with ServerGone."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _raise_reply(self) -> None:
        self._refuse(self._read()[0])

    def _refuse(self, reply: bytes) -> None:
        if reply:
            self.close()
            raise ServerRefused(reply.decode("utf-8", "replace").split("\r\n")[0][:300])

    def _read(self) -> tuple[bytes, OSError | None]:
        """What the server says until it closes; the error that ended it instead, if one did."""
        reply = b""
        try:
            while len(reply) < _REPLY_BYTES_MAX and (data := self._socket.recv(4096)):
                reply += data
        except OSError as error:
            return reply, error
        return reply, None

    def _gone(self, why: object) -> ServerGone:
        self.close()
        return ServerGone(f"connection to Akumuli at {self._target} broke: {why}")


class Questions:
    """The HTTP side. Each call raises ServerGone when nobody answers, ServerRefused for an error in the server's words."""

    def __init__(self, target: str, timeout_s: float) -> None:
        self._target, self._timeout_s = target, timeout_s

    def version(self) -> str:
        """The server's version: it answers, so it is ready."""
        return self._ask("GET", "/api/version").decode("utf-8", "replace").strip()

    def metrics(self) -> list[str]:
        """The names of all metrics that have a series."""
        answer = self._ask("POST", "/api/suggest", {"select": "metric-names", "starts-with": ""})
        return [line[1:] for line in answer.decode().split("\r\n") if line.startswith("+")]

    def last_timestamps(self, metrics: Sequence[str]) -> dict[str, int]:
        """By series' name the timestamp (ns) of its last point, for the series of these metrics (that must exist)."""
        found: dict[str, int] = {}
        for first in range(0, len(metrics), _METRICS_AT_ONCE):
            part = dict.fromkeys(metrics[first : first + _METRICS_AT_ONCE], "last_timestamp")
            answer = self._ask("POST", "/api/query", {"aggregate": part, "output": {"format": "csv", "timestamp": "raw"}})
            found.update(_timestamps(answer.decode().splitlines()))
        return found

    def series_with(self, metric: str, ns_max: int) -> list[str]:
        """The names of a metric's series that have a point before `ns_max`."""
        span = {"from": 0, "to": ns_max}
        answer = self.query({"select": metric, "range": span, "output": {"format": "csv", "timestamp": "raw"}})
        return sorted({line.partition(",ts=")[0] for line in answer.decode().splitlines() if line})

    def query(self, question: dict[str, Any]) -> bytes:
        """Any query; the answer as it comes."""
        return self._ask("POST", "/api/query", question)

    def _ask(self, method: str, path: str, question: dict[str, Any] | None = None) -> bytes:
        connection = http.client.HTTPConnection(*address(self._target), timeout=self._timeout_s)
        try:
            connection.request(method, path, None if question is None else msgspec.json.encode(question))
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ServerGone(f"no answer from Akumuli at {self._target}: {error}") from error
        finally:
            connection.close()
        # errors come with status 200, too
        if answer.startswith(b"-") or response.status != 200:
            raise ServerRefused(answer.decode("utf-8", "replace").strip()[:300] or f"HTTP {response.status}")
        return answer


def _timestamps(lines: Iterable[str]) -> Iterable[tuple[str, int]]:
    for line in lines:
        if not line:
            continue
        # `metric:last_timestamp tag=value,ts=1700000000000000000`
        name, _, stamp = line.rpartition(",ts=")
        metric, mark, tags = name.partition(":last_timestamp ")
        if not mark or not stamp.isdigit():
            raise ServerRefused(f"expected a series and its last timestamp, got {line[:200]!r}")
        yield f"{metric} {tags}", int(stamp)
