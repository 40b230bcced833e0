"""A generated stream of 200 device classes, as a source of a site's own: everything that devices have been seen to send, seeded.

Schemas drift, classes disagree about types, names are of every script, numbers huge or not finite, objects deep, keys repeated,
times wild, and one event in a hundred is garbage that a device's message could not be (the source delivers it all the same, as a
source without a check would).
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import cbor2
import msgspec
import pyarrow as pa
from msgspec import Meta

from headrace import Component, Config, Deliver, QueueFull, hookimpl
from headrace.batching import RawBatchBuilder

CLASSES = 200
RECEIVED_US = 1_794_000_000_000_000
NAMES = [
    "temp",
    "температура",
    "湿度",
    "🌡",
    "a b",
    'q"uote',
    "dot.ted",
    "UPPER",
    "upper",
    "\u202ertl",
    "e\u0301",
    "\u00e9",
    "",
    " ",
    "ts2",
    "_x",
    "nul\0l",
]


class Made(NamedTuple):
    """One event: what goes on, and whether it can be decoded."""

    device: str
    encoding: int
    payload: bytes
    garbage: bool


class DeviceClass:
    """One kind of device: its readings, and how they drift."""

    def __init__(self, number: int, rng: random.Random) -> None:
        self.number, self._rng = number, rng
        self._schema = {self._name(): rng.choice("nnnnbsldo") for _ in range(rng.randint(2, 9))}

    def _name(self) -> str:
        # some names are shared by many classes, which then disagree about their types
        rng = self._rng
        return rng.choice(NAMES) if rng.random() < 0.5 else f"{rng.choice(NAMES)}{rng.randint(0, 400)}"

    def event(self, identity: int) -> dict[str, Any]:
        rng = self._rng
        if rng.random() < 0.02:  # firmware of tomorrow
            if self._schema and rng.random() < 0.4:
                self._schema.pop(rng.choice(list(self._schema)))
            self._schema[self._name()] = rng.choice("nbsldo")
        event: dict[str, Any] = {"id": str(identity)}
        for name, kind in self._schema.items():
            if rng.random() < 0.9:
                event[name] = self._value(kind if rng.random() < 0.98 else rng.choice("nbsldo"))
        if rng.random() < 0.3:
            event["ts"] = self._time()
        return event

    def _value(self, kind: str, depth: int = 0) -> Any:
        rng = self._rng
        if kind == "n":
            odd: list[Any] = [0, -0.0, 2**53 + 1, -(2**63), 2**64 - 1, 1e308, -1e-320]
            return rng.choice(odd) if rng.random() < 0.1 else rng.uniform(-50, 150)
        if kind == "b":
            return rng.random() < 0.5
        if kind == "s":
            return rng.choice(["on", "off", "", "дача", "x" * rng.randint(0, 200), "\u0000", "\\", '"', "\n", "🌊" * 3, "NaN", "null"])
        if kind == "l":
            return [self._value(rng.choice("nbs")) for _ in range(rng.randint(0, 4))]
        if kind == "d" and depth < 11:  # as deep as is allowed, and no deeper
            return {self._rng.choice(["k", "дom", "k.k"]): self._value(rng.choice("dddn"), depth + 1)}
        if kind in "do":
            return {rng.choice(NAMES): self._value(rng.choice("nbs")) for _ in range(rng.randint(0, 3))}
        return None

    def _time(self) -> Any:
        rng, now_s = self._rng, RECEIVED_US / 1e6
        wild = [
            0,
            -1,
            1e30,
            "noon",
            "",
            None,
            True,
            "9999-12-31T23:59:59Z",
            "1970-01-01",
            [],
            {"a": 1},
            now_s + 1e6,
            now_s - 1e8,
            "2026-11-06T25:00:00Z",
        ]
        good = [
            now_s - 5,
            int(now_s * 1000),
            int(now_s * 1e6),
            int(now_s * 1e9),
            "2026-11-06T20:00:00.123456789+02:00",
            "2026-11-06T20:00:00",
        ]
        return rng.choice(wild if rng.random() < 0.5 else good)


def stream(seed: int, events: int) -> Iterator[Made]:
    """The events, always the same for one seed."""
    rng = random.Random(seed)
    classes = [DeviceClass(number, rng) for number in range(CLASSES)]
    for identity in range(events):
        kind = rng.choice(classes)
        device = f"c{kind.number:03d}-{rng.randint(0, 9)}"
        if rng.random() < 0.01:
            yield Made(device, *_garbage(rng), garbage=True)
            continue
        yield Made(device, *_encoded(kind.event(identity), rng), garbage=False)


def _encoded(event: dict[str, Any], rng: random.Random) -> tuple[int, bytes]:
    way = rng.random()
    if way < 0.1:
        if rng.random() < 0.3:
            event["not finite"] = rng.choice([float("nan"), float("inf"), float("-inf")])
        return 2, msgspec.msgpack.encode(event)
    if way < 0.2:
        if rng.random() < 0.3:
            event["huge"] = rng.choice([2**200, -(2**100), float("inf")])
        return 3, cbor2.dumps(event)
    text = json.dumps(event, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.05:  # keys twice: the last one counts
        text = text[:-1] + ', "temp": 1, "temp": "twice"}'
    if rng.random() < 0.03:
        text = text[:-1] + ', "long": ' + "9" * rng.choice([20, 400, 5000]) + "}"
    return 1, text.encode()


def _garbage(rng: random.Random) -> tuple[int, bytes]:
    choices: list[tuple[int, bytes]] = [
        (1, b""),
        (1, rng.randbytes(rng.randint(1, 60)) + b"\xff"),
        (1, b'{"id": "x", "a":'),
        (1, b'{"a": "\xff"}'),
        (1, b"[1, 2]"),
        (1, b'"text"'),
        (1, b"{}}"),
        (1, b"[" * 5000),
        (2, b"\xc1"),
        (2, msgspec.msgpack.encode([1])),
        (3, b"\xff\x00"),
        (3, cbor2.dumps("x")),
        (200, b"no decoder for it"),
    ]
    return rng.choice(choices)


class Generated(Component):
    """Delivers the stream once, then writes down how many events it delivered."""

    class Config(Config, frozen=True, kw_only=True):
        seed: Annotated[int, Meta(description="Seed of the stream.")] = 1
        events: Annotated[int, Meta(description="How many.")] = 1000
        done: Annotated[str, Meta(description="File that says how many were acked.")]

    @hookimpl
    async def ingest_serve(self, deliver: Deliver) -> None:
        builder = RawBatchBuilder(self.context.random.randint(200, 900), 1 << 30)
        acked = 0

        async def commit() -> None:
            nonlocal acked
            batch: pa.RecordBatch = builder.take()
            while True:
                try:
                    first, last = await deliver(batch)
                except QueueFull:
                    await deliver.room()
                else:
                    acked += last - first + 1
                    return

        for made in stream(self.config.seed, self.config.events):
            builder.add(made.device, RECEIVED_US, made.encoding, made.payload)
            if builder.full:
                await commit()
        if builder.rows:
            await commit()
        await asyncio.to_thread(Path(self.config.done).write_text, str(acked))
        await asyncio.Event().wait()


class ByName(Component):
    """The class of a device, as its name says it, and one of ten groups of classes."""

    @hookimpl
    def enrich_fields(self) -> pa.Schema:
        return pa.schema([("class", pa.string()), ("group", pa.string())])

    @hookimpl
    def enrich(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        names = [device.partition("-")[0] for device in batch.column("device").to_pylist()]
        groups = [name[-1] for name in names]
        return pa.RecordBatch.from_arrays([pa.array(names, pa.string()), pa.array(groups, pa.string())], ["class", "group"])
