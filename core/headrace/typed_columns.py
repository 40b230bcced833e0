"""Columns that are filled some hundred values at a time, of one kind or null. No I/O."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.reading_types import ARROW_TYPES

__all__ = ["Column", "column_of", "packed"]


class Column(Protocol):
    """One reading's values, in their order."""

    def add(self, values: Sequence[Any]) -> None:
        """Take the next values."""

    def array(self) -> pa.Array:
        """All of them."""


def column_of(kind: str, rows: int) -> Column:
    """An empty column for at most so many values of this kind."""
    return _Numbers(rows) if kind == "number" else _Values(kind)


def packed(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Floats as an array: in a quarter of the time that numpy takes for them, and a fifth of Arrow's. struct.error at a null."""
    return np.frombuffer(struct.pack(f"{len(values)}d", *values))


class _Numbers:
    """Floats."""

    def __init__(self, rows: int) -> None:
        self._values, self._count, self._nulls = np.empty(rows), 0, False

    def add(self, values: Sequence[float | None]) -> None:
        first, self._count = self._count, self._count + len(values)
        try:
            self._values[first : self._count] = packed(values)  # type: ignore[arg-type]
        except struct.error:  # a null, which numpy takes for NaN; JSON has none
            self._values[first : self._count] = values
            self._nulls = True

    def array(self) -> pa.Array:
        return pa.array(self._values[: self._count], from_pandas=self._nulls)


class _Values:
    """Whatever Arrow makes of them."""

    def __init__(self, kind: str) -> None:
        self._type, self._parts = ARROW_TYPES[kind], []  # type: tuple[pa.DataType, list[pa.Array]]

    def add(self, values: Sequence[Any]) -> None:
        self._parts.append(pa.array(values, self._type))

    def array(self) -> pa.Array:
        return pa.concat_arrays([pa.array([], self._type), *self._parts])
