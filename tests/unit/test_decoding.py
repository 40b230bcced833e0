"""What a payload becomes: the rules at the top of `headrace.decoding`."""

import datetime

import pyarrow as pa
import pytest

from headrace import decoding
from headrace.decoding import ReadingTypes, check, parse_time, readings_array, split, take_times

US = 1_000_000
NOW_US = 1_794_000_000 * US


def readings(*rows: dict[str, object], types: ReadingTypes | None = None) -> list[dict[str, object]]:
    array, _ = readings_array([dict(row) for row in rows], types or ReadingTypes(100))
    return [{name: value for name, value in row.items() if value is not None} for row in array.to_pylist()]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "invalid JSON"),
        (b"{", "invalid JSON"),
        (b'{"a":1}x', "invalid JSON"),
        (b'{"a":NaN}', "invalid JSON"),
        (b"\xef\xbb\xbf{}", "invalid JSON"),
        (b'{"a":"\xff"}', "not UTF-8 at byte 6"),
        (b'{"\xff":1}', "not UTF-8 at byte 2"),
        (b"[1]", "expected a JSON object, got an array"),
        (b"1", "expected a JSON object, got a number"),
        (b'"x"', "expected a JSON object, got a string"),
        (b"null", "expected a JSON object, got null"),
        (b'{"a":' * 17 + b"1" + b"}" * 17, "nested deeper than 16 levels"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
    ],
)
def test_check_says_why_a_payload_is_refused(payload: bytes, reason: str) -> None:
    assert reason in (check(payload) or "accepted")


@pytest.mark.parametrize("opening", [b'{"a":', b"["])
@pytest.mark.parametrize("inner", [b"1", b"{}", b"9" * 400, b"1e999"], ids=["number", "object", "long", "huge"])
@pytest.mark.parametrize("levels", [14, 15, 16, 17, 40, 100_000])
def test_what_is_nested_deeper_than_the_check_allows_does_not_decode(levels: int, inner: bytes, opening: bytes) -> None:
    closing = b"}" if opening == b'{"a":' else b"]"
    payload = b'{"a":' + opening * (levels - 1) + inner + closing * (levels - 1) + b"}"
    assert decoding.decode([payload])[1] == ([] if check(payload) is None else [0])
    assert (check(payload) is None) == (levels + (inner == b"{}") <= 16)


@pytest.mark.parametrize(
    "payload",
    [
        b"{}",
        b' \n{"a":1}\t',
        b'{"a":1e999}',
        b'{"a":' + b"9" * 400 + b"}",
        b'{"a":' + b"9" * 5000 + b',"b":1e999,"c":1e-999,"d":"\xc3\xa9"}',
        b'{"a":-' + b"9" * 5000 + b".5e3}",
        b'{"a":1,"a":2}',
        b'{"a":"' + b"{[" * 50 + b'"}',
        b'{"a":"\\u00e9"}',
    ],
)
def test_what_passes_the_check_decodes(payload: bytes) -> None:
    assert check(payload) is None
    rows, bad = decoding.decode([payload])
    assert bad == []
    readings_array(rows, ReadingTypes(100))


def test_split_gives_one_payload_per_event() -> None:
    assert split(b'[{"a":1}, {"b":[2]} ]') == [b'{"a":1}', b'{"b":[2]}']
    assert split(b' {"a":1}') == [b' {"a":1}']
    with pytest.raises(ValueError, match="invalid JSON"):
        split(b"[1,")
    with pytest.raises(ValueError, match="not UTF-8 at byte 2"):
        split(b'["\xff"]')


def test_types_are_numbers_booleans_and_strings_and_nesting_becomes_dots() -> None:
    assert readings({"i": 1, "f": 2.5, "b": True, "s": "x", "l": [1, {"k": 2}], "n": None, "o": {"p": {"q": 3}}}) == [
        {"i": 1.0, "f": 2.5, "b": True, "s": "x", "l": '[1,{"k":2}]', "o.p.q": 3.0}
    ]


