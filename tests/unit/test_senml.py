"""SenML packs become events: the rules of RFC 8428, its examples, and how records are named and put together."""

from __future__ import annotations

import json
from typing import Any

import cbor2
import pytest

from headrace.encodings import ENCODINGS, Sent, Unreadable

NOW = 1_795_435_200.0
DEVICE = "10e2073a01080063"
URN = f"urn:dev:ow:{DEVICE}"
CBOR_LABELS = {"bver": -1, "bn": -2, "bt": -3, "bu": -4, "bv": -5, "bs": -6} | {
    label: number for number, label in enumerate(("n", "u", "v", "vs", "vb", "s", "t", "ut", "vd"))
}


def events(*records: dict[str, Any], device: str = DEVICE) -> list[dict[str, Any]]:
    """The events of a pack, which are the same in JSON and in CBOR."""
    sent = Sent(device, NOW, 100)
    got = [json.loads(payload) for payload in ENCODINGS["senml"].events(json.dumps(records).encode(), sent)]
    in_cbor = [{CBOR_LABELS.get(label, label): value for label, value in record.items()} for record in records]
    for record in in_cbor:
        if isinstance(record.get(8), str):
            record[8] = b"\xfb\xff"
    assert [json.loads(payload) for payload in ENCODINGS["senml-cbor"].events(cbor2.dumps(in_cbor), sent)] == got
    return got


def refusal(*records: Any) -> str:
    with pytest.raises(Unreadable) as caught:
        ENCODINGS["senml"].events(json.dumps(records).encode(), Sent(DEVICE, NOW, 100))
    return caught.value.reason


# --- RFC 8428 section 5.1 --------------------------------------------------------------------------------------------


def test_a_single_datapoint() -> None:
    assert events({"n": URN, "u": "Cel", "v": 23.1}) == [{"value": 23.1, "value.unit": "Cel"}]


def test_datapoints_of_now_are_one_event() -> None:
    got = events({"bn": f"{URN}:", "n": "voltage", "t": 0, "u": "V", "v": 120.1}, {"n": "current", "t": 0, "u": "A", "v": 1.2})
    assert got == [{"voltage": 120.1, "voltage.unit": "V", "current": 1.2, "current.unit": "A"}]


def test_datapoints_of_the_last_seconds_have_a_base_time_and_a_base_unit() -> None:
    first = {"bn": "urn:dev:ow:10e2073a0108006:", "bt": 1276020076.001, "bu": "A", "bver": 5, "n": "voltage", "u": "V", "v": 120.1}
    currents = [1.2, 1.3, 1.4, 1.5, 1.6, 1.7]
    got = events(first, *({"n": "current", "t": t, "v": v} for t, v in zip(range(-5, 1), currents, strict=True)), device="10e2073a0108006")
    assert [event["current"] for event in got] == [1.7, *currents[:-1]]
    assert [event["ts"] for event in got] == [1276020076.001 + t for t in (0, -5, -4, -3, -2, -1)]
    assert got[0] == {"ts": 1276020076.001, "voltage": 120.1, "voltage.unit": "V", "current": 1.7, "current.unit": "A"}


def test_measurements_of_one_name_and_time_are_events_of_their_own() -> None:
    got = events(
        {"bn": URN, "bt": 1320067464, "bu": "%RH", "v": 20, "t": 0},
        {"u": "lon", "v": 24.30621, "t": 0},
        {"u": "lat", "v": 60.07965, "t": 0},
        {"v": 20.3, "t": 60},
        {"u": "%EL", "v": 98, "t": 150},
    )
    assert [(event["ts"] - 1320067464, event["value"], event["value.unit"]) for event in got] == [
        (0, 20, "%RH"),
        (0, 24.30621, "lon"),
        (0, 60.07965, "lat"),
        (60, 20.3, "%RH"),
        (150, 98, "%EL"),
    ]


def test_values_of_every_type() -> None:
    got = events(
        {"bn": f"{URN}:", "n": "temp", "u": "Cel", "v": 23.1},
        {"n": "label", "vs": "Machine Room"},
        {"n": "open", "vb": False},
        {"n": "nfc-reader", "vd": "-_8"},
    )
    assert got == [{"temp": 23.1, "temp.unit": "Cel", "label": "Machine Room", "open": False, "nfc-reader": "-_8"}]


def test_a_collection_speaks_of_several_things() -> None:
    got = events(
        {"bn": "2001:db8::2/", "bt": 1320078429, "n": "temperature", "u": "Cel", "v": 25.2},
        {"n": "humidity", "u": "%RH", "v": 30},
        {"bn": "2001:db8::1/", "n": "temperature", "u": "Cel", "v": 12.3},
        {"n": "humidity", "u": "%RH", "v": 67},
        device="2001:db8::2",
    )
    assert [(name, value) for name, value in got[0].items() if not name.endswith(".unit")] == [
        ("ts", 1320078429),
        ("temperature", 25.2),
        ("humidity", 30),
        ("2001:db8::1/temperature", 12.3),
        ("2001:db8::1/humidity", 67),
    ]


