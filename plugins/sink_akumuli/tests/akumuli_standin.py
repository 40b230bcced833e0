"""A stand-in for akumulid that keeps to its protocol, its faults included, as seen on version 0.8.80.

It accepts points over RESP and questions over HTTP, refuses late points by one line and a close, stores equal timestamps twice, falls
over an apostrophe, and when it is killed keeps of each series a prefix: what it had at its last clean stop, and whole leaves of
what came later. It runs on a thread with a loop of its own; `kill`, `stop` and `start` may be called from anywhere.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

LEAF_POINTS = 40
NAME_BYTES_MAX = 1022
TAGS_MAX = 32
START = "headrace.start host=stand-in"


class Refused(Exception):
    """One error line."""


class Aborted(Exception):
    """The server fell over."""


class Killed(Exception):
    """The server was killed."""


@dataclass
class Stored:
    """One series: its points, how many of them a crash cannot take, and the guard against late ones."""

    points: list[tuple[int, float]] = field(default_factory=list)
    committed: int = 0
    guard: int = 0


class StandIn:
    """`with StandIn() as server:` listens on two ports that it keeps when it is started again."""

    def __init__(self, leaf_points: int = LEAF_POINTS) -> None:
        self.leaf_points = leaf_points
        self.series: dict[str, Stored] = {}
        self.received = bytearray()  # every byte that came over RESP
        self.replies: list[str] = []
        self.aborted = False
        self.connections = 0
        self.refuse = b""  # a series that it takes for malformed
        self._ports = [0, 0]
        self._servers: list[asyncio.Server] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._starts = 0
        self._loop = asyncio.new_event_loop()
        self._answering = asyncio.Event()
        self._answering.set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        #: the server dies by SIGKILL when it has received so many bytes (and parsed what came before the last piece)
        self.kill_at: int | None = None

    def __enter__(self) -> StandIn:
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._down())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def connect(self) -> str:
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def query(self) -> str:
        return f"127.0.0.1:{self._ports[1]}"

    @property
    def running(self) -> bool:
        return bool(self._servers)

    # --- life --------------------------------------------------------------------------------------------------------

    def start(self, two_phase: bool = True) -> None:
        """Start it: by the start script (repaired, committed, marked), or just once."""
        self._starts += 1
        if two_phase:
            for stored in self.series.values():
                stored.committed = len(stored.points)
                stored.guard = stored.points[-1][0] if stored.points else 0
            # a mark that is newer than all before it, as the script's clock would make it
            self.series.setdefault(START, Stored()).points.append((10**18 + self._starts, 1.0))
        self._call(self._up())

    def stop(self) -> None:
        """A clean stop: everything is committed."""
        self._call(self._down())
        for stored in self.series.values():
            stored.committed = len(stored.points)

    def kill(self) -> None:
        """SIGKILL: of each series a prefix stays."""
        self._call(self._down())
        self._lose()

    def hang(self, answer: bool = False) -> None:
        """Let questions wait, or answer them again."""
        self._loop.call_soon_threadsafe(self._answering.set if answer else self._answering.clear)

    def _lose(self) -> None:
        for name, stored in list(self.series.items()):
            kept = stored.committed + (len(stored.points) - stored.committed) // self.leaf_points * self.leaf_points
            if kept > stored.committed:
                # the tree has to be repaired: until a clean stop it has no guard
                stored.guard = 0
            elif stored.points[:kept]:
                stored.guard = stored.points[kept - 1][0]
            stored.points = stored.points[:kept]
            if not kept:
                del self.series[name]

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _up(self) -> None:
        handlers = (self._serve_points, self._serve_http)
        for index, handler in enumerate(handlers):
            server = await asyncio.start_server(handler, "127.0.0.1", self._ports[index], limit=1 << 22)
            self._ports[index] = server.sockets[0].getsockname()[1]
            self._servers.append(server)

    async def _down(self) -> None:
        for server in self._servers:
            server.close()
        self._servers = []
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    # --- points ------------------------------------------------------------------------------------------------------

    async def _serve_points(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._servers:
            writer.transport.abort()  # accepted, and killed before it was looked at
            return
        self._writers.add(writer)
        self.connections += 1
        rest = b""
        try:
            while data := await reader.read(1 << 16):
                self.received += data
                if self.kill_at is not None and len(self.received) >= self.kill_at:
                    self.kill_at = None
                    raise Killed
                rest = self._lines(rest + data)
        except Refused as refused:
            self.replies.append(str(refused))
            writer.write(f"-{refused}\r\n".encode())
        except (Aborted, Killed) as end:
            self.aborted = self.aborted or isinstance(end, Aborted)
            await self._down()
            self._lose()
        except ConnectionError:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    def _lines(self, data: bytes) -> bytes:
        """Take whole messages, of three lines each; give back the rest."""
        *lines, rest = data.split(b"\n")
        whole = len(lines) // 3 * 3
        for index in range(0, whole, 3):
            self._message(*(line.removesuffix(b"\r") for line in lines[index : index + 3]))
        return b"".join(line + b"\n" for line in lines[whole:]) + rest

    def _message(self, name: bytes, stamp: bytes, value: bytes) -> None:
        if not name.startswith(b"+"):
            raise Refused("PARSER unexpected parameter type")
        if self.refuse and name[1:] == self.refuse:
            raise Refused("PARSER bad argument")
        series, ns = self._name(name[1:]), self._stamp(stamp)
        try:
            number = float(value[1:] or b"0") if value[:1] == b"+" else float(int(value[1:]))
        except ValueError:
            raise Refused("PARSER array value expected") from None
        stored = self.series.setdefault(series, Stored())
        if ns < stored.guard:
            raise Refused("DB late write")
        stored.points.append((ns, number))
        stored.guard = ns

    def _name(self, name: bytes) -> str:
        if b"'" in name:
            raise Aborted
        if len(name) > NAME_BYTES_MAX:
            raise Refused("PARSER out of quota")
        metric, *tags = name.decode().split()
        if not tags or any("=" not in tag for tag in tags):
            raise Refused("PARSER bad argument")
        return " ".join([metric, *sorted(tags)[:TAGS_MAX]])

    def _stamp(self, stamp: bytes) -> int:
        if re.fullmatch(rb":\d+", stamp):
            return int(stamp[1:])
        if stamp.startswith(b":"):
            raise Refused("PARSER can't parse integer (character value out of range)")
        if re.fullmatch(rb"\+\d+", stamp):
            return int(stamp[1:])
        return 0  # what it cannot read is 1970, silently

    # --- questions ---------------------------------------------------------------------------------------------------

    async def _serve_http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = re.search(r"content-length: (\d+)", head.lower())
            body = await reader.readexactly(int(length[1])) if length else b""
            await self._answering.wait()
            answer = self._answer(head.split()[1], json.loads(body) if body else {})
            data = answer.encode()
            chunked = f"{len(data):x}\r\n".encode() + data + b"\r\n0\r\n\r\n" if data else b"0\r\n\r\n"
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + chunked)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _answer(self, path: str, question: dict[str, Any]) -> str:
        if path == "/api/version":
            return "0.8.80"
        names = sorted(name for name, stored in self.series.items() if stored.points)
        metrics = sorted({name.partition(" ")[0] for name in names})
        if path == "/api/suggest":
            return "".join(f"+{metric}\r\n" for metric in metrics)
        if "aggregate" in question:
            if missing := set(question["aggregate"]) - set(metrics):
                return f"-not found {missing}\r\n"
            lines = []
            for name in names:
                metric, _, tags = name.partition(" ")
                if (function := question["aggregate"].get(metric)) == "last_timestamp":
                    lines.append(f"{metric}:{function} {tags},ts={max(self.series[name].points)[0]}\n")
            return "".join(lines)
        if "range" not in question:
            return "-Range field is not set\r\n"
        if "group-aggregate" in question:
            return self._groups(question, names)
        first, last = question["range"]["from"], question["range"]["to"]
        chosen = [name for name in names if name.startswith(f"{question['select']} ")]
        rows = sorted((stamp, name, value) for name in chosen for stamp, value in self.series[name].points if first <= stamp < last)
        return "".join(f"{name},ts={stamp},{value:.17g}\n" for stamp, name, value in rows)

    def _groups(self, question: dict[str, Any], names: list[str]) -> str:
        """Bins of minutes, anchored at the range's start."""
        asked, lines = question["group-aggregate"], []
        (function,) = asked["func"]
        assert asked["step"] == "1m"
        for name in names:
            metric, _, tags = name.partition(" ")
            pairs = dict(tag.split("=") for tag in tags.split(" "))
            if metric != asked["metric"] or any(pairs.get(tag) not in values for tag, values in question.get("where", {}).items()):
                continue
            bins: dict[int, list[float]] = {}
            for stamp, value in self.series[name].points:
                if question["range"]["from"] <= stamp < question["range"]["to"]:
                    bins.setdefault((stamp - question["range"]["from"]) // 60_000_000_000, []).append(value)
            for number, values in sorted(bins.items()):
                result = {"mean": sum(values) / len(values), "max": max(values)}[function]
                lines.append(f"{metric}:{function} {tags},ts={question['range']['from'] + number * 60_000_000_000},{result:.17g}\n")
        return "".join(lines)

    # --- for tests ---------------------------------------------------------------------------------------------------

    def points(self, metric: str = "") -> dict[str, list[tuple[int, float]]]:
        """What is stored, by name, without what is not an event's."""
        own = ("headrace.guard ", "headrace.start ")
        return {
            name: list(stored.points)
            for name, stored in self.series.items()
            if not name.startswith(own) and (not metric or name.startswith(f"{metric} "))
        }

    def count(self) -> int:
        return sum(map(len, self.points().values()))