def test_a_value_of_another_type_is_kept_in_other() -> None:
    types = ReadingTypes(100)
    assert readings({"t": 1}, {"t": "warm"}, {"t": True}, {"t": 2}, types=types) == [
        {"t": 1.0},
        {"_other": '{"t":"warm"}'},
        {"_other": '{"t":true}'},
        {"t": 2.0},
    ]
    assert readings({"t": "later"}, types=types) == [{"_other": '{"t":"later"}'}]


def test_the_outcome_does_not_depend_on_how_events_are_batched() -> None:
    rows = [{"a": 1, "x": "s"}, {"a": "one", "y": {"z": 1}}, {"x": 3, "y": 4}, {"b": True, "a": False}, {"y": {"z": "t"}}]
    together = readings(*rows)
    types = ReadingTypes(100)
    assert [readings(row, types=types)[0] for row in rows] == together


def test_names_beyond_the_bound_are_kept_in_other() -> None:
    types = ReadingTypes(2)
    assert readings({"a": 1, "b": 2, "c": 3}, {"c": 4, "a": 5}, types=types) == [
        {"a": 1.0, "b": 2.0, "_other": '{"c":3}'},
        {"a": 5.0, "_other": '{"c":4}'},
    ]
    assert types.types == {"a": "number", "b": "number"}


def test_huge_integers_become_the_nearest_float_and_beyond_that_text() -> None:
    assert readings({"a": 2**60 + 1}, {"a": 10**400}) == [{"a": float(2**60)}, {"_other": '{"a":"' + str(10**400) + '"}'}]


def test_a_device_cannot_claim_the_name_other() -> None:
    assert readings({"_other": 1, "a": 2}) == [{"a": 2.0, "_other": '{"_other":1}'}]


def test_a_batch_without_readings_has_a_struct_without_children() -> None:
    array, misfits = readings_array([{}, {"a": None}], ReadingTypes(10))
    assert array.type == pa.struct([])
    assert (len(array), misfits) == (2, 0)


@pytest.mark.parametrize(
    ("claim", "us"),
    [
        (1_700_000_000, 1_700_000_000 * US),
        (1_700_000_000.25, 1_700_000_000 * US + 250_000),
        (1_700_000_000_123, 1_700_000_000 * US + 123_000),
        (1_700_000_000_123_456, 1_700_000_000 * US + 123_456),
        (1_700_000_000_123_456_789, 1_700_000_000 * US + 123_456),
        ("2023-11-14T22:13:20Z", 1_700_000_000 * US),
        ("2023-11-14T22:13:20", 1_700_000_000 * US),
        ("2023-11-15T00:13:20.5+02:00", 1_700_000_000 * US + 500_000),
        ("2023-11-14T22:13:20.123456789Z", 1_700_000_000 * US + 123_456),
        ("yesterday", None),
        (True, None),
        (1e30, None),
        (10**30, None),
        ([1], None),
    ],
)
def test_times_are_read_by_magnitude_or_as_rfc_3339(claim: object, us: int | None) -> None:
    assert parse_time(claim) == us


def test_a_time_outside_the_window_is_filed_under_received_and_kept() -> None:
    rows: list[dict[str, object]] = [
        {"ts": NOW_US - 60 * US},
        {"ts": NOW_US - 100 * 86_400 * US},
        {"ts": NOW_US + 7200 * US},
        {"ts": "?"},
        {},
    ]
    times = take_times(rows, pa.array([NOW_US] * 5, pa.int64()), past_max_s=30 * 86_400, future_max_s=3600)
    assert times.time.cast(pa.int64()).to_pylist() == [NOW_US - 60 * US] + [NOW_US] * 4
    assert (times.outside, times.unreadable) == (2, 1)
    assert ["ts" in row for row in rows] == [False, True, True, True, False]


def test_before_the_release_date_the_server_clock_is_wrong_and_the_device_decides() -> None:
    wrong = int(datetime.datetime(1970, 1, 2, tzinfo=datetime.UTC).timestamp()) * US
    rows: list[dict[str, object]] = [{"ts": NOW_US}]
    assert take_times(rows, pa.array([wrong], pa.int64()), 1, 1).time.cast(pa.int64()).to_pylist() == [NOW_US]
