"""From messages to payloads to readings, in every encoding: what passes decodes, and the same readings give the same events."""

from __future__ import annotations

import datetime
import math
import os
from typing import Any

import cbor2
import msgspec
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.decoding import ReadingTypes, readings_array, take_times
from headrace.encodings import ENCODINGS, STORED, Sent, Unreadable, check, decode

SENT = Sent("d1", 1_795_435_200.0, 100)
MANY = 2000 if os.environ.get("HEADRACE_FULL") else 60

ENCODE: dict[str, Any] = {"json": msgspec.json.encode, "msgpack": msgspec.msgpack.encode, "cbor": cbor2.dumps}

scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3))
objects = st.dictionaries(st.text(max_size=6) | st.sampled_from(("ts", "_other", "a", "a.b")), values, max_size=5)


def events_of(name: str, message: bytes) -> list[dict[str, Any]]:
    """What is decoded of a message."""
    payloads = ENCODINGS[name].events(message, SENT)
    rows, bad = decode(payloads, ENCODINGS[name].stored)
    assert bad == []
    return rows


def refusal(name: str, message: bytes) -> Unreadable:
    with pytest.raises(Unreadable) as caught:
        ENCODINGS[name].events(message, SENT)
    return caught.value


def columns(rows: list[dict[str, Any]]) -> tuple[list[Any], list[Any]]:
    """Times and readings, as the pipeline makes them."""
    received = pa.array([int(SENT.received_s * 1e6)] * len(rows), pa.int64())
    times = take_times(rows, received, 30 * 86_400, 3600)
    array, _ = readings_array(rows, ReadingTypes(1000))
    array.validate(full=True)
    return times.time.to_pylist(), array.to_pylist()


# --- alike in all of them --------------------------------------------------------------------------------------------


@settings(max_examples=MANY, deadline=None)
@given(sent=st.lists(objects, min_size=1, max_size=4))
@example(sent=[{"a": {"b": {}}, "ts": 1_795_435_100.5, "l": [1, {"k": [None, "x"]}]}, {}])
def test_the_same_readings_give_the_same_events(sent: list[dict[str, Any]]) -> None:
    expected = None
    for name, encode in ENCODE.items():
        got = columns(events_of(name, encode(sent)))
        assert got == (expected := expected or got), name
        if len(sent) == 1:
            assert columns(events_of(name, encode(sent[0]))) == expected, name


@pytest.mark.parametrize("name", ENCODE)
def test_an_object_is_stored_byte_for_byte_and_an_array_element_by_element(name: str) -> None:
    encode = ENCODE[name]
    one, two = {"a": 1.5, "b": {"c": "x"}}, {"d": [True, None]}
    assert ENCODINGS[name].events(encode(one), SENT) == [encode(one)]
    assert ENCODINGS[name].events(encode([one, two]), SENT) == [encode(one), encode(two)]


@pytest.mark.parametrize("name", ENCODE)
def test_one_bad_element_refuses_the_message_and_is_named(name: str) -> None:
    error = refusal(name, ENCODE[name]([{}, {"a": 1}, 7, {}]))
    assert (error.index, error.events, error.too_many) == (2, 4, False)
    assert error.reason.startswith("event 2 of the array: expected a ")


@pytest.mark.parametrize("name", ENCODE)
def test_bad_elements_cost_the_others_nothing_where_each_is_taken_by_itself(name: str) -> None:
    sent = [{}, 7, {"a": 1}, [{}]]
    each = ENCODINGS[name].each(ENCODE[name](sent), SENT)
    assert [one if isinstance(one, bytes) else one.index for one in each] == [ENCODE[name]({}), 1, ENCODE[name]({"a": 1}), 3]
    assert ENCODINGS[name].each(ENCODE[name]({"a": 1}), SENT) == [ENCODE[name]({"a": 1})]
    for whole in (ENCODE[name](sent)[:-2], ENCODE[name]([]), ENCODE[name]([{}] * 101), ENCODE[name](7)):
        with pytest.raises(Unreadable):
            ENCODINGS[name].each(whole, SENT)


