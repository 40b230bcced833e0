"""An S3 server of this process (moto's), and a proxy before it that makes trouble as networks and servers do.

The server holds everything in memory. HEADRACE_TEST_S3 names another one on this machine (`127.0.0.1:40080`), whose key is `key` and
whose secret `secret`; its bucket is emptied. `Trouble` forwards each request and answers as it is told: an error in place of the
request, an error behind it, a request that is carried out only after its error was answered, a delay beyond the client's
patience, a connection that breaks off. "refused" answers with a code that clients do not try again.
"""

from __future__ import annotations

import http.client
import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import botocore.config
import botocore.exceptions
import obstore
from moto.server import ThreadedMotoServer

from headrace_sink_lake.objects import ObjectStore, open_objects

BUCKET = "lake-bucket"
REAL = os.environ.get("HEADRACE_TEST_S3", "")
KINDS = ("error", "slow down", "answer lost", "late", "hang", "reset")
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
BROKEN = b"<Error><Code>InternalError</Code><Message>We encountered an internal error. Please try again.</Message></Error>"


@contextmanager
def s3_server() -> Iterator[int]:
    """The port of an S3 server with one empty bucket."""
    if REAL:
        port = int(REAL.rpartition(":")[2])
        _empty(port)
        yield port
        return
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    try:
        _request(port, "PUT", f"/{BUCKET}", b"", {})
        yield port
    finally:
        _request(port, "POST", "/moto-api/reset", b"", {})
        server.stop()


def uri(port: int, folder: str, **options: str) -> str:
    given = {"scheme": "http", "endpoint_override": f"127.0.0.1:{port}", "region": "us-east-1", **options}
    return f"s3://key:secret@{BUCKET}/{folder}?" + "&".join(f"{name}={value}" for name, value in given.items())


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
        if REAL and error.response["Error"]["Code"] == "NotImplemented":  # nobody can see them there, then
            return []
        raise


def _client(port: int) -> Any:
    """Somebody else's client: what it sees does not come from ours."""
    return boto3.client(
        "s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="secret",
        config=botocore.config.Config(s3={"addressing_style": "path"}),
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
        if REAL or "if-none-match" not in {name.lower() for name in headers}:
            return _request(self._server_port, method, path, body, headers)
        with self._lock:  # moto looks first and creates then; S3 does both at once
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