def test_a_record_of_base_fields_alone_measures_nothing() -> None:
    got = events({"bn": f"{URN}:"}, {"n": "temp", "u": "Cel", "v": 23.1}, {"n": "heat", "u": "/", "v": 1}, {"n": "fan", "u": "/", "v": 0})
    assert [(event["temp"], event["heat"], event["fan"]) for event in got] == [(23.1, 1, 0)]


def test_relative_times_count_from_the_arrival() -> None:
    records = [{"n": "a", "t": t, "v": 1} for t in (-5, 0.5, 2**28 - 1, 2**28)]
    assert [event["ts"] for event in events(*records)] == [NOW - 5, NOW + 0.5, NOW + 2**28 - 1, 2**28]
    assert events({"bt": -10, "n": "a", "t": 4, "v": 1}) == [{"ts": NOW - 6, "a": 1}]
    assert events({"bt": 10, "n": "a", "t": -10, "v": 1}) == [{"a": 1}]


def test_the_cbor_example() -> None:
    # the pack of `test_datapoints_of_the_last_seconds...`, cut after its second record; labels are integers
    message = bytes.fromhex(
        "82a721781b75726e3a6465763a6f773a313065323037336130313038303036"
        "3a22fb41d303a15b00106223614120050067766f6c7461676501615602fb405e066666666666"
        "a3006763757272656e7406240"
        "2fb3ff3333333333333"
    )
    got = [json.loads(payload) for payload in ENCODINGS["senml-cbor"].events(message, Sent("10e2073a0108006", NOW, 100))]
    assert got == [
        {"ts": 1276020076.001, "voltage": 120.1, "voltage.unit": "V"},
        {"ts": 1276020071.001, "current": 1.2, "current.unit": "A"},
    ]


# --- base values, sums, units ----------------------------------------------------------------------------------------


def test_base_value_and_base_sum_are_added() -> None:
    assert events({"bv": 20, "bs": 100, "n": "a", "v": 1.5, "s": 7}, {"n": "b", "v": 2}, {"n": "c", "s": 1}) == [
        {"a": 21.5, "a.sum": 107, "b": 22, "b.sum": 100, "c": 20, "c.sum": 101}
    ]
    assert events({"n": "a", "s": 3, "u": "J", "ut": 60}) == [{"a.sum": 3, "a.unit": "J", "a.update_s": 60}]
    assert events({"bv": 20, "n": "a", "vs": "x"}) == [{"a": "x"}]


def test_base_fields_hold_until_the_next_of_their_kind() -> None:
    got = events({"bn": "a", "bu": "V", "v": 1}, {"bn": "b", "v": 2}, {"bu": "A", "n": "c", "v": 3}, {"bn": "", "n": "d", "v": 4, "u": ""})
    assert got == [{"a": 1, "a.unit": "V", "b": 2, "b.unit": "V", "bc": 3, "bc.unit": "A", "d": 4}]


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "device", "event"),
    [
        ("temp", "d1", {"temp": 1}),
        ("d1:temp", "d1", {"temp": 1}),
        ("d1/3311/0", "d1", {"3311/0": 1}),
        ("d1", "d1", {"value": 1}),
        ("d1:", "d1", {"value": 1}),
        ("d10:temp", "d1", {"d10:temp": 1}),
        ("d1_temp", "d1", {"d1_temp": 1}),
        (f"{URN}:temp", DEVICE, {"temp": 1}),
        (f"{URN}_temp", DEVICE, {"temp": 1}),
        (f"{URN}:temp", URN, {"temp": 1}),
        (f"{URN}:temp", "gateway", {"urn": URN, "temp": 1}),
        (URN, "gateway", {"urn": URN, "value": 1}),
        ("ts", "d1", {"ts.value": 1}),
        ("d1:ts", "d1", {"ts.value": 1}),
        (f"{URN}:urn", "gateway", {"urn": URN, "urn.value": 1}),
        ("urn:other:x", "d1", {"urn:other:x": 1}),
    ],
)
def test_a_reading_is_named_without_the_device(name: str, device: str, event: dict[str, Any]) -> None:
    assert events({"n": name, "v": 1}, device=device) == [event]
    # how the name is split into bn and n makes no difference
    assert events({"bn": name[:3], "n": name[3:], "v": 1}, device=device) == [event]


