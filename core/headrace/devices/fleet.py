"""A fleet of simulated devices: a few sites, several classes, and signals that behave like their kind.

The same count and seed give the same fleet, and the same times the same readings.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from headrace.devices.signals import Battery, Counter, DailyCurve, Signal, State, Toggle, Walk

#: What `headrace context import` reads; see `write_devices_csv`.
CSV_COLUMNS: Final = ("device", "class", "type", "site", "latitude", "longitude")


class Site(NamedTuple):
    """A place: latitude and longitude in degrees, and how cold or warm it is beside the others (deg C)."""

    name: str
    latitude: float
    longitude: float
    warmer_c: float


SITES: Final = (
    Site("harbour", 53.5403, 9.9839, 0.0),
    Site("hill-works", 47.2635, 11.3946, -4.0),
    Site("river-depot", 50.9413, 6.9583, 1.5),
    Site("old-town", 43.6045, 1.4440, 5.0),
)

Signals = dict[str, Signal]


def _thermostat(site: Site, rng: random.Random) -> Signals:
    return {
        "temperature": DailyCurve(21.0 + rng.uniform(-1, 1), 1.2, 16, 0.08, site.longitude),
        "setpoint": Walk(21.0, 17.0, 24.0, 0.05, digits=1),
        "humidity": DailyCurve(45.0, 6.0, 5, 0.6, site.longitude, digits=1),
        "heating": Toggle(on_s=240, off_s=600),
        "battery": Battery(rng.uniform(20, 100), life_days=400),
    }


def _meter(site: Site, rng: random.Random) -> Signals:
    return {
        "energy_kwh": Counter(rng.uniform(100, 90_000), per_hour=rng.uniform(0.4, 9.0)),
        "power_w": Walk(rng.uniform(400, 4_000), 20.0, 12_000.0, 250.0, digits=1),
        "voltage_v": DailyCurve(230.0, 2.5, 3, 0.5, site.longitude, digits=1),
    }


def _pump(site: Site, rng: random.Random) -> Signals:
    return {
        "running": Toggle(on_s=1_800, off_s=900),
        "pressure_bar": Walk(rng.uniform(3.0, 6.0), 0.2, 9.0, 0.15),
        "flow_l_min": Walk(rng.uniform(60, 240), 0.0, 400.0, 6.0, digits=1),
        "vibration_mm_s": Walk(2.0, 0.3, 18.0, 0.25, digits=3),
        "volume_m3": Counter(rng.uniform(0, 50_000), per_hour=rng.uniform(3, 12)),
        "state": State(("ok", "ok", "cavitating", "blocked"), stay_s=1_200),
    }


def _vehicle(site: Site, rng: random.Random) -> Signals:
    return {
        "position.latitude": Walk(site.latitude, site.latitude - 0.2, site.latitude + 0.2, 0.004, digits=6),
        "position.longitude": Walk(site.longitude, site.longitude - 0.3, site.longitude + 0.3, 0.006, digits=6),
        "speed_km_h": Walk(38.0, 0.0, 110.0, 14.0, digits=1),
        "odometer_km": Counter(rng.uniform(1_000, 240_000), per_hour=32.0, digits=2),
        "fuel": Battery(rng.uniform(20, 100), life_days=2),
        "ignition": Toggle(on_s=2_700, off_s=1_200),
    }


def _weather(site: Site, rng: random.Random) -> Signals:
    return {
        "temperature": DailyCurve(12.0 + site.warmer_c, 6.0, 15, 0.25, site.longitude),
        "humidity": DailyCurve(70.0, 15.0, 4, 1.2, site.longitude, digits=1),
        "pressure_hpa": Walk(1013.0, 965.0, 1045.0, 0.12, digits=1),
        "wind_m_s": Walk(4.0, 0.0, 32.0, 0.9, digits=1),
        "rain_mm": Counter(0.0, per_hour=0.1, digits=1),
    }


def _door(site: Site, rng: random.Random) -> Signals:
    return {
        "open": Toggle(on_s=12, off_s=180),
        "openings": Counter(rng.uniform(0, 5_000), per_hour=18.0, digits=0),
        "battery": Battery(rng.uniform(10, 100), life_days=700),
    }


class DeviceClass(NamedTuple):
    """share: part of the fleet. pace: how often it sends, beside the others. signals: makes one device's signals."""

    name: str
    types: tuple[str, ...]
    share: float
    pace: float
    signals: Callable[[Site, random.Random], Signals]


CLASSES: Final = (
    DeviceClass("thermostat", ("room", "cold-store"), 0.30, 1.0, _thermostat),
    DeviceClass("meter", ("electricity-1p", "electricity-3p"), 0.24, 0.8, _meter),
    DeviceClass("door", ("entrance", "gate"), 0.16, 0.6, _door),
    DeviceClass("pump", ("centrifugal", "submersible"), 0.12, 1.5, _pump),
    DeviceClass("vehicle", ("van", "truck", "forklift"), 0.12, 3.0, _vehicle),
    DeviceClass("weather", ("station",), 0.06, 1.0, _weather),
)


class SimulatedDevice:
    """One device: who it is, how often it sends (`pace`, relative), and its next reading."""

    def __init__(self, device: str, kind: DeviceClass, type_: str, site: Site, rng: random.Random) -> None:
        self.device, self.device_class, self.type, self.site, self.pace = device, kind.name, type_, site.name, kind.pace
        self.latitude = round(site.latitude + rng.gauss(0.0, 0.01), 6)
        self.longitude = round(site.longitude + rng.gauss(0.0, 0.01), 6)
        self.random = rng
        self._signals = list(kind.signals(site, rng).items())
        self._last: float | None = None

    def reading(self, at: float) -> dict[str, object]:
        """What it measures at Unix time `at`; `ts` in seconds. Names with a dot become nested objects."""
        elapsed_s = 0.0 if self._last is None else max(at - self._last, 0.0)
        self._last = at
        event: dict[str, object] = {"ts": round(at, 3)}
        for name, signal in self._signals:
            value = signal.value(at, elapsed_s, self.random)
            group, dot, child = name.partition(".")
            if dot:
                nested = event.setdefault(group, {})
                assert isinstance(nested, dict)
                nested[child] = value
            else:
                event[name] = value
        return event

    def payload(self, at: float) -> bytes:
        """`reading` as JSON text."""
        return _encode(self.reading(at))

    def row(self) -> Mapping[str, object]:
        """Its row of the devices CSV."""
        values = (self.device, self.device_class, self.type, self.site, self.latitude, self.longitude)
        return dict(zip(CSV_COLUMNS, values, strict=True))


_encode = msgspec.json.Encoder().encode


def fleet(count: int, seed: int = 1) -> list[SimulatedDevice]:
    """`count` devices, spread over the classes by their share and over the sites evenly; names like `pump-00017`."""
    rng = random.Random(seed)
    devices = []
    owed = [0.0] * len(CLASSES)
    for number in range(count):
        owed = [debt + kind.share for debt, kind in zip(owed, CLASSES, strict=True)]
        chosen = max(range(len(CLASSES)), key=owed.__getitem__)
        owed[chosen] -= 1.0
        kind, site = CLASSES[chosen], SITES[number % len(SITES)]
        own = random.Random(rng.getrandbits(64))
        devices.append(SimulatedDevice(f"{kind.name}-{number:05}", kind, own.choice(kind.types), site, own))
    return devices


def write_devices_csv(devices: Iterable[SimulatedDevice], path: Path) -> None:
    """Write device, class, type, site, latitude, longitude of each device, as `headrace context import` reads them."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CSV_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(device.row() for device in devices)
