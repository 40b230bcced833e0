"""What an event costs in each encoding, before the ack and behind the queue: `python benchmarks/bench_decoding.py`.

The same readings in every encoding. *check* is what a source does with a message before the ack (`Encoding.events`), with one event in
the message and with twenty. *decode* is what the pipeline does with a payload: the library's part, and all of it up to typed
columns. Medians over the rounds; the order of the encodings changes from round to round.
"""

from __future__ import annotations

import argparse
import datetime
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2
import machine
import msgspec
import pyarrow as pa

from headrace.decoding import ReadingTypes, readings_array, take_times
from headrace.encodings import ENCODINGS, Sent, decode

SENT = Sent("sensor-0001", 1_795_435_200.0, 1024)
EVENTS_PER_ARRAY = 20
BATCH = 4096
LABELS = {"bn": -2, "bt": -3, "n": 0, "u": 1, "v": 2, "vs": 3, "vb": 4, "t": 6}


def readings(number: int) -> dict[str, Any]:
    """One event, about 120 bytes of JSON."""
    return {
        "ts": 1_795_435_200 + number,
        "temperature": 21.5 + number % 7,
        "humidity": 40.25,
        "pressure": 1013.2,
        "battery": 3.71,
        "seq": number,
        "status": "ok",
        "door": False,
    }


def records(number: int) -> list[dict[str, Any]]:
    """The same event as records of SenML."""
    found = []
    for name, value in readings(number).items():
        label = "vb" if isinstance(value, bool) else "vs" if isinstance(value, str) else "v"
        if name != "ts":
            found.append({"n": name, label: value, "t": number})
    found[0] = {"bn": "sensor-0001:", "bt": 1_795_435_200, **found[0]}
    return found


def odd(number: int) -> dict[str, Any]:
    """One event with what JSON has no type for."""
    moment = datetime.datetime.fromtimestamp(1_795_435_200 + number, datetime.UTC)
    return {**readings(number), "ts": moment, "raw": bytes(range(16))}


def senml_cbor(pack: list[dict[str, Any]]) -> bytes:
    return cbor2.dumps([{LABELS[label]: value for label, value in record.items()} for record in pack])


def pack_of(count: int) -> list[dict[str, Any]]:
    return [record for number in range(count) for record in records(number)]


#: name -> encoding, message of one event, message of EVENTS_PER_ARRAY.
CASES: dict[str, tuple[str, bytes, bytes]] = {
    "JSON": ("json", msgspec.json.encode(readings(1)), msgspec.json.encode([readings(n) for n in range(EVENTS_PER_ARRAY)])),
    "MessagePack": ("msgpack", msgspec.msgpack.encode(readings(1)), msgspec.msgpack.encode([readings(n) for n in range(EVENTS_PER_ARRAY)])),
    "MessagePack, a timestamp and binary data": (
        "msgpack",
        msgspec.msgpack.encode(odd(1)),
        msgspec.msgpack.encode([odd(n) for n in range(EVENTS_PER_ARRAY)]),
    ),
    "CBOR": ("cbor", cbor2.dumps(readings(1)), cbor2.dumps([readings(n) for n in range(EVENTS_PER_ARRAY)])),
    "CBOR, a tagged time and binary data": ("cbor", cbor2.dumps(odd(1)), cbor2.dumps([odd(n) for n in range(EVENTS_PER_ARRAY)])),
    "SenML in JSON (stored as JSON)": ("senml", msgspec.json.encode(pack_of(1)), msgspec.json.encode(pack_of(EVENTS_PER_ARRAY))),
    "SenML in CBOR (stored as JSON)": ("senml-cbor", senml_cbor(pack_of(1)), senml_cbor(pack_of(EVENTS_PER_ARRAY))),
}


def ns_per_event(work: Callable[[], Any], events: int, seconds: float) -> float:
    """One round of at least so long."""
    times, started = 0, time.perf_counter_ns()
    while (spent := time.perf_counter_ns() - started) < seconds * 1e9:
        work()
        times += 1
    return spent / times / events


def steps(name: str) -> dict[str, tuple[Callable[[], Any], int]]:
    """What is measured of an encoding, each with its number of events."""
    encoding_name, one, several = CASES[name]
    encoding = ENCODINGS[encoding_name]
    payloads = [*encoding.events(several, SENT)] * (BATCH // EVENTS_PER_ARRAY)
    received = pa.array([int(SENT.received_s * 1e6)] * len(payloads), pa.int64())
    types = ReadingTypes(1000)

    def columns() -> None:
        rows, bad = decode(payloads, encoding.stored)
        assert not bad
        take_times(rows, received, 30 * 86_400, 3600)
        readings_array(rows, types)

    return {
        "check, 1": (lambda: encoding.events(one, SENT), 1),
        f"check, {EVENTS_PER_ARRAY}": (lambda: encoding.events(several, SENT), EVENTS_PER_ARRAY),
        "decode": (lambda: decode(payloads, encoding.stored), len(payloads)),
        "to columns": (columns, len(payloads)),
    }


def report(rounds: int, seconds: float) -> str:
    figures: dict[tuple[str, str], list[float]] = {}
    work = [(name, step, *what) for name in CASES for step, what in steps(name).items()]
    for _ in range(rounds):
        for name, step, call, events in random.sample(work, len(work)):
            figures.setdefault((name, step), []).append(ns_per_event(call, events, seconds))
    names = list(steps("JSON"))
    lines = [
        f"| encoding | bytes, 1 event | bytes/event of {EVENTS_PER_ARRAY} | " + " | ".join(f"{step} ns/event" for step in names) + " |"
    ]
    lines.append("|---|" + "---:|" * (len(names) + 2))
    for name, (_, one, several) in CASES.items():
        cells = []
        for step in names:
            taken = figures[name, step]
            cells.append(f"{statistics.median(taken):,.0f} ({min(taken):,.0f}-{max(taken):,.0f})")
        lines.append(f"| {name} | {len(one)} | {len(several) / EVENTS_PER_ARRAY:.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.2, help="of each measurement")
    parser.add_argument("--out", type=Path, help="write the report there (default: print it)")
    arguments = parser.parse_args()
    command = f"python benchmarks/bench_decoding.py --rounds {arguments.rounds} --seconds {arguments.seconds:g}"
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    facts = "\n".join(f"- {name}: {fact}" for name, fact in machine.facts(Path()).items() if name != "filesystem")
    text = (
        "# What an event costs in each encoding\n\n"
        f"`{command}`, {now}. Medians of {arguments.rounds} rounds, in brackets the least and the most; one core.\n\n"
        f"{report(arguments.rounds, arguments.seconds)}\n\n"
        "*check* comes before the ack, in the source; *decode* and *to columns* (decode, times, typed columns) behind the queue. SenML is\n"
        "resolved before the ack, and costs what JSON costs from there on.\n\n"
        f"{facts}\n"
    )
    if arguments.out:
        arguments.out.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