@pytest.mark.parametrize("name", ENCODE)
@pytest.mark.parametrize("value", [None, True, 7, -1, 1.5, "text", ""])
def test_what_is_neither_object_nor_array_is_refused(name: str, value: object) -> None:
    assert refusal(name, ENCODE[name](value)).reason.startswith("expected a ")


@pytest.mark.parametrize("name", ENCODE)
def test_an_empty_array_and_one_of_too_many_are_refused(name: str) -> None:
    empty, full = refusal(name, ENCODE[name]([])), refusal(name, ENCODE[name]([{}] * 101))
    assert (empty.reason, empty.too_many) == ("expected at least one event, got an empty array", False)
    assert (full.reason, full.events, full.too_many) == ("expected at most 100 events in a message, got 101", 101, True)
    assert len(ENCODINGS[name].events(ENCODE[name]([{}] * 100), SENT)) == 100


@pytest.mark.parametrize("name", ENCODE)
def test_nesting_is_bounded_alike(name: str) -> None:
    def nested(levels: int, inner: Any) -> Any:
        for level in range(levels):
            inner = {"a": inner} if level % 2 else [inner]
        return inner

    for inner in (1, b"binary") if name != "json" else (1,):
        (row,) = events_of(name, ENCODE[name]({"a": nested(15, inner)}))
        assert row
        assert "nested deeper than 16 levels" in refusal(name, ENCODE[name]({"a": nested(16, inner)})).reason


@pytest.mark.parametrize("name", ENCODE)
def test_whatever_the_depth_that_is_allowed_the_readings_are_the_same(name: str) -> None:
    inner: Any = [0.5] * 9000  # more than the values of other types that one message may hold
    for _ in range(15):
        reading = {"a": inner, "n": -7, "t": "text"}
        assert events_of(name, ENCODE[name](reading)) == [reading]
        inner = {"a": inner}


@pytest.mark.parametrize("name", ENCODE)
def test_bytes_behind_the_end_and_missing_ones_are_refused(name: str) -> None:
    for whole in (ENCODE[name]({"a": [1, "xyz"]}), ENCODE[name]([{"a": 1}, {"b": "xyz"}])):
        assert "invalid" in refusal(name, whole + whole).reason
        for end in range(len(whole)):
            assert refusal(name, whole[:end]).reason


@pytest.mark.parametrize("stored", STORED)
def test_bad_payloads_are_named_and_cost_the_others_nothing(stored: int) -> None:
    encode = list(ENCODE.values())[list(STORED).index(stored)]
    rows, bad = decode([encode({"a": 1}), b"\xff", encode([1]), encode({"b": 2})], stored)
    assert (rows, bad) == ([{"a": 1}, {}, {}, {"b": 2}], [1, 2])
    assert check(b"\xff", stored) is not None
    assert check(encode({"a": 1}), stored) is None


