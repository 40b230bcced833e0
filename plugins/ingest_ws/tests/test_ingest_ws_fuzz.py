"""The C parser under sanitizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from headrace.testing.fuzzing import survives_fuzzing

HERE = Path(__file__).parent
SOURCES = HERE.parent / "src" / "headrace_ingest_ws"
TARGET = HERE / "fuzz" / "fuzz_wsframes.c"
#: A minute's work, done in what other tests leave idle.
SECONDS = 100


def seeds(frame: Callable[..., bytes]) -> list[bytes]:
    """Streams from which the fuzzer starts, each behind the four bytes that choose pieces and limits."""
    texts = [b"{}", b'{"a":[1]}', b"{\n}", "ä€😀".encode(), b"\xed\xa0\x80", b"{" * 17, b"x" * 126, b""]
    whole = [frame(kind, text) for text in texts for kind in (1, 2)]
    parts = [frame(1, text[:3], fin=False) + frame(9, b"ping") + frame(0, text[3:]) for text in texts]
    close = [frame(8, b"\x03\xe8bye"), frame(2, b"x" * 300)]
    broken = [frame(kind, b"x" * 200) for kind in (8, 9, 3, 0x41)] + [frame(9, b"", fin=False), b"\x81\x01a"]
    streams = [*whole, *parts, *close, *broken, b"".join(whole), b"".join(parts + close), frame(1, b"", announced=1 << 40)]
    return [bytes((piece, 3, limit, 200)) + stream for piece, limit in ((0, 1), (6, 0)) for stream in streams]


def test_the_c_parser_survives_fuzzing_under_sanitizers(tmp_path: Path, kit: SimpleNamespace) -> None:
    survives_fuzzing(tmp_path, TARGET, SOURCES, seeds(kit.frame), 4096, SECONDS)