def test_each_thing_of_a_gateway_has_events_of_its_own() -> None:
    got = events({"bn": "urn:dev:mac:aa:", "n": "t", "v": 1}, {"n": "h", "v": 2}, {"bn": "urn:dev:mac:bb:", "n": "t", "v": 3})
    assert got == [{"urn": "urn:dev:mac:aa", "t": 1, "h": 2}, {"urn": "urn:dev:mac:bb", "t": 3}]


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (3, "expected an object"),
        ({"v": 1}, "n: expected a name, here or as bn"),
        ({"n": "_a", "v": 1}, "n: expected a name of A-Z"),
        ({"n": "a b", "v": 1}, "n: expected a name of A-Z"),
        ({"n": "a\n", "v": 1}, "n: expected a name of A-Z"),
        ({"n": 7, "v": 1}, "n: expected a string"),
        ({"n": "a"}, "expected a value (v, vs, vb or vd) or a sum (s)"),
        ({"n": "a", "v": 1, "vs": "x"}, "expected one value, got v and vs"),
        ({"n": "a", "v": "1"}, "v: expected a number"),
        ({"n": "a", "v": True}, "v: expected a number"),
        ({"n": "a", "v": None}, "v: expected a number"),
        ({"n": "a", "v": 10**400}, "v: expected a number that fits a float64"),
        ({"n": "a", "vb": 1}, "vb: expected a boolean"),
        ({"n": "a", "vs": 1}, "vs: expected a string"),
        ({"n": "a", "vd": "a+b="}, "vd: expected base64"),
        ({"n": "a", "vd": "abcde"}, "vd: expected base64"),
        ({"n": "a", "v": 1, "t": "now"}, "t: expected a number"),
        ({"n": "a", "v": 1, "bver": 11}, "bver: expected a version from 1 to 10, got 11"),
        ({"n": "a", "v": 1, "bver": 1.5}, "bver: expected a version from 1 to 10, got 1.5"),
        ({"n": "a", "v": 1, "bver": 5}, "bver: expected one version in the whole pack, got 10 and 5"),
        ({"n": "a", "v": 1, "must_": 1}, "must_: a label that ends with _"),
    ],
)
def test_a_record_that_breaks_a_rule_is_named_with_the_rule(record: Any, reason: str) -> None:
    text = refusal({"n": "good", "v": 1}, record)
    assert text.startswith(f"record 1 of the pack: {reason}"), text


def test_a_pack_is_an_array_with_a_measurement() -> None:
    sent = Sent(DEVICE, NOW, 2)
    for message, reason in (
        (b'{"n":"a","v":1}', "expected a SenML pack, a JSON array of records"),
        (b"[", "invalid JSON"),
        (b'["\xff"]', "not UTF-8 at byte 2"),
        (b'[{"n":"a","v":' + b"9" * 5000 + b"}]", "expected a SenML pack"),
        (b'[{"n":"a","v":1e999}]', "fits a float64"),
        (b"[]", "expected at least one event"),
        (b'[{"bn":"x"}]', "expected at least one measurement"),
        (b'[{"n":"a","v":1},{"n":"a","v":1},{"n":"a","v":1}]', "expected at most 2 events"),
    ):
        with pytest.raises(Unreadable, match=reason):
            ENCODINGS["senml"].events(message, sent)


def test_sums_that_leave_float64_are_refused() -> None:
    assert "v: expected a number that fits" in refusal({"bv": 1.7e308, "n": "a", "v": 1.7e308})


def test_unknown_labels_are_ignored() -> None:
    assert events({"n": "a", "v": 1, "l": "<link>", "bx": 3}) == [{"a": 1}]


@pytest.mark.parametrize(
    ("pack", "reason"),
    [
        ([{0: "a", 2: cbor2.undefined}], "v: expected a number"),
        ([{0: "a", 2: float("nan")}], "v: expected a number that fits a float64"),
        ([{0: "a", 8: "text"}], "vd: expected a byte string"),
        ([{0: "a", "vd": "text"}], "vd: expected a byte string"),
        ([7], "expected a map"),
        ([{1.5: "a"}], "expected a label of SenML"),
        ([{(1, 2): "a"}], "expected a label of SenML"),
        ({0: "a"}, "expected a"),
    ],
)
def test_cbor_that_is_no_senml_is_refused(pack: Any, reason: str) -> None:
    large = [*pack, {0: "b", 3: "x" * 5000}] if isinstance(pack, list) else {**pack, 3: "x" * 5000}
    for records in (pack, large):
        with pytest.raises(Unreadable, match=reason):
            ENCODINGS["senml-cbor"].events(cbor2.dumps(records), Sent(DEVICE, NOW, 100))


def test_a_large_pack_of_cbor_is_read_as_a_small_one_is() -> None:
    records = [{-2: "a:", -3: 1_795_435_200, 0: "t", 2: 1.5}, {0: "u", 3: "x", "l": "y"}, {"n": "v", 4: True, 6: 5}]
    sent = Sent("gateway", NOW, 100)
    small = ENCODINGS["senml-cbor"].events(cbor2.dumps(records), sent)
    *large, last = ENCODINGS["senml-cbor"].events(cbor2.dumps([*records, {0: "w", 3: "x" * 5000, 6: 9}]), sent)
    assert large == small
    assert len(last) > 5000


def test_cbor_may_write_numbers_as_fractions() -> None:
    message = cbor2.dumps([{0: "a", 2: cbor2.CBORTag(4, [-1, 231]), 17: "ignored"}])
    assert ENCODINGS["senml-cbor"].events(message, Sent(DEVICE, NOW, 100)) == [b'{"a":23.1}']
