"""Where a lake may lie: local folders, URIs, other filesystems of pyarrow; and what `check` says of the options."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import msgspec
import pytest
from lake_driver import make_context, make_lake, positions, store
from pyarrow import fs

from headrace import RangeKey, TransientError
from headrace_sink_lake import ArrowStore, LakeConfig, LocalStore, SinkLake, open_store
from headrace_sink_lake.store import without_secrets


def span(first: int, last: int) -> RangeKey:
    return RangeKey("q", first, last)


def test_a_file_uri_is_a_local_folder(tmp_path: Path) -> None:
    opened = open_store(f"file://{tmp_path}/lake")
    assert isinstance(opened, LocalStore)
    assert opened.root == f"{tmp_path}/lake"


def test_any_filesystem_of_pyarrow_holds_a_lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bucket").mkdir()
    other = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr("headrace_sink_lake.sink.open_store", lambda path: ArrowStore(other, "bucket/lake", path))

    async def run() -> None:
        one, two = (make_lake("s3://bucket/lake", data=tmp_path / "data") for _ in range(2))
        await one.open()
        await two.open()
        assert await one.sink_resume("q") is None
        await store(one, span(1, 10))
        await store(one, span(11, 20))
        two._ends["q"] = 10  # as if it had resumed before
        with pytest.raises(TransientError, match="another writer"):
            await store(two, span(11, 15))
        await two.sink_reset()
        assert await two.sink_resume("q") == 20
        await store(two, span(15, 30))  # of which the lake holds 15..20
        await one.close()
        await two.close()

    asyncio.run(run())
    assert positions(tmp_path / "bucket/lake") == list(range(1, 31))
    assert list((tmp_path / "bucket/lake/_tmp").iterdir()) == []


def test_an_unknown_filesystem_is_an_error_with_its_name(tmp_path: Path) -> None:
    lake = make_lake("gopher://user:secret@host/lake?key=secret", data=tmp_path)
    with pytest.raises(TransientError, match="gopher://host/lake") as caught:
        asyncio.run(lake.open())
    assert "secret" not in str(caught.value)
    assert "gopher://host/lake" in lake.check()[0]


def test_secrets_of_a_uri_are_not_shown() -> None:
    assert without_secrets("s3://id:secret@bucket/lake?region=x&secret_key=y") == "s3://bucket/lake"
    assert without_secrets("/data/lake") == "/data/lake"


def test_without_hard_links_a_record_is_still_created_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    local = LocalStore(tmp_path)
    assert local.put_new("record", b"one", "temporary")
    assert not local.put_new("record", b"two", "temporary")
    assert local.get("record") == b"one"


def test_a_move_of_what_is_gone_says_so_and_one_to_nowhere_fails(tmp_path: Path) -> None:
    local = LocalStore(tmp_path)
    assert not local.move("gone", "there")
    (tmp_path / "here").write_bytes(b"")
    with pytest.raises(FileNotFoundError):
        local.move("here", "no/folder")


def test_check_reports_paths_that_cannot_be_written(tmp_path: Path) -> None:
    assert make_lake(tmp_path / "new" / "lake", data=tmp_path / "own").check() == []
    (tmp_path / "file").write_text("")
    (problem,) = make_lake(tmp_path / "file" / "lake", data=tmp_path / "own").check()
    assert str(tmp_path / "file") in problem


def test_check_says_that_other_filesystems_have_a_single_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (note,) = make_lake("gs://bucket/lake", data=tmp_path).check()
    assert "single writer" in note
    assert make_lake("s3://bucket/lake", data=tmp_path).check() == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (note,) = make_lake("s3://bucket/lake", data=tmp_path).check()
    assert "install headrace-sink-lake[s3]" in note


def test_without_a_path_the_lake_lies_in_the_components_own_folder(tmp_path: Path) -> None:
    lake = SinkLake(LakeConfig(), make_context(tmp_path))
    asyncio.run(lake.open())
    assert (tmp_path / "lake" / "_commits").is_dir()


@pytest.mark.parametrize("keys", [["device"], ["a/b"], [""], ["class", "class"], ["position"], ["a=b"], list("abcdefg")])
def test_partition_keys_that_cannot_work_are_refused(keys: list[str]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"path": "x", "partition_by": keys}, LakeConfig)
