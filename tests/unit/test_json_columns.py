"""What C reads of JSON is what Python's own reader makes of it, to the last bit; where it is not there, structs do the work."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.decoding import ReadingTypes, TypedJson, check, columns_of, decode_typed

pytest.importorskip("headrace._json_columns", reason="the JSON reader was not built here", exc_type=ImportError)

from headrace.json_columns import ColumnsReader

MANY = 20_000 if os.environ.get("HEADRACE_FULL") else 200
ROOT = Path(__file__).parents[2]
KINDS = {"n": "number", "i": "integer", "b": "boolean", "s": "string", "o.n": "number", "o.p.s": "string"}


def read(payloads: list[bytes]) -> tuple[list[dict[str, Any]], list[int]]:
    """The readings of each payload, and which of them were odd; all of KINDS are expected."""
    types = ReadingTypes(100, None, KINDS)
    typed = TypedJson(types, ColumnsReader)
    typed.expect(list(KINDS), frozenset(("o", "o.p")))
    array = pa.array([b"{}", *payloads], pa.binary())[1:]  # a slice: its first offset is not 0
    found = decode_typed(array, pa.array([0] * len(array), pa.int64()), typed, 1, 1)
    assert found is not None
    odd = list(found.gathered.rows)
    columns, _ = columns_of(found.gathered, types)
    columns.validate(full=True)
    return columns.to_pylist(), odd


def bits(number: float) -> bytes:
    return struct.pack("d", number)


# digits, a point somewhere, a power of ten: what a device may print of a number
decimals = st.builds(
    lambda sign, digits, point, exponent: sign + digits[:point].lstrip("0").rjust(1, "0") + f".{digits[point:] or 0}" + exponent,
    st.sampled_from(("", "-")),
    st.integers(0, 10**19 - 1).map(str)
    | st.integers(2**53 - 3, 2**54 + 3).map(str)
    | st.floats(1e-9, 1e9).map(lambda x: f"{x:.17g}"[-17:]),
    st.integers(0, 19),
    st.sampled_from(("", "e0", "E+5", "e-5", "e22", "e-22", "e23", "e-23", "e27", "e-27", "e99", "e-300")),
).filter(lambda text: check(f'{{"n":{text}}}'.encode()) is None)


@settings(max_examples=MANY, deadline=None)
@given(
    texts=st.lists(
        decimals | st.integers(-(2**66), 2**66).map(str) | st.floats(allow_nan=False, allow_infinity=False).map(repr), min_size=1
    )
)
@example(["9007199254740993", "9007199254740993.0", "4503599627370496.5", "4503599627370497.5", "18446744073709551615", "1e-27"])
@example(["0.00012345678901234567", "-0", "-0.0", "0e5", "-0e-5", "0.1", "1.7976931348623157e308", "9999999999999999999e27", "5e-324"])
@example(["9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809", "7205759403792793600000e5"])
def test_numbers_are_the_nearest_double(texts: list[str]) -> None:
    rows, _ = read([f'{{"n":{text}}}'.encode() for text in texts])
    # a whole number has no negative zero
    expected = [0.0 if text == "-0" else float(text) for text in texts]
    assert [bits(row["n"]) for row in rows if "n" in row] == [bits(number) for number in expected if math.isfinite(number)]


def test_what_devices_mostly_send_is_not_odd() -> None:
    note = 'aé€😀\n"\\/\b\f\r\t'
    sent = [{"n": 21.499999999999996, "i": -(2**63), "b": True, "s": note, "o": {"n": 1e-7, "p": {"s": ""}}}, {"n": 3}, {}]
    ways: list[dict[str, Any]] = [{"ensure_ascii": escaped, "indent": indent} for escaped in (True, False) for indent in (None, 1)]
    payloads = [json.dumps(one, **way).encode() for one in sent for way in ways]
    rows, odd = read([*payloads, b'{"n":null,"i":null,"b":null,"s":null,"o":null}', b'\n{"o":{"p":null}} '])
    assert odd == []
    nothing: dict[str, Any] = dict.fromkeys(KINDS)
    full = {"n": 21.499999999999996, "i": -(2**63), "b": True, "s": note, "o.n": 1e-7, "o.p.s": ""}
    assert rows == [full] * 4 + [{**nothing, "n": 3.0}] * 4 + [nothing] * 6


ODD = (
    b'{"n":1,"n":2}', b'{"o":{"n":1},"o":{"n":2}}', b'{"n":"1"}', b'{"s":1}', b'{"b":0}', b'{"i":1.0}', b'{"i":9223372036854775808}',
    b'{"o":1}', b'{"o.n":1}', b'{"x":1}', b'{"\\u006e":1}', b'{"s":[1]}', b'{"n":1e400}', b'{"n":' + b"9" * 20 + b"}",
)  # fmt: skip
BROKEN = (
    b"", b" ", b"{", b"}", b"[]", b"null", b'{"n"', b'{"n":', b'{"n":1', b'{"n":1,', b'{"n":1,}', b'{,}', b'{"n":1}{', b'{"n":1}x',
    b'{"n":01}', b'{"n":1.}', b'{"n":.5}', b'{"n":-}', b'{"n":+1}', b'{"n":1e}', b'{"n":1e+}', b'{"b":tru}', b'{"b":truer}', b'{"n":nul',
    b'{"s":"', b'{"s":"\\', b'{"s":"\\u', b'{"s":"\\u12', b'{"s":"\\u12g4"}', b'{"s":"\\x"}', b'{"s":"\\ud800"}', b'{"s":"\\ud800\\u0041"}',
    b'{"s":"\\udc00"}', b'{"s":"\n"}', b'{"s":"\x80"}', b'{"s":"\xc0\x80"}', b'{"s":"\xe0\x80\x80"}', b'{"s":"\xed\xa0\x80"}',
    b'{"s":"\xf4\x90\x80\x80"}', b'{"s":"\xf5\x80\x80\x80"}', b'{"s":"\xe2\x82"}', b'{"s":"\xe2\x82',
    b"{'n':1}", b'{"n":1 "i":2}', b'{"n" 1}',
)  # fmt: skip


def test_what_is_not_as_expected_is_odd_and_leaves_nothing_behind() -> None:
    full, good = b'"i":7,"b":true,"s":"x","o":{"n":1.5,"p":{"s":"y"}}', b'{"n":1}'
    for payload in (*ODD, *BROKEN):
        spoilt = b"{" + full + b"," + payload.lstrip(b" {") if payload.lstrip(b" {") else b"{" + full
        rows, odd = read([good, payload, good, spoilt, good])
        assert {0, 2, 4}.isdisjoint(odd), payload
        assert (1 in odd, 3 in odd) == (True, True), payload
        assert [row["n"] for row in rows[::2]] == [1.0, 1.0, 1.0]
        assert [name for name, value in rows[2].items() if value is not None] == ["n"]


@settings(max_examples=MANY, deadline=None)
@given(data=st.data())
def test_what_c_takes_of_mutated_events_is_what_the_json_module_reads(data: st.DataObject) -> None:
    whole = bytearray(b'{"n":-1.25e2,"i":12,"b":false,"s":"a\\u00e9\\n\xc3\xa9","o":{"n":7,"p":{"s":"\\ud83d\\ude00"}}}')
    for _ in range(data.draw(st.integers(1, 3))):
        place, byte = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.sampled_from(list(b'{}[]",:\\ue0-.1n\x00\x80\xe2 \n')))
        match data.draw(st.integers(0, 2)):
            case 0:
                whole[place] = byte
            case 1:
                whole.insert(place, byte)
            case _:
                del whole[place]
    payload = bytes(whole)
    rows, odd = read([payload])
    if odd:
        return
    assert check(payload) is None
    found = json.loads(payload)
    expected = {name: found.get(name) for name in "nibs"}
    inner = found.get("o") or {}
    expected |= {"o.n": inner.get("n"), "o.p.s": (inner.get("p") or {}).get("s")}
    assert {name: rows[0].get(name) for name in KINDS} == expected


def test_without_it_structs_do_the_work() -> None:
    code = "import sys; sys.modules['headrace._json_columns'] = None; from headrace.typed_json import *; print(DEFAULT_READER.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "StructsReader"


@pytest.mark.parametrize("compiler", ["a compiler", "no compiler"])
def test_the_install_succeeds_with_and_without_a_compiler(tmp_path: Path, compiler: str) -> None:
    if compiler == "a compiler" and not shutil.which(os.environ.get("CC", "cc")):
        pytest.skip("there is no C compiler here")
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "core", copy / "core", ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info"))
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    environment = {**os.environ, **({"CC": "/nonexistent/cc"} if compiler == "no compiler" else {})}
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", str(tmp_path / "built")]
    run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    built = tmp_path / "built" / "headrace"
    assert (built / "json_structs.py").exists()
    assert len(list(built.glob("_json_columns*"))) == (compiler == "a compiler")
