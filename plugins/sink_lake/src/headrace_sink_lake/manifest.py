"""The manifest: which files stand in for rolls that were compacted. No I/O.

    _manifest/<number>.json     the highest number counts; created exclusively, so one compaction wins and the other begins again

A lake that was never compacted has none: all its files are rolls' files, and a reader's glob is right. A partition that
was compacted has an entry: for each queue id the roll up to which `files` hold the partition's rows. Rolls that came
later are their own files, as ever. So writers know nothing of compaction, and a reader's list is

    files of the manifest + files of rolls whose `first` is above what the manifest covers in their partition and queue id
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

MANIFESTS = "_manifest"
MANIFEST = re.compile(r"(?P<number>\d{20})\.json")
#: A roll's file in its place; `queue` is percent-encoded, as in the name.
ROLL_FILE = re.compile(r"(?P<attempt>(?P<queue>.+)-(?P<first>\d{20})-[0-9a-f]+)-\d+\.parquet")
#: A file that compaction made, at `created` (seconds since 1970). It is MERGED until the files that it replaces are gone: DuckDB and
#: others go by the ending, Spark, Trino and pyarrow take every file of a folder whose name does not begin with `_` or a dot.
COMPACTED_FILE = re.compile(r"_?compacted\.(?P<created>\d+)\.(?P<nonce>[0-9a-f]+)\.\d+\.(?P<ending>merged|parquet)")
MERGED = ".merged"
PARQUET = ".parquet"
#: Merged files that no manifest names and that are older than this belong to no compaction that is alive.
ORPHAN_S = 86_400.0
MANIFEST_FORMAT = 1


class LiveFile(msgspec.Struct, frozen=True):
    """A file that readers count: path below the lake's root, rows, size in bytes."""

    path: str
    rows: int
    bytes: int


class Covered(msgspec.Struct, frozen=True):
    """Rolls of one queue id (percent-encoded, as in file names) whose first position is at or below `upto`."""

    queue: str
    upto: int


class Partition(msgspec.Struct, frozen=True):
    """A compacted folder: its `files` hold the rows of all `covered` rolls. `changed_at`: seconds since 1970."""

    folder: str
    files: tuple[LiveFile, ...]
    covered: tuple[Covered, ...]
    changed_at: float = 0.0

    @property
    def settled(self) -> bool:
        """Nothing is left of what the files replaced."""
        return not any(file.path.endswith(MERGED) for file in self.files)


class Manifest(msgspec.Struct, frozen=True):
    """The state of all compacted partitions after `number` changes."""

    number: int = 0
    partitions: tuple[Partition, ...] = ()
    written_at: str = ""
    format: int = MANIFEST_FORMAT

    def index(self) -> Index:
        return Index(
            {partition.folder: {entry.queue: entry.upto for entry in partition.covered} for partition in self.partitions},
            frozenset(file.path for partition in self.partitions for file in partition.files),
        )

    def changed(self, partitions: Iterable[Partition], written_at: str) -> Manifest:
        """The next manifest, with these entries in place of those of the same folders."""
        entries = {partition.folder: partition for partition in (*self.partitions, *partitions)}
        return Manifest(self.number + 1, tuple(entries[folder] for folder in sorted(entries)), written_at)


class Index(NamedTuple):
    """What a manifest says of a file, by its name alone."""

    covered: Mapping[str, Mapping[str, int]]
    files: frozenset[str]

    def is_covered(self, folder: str, queue: str, first: int) -> bool:
        """Whether the rows that this roll has in the folder are in the manifest's files."""
        return first <= self.covered.get(folder, {}).get(queue, -1)

    def is_live(self, path: str) -> bool:
        """Whether readers count the file."""
        if path in self.files:
            return True
        folder, _, name = path.rpartition("/")
        roll = ROLL_FILE.fullmatch(name)
        return roll is not None and not self.is_covered(folder, roll["queue"], int(roll["first"]))


def manifest_path(number: int) -> str:
    return f"{MANIFESTS}/{number:020d}.json"


def compacted_name(created: float, nonce: str, number: int) -> str:
    return f"_compacted.{int(created)}.{nonce}.{number}{MERGED}"


def settled_path(merged: str) -> str:
    """The path under which readers of folders and globs find a merged file."""
    folder, slash, name = merged.rpartition("/")
    return f"{folder}{slash}{name.removeprefix('_').removesuffix(MERGED)}{PARQUET}"


def merged_path(settled: str) -> str:
    """The path that the file had before."""
    folder, slash, name = settled.rpartition("/")
    return f"{folder}{slash}_{name.removesuffix(PARQUET)}{MERGED}"


def encode(manifest: Manifest) -> bytes:
    return msgspec.json.encode(manifest)


def decode(data: bytes, path: str) -> Manifest:
    """A manifest from its bytes; OSError when they are none that we read."""
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.MsgspecError as error:
        raise OSError(f"manifest {path} cannot be read ({error}); restore it from a backup of the lake") from error
    if manifest.format > MANIFEST_FORMAT:
        raise OSError(f"manifest {path} has format {manifest.format}, expected at most {MANIFEST_FORMAT}; upgrade headrace-sink-lake")
    return manifest
