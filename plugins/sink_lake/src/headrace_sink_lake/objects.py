"""A lake in an S3-compatible object store, by obstore: conditional create, retries, and one request for each file.

A file is uploaded whole by one PUT, so there are no parts that a kill could leave behind. Beyond 5 GiB S3 takes no such
PUT; `file_bytes` ends files far below.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import re
import secrets
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

import obstore
import pyarrow as pa
from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError
from obstore.store import S3Store

if TYPE_CHECKING:
    from headrace_sink_lake.store import OutFile

#: Tries of one request, and for how long: then the output is degraded, and the host tries again.
RETRIES_MAX = 6
RETRY_S = 60.0
REQUEST_TIMEOUT_S = 120.0
CONNECT_TIMEOUT_S = 5.0
#: How S3 tells an error.
ANSWER = re.compile(r"<Error>.*?<Code>(?P<code>[^<]{1,100})</Code>.*?<Message>(?P<message>[^<]{1,300})")
#: What a URI may say behind its `?`.
OPTIONS = {"scheme", "endpoint_override", "region", "request_timeout", "connect_timeout", "force_virtual_addressing"}


def open_objects(uri: str, shown: str) -> ObjectStore:
    """The store of `s3://[KEY:SECRET@]BUCKET[/FOLDER][?OPTION=VALUE&...]`. Without a key: by the AWS_* variables or the machine's role."""
    parts = urlsplit(uri)
    options = dict(parse_qsl(parts.query))
    if unknown := options.keys() - OPTIONS:
        raise OSError(f"{shown}: expected options of {', '.join(sorted(OPTIONS))}, got {', '.join(sorted(unknown))}")
    given: dict[str, Any] = {}
    if parts.username:
        given |= {"access_key_id": unquote(parts.username), "secret_access_key": unquote(parts.password or "")}
    if region := options.get("region"):
        given["region"] = region
    scheme = options.get("scheme", "https")
    if endpoint := options.get("endpoint_override"):
        given["endpoint"] = endpoint if "://" in endpoint else f"{scheme}://{endpoint}"
    store = S3Store(
        parts.hostname or "",
        prefix=unquote(parts.path).strip("/") or None,
        disable_bulk_delete=True,  # not every such store has it, and few files go at a time
        virtual_hosted_style_request=options.get("force_virtual_addressing", "false").lower() == "true",
        client_options={
            "allow_http": scheme == "http",
            "timeout": _seconds(options, "request_timeout", REQUEST_TIMEOUT_S),
            "connect_timeout": _seconds(options, "connect_timeout", CONNECT_TIMEOUT_S),
        },
        retry_config={
            "max_retries": RETRIES_MAX,
            "retry_timeout": datetime.timedelta(seconds=RETRY_S),
            "backoff": {"init_backoff": datetime.timedelta(seconds=0.1), "max_backoff": datetime.timedelta(seconds=5), "base": 2},
        },
        **given,
    )
    return ObjectStore(store, shown)


def _seconds(options: dict[str, str], name: str, default: float) -> datetime.timedelta:
    try:
        return datetime.timedelta(seconds=float(options.get(name, default)))
    except ValueError:
        raise OSError(f"{name}: expected seconds, got {options[name]!r}") from None


