"""A lake on an S3 server: conditional create, trouble of every kind, kills, two writers; and its commands."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl

import duckdb
import lake_driver
import pytest
from lake_driver import make_lake, positions, store
from s3_server import (
    BUCKET,
    KINDS,
    SERVERS,
    Trouble,
    download,
    is_there,
    put_whatever_is_there,
    s3_server,
    store_at,
    unfinished_uploads,
    uri,
)

from headrace import RangeKey, TransientError
from headrace.testing.forking import Forked
from headrace_sink_lake import SinkLake, Store, live_files, open_store
from headrace_sink_lake.command import main
from headrace_sink_lake.compact import Options, compact
from headrace_sink_lake.inspection import pending
from headrace_sink_lake.objects import ObjectStore
from headrace_sink_lake.vacuum import vacuum
from headrace_sink_lake.verify import verify

FULL = "HEADRACE_FULL" in os.environ
TOTAL, ROLL = (8000, 60) if FULL else (240, 40)


@pytest.fixture(scope="module", params=SERVERS)
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    with s3_server(request.param) as port:
        yield port


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return f"site/{tmp_path.name}"


def span(first: int, last: int) -> RangeKey:
    return RangeKey("q", first, last)


def complete(port: int, folder: str, tmp_path: Path, total: int = TOTAL) -> None:
    """Each event once, by verify and by DuckDB; nothing left in `_tmp` but what lost, and no upload half done."""
    assert [str(finding) for finding in verify(store_at(port, folder)).findings] == []
    copy = download(port, folder, tmp_path / f"copy-{time.monotonic_ns()}")
    found, absent = lake_driver.held(copy, "q")
    assert found == [p for p in range(1, total + 1) if p % 11 and p % 13 != 1]
    assert sorted(found + absent) == list(range(1, total + 1))
    assert unfinished_uploads(port) == []


def test_the_store_does_what_a_lake_needs(port: int, folder: str) -> None:
    lake: Store = open_store(uri(port, folder))
    assert isinstance(lake, ObjectStore)
    lake.probe("_tmp")
    assert lake.exclusive
    assert "secret" not in lake.root
    assert lake.put_new("a/b", b"one", "")
    assert not lake.put_new("a/b", b"two", "")
    assert lake.get("a/b") == b"one"
    assert lake.get("a/c") is None
    assert lake.put_new("a/b", b"one", ""), "the same again is an earlier try whose answer was lost"
    assert lake.move("a/b", "class=x%2Fy/c") is True
    assert lake.move("a/b", "class=x%2Fy/c") is False
    lake.link("class=x%2Fy/c", "a/d")
    lake.put("e", b"123456", "")
    assert sorted(lake.walk()) == [("a/d", 3), ("class=x%2Fy/c", 3), ("e", 6)]
    assert [name for name in lake.names("") if name != "_tmp"] == ["a", "class=x%2Fy", "e"]
    assert lake.folders("") == ["a", "class=x%2Fy"], "_tmp, from which all is gone, is none"
    assert lake.names("nowhere") == []
    assert (lake.size("e"), lake.size("f")) == (6, None)
    with lake.open_input("e") as stream:
        stream.seek(2)
        assert (stream.read(3), stream.size()) == (b"345", 6)
    with pytest.raises(FileNotFoundError):
        lake.open_input("f")
    file = lake.create("big")
    file.stream.write(b"x" * 12_000_000)
    assert lake.size("big") is None
    file.finish()
    assert lake.size("big") == 12_000_000
    lake.remove("big")
    lake.remove("big")
    assert lake.remove_tree("a") == 1
    assert lake.remove_tree("a") == 0


def test_a_store_without_conditional_create_is_told(port: int, folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = Trouble.forward

    def ignores(self: Trouble, method: str, path: str, body: bytes, headers: dict[str, str]) -> object:
        if method == "PUT" and "if-none-match" in {name.lower() for name in headers}:
            return 200, {"ETag": put_whatever_is_there(port, path, body)}, b""
        return real(self, method, path, body, headers)

    monkeypatch.setattr(Trouble, "forward", ignores)
    with Trouble(port, 1, 0.0) as proxy:
        lake = store_at(proxy.port, folder)
        lake.probe("_tmp")
        assert not lake.exclusive
        assert lake.put_new("record", b"one", "")
        assert not lake.put_new("record", b"two", "")
    assert list(lake_driver.make_lake(uri(port, folder), data=tmp_path).check()) == []


def test_a_store_that_deletes_one_object_a_request_and_says_when_there_is_none_is_enough(port: int, folder: str) -> None:
    class Plain(Trouble):
        def forward(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
            if method == "POST":
                return 501, {}, b"<Error><Code>NotImplemented</Code></Error>"
            if method == "DELETE" and not is_there(port, path):
                return 404, {}, b"<Error><Code>NoSuchKey</Code></Error>"
            return super().forward(method, path, body, headers)

    with Plain(port, 1, 0.0) as proxy:
        lake = store_at(proxy.port, folder)
        lake.probe("_tmp")
        for number in range(3):
            lake.put(f"a/{number}", b"x", "")
        assert lake.move("a/0", "b")
        lake.remove("a/1")
        lake.remove("a/1")
        assert lake.remove_tree("a") == 1
        assert [path for path, _ in lake.walk()] == ["b"]


def test_a_store_that_shows_folders_from_which_all_is_gone_holds_up_neither_rolls_nor_compaction(
    port: int, folder: str, tmp_path: Path
) -> None:
    """SeaweedFS does, for two minutes."""

    class Ghosts(Trouble):
        asked = 0

        def __init__(self) -> None:
            super().__init__(port, 1, 0.0)
            self._folders: set[str] = set()

        def forward(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
            Ghosts.asked += 1
            status, answered, data = super().forward(method, path, body, headers)
            address, _, words = path.partition("?")
            query = dict(parse_qsl(words))
            if method == "PUT":
                self._folders.add(address.removeprefix(f"/{BUCKET}/").rpartition("/")[0] + "/")
            elif method == "GET" and query.get("delimiter"):
                prefix = query.get("prefix", "")
                ghosts = {prefix + inner[len(prefix) :].partition("/")[0] + "/" for inner in self._folders if inner.startswith(prefix)}
                ghosts = {ghost for ghost in ghosts if ghost != prefix + "/" and ghost.encode() not in data}
                shown = "".join(f"<CommonPrefixes><Prefix>{ghost}</Prefix></CommonPrefixes>" for ghost in sorted(ghosts))
                data = data.replace(b"</ListBucketResult>", shown.encode() + b"</ListBucketResult>")
            return status, answered, data

    async def rolls(lake: SinkLake, numbers: range) -> int:
        before = Ghosts.asked
        for number in numbers:
            await store(lake, span(30 * number + 1, 30 * number + 30))
        return Ghosts.asked - before

    async def run(address: str) -> None:
        lake = make_lake(address, data=tmp_path / "data", partition_by=["class"])
        await lake.open()
        first = await rolls(lake, range(4))
        assert await rolls(lake, range(4, 8)) <= first, "a roll costs more with every roll before it"
        await lake.close()

    with Ghosts() as proxy:
        asyncio.run(run(uri(proxy.port, folder)))
        seen = store_at(proxy.port, folder)
        assert len(seen.names("_tmp")) > len(seen.folders("_tmp")) == 0
        assert list(pending(seen)) == []
        assert compact(seen, Options(files_min=2)).files_before == 32
        assert verify(seen).findings == []


def test_what_the_store_refuses_is_told_in_its_own_words(port: int, folder: str) -> None:
    words = b"<Error><Code>SignatureDoesNotMatch</Code><Message>The request signature we\n calculated does not match.</Message>"

    class Refusing(Trouble):
        def forward(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
            return 403, {}, words + b"<AWSAccessKeyId>key</AWSAccessKeyId></Error>"

    with Refusing(port, 1, 0.0) as proxy:
        lake = store_at(proxy.port, folder, secret="wrong-word")
        with pytest.raises(OSError, match=r"SignatureDoesNotMatch: The request signature we calculated does not match\.$") as caught:
            lake.put("a", b"1", "")
        assert str(caught.value).startswith(f"s3://{BUCKET}/{folder}/a: ")


def test_what_cannot_be_reached_or_is_wrong_is_an_error_without_secrets(folder: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"expected options of .*got color") as caught:
        open_store(uri(1, folder, color="blue"))
    assert "secret" not in str(caught.value)
    with pytest.raises(OSError, match="request_timeout: expected seconds"):
        open_store(uri(1, folder, request_timeout="soon"))


def test_rolls_resume_compaction_and_commands(port: int, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def run() -> None:
        lake = make_lake(uri(port, folder), data=tmp_path / "data", partition_by=["class"])
        await lake.open()
        for first in range(1, 121, 30):
            await store(lake, span(first, first + 29))
        await lake.close()
        again = make_lake(uri(port, folder), data=tmp_path / "data")
        await again.open()
        assert await again.sink_resume("q") == 120
        await again.close()

    asyncio.run(run())
    lake = store_at(port, folder)
    assert main(["verify", uri(port, folder)]) == 0
    assert main(["info", uri(port, folder)]) == 0
    assert "secret" not in capsys.readouterr().out
    before = live_files(lake)
    done = compact(lake, Options(files_min=2))
    assert (done.files_before, done.files_after) == (16, 4)
    assert len(live_files(lake)) == len(before) - 12
    assert verify(lake).findings == []
    assert vacuum(lake, 0, wall=lambda: time.time() + 10).files == 16
    assert verify(lake).findings == []
    assert positions(download(port, folder, tmp_path / "copy")) == list(range(1, 121))


def test_two_writers_at_once_double_nothing(port: int, folder: str, tmp_path: Path) -> None:
    async def writer(port: int, name: str, chance: random.Random) -> None:
        lake = make_lake(uri(port, folder), data=tmp_path / name)
        await lake.open()
        position = await lake.sink_resume("q") or 0
        while position < 100:
            end = min(100, position + chance.randint(1, 30))
            try:
                await store(lake, span(position + 1, end))
                position = end
            except TransientError:
                await lake.sink_reset()
                position = await lake.sink_resume("q") or 0
        await lake.close()

    async def run(port: int) -> None:
        await asyncio.gather(writer(port, "one", random.Random(1)), writer(port, "two", random.Random(2)))

    with Trouble(port, 1, 0.0) as proxy:
        asyncio.run(run(proxy.port))
    assert verify(store_at(port, folder)).findings == []
    assert positions(download(port, folder, tmp_path / "copy")) == list(range(1, 101))


def test_a_commit_that_is_carried_out_after_its_error_finds_its_files(port: int, folder: str, tmp_path: Path) -> None:
    """The record appears when its writer has given up: it must not name files that were removed meanwhile."""

    class Late(Trouble):
        def pick(self) -> str:
            return "none"

        def forward(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
            if "if-none-match" in {name.lower() for name in headers} and "_commits" in path and not self._late:
                self.later(method, path, body, headers)
                return 400, {}, b"<Error><Code>RequestTimeout</Code><Message>given up</Message></Error>"
            return super().forward(method, path, body, headers)

    async def run(proxy: Late) -> None:
        lake = make_lake(uri(proxy.port, folder), data=tmp_path / "data")
        await lake.open()
        with pytest.raises(TransientError):
            await store(lake, span(1, 20))
        await lake.sink_reset()
        proxy.settle()
        assert await lake.sink_resume("q") == 20
        await store(lake, span(21, 30))
        await lake.close()

    with Late(port, 1, 0.0) as proxy:
        asyncio.run(run(proxy))
    assert verify(store_at(port, folder)).findings == []
    assert positions(download(port, folder, tmp_path / "copy")) == list(range(1, 31))


def test_compaction_and_vacuum_in_trouble_lose_and_double_nothing(port: int, folder: str, tmp_path: Path) -> None:
    async def run() -> None:
        lake = make_lake(uri(port, folder), data=tmp_path / "data", partition_by=["class"])
        await lake.open()
        for first in (1, 21):
            await store(lake, span(first, first + 19))
        await lake.close()

    asyncio.run(run())
    seed = random.randrange(1 << 30)
    print("seed", seed)
    direct, failed = store_at(port, folder), 0
    # No retries of the client's: each trouble is met by the compaction itself.
    with Trouble(port, seed, 0.02, kinds=("refused", "refused behind it", "late")) as proxy:
        for step in range(40):
            troubled = store_at(proxy.port, folder)
            try:
                compact(troubled, Options(files_min=2))
                vacuum(troubled, 0, wall=lambda step=step: time.time() + 10 * step + 10)
                if len(live_files(direct)) == 4:
                    break
            except OSError:
                failed += 1
            assert [str(finding) for finding in verify(direct).findings] == []
    print(f"{failed} failures of {step + 1} runs, {dict(proxy.done)}")
    assert len(live_files(direct)) == 4
    copy = download(port, folder, tmp_path / "copy")
    with duckdb.connect() as database:
        files = [str(copy / path) for path in live_files(str(copy))]
        found = database.sql(f"select position from read_parquet({files!r}, union_by_name = true) order by 1").fetchall()
    assert [row[0] for row in found] == list(range(1, 41))


def start(port: int, folder: str, seed: int, *fault: str) -> Forked:
    address = uri(port, folder, request_timeout="1", connect_timeout="2")
    return Forked(lake_driver.main, [address, "q", str(TOTAL), str(ROLL), str(seed), *fault], stdout=True)


def finish(process: Forked) -> str:
    assert process.stdout is not None
    with process.stdout as stdout:
        out = stdout.read()
    process.wait(120)
    return out


@pytest.mark.timeout(1800 if FULL else 300)
def test_kills_and_trouble_of_every_kind_lose_and_double_nothing(port: int, folder: str, tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chance = random.Random(seed)
    points = (
        "sink_lake.after_fsync",
        "sink_lake.before_commit",
        "sink_lake.after_commit",
        "sink_lake.mid_rename",
        "sink_lake.after_rename",
    )
    with Trouble(port, seed, 0.06) as proxy:
        upto, killed = 0, 0
        for life in range(100 if FULL else 3):
            fault = (chance.choice(points), str(chance.randint(1, 2))) if life % 2 else ()
            process = start(proxy.port, folder, seed + life, *fault)
            assert process.stdout is not None
            if not fault:
                process.stdout.readline()
                time.sleep(chance.random() * 0.2)  # the moment itself is what is tried
                process.kill()
            out = finish(process)
            upto = max([upto, *(int(line.split()[1]) for line in out.splitlines() if line.startswith("safe "))])
            killed += process.returncode == -signal.SIGKILL
            if out.endswith("done\n"):
                break
            if store_at(port, folder).names("_commits"):
                assert [str(finding) for finding in verify(store_at(port, folder)).findings] == []
        both = [start(proxy.port, folder, seed - number) for number in (1, 2)]
        for process in both:
            assert finish(process).endswith("done\n")
        done = dict(proxy.done)
    print(f"{killed} kills, {sum(done.values())} requests, of which {done}")
    assert sum(done.get(kind, 0) for kind in KINDS) > 5
    complete(port, folder, tmp_path)
