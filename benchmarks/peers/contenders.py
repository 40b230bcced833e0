"""The servers of bench_ingest.py, each on the server's core: started empty, asked how to reach it, ended.

A contender that is not installed says how to get it, and is left out.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from headrace.testing.site import SiteProcess

HERE = Path(__file__).parent
READY_S = 30.0
#: As wsload writes it: a JSON object of about 120 bytes.
PAYLOAD_BYTES = 120


class NotInstalled(Exception):
    """The text says how to install it."""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def spawn(command: Sequence[str | Path], core: int | None, log: Path, **environ: str) -> subprocess.Popen[bytes]:
    """A process pinned to one core from its first instruction on (None: to none)."""
    with log.open("ab") as out:
        words = [*(["taskset", "-c", str(core)] if core is not None else []), *map(str, command)]
        return subprocess.Popen(words, stdout=out, stderr=out, env={**os.environ, **environ})


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when something listens there."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args} did not listen on port {port}:\n{log.read_text(errors='replace')[-2000:]}")


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL when that does not help."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Contender:
    """One server. `load` are the arguments of wsload that reach it, `pids` the processes that it consists of."""

    name: str
    level: str
    load: list[str]
    pids: list[int]

    def __init__(self, folder: Path, core: int | None) -> None:
        self.folder, self.core = folder, core
        self.log = folder / "log"
        self.pids = []

    def start(self) -> None:
        """Raises NotInstalled."""
        raise NotImplementedError

    def stop(self) -> None:
        """End it, and check what can be checked."""
        raise NotImplementedError


class Headrace(Contender):
    """`headrace run`, on free ports."""

    file: Path
    tier: str
    extra: tuple[str, ...] = ()

    def start(self) -> None:
        overrides = [
            "admin.listen=127.0.0.1:0",
            f"tiers.{self.tier}.sources.devices.listen=127.0.0.1:0",
            f"tiers.{self.tier}.sources.devices.connections_max=20000",
            f"tiers.{self.tier}.queue.level={self.level}",
            *self.extra,
        ]
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {self.core})
        try:
            self.site = SiteProcess(self.file, self.folder, overrides)
            self.site.start()
        finally:
            os.sched_setaffinity(0, before)
        assert self.site.process is not None
        self.pids = [self.site.process.pid]
        port = self.site.wait_for_url("devices").rpartition(":")[2]
        self.load = ["--port", port, "--path", "/v1/devices/dev-%CONN%/events"]

    def stop(self) -> None:
        self.site.stop(120)


class Edge(Headrace):
    """The edge tier: WebSocket, JSON checked, durable in the queue, and an output that reads and discards."""

    name, level = "headrace edge", "process"
    file, tier = HERE.parent / "edge.toml", "edge"


class EdgeSessions(Edge):
    """The same; each device resumes a session, so that what it sends again after a reconnect is not stored twice."""

    name = "headrace edge, sessions"

    def start(self) -> None:
        super().start()
        self.load += ["--session", "s-%CONN%"]


class EdgePower(Edge):
    """The same; an ack survives power loss."""

    name, level = "headrace edge", "power"


class Site(Headrace):
    """The whole site of examples/single.toml: decoded, enriched, in Parquet and on the live feed, on the same core."""

    name, level = "headrace site", "process"
    file, tier = HERE.parent.parent / "examples" / "single.toml", "site"
    extra = ("tiers.site.outputs.live.listen=127.0.0.1:0",)


class Ceiling(Contender):
    """A bare C server that stores nothing (ceiling.c)."""

    name, level = "C ceiling", "none"

    def start(self) -> None:
        program = HERE.parent / "build" / "ceiling"
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise NotInstalled("a C compiler (Debian: apt-get install gcc libc6-dev)")
        program.parent.mkdir(exist_ok=True)
        subprocess.run([compiler, "-O2", "-o", program, HERE / "ceiling.c"], check=True)
        port = free_port()
        self.process = spawn([program, str(port)], self.core, self.log)
        self.pids = [self.process.pid]
        wait_for_port(port, self.process, self.log)
        self.load = ["--port", str(port)]

    def stop(self) -> None:
        end(self.process)


def start_redis(folder: Path, core: int | None, fsync: str, log: Path) -> tuple[subprocess.Popen[bytes], int]:
    """redis-server with an append-only file; its process and port."""
    program = shutil.which("redis-server")
    if program is None:
        raise NotInstalled("redis-server and redis-benchmark (Debian: apt-get install redis-server redis-tools)")
    port = free_port()
    words = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--appendonly", "yes", "--appendfsync", fsync, "--save", ""]
    process = spawn([program, *words, "--maxclients", "20000"], core, log)
    wait_for_port(port, process, log)
    return process, port


class Redis(Contender):
    """Redis streams over the raw protocol: XADD by redis-benchmark, which stands in for devices that speak it."""

    name, level, fsync = "Redis XADD, everysec", "process", "everysec"

    def start(self) -> None:
        if shutil.which("redis-benchmark") is None:
            raise NotInstalled("redis-benchmark (Debian: apt-get install redis-tools)")
        self.process, self.port = start_redis(self.folder, self.core, self.fsync, self.log)
        self.pids = [self.process.pid]
        self.load = []

    def stop(self) -> None:
        end(self.process)


class RedisAlways(Redis):
    """The same; each ack survives power loss."""

    name, level, fsync = "Redis XADD, always", "power", "always"


class AiohttpRedis(Contender):
    """aiohttp_redis.py in front of Redis, both on the server's core."""

    name, level = "aiohttp -> Redis, everysec", "process"

    def start(self) -> None:
        if importlib.util.find_spec("redis") is None:
            raise NotInstalled("the Python package redis (pip install redis)")
        self.redis, redis_port = start_redis(self.folder, self.core, "everysec", self.log)
        port = free_port()
        self.process = spawn([sys.executable, HERE / "aiohttp_redis.py", str(port), str(redis_port)], self.core, self.log)
        self.pids = [self.process.pid, self.redis.pid]
        wait_for_port(port, self.process, self.log)
        self.load = ["--port", str(port), "--path", "/v1/devices/dev-%CONN%/events"]

    def stop(self) -> None:
        end(self.process)
        end(self.redis)