class ObjectStore:
    """Objects under one prefix. There are no folders: a path's parts are part of the name. An object is safe when its PUT returned."""

    uploads = 8

    def __init__(self, store: Any, name: str) -> None:
        self._store, self.root = store, name
        self.exclusive = True

    def probe(self, folder: str) -> None:
        """Find out whether this store honours `If-None-Match: *`; `exclusive` says so afterwards."""
        path = f"{folder}/probe.{secrets.token_hex(8)}"
        with self._errors(path):
            try:
                obstore.put(self._store, path, b"1", mode="create")
                obstore.put(self._store, path, b"2", mode="create")
                self.exclusive = False
            except AlreadyExistsError:
                self.exclusive = True
            except (NotSupportedError, NotImplementedError):
                self.exclusive = False
            self._delete([path])

    def missing(self, folder: str) -> bool:
        return False

    def make_dirs(self, path: str) -> None:
        """Nothing to do: there are no folders."""

    def create(self, path: str) -> OutFile:
        return _Upload(self, path)

    def sync_dirs(self, paths: Iterable[str]) -> None:
        """Nothing to do: an object's name is as safe as its content."""

    def move(self, source: str, target: str) -> bool:
        with self._errors(source):
            try:
                obstore.copy(self._store, source, target, overwrite=True)
            except FileNotFoundError:
                return False
            self._delete([source])
        return True

    def put_new(self, path: str, data: bytes, temporary: str) -> bool:
        if not self.exclusive:
            if self.size(path) is not None:
                return False
            self.put(path, data, temporary)
            return True
        with self._errors(path):
            try:
                obstore.put(self._store, path, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                # An earlier try of this very request may have done it, and its answer was lost.
                return self.get(path) == data
        return True

    def put(self, path: str, data: bytes, temporary: str) -> None:
        with self._errors(path):
            obstore.put(self._store, path, data, use_multipart=False)

    def upload(self, path: str, data: pa.Buffer) -> None:
        """Create or replace an object of any size below 5 GiB."""
        with self._errors(path):
            obstore.put(self._store, path, obstore.Bytes(memoryview(data).cast("B")), use_multipart=False)

    def get(self, path: str) -> bytes | None:
        with self._errors(path):
            try:
                return bytes(obstore.get(self._store, path).bytes())
            except FileNotFoundError:
                return None

    def get_range(self, path: str, start: int, length: int) -> bytes:
        """A part of an object."""
        with self._errors(path):
            return bytes(obstore.get_range(self._store, path, start=start, length=length))

    def names(self, path: str) -> list[str]:
        with self._errors(path):
            found = obstore.list_with_delimiter(self._store, path or None)
            inner = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
        return sorted(name.rstrip("/").rpartition("/")[2] for name in inner)

    def folders(self, path: str) -> list[str]:
        # Not what a listing with a delimiter shows: SeaweedFS shows a folder for minutes after its last object went.
        start = len(path) + 1 if path else 0
        inner = (found[start:].partition("/") for found, _ in self._list(path or None))
        return sorted({name for name, mark, _ in inner if mark})

    def remove_tree(self, path: str) -> int:
        paths = [inner for inner, _ in self._list(path)]
        if paths:
            with self._errors(path):
                self._delete(paths)
        return len(paths)

    def _delete(self, paths: list[str]) -> None:
        """Each by a request of its own. One that is not there is no error, whether the store says so or not."""
        try:
            obstore.delete(self._store, paths)
        except FileNotFoundError:
            for path in paths:
                with contextlib.suppress(FileNotFoundError):
                    obstore.delete(self._store, path)

    def walk(self) -> Iterator[tuple[str, int]]:
        return self._list(None)

    def _list(self, prefix: str | None) -> Iterator[tuple[str, int]]:
        with self._errors(prefix or ""):
            for chunk in obstore.list(self._store, prefix, chunk_size=1000):
                yield from ((entry["path"], entry["size"]) for entry in chunk)

    def size(self, path: str) -> int | None:
        with self._errors(path):
            try:
                return int(obstore.head(self._store, path)["size"])
            except FileNotFoundError:
                return None

    def open_input(self, path: str) -> Any:
        size = self.size(path)
        if size is None:
            raise FileNotFoundError(2, "no such object", f"{self.root}/{path}")
        return pa.PythonFile(_Download(self, path, size), mode="r")

    def link(self, source: str, target: str) -> None:
        if self.size(target) is None:
            with self._errors(source):
                obstore.copy(self._store, source, target, overwrite=True)

    def remove(self, path: str) -> None:
        with self._errors(path):
            self._delete([path])

    @contextlib.contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        # What obstore raises is no OSError, and its texts are pages long.
        try:
            yield
        except BaseError as error:
            raise OSError(f"{self.root}/{path}: {type(error).__name__}: {_said(str(error))}") from error


def _said(text: str) -> str:
    """What the store said in its answer, where it said something; else the beginning of the client's text."""
    text = " ".join(text.split())
    if answer := ANSWER.search(text):
        return f"{answer['code']}: {answer['message']}"
    return text[:300]


class _Upload:
    """A file in memory until it is complete, and then one PUT."""

    def __init__(self, store: ObjectStore, path: str) -> None:
        self._store, self._path = store, path
        self.stream = pa.BufferOutputStream()

    def finish(self) -> None:
        self._store.upload(self._path, self.stream.getvalue())

    def abandon(self) -> None:
        self.stream.close()


class _Download(io.RawIOBase):
    """An object to read at any offset: a request for each read."""

    def __init__(self, store: ObjectStore, path: str, size: int) -> None:
        super().__init__()
        self._store, self._path, self._size, self._at = store, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def size(self) -> int:
        return self._size

    def read(self, length: int = -1) -> bytes:
        left = max(self._size - self._at, 0)
        length = left if length < 0 else min(length, left)
        data = self._store.get_range(self._path, self._at, length) if length else b""
        self._at += len(data)
        return data
