"""The six properties, judged from what devices know and what the lake holds. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Final

from headrace.torture.device import Device
from headrace.torture.events import READINGS, named, readings
from headrace.torture.lake import Row

#: Violations of one property that are named; all are counted.
NAMED_MAX: Final = 20


@dataclass
class Finding:
    """One property: how much was looked at, and what speaks against it."""

    title: str
    checked: int = 0
    violations: int = 0
    examples: list[str] = field(default_factory=list)

    def against(self, what: str) -> None:
        """One violation more."""
        self.violations += 1
        if len(self.examples) < NAMED_MAX:
            self.examples.append(what)


#: Where `enough happened` stands in what `judge` gives.
ENOUGH: Final = 4


#: What a trial has to show so that it proves anything: (what, how often it happened, how often at least).
Happened = Sequence[tuple[str, int, int]]


def judge(
    devices: Sequence[Device], stored: Iterable[Row], fresh: Device | None, happened: Happened, one_way: bool = True
) -> list[Finding]:
    """The findings, in the order of the properties. `fresh`: the device whose one event came after the faults; None: it was not acked.
    one_way: see `Layout`."""
    held, once, unchanged = Finding("every acked event is in the lake"), Finding("effectively once"), Finding("payload unchanged")
    alive, enough = Finding("a fresh event passes afterwards"), Finding("enough happened")
    in_order = Finding("each device's events in their order")
    seen: dict[str, Counter[int]] = {device.name: Counter() for device in devices}
    places: set[tuple[str, int]] = set()
    came: dict[str, list[tuple[int, int, int]]] = {device.name: [] for device in devices}
    for row in stored:
        _look(row, seen, places, once, unchanged, came)
    for device in devices:
        numbers, acked = seen[device.name], device.acked()
        held.checked += len(acked)
        for number in sorted(acked - numbers.keys()):
            held.against(f"{device.name}/{number} is acked and not there")
        for number, count in numbers.items():
            if count > 1:
                once.against(f"{device.name}/{number} is there {count} times")
        for number in sorted(numbers.keys() & device.refused):
            unchanged.against(f"{device.name}/{number} was refused and is there")
        for wrong in device.wrongs:
            enough.against(wrong)
        _in_order(device, came[device.name], one_way, in_order)
    alive.checked = 1
    if fresh is None or not seen[fresh.name][1]:
        alive.against("it was not acked" if fresh is None else "it was acked and is not there")
    for what, count, least in happened:
        enough.checked += 1
        if count < least:
            enough.against(f"{what}: {count}, expected {least} at least")
    return [held, once, unchanged, alive, enough, in_order]


def _in_order(device: Device, came: list[tuple[int, int, int]], one_way: bool, finding: Finding) -> None:
    """By the positions of the queue that acked them, and by the rolls of the lake: within one, it keeps another order."""
    came = [(roll, position, number) for roll, position, number in came if number not in device.reordered]
    finding.checked += len(came)
    by_position = sorted((position, number) for _, position, number in came)
    for (_, before), (position, number) in pairwise(by_position):
        if number < before:
            finding.against(f"{device.name}/{number} was taken behind {before}, at position {position}")
    if not one_way:
        return
    newest = 0
    for roll, rows in groupby(sorted(came), lambda row: row[0]):
        numbers = [number for _, _, number in rows]
        if min(numbers) < newest:
            finding.against(f"{device.name}/{min(numbers)} came behind {newest}, in the roll that begins with position {roll}")
        newest = max(newest, *numbers)


def _look(
    row: Row,
    seen: dict[str, Counter[int]],
    places: set[tuple[str, int]],
    once: Finding,
    unchanged: Finding,
    came: dict[str, list[tuple[int, int, int]]],
) -> None:
    once.checked += 1
    unchanged.checked += 1
    if (row.origin, row.position) in places:
        once.against(f"position {row.position} of {row.origin} is there again")
    places.add((row.origin, row.position))
    issued = named(row.readings[0]) if isinstance(row.readings[0], str) else None
    if issued is None or issued[0] not in seen:
        unchanged.against(f"a row that nobody sent: {row}")
        return
    device, number = issued
    seen[device][number] += 1
    if seen[device][number] == 1:
        came[device].append((row.roll, row.position, number))
    expected = readings(device, number)
    if row.device != device or row.readings != tuple(expected[name] for name in READINGS):
        unchanged.against(f"{row}, expected {expected} of {device}")
