"""What devices may send, and worse: each event comes out as an oracle says that goes through them one by one, in whatever batches."""

from __future__ import annotations

import itertools
import json
import math
import os
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.decoding import (
    ReadingTypes,
    TypedJson,
    check,
    columns_of,
    decode,
    decode_rows,
    decode_typed,
    parse_time,
    take_times,
)  # fmt: skip
from headrace.json_structs import StructsReader
from headrace.typed_reader import Reader

try:
    from headrace.json_columns import ColumnsReader
except ImportError:
    READERS: list[type[Reader]] = [StructsReader]
else:
    READERS = [StructsReader, ColumnsReader]

MANY = 5000 if os.environ.get("HEADRACE_FULL") else 60
NOW_US = 1_795_435_200_000_000
NAMES_MAX = 6
KINDS = {float: "number", int: "number", bool: "boolean", str: "string", list: "string"}

# numbers as texts, since what JSON can say is more than what Python's floats can
WHOLE = ("0", "-0", "20", str(2**53 + 1), str(2**63), "9" * 400, "-" + "9" * 400, "9" * 5000)
numbers = st.sampled_from((*WHOLE, "-0.0", "20.0", "20.5", "1e400", "-1e400", "1e-999")) | (
    st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
).map(json.dumps)
times = st.sampled_from(
    ("1795435100", "1795435100.25", "1795435100250", "1795435100250000", "1795435100250000001", '"2026-11-23T00:00:00Z"', '"2026-11-23"')
) | st.sampled_from(
    ("0", "-1", "1e30", "9" * 400, '"yesterday"', "true", "[1]", '{"a":1}', "null", "99999999999", "1e11", "-9223372036854775808")
)
scalars = numbers | st.sampled_from(("null", "true", "false")) | st.text(max_size=3).map(json.dumps)
names = st.sampled_from(("a", "b", "c", "d", "a.b", "", "_other", "é", "x\0", "ts", "k1", "k2", "k3"))


def members(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """The text of an object; names may stand in it twice."""
    member = st.tuples(names, values).map(lambda pair: f"{json.dumps(pair[0])}:{pair[1]}") | times.map(lambda time: f'"ts":{time}')
    return st.lists(member, max_size=5).map(lambda texts: "{" + ",".join(texts) + "}")


values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3).map(lambda texts: f"[{','.join(texts)}]") | members(inner), max_leaves=6
)
payloads = st.lists(members(values).map(str.encode), min_size=1, max_size=12)

kinds = st.dictionaries(st.sampled_from(("a", "b", "c", "k1")), st.sampled_from(("number", "integer", "boolean", "string")), max_size=3)

EDGES = (10**11, 10**14, 10**17, 1e11, 1e14, None, True, "2026-11-23")
claims = st.integers(-(2**64), 2**64) | st.floats() | st.floats(-1e21, 1e21) | st.sampled_from(EDGES)