@settings(max_examples=MANY, deadline=None)
@given(data=st.data())
def test_no_bytes_raise_anything_else_and_what_passes_decodes(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list(ENCODINGS)))
    if data.draw(st.integers(0, 3)):
        encode = ENCODE.get(name) or (cbor2.dumps if ENCODINGS[name].binary else msgspec.json.encode)
        field = st.sampled_from(("bn", "bt", "bv", "bs", "bver", "n", "u", "v", "vs", "vb", "vd", "s", "t", "ut", "x_", -1, 0, 2, 8))
        packs = st.lists(st.dictionaries(field.map(str) if encode is msgspec.json.encode else field, scalars, max_size=5), max_size=3)
        message = bytearray(encode(data.draw(packs if name.startswith("senml") else st.lists(objects, min_size=1, max_size=3))))
        for _ in range(data.draw(st.integers(0, 3))):
            at = data.draw(st.integers(0, len(message)))
            message[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
        message = bytes(message)
    else:
        message = data.draw(st.binary(max_size=40))
    try:
        payloads = ENCODINGS[name].events(message, SENT)
    except Unreadable:
        return
    assert payloads
    assert [check(payload, ENCODINGS[name].stored) for payload in payloads] == [None] * len(payloads)
    columns(events_of(name, message))


# --- what JSON has no type for ---------------------------------------------------------------------------------------


def test_binary_data_becomes_base64_text_and_numbers_that_are_none_stay_numbers() -> None:
    sent = {"a": b"\xfb\xff", "l": [b"", 1], "o": {"b": b"x"}, "n": math.nan, "i": -math.inf}
    for name in ("msgpack", "cbor"):
        (row,) = events_of(name, ENCODE[name](sent))
        assert math.isnan(row.pop("n"))
        assert row == {"a": "-_8", "l": ["", 1], "o": {"b": "eA"}, "i": -math.inf}
        columns([row])


def test_a_large_map_of_msgpack_is_read_as_a_small_one_is() -> None:
    sent = {
        "a": b"\xfb\xff",
        "l": [b"", 1, {"x": [b"x"]}],
        "o": {"b": b"x", "n": None},
        "at": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    }
    small = msgspec.msgpack.encode(sent)
    large = msgspec.msgpack.encode({**sent, "text": "x" * 5000})
    ((expected,), (row,)) = (events_of("msgpack", message) for message in (small, large))
    assert row.pop("text") == "x" * 5000
    assert row == expected
    assert expected["at"] == "2026-01-02T00:00:00Z"
    for inner in ({1: b""}, {"a": {b"k": b""}}):
        for filler in ("", "x" * 5000):
            assert refusal("msgpack", msgspec.msgpack.encode({"f": filler, "o": inner})).reason == "expected text as keys"


def test_timestamps_are_the_time_of_the_event() -> None:
    at = datetime.datetime(2026, 11, 23, 11, 59, 1, 250_000, tzinfo=datetime.UTC)
    epoch = cbor2.dumps({"ts": cbor2.CBORTag(1, at.timestamp())})
    text = cbor2.dumps({"ts": cbor2.CBORTag(0, "2026-11-23T12:59:01.25+01:00")})
    for name, message in (("msgpack", msgspec.msgpack.encode({"ts": at})), ("cbor", epoch), ("cbor", text)):
        assert columns(events_of(name, message)) == ([at], [{}]), message


@pytest.mark.parametrize("name", ["msgpack", "cbor"])
@pytest.mark.parametrize("sent", [{1: 2}, {"a": {1: 2}}, {b"k": 1}, {"l": [{None: 1}]}])
def test_keys_are_text(name: str, sent: Any) -> None:
    assert "key" in refusal(name, ENCODE[name](sent)).reason


@pytest.mark.parametrize("name", ["msgpack", "cbor"])
def test_values_that_are_looked_at_one_by_one_are_bounded_in_a_message(name: str) -> None:
    fits, too_many = [b""] * 8191, [b""] * 8192
    (row,) = events_of(name, ENCODE[name]({"l": fits}))
    assert row == {"l": [""] * 8191}
    reason = "expected at most 8192 values beside those of types that JSON does not have"
    assert refusal(name, ENCODE[name]({"l": too_many})).reason == reason
    split = [{"l": fits[:5000]}, {"l": fits[:5000]}]
    assert refusal(name, ENCODE[name](split)).reason == f"event 1 of the array: {reason}"
    # a waveform beside a binary value is none of them
    (row,) = events_of(name, ENCODE[name]({"raw": b"x", "wave": [0.5] * 20_000}))
    assert len(row["wave"]) == 20_000


def test_tags_are_bounded_in_a_message() -> None:
    tagged = b"\xa1\x61a\x99" + (8191).to_bytes(2, "big") + b"\xc1\x00" * 8191
    (row,) = events_of("cbor", tagged)
    assert row == {"a": [0] * 8191}
    many = b"\xa1\x61a\x99" + (8193).to_bytes(2, "big") + b"\xc1\x00" * 8193
    assert "expected at most 8192 values" in refusal("cbor", many).reason


def test_keys_of_cbor_are_known_to_be_text_before_a_dict_is_filled() -> None:
    # what follows the key cannot be read: who sees that first has read on. Integers of one hash would fill a dict for minutes
    assert "key must be a text string" in refusal("cbor", b"\xa1\x61a\xa2\x01\x1c").reason


@pytest.mark.parametrize(
    ("hexed", "value"),
    [
        ("d81c63616263", "abc"),  # a tag that means nothing here
        ("d9d9f701", 1),
        ("c249010000000000000000", 2**64),
        ("c349010000000000000000", -1 - 2**64),
        ("c48221196ab3", 273.15),
        ("c5822003", 1.5),
        ("c4821b00000002540be40001", math.inf),
        ("c5821b7fffffffffffffff01", math.inf),
        ("c5823b7fffffffffffffff01", 0.0),
        ("f7", None),
        ("f0", 16),
        ("f93e00", 1.5),
        ("5f42010243030405ff", "AQIDBAU"),
        ("7f657374726561646d696e67ff", "streaming"),
        ("9f0102ff", [1, 2]),
        ("bf616101ff", {"a": 1}),
        ("d82363282a28", "(*("),  # a pattern, if it were compiled
        ("d9010281c101", [1]),
    ],
)
def test_cbor_of_every_kind_becomes_a_reading(hexed: str, value: object) -> None:
    assert events_of("cbor", b"\xa1\x61a" + bytes.fromhex(hexed)) == [{"a": value}]


@pytest.mark.parametrize(
    ("hexed", "reason"),
    [
        ("d81c81d81d00", "references to other parts of the message are not read"),  # an array that holds itself
        ("d8190a", "references to other parts of the message are not read"),
        ("c2" + "5907d0" + "01" * 2000, "bignum of at most 1785 bytes"),
        ("c26161", "bignum"),
        ("c401", "fraction of two integers"),
        ("c48201f93e00", "fraction of two integers"),
        ("ff", "break code"),
        ("1c", "invalid CBOR"),
        ("61ff", "invalid CBOR"),
        ("5b7fffffffffffffff", "ends too early"),
        ("9bffffffffffffffff", "ends too early"),
    ],
)
def test_cbor_that_cannot_be_read_is_refused(hexed: str, reason: str) -> None:
    assert reason in refusal("cbor", b"\xa1\x61a" + bytes.fromhex(hexed)).reason


def test_arrays_of_cbor_may_be_of_any_form_and_must_not_lie() -> None:
    assert events_of("cbor", b"\x9f\xa1\x61a\x01\xa0\xff") == [{"a": 1}, {}]
    assert events_of("cbor", b"\xd9\xd9\xf7\x82\xa1\x61a\x01\xbf\xff") == [{"a": 1}, {}]
    assert events_of("cbor", b"\x9b" + (1).to_bytes(8, "big") + b"\xa0") == [{}]
    for message in (b"\x9b" + (2**63).to_bytes(8, "big") + b"\xa0", b"\x9e\xa0", b"\x82\xa0", b"\x9f\xa0", b"\x81\xa0\xff"):
        assert "invalid CBOR" in refusal("cbor", message).reason
    assert refusal("cbor", b"\x9f\xff").reason == "expected at least one event, got an empty array"
    endless = refusal("cbor", b"\x9f" + b"\xa0" * 1000)
    assert (endless.events, endless.too_many) == (101, True)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"\xd6\xff\x6a\x27\x7d\x75", "2026-06-09T02:41:57Z"),
        (b"\xd4\x05\xfb", "-w"),  # an extension of the device's own
        (b"\xc7\x00\x05", ""),
    ],
)
def test_extensions_of_msgpack_become_text(value: bytes, text: str) -> None:
    assert events_of("msgpack", b"\x81\xa1a" + value) == [{"a": text}]


@pytest.mark.parametrize("value", [b"\xc1", b"\xa1\xff", b"\xc7\x0c\xff" + b"\xff" * 12, b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"])
def test_msgpack_that_cannot_be_read_is_refused(value: bytes) -> None:
    assert refusal("msgpack", b"\x81\xa1a" + value).reason
