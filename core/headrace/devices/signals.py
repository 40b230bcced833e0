"""Signals that look like those of real devices. No I/O: time goes in as Unix seconds, values come out.

Every signal draws from its device's own random generator, so the same seed and the same times give the same values.
"""

from __future__ import annotations

import math
import random
from typing import Final, Protocol

Value = float | bool | str

DAY_S: Final = 86_400.0
HOUR_S: Final = 3_600.0


class Signal(Protocol):
    """One named reading of a device."""

    def value(self, at: float, elapsed_s: float, rng: random.Random) -> Value:
        """The reading at Unix time `at`, `elapsed_s` after the one before (0 at the first)."""


class DailyCurve:
    """A smooth day, highest at `peak_hour` (0-24, solar time at `longitude`), with noise on top."""

    def __init__(self, mean: float, swing: float, peak_hour: float, noise: float, longitude: float, digits: int = 2) -> None:
        self._mean, self._swing, self._noise, self._digits = mean, swing, noise, digits
        self._shift_s = (longitude / 15.0 - peak_hour) * HOUR_S

    def value(self, at: float, elapsed_s: float, rng: random.Random) -> Value:
        phase = (at + self._shift_s) % DAY_S / DAY_S * math.tau
        return round(self._mean + self._swing * math.cos(phase) + rng.gauss(0.0, self._noise), self._digits)


class Walk:
    """A random walk that is drawn back to `home` and stays in [low, high]; `step` is its spread over one minute."""

    def __init__(self, home: float, low: float, high: float, step: float, digits: int = 2) -> None:
        self._home, self._low, self._high, self._step, self._digits = home, low, high, step, digits
        self._at = home

    def value(self, at: float, elapsed_s: float, rng: random.Random) -> Value:
        minutes = min(elapsed_s / 60.0, 60.0)
        self._at += rng.gauss(0.0, self._step) * math.sqrt(minutes) + (self._home - self._at) * min(0.05 * minutes, 1.0)
        self._at = min(max(self._at, self._low), self._high)
        return round(self._at, self._digits)


class Counter:
    """A meter that only grows, by about `per_hour`, faster by day than by night."""

    def __init__(self, start: float, per_hour: float, digits: int = 3) -> None:
        self._total, self._per_s, self._digits = start, per_hour / HOUR_S, digits

    def value(self, at: float, elapsed_s: float, rng: random.Random) -> Value:
        busy = 1.0 + 0.6 * math.sin(at / DAY_S * math.tau)
        self._total += self._per_s * elapsed_s * busy * rng.uniform(0.6, 1.4)
        return round(self._total, self._digits)


class Toggle:
    """True for `on_s` seconds on average, then False for `off_s`."""

    def __init__(self, on_s: float, off_s: float) -> None:
        self._on_s, self._off_s, self._state = on_s, off_s, False

    def value(self, at: float, elapsed_s: float, rng: random.Random) -> Value:
        stay_s = self._on_s if self._state else self._off_s
        if rng.random() < 1.0 - math.exp(-elapsed_s / stay_s):
            self._state = not self._state
        return self._state


class Battery:
    """Per cent of charge: falls over `life_days`, and starts at 100 again when somebody changes it below 5."""

    def __init__(self, charge: float, life_days: float) -> None:
        self._charge, self._per_s = charge, 100.0 / (life_days * DAY_S)

    def value(self, at: float, elapsed_s: float, rng: random.Random) -> Value:
        self._charge -= self._per_s * elapsed_s
        if self._charge < 5.0:
            self._charge = 100.0
        return round(self._charge, 1)


class State:
    """One of a few words; changes every `stay_s` seconds on average. The first is the most likely."""

    def __init__(self, words: tuple[str, ...], stay_s: float) -> None:
        self._words, self._stay_s, self._word = words, stay_s, words[0]

    def value(self, at: float, elapsed_s: float, rng: random.Random) -> Value:
        if rng.random() < 1.0 - math.exp(-elapsed_s / self._stay_s):
            self._word = self._words[int(rng.random() ** 2 * len(self._words))]
        return self._word