class Nats(Contender):
    """NATS JetStream, file store, over its WebSocket listener; each message asks for the stream's ack."""

    name, level = "NATS JetStream, WebSocket", "process"

    def start(self) -> None:
        program = shutil.which("nats-server")
        if program is None:
            raise NotInstalled("nats-server (Debian: apt-get install nats-server)")
        port, ws_port = free_port(), free_port()
        config = self.folder / "nats.conf"
        config.write_text(
            f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{self.folder}/js", max_file_store: 8GB }}\n'
            f'websocket {{ listen: "127.0.0.1:{ws_port}", no_tls: true }}\n'
        )
        self.process = spawn([program, "-c", config], self.core, self.log, **({} if self.core is None else {"GOMAXPROCS": "1"}))
        self.pids = [self.process.pid]
        wait_for_port(ws_port, self.process, self.log)
        _create_stream(port)
        text = '{"pad":"' + "x" * (PAYLOAD_BYTES - 10) + '"}'
        self.load = [
            "--port", str(ws_port), "--binary", "--ack", "count", "--ack-key", '"seq":',
            "--first", 'CONNECT {"verbose":false,"pedantic":false}\r\nSUB _I.%CONN% 1\r\n',
            "--payload-template", f"PUB s.%CONN% _I.%CONN% {len(text)}\r\n{text}\r\n", "--payload-size", "0",
        ]  # fmt: skip

    def stop(self) -> None:
        end(self.process)


def _create_stream(port: int) -> None:
    """Over the plain protocol, so that no client library is needed."""
    request = json.dumps({"name": "S", "subjects": ["s.*"], "storage": "file", "num_replicas": 1})
    with socket.create_connection(("127.0.0.1", port)) as link:
        link.sendall(b"CONNECT {}\r\nSUB _R 1\r\n" + f"PUB $JS.API.STREAM.CREATE.S _R {len(request)}\r\n{request}\r\n".encode())
        link.settimeout(10)
        answer = b""
        while b"stream_create_response" not in answer:
            part = link.recv(4096)
            if not part:
                break
            answer += part
    if b'"error"' in answer or b"stream_create_response" not in answer:
        raise RuntimeError(f"the stream was not made: {answer!r}")
