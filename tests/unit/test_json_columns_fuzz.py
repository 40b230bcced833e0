"""The JSON reader in C under sanitizers."""

from __future__ import annotations

from pathlib import Path

from headrace.testing.fuzzing import survives_fuzzing

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "tests" / "fuzz" / "fuzz_json_columns.c"
#: Done in what other tests leave idle.
SECONDS = 30
SEEDS = (
    b'{"n":1.25,"i":7,"s":"a\\u00e9\\ud83d\\ude00","b":true,"o":{"":1e5,"o":{"s":""}},"ts":1795435200.5}\xff{"n":1}\xff',
    b'{"ts":"2026"}\xff{"s":"\xe2\x82\xac\xf0\x9f\x98\x80","n":-12345678901234567.89e-5}\xff',
    b'{"n":1,"n":2}\xff{"s":"\\ud800"}\xff{"o":null,"b":false}\xff {"i":-9223372036854775808}\n\xff',
)


def test_the_c_reader_survives_fuzzing_under_sanitizers(tmp_path: Path) -> None:
    survives_fuzzing(tmp_path, TARGET, ROOT / "core" / "headrace", SEEDS, 1024, SECONDS)