class Oracle:
    """The rules of `headrace.decoding`, one event at a time."""

    def __init__(self, declared: dict[str, str]) -> None:
        self.kinds = dict(declared)

    def event(self, payload: bytes) -> tuple[int, dict[str, Any]]:
        """Its time, and its readings that are not null."""
        row = dict(json.loads(payload, parse_int=lambda digits: int(digits) if len(digits.lstrip("-")) <= 4300 else digits))
        claim = row.pop("ts", None)
        time = parse_time(claim)
        if time is None or not NOW_US - 3600_000_000 <= time <= NOW_US + 3600_000_000:
            time = NOW_US
            if claim is not None:
                row["ts"] = claim
        readings: dict[str, Any] = {}
        misfits: dict[str, Any] = {}
        for name, value in self.flat(row, "").items():
            if value is None:
                continue
            if name not in self.kinds and name != "_other" and len(self.kinds) < NAMES_MAX:
                self.kinds[name] = KINDS[type(value)]
            kind = self.kinds.get(name)
            if kind == "integer" and type(value) in (int, float):
                whole = value if isinstance(value, int) else int(value) if value.is_integer() else None
                if whole is not None and -(2**63) <= whole < 2**63:
                    readings[name] = whole
                else:
                    misfits[name] = str(value) if isinstance(value, int) or not math.isfinite(value) else value
            elif kind != KINDS[type(value)]:
                misfits[name] = str(value) if isinstance(value, float) and not math.isfinite(value) else value
            elif isinstance(value, list):
                readings[name] = msgspec.json.encode(value).decode()
            elif self.kinds[name] == "number":
                try:
                    readings[name] = float(value)
                except OverflowError:
                    misfits[name] = str(value)
            else:
                readings[name] = value
        if misfits:
            readings["_other"] = msgspec.json.encode(misfits).decode()
        return time, readings

    def flat(self, row: dict[str, Any], prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in row.items():
            found.update(self.flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
        return found


def decoded(batch: list[bytes], types: ReadingTypes, typed: TypedJson | None = None) -> list[tuple[int, dict[str, Any]]]:
    received = pa.array([NOW_US] * len(batch), pa.int64())
    found = decode_typed(pa.array(batch, pa.binary()), received, typed, 3600, 3600) if typed else None
    if found is None:
        rows, bad = decode(batch)
        assert bad == []
        found = decode_rows(rows, received, 3600, 3600)
    assert found.bad == []
    array, _ = columns_of(found.gathered, types)
    assert columns_of(found.gathered, types)[0].equals(array)
    if typed:
        typed.expect([field.name for field in array.type], found.gathered.objects)
    array.validate(full=True)
    readings = [{name: value for name, value in row.items() if value is not None} for row in array.to_pylist()]
    return list(zip(found.times.time.cast(pa.int64()).to_pylist(), readings, strict=True))


def shown(event: tuple[int, dict[str, Any]]) -> str:
    """Time and readings as text: -0.0 is not 0.0, and 1 is not True."""
    return repr((event[0], sorted(event[1].items())))


@settings(max_examples=MANY, deadline=None)
@given(sent=payloads, cuts=st.lists(st.integers(1, 11), max_size=4), declared=kinds)
@example(sent=[b'{"a":null,"b":1}', b'{"a":true,"c":1e400}', b'{"b":"x","a":2,"a.b":1}', b'{"a":{"b":2},"c":"y"}'], cuts=[], declared={})
@example(sent=[b'{"b":true,"a":1}', b'{"a":"x","b":2}', b'{"b":"x","a":"y"}'], cuts=[1], declared={})
def test_each_event_comes_out_as_the_oracle_says_in_whatever_batches(sent: list[bytes], cuts: list[int], declared: dict[str, str]) -> None:
    assert [check(payload) for payload in sent] == [None] * len(sent)
    oracle, types = Oracle(declared), ReadingTypes(NAMES_MAX, None, declared)
    expected = [oracle.event(payload) for payload in sent]
    bounds = sorted({0, len(sent), *(cut for cut in cuts if cut < len(sent))})
    got = [event for start, stop in itertools.pairwise(bounds) for event in decoded(sent[start:stop], types)]
    assert list(map(shown, got)) == list(map(shown, expected))
    assert types.types == oracle.kinds


@settings(max_examples=MANY, deadline=None)
@given(before=payloads, sent=payloads, like=payloads, declared=kinds)
@example(before=[b'{"a":1,"b":"x"}'], sent=[b'{"a":-0}', b'{"a":9e999}', b'{"a":true,"z":1}'], like=[b'{"b":"x","a":2}'], declared={})
@example(before=[b'{"a":1}'], sent=[b'{"a":1,"ts":{"x":1}}', b'{"a":2,"ts":"?"}', b'{"a":true,"ts":1e30}'], like=[b"{}"], declared={})
@example(
    before=[b'{"a":{"b":1,"c":{"d":true}},"a.k1":2}'],
    sent=[b'{"a":{"b":1},"a.b":2}', b'{"a":{"c":null}}', b'{"a":null,"a.k1":"x"}', b'{"a.c":{"d":1}}', b'{"a":3}'],
    like=[b'{"a":{"c":{"d":false}}}', b'{"a":{"ts":1,"b":2},"a":{"c":{}}}'],
    declared={},
)
@example(before=[b'{"a":1}'], sent=[b'{"a":20.0,"ts":1}', b'{"a":9223372036854775808}'], like=[b'{"a":1}'] * 9, declared={"a": "integer"})
def test_events_that_are_read_as_expected_are_those_that_the_oracle_reads(
    before: list[bytes], sent: list[bytes], like: list[bytes], declared: dict[str, str]
) -> None:
    for reader in READERS:
        read_as_the_oracle_reads(reader, before, sent, like, declared)


def read_as_the_oracle_reads(
    reader: type[Reader], before: list[bytes], sent: list[bytes], like: list[bytes], declared: dict[str, str]
) -> None:
    oracle, types = Oracle(declared), ReadingTypes(NAMES_MAX, None, declared)
    typed = TypedJson(types, reader)
    # what came before tells what to expect; most of the next batch is like it, else it is read the general way
    batches = [before, sent + 4 * before, like, 3 * sent + like * 9, before]
    expected = [oracle.event(payload) for batch in batches for payload in batch]
    got = [event for batch in batches for event in decoded(batch, types, typed)]
    assert list(map(shown, got)) == list(map(shown, expected))
    assert types.types == oracle.kinds


@pytest.mark.parametrize("reader", READERS)
def test_a_batch_of_known_readings_is_read_together_and_odd_events_alone(reader: type[Reader]) -> None:
    types = ReadingTypes(10)
    typed = TypedJson(types, reader)
    usual, odd = b'{"t":1.5,"on":true,"mode":"eco","ts":1795435100}', b'{"t":"warm","new":[1],"ts":1795435100}'
    decoded([usual], types, typed)
    received = pa.array([NOW_US] * 700, pa.int64())
    sent = [usual] * 600 + [odd, b"{", usual, b'{"\\u0074":2}'] + [usual] * 96
    found = decode_typed(pa.array(sent, pa.binary()), received, typed, 3600, 3600)
    assert found is not None
    assert {600, 601} <= set(found.gathered.rows) <= {600, 601, 603}
    assert found.bad == [601]
    rows = columns_of(found.gathered, types)[0].to_pylist()
    assert rows[600] == {"t": None, "on": None, "mode": None, "new": "[1]", "_other": '{"t":"warm"}'}
    assert rows[603] == {"t": 2.0, "on": None, "mode": None, "new": None, "_other": None}
    assert found.times.time.cast(pa.int64()).to_pylist()[598:603] == [1_795_435_100_000_000] * 3 + [NOW_US, 1_795_435_100_000_000]
    # too many odd ones: the general way, for as many batches as the reader says
    assert decode_typed(pa.array([odd] * 700), received, typed, 3600, 3600) is None
    again = [decode_typed(pa.array([usual] * 700), received, typed, 3600, 3600) is not None for _ in range(reader.rest_batches + 1)]
    assert again == [False] * reader.rest_batches + [True]


@pytest.mark.parametrize("reader", READERS)
def test_names_that_come_no_more_are_expected_no_more_and_many_names_are_read_the_general_way(reader: type[Reader]) -> None:
    types = ReadingTypes(10_000)
    typed = TypedJson(types, reader)
    received = pa.array([NOW_US], pa.int64())
    many = b'{"%s":1}' % b'":1,"'.join(b"n%d" % number for number in range(reader.names_max + 1))
    decoded([many], types, typed)
    assert decode_typed(pa.array([b'{"n1":1}']), received, typed, 3600, 3600) is None
    for _ in range(64):
        typed.expect(["n1"])
    assert decode_typed(pa.array([b'{"n1":1}']), received, typed, 3600, 3600) is not None


@settings(max_examples=MANY, deadline=None)
@given(claims=st.lists(claims, min_size=1, max_size=8))
@example(claims=[-(2**63)])
@example(claims=[math.nan, math.inf])
def test_times_read_at_once_are_those_read_one_by_one(claims: list[Any]) -> None:
    rows = [{} if claim is None else {"ts": claim} for claim in claims]
    # a clock before the release of this version: whatever can be read is believed
    taken = take_times(rows, pa.array(np.zeros(len(rows), np.int64)), 1, 1)
    expected = [parse_time(claim) for claim in claims]
    assert taken.time.cast(pa.int64()).to_pylist() == [us or 0 for us in expected]
    assert ["ts" in row for row in rows] == [claim is not None and us is None for claim, us in zip(claims, expected, strict=True)]


@settings(max_examples=MANY, deadline=None)
@given(
    noise=st.lists(st.binary(max_size=12) | payloads.map(lambda some: some[0][:-1]) | st.just(b'{"a":"\\ud800"}'), min_size=1, max_size=6)
)
def test_what_does_not_decode_is_named_and_costs_the_others_nothing(noise: list[bytes]) -> None:
    good = b'{"a":1.5}'
    sent = [piece for one in noise for piece in (one, good)]
    rows, bad = decode(sent)
    assert bad == [index for index, payload in enumerate(sent) if check(payload) is not None]
    assert all(rows[index] == {"a": 1.5} for index in range(1, len(sent), 2))


@settings(max_examples=MANY, deadline=None)
@given(
    sent=st.lists(
        st.sampled_from(
            (b'{"a":1', b'"a":2}', b',"s":"x"}', b'{"s":"', b'"}', b"{}{}", b'{"a":1}\n{"a":2}', b' {"a":3}', b"{", b"}", b"", b"null")
        )
        | payloads.map(lambda some: some[0]),
        max_size=6,
    )
)
@example(sent=[b'{"a":1', b',"s":"x"}', b'{"a":1}{"a":2}'])
@example(sent=[b'{"s":"', b'{","a":1}', b"{}{}"])
@example(sent=[b'{"a":1', b' ,"a":2}', b"{}\n{}"])
def test_payloads_that_are_read_together_are_those_that_are_read_one_by_one(sent: list[bytes]) -> None:
    for reader in READERS:
        read_together_as_alone(reader, sent)


def read_together_as_alone(reader: type[Reader], sent: list[bytes]) -> None:
    types = ReadingTypes(NAMES_MAX, None, {"a": "number", "s": "string"})
    typed = TypedJson(types, reader)
    typed.expect(["a", "s"])
    sent = [*sent, *[b'{"a":1,"s":"y"}'] * (4 * len(sent) + 4)]
    received = pa.array([NOW_US] * len(sent), pa.int64())
    together = decode_typed(pa.array(sent, pa.binary()), received, typed, 3600, 3600)
    rows, bad = decode(sent)
    if together is None:  # the general way
        assert any(isinstance(row.get("ts"), dict) for row in rows)
        return
    alone = decode_rows(rows, received, 3600, 3600)
    assert together.bad == bad
    assert together.times.time.equals(alone.times.time)
    shown = [[sorted((row or {}).items()) for row in columns_of(one.gathered, types)[0].to_pylist()] for one in (together, alone)]
    assert [[pair for pair in row if pair[1] is not None] for row in shown[0]] == [
        [pair for pair in row if pair[1] is not None] for row in shown[1]
    ]
