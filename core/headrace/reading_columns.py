"""Rows of readings become columns, one per name, by the rules of `headrace.decoding`. No I/O.

Rows of the same names go through together, a column at a time; a row costs more only where its names are its own, and a value only
where it does not fit its column.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.encodings import Readings
from headrace.event_time import TIME
from headrace.reading_types import ARROW_TYPES, FITTING, OTHER, ReadingTypes

__all__ = ["Cells", "Gathered", "Regular", "columns_of", "flat", "gather", "gather_odd", "readings_array"]

_encode = msgspec.json.Encoder()
_NOTHING: Final = type(None)
_LAST: Final = 1 << 62
_NUMBERS: Final[dict[tuple[str | type, ...], Any]] = {
    ("number", float): np.float64,
    ("number", int): np.float64,
    ("integer", int): np.int64,
}
_INT64: Final = range(-(2**63), 2**63)

#: Of each value of a column, the row that it stands in.
Rows = Sequence[int] | npt.NDArray[np.int64]
#: What fits no column, by row and name.
Others = dict[int, Readings]


class Cells(NamedTuple):
    """One name's values, and the rows that they stand in (None: one in each row, in order)."""

    values: list[Any]
    rows: list[int] | None

    def row(self, place: int) -> int:
        """The row of the value at that place."""
        return place if self.rows is None else self.rows[place]


class Regular(NamedTuple):
    """Columns of readings that were read as what they are, and the rows that they stand in (None: each row has its place, null where
    others say what it holds)."""

    columns: dict[str, pa.Array]
    rows: Rows | None


class Gathered(NamedTuple):
    """The values of so many `events` by name, names in order of appearance.

    kinds: the types of each name's values. rows: the events that hold a name that is new, or a value that does not fit, as they are,
    for the order in which they name things (others may be left out). objects: the names that stood for objects; None where nobody
    looked. regular: what is in columns already, of other rows.
    """

    events: int
    cells: dict[str, Cells]
    kinds: dict[str, set[type]]
    rows: Sequence[Readings] | Mapping[int, Readings]
    objects: frozenset[str] | None = None
    regular: Regular = Regular({}, None)


def readings_array(rows: list[Readings], types: ReadingTypes) -> tuple[pa.StructArray, int]:
    """All readings as one struct array (children in order of appearance), and how many values went to `_other`."""
    return columns_of(gather(rows), types)


def columns_of(gathered: Gathered, types: ReadingTypes) -> tuple[pa.StructArray, int]:
    """As `readings_array`; what was gathered stays as it is."""
    _learn(gathered, types)
    others: Others = {}
    fields, arrays = [], []
    for name in dict.fromkeys((*gathered.regular.columns, *gathered.cells)):
        kind = types.types.get(name)
        array, rows = _all_of(name, gathered, kind, others)
        if kind is not None and array.null_count < len(array):
            fields.append(types.field(name))
            arrays.append(array if rows is None else _spread(array, rows, gathered.events))
    if others:
        fields.append(pa.field(OTHER, pa.string()))
        arrays.append(_texts(gathered, others))
    if not arrays:
        return pa.array([{}] * gathered.events, pa.struct([])), 0
    return pa.StructArray.from_arrays(arrays, fields=fields), sum(map(len, others.values()))


def gather(rows: list[Readings]) -> Gathered:
    """The values of these events by name; nested objects have dotted names."""
    cells = _gather(rows)
    kinds = {name: set(map(type, found.values)) for name, found in cells.items()}
    named: Sequence[Readings] = rows
    objects: set[str] = set()
    if any(dict in found for found in kinds.values()):
        unnested = _unnested(cells, kinds, objects)
        if unnested is None:  # `a.b` and `a` with a `b` in it: in one event the last counts
            named = [flat(row) for row in rows]
            unnested = _gather(named)
        else:
            named = _Flat(rows)
        cells = unnested
        kinds = {name: set(map(type, found.values)) for name, found in cells.items()}
    return Gathered(len(rows), cells, kinds, named, frozenset(objects))


def gather_odd(rows: dict[int, Readings], events: int, regular: Regular) -> Gathered:
    """The values of these of so many events, without objects, and of all the others."""
    places = list(rows)
    cells = {
        name: Cells(values, places if of_rows is None else [places[row] for row in of_rows])
        for name, (values, of_rows) in _gather(list(rows.values())).items()
    }
    return Gathered(events, cells, {name: set(map(type, found.values)) for name, found in cells.items()}, rows, None, regular)


class _Flat(Sequence[Readings]):
    """The events with dotted names, made when they are asked for."""

    def __init__(self, rows: list[Readings]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return flat(self._rows[index])


def _unnested(cells: dict[str, Cells], kinds: dict[str, set[type]], objects: set[str]) -> dict[str, Cells] | None:
    """The members of nested objects under names of their own, and which names were `objects`; None where a name is there twice."""
    found: dict[str, Cells] = {}
    for name, one in cells.items():
        if dict not in kinds[name]:
            if name in found:
                return None
            found[name] = one
            continue
        places = [place for place, value in enumerate(one.values) if type(value) is dict]
        inner = gather([one.values[place] for place in places])
        objects |= {name, *(f"{name}.{within}" for within in inner.objects or ())}
        rows = [one.row(place) for place in places]
        for member, (values, of_rows) in inner.cells.items():
            if (dotted := f"{name}.{member}") in found or dotted in cells:
                return None
            found[dotted] = Cells(values, rows if of_rows is None else [rows[row] for row in of_rows])
        if len(places) < len(one.values):
            rest = [place for place, value in enumerate(one.values) if type(value) is not dict]
            if name in found:
                return None
            found[name] = Cells([one.values[place] for place in rest], [one.row(place) for place in rest])
    return found


def _gather(rows: list[Readings]) -> dict[str, Cells]:
    names = list(rows[0]) if rows else []
    if set(map(len, rows)) == {len(names)}:
        try:
            return {name: Cells(list(map(itemgetter(name), rows)), None) for name in names}
        except KeyError:
            pass  # as many names, but others
    shapes: dict[tuple[str, ...], list[int]] = {}
    for index, shape in enumerate(map(tuple, rows)):
        shapes.setdefault(shape, []).append(index)
    found: dict[str, Cells] = {}
    for shape, indexes in shapes.items():
        alike = [rows[index] for index in indexes]
        for name in shape:
            cells = found.get(name)
            if cells is None:
                cells = found[name] = Cells([], [])
            assert cells.rows is not None
            cells.rows.extend(indexes)
            cells.values.extend(map(itemgetter(name), alike))
    return found


def _learn(gathered: Gathered, types: ReadingTypes) -> None:
    """Give new names their kinds, in the order of the events: it must not matter how they fell into batches."""
    news: list[tuple[int, int, str, Any]] = []
    for name, cells in gathered.cells.items():
        if types.knows(name):
            continue
        given = ((cells.row(place), value) for place, value in enumerate(cells.values) if value is not None)
        row, value = min(given, key=itemgetter(0), default=(-1, None))
        if row >= 0:
            # a time that stays a reading comes last
            news.append((row, _LAST if name == TIME else list(gathered.rows[row]).index(name), name, value))
    for _, _, name, value in sorted(news, key=itemgetter(0, 1)):
        types.type_of(name, value)


def _all_of(name: str, gathered: Gathered, kind: str | None, others: Others) -> tuple[pa.Array, Rows | None]:
    """A reading's values, and the rows that they stand in; what does not fit its kind moves to `others`, by row."""
    regular, rows = gathered.regular.columns.get(name), gathered.regular.rows
    cells = gathered.cells.get(name)
    if cells is None:
        return regular, rows
    more = _column(name, cells, kind, gathered.kinds[name], others)
    if regular is None:
        return more, cells.rows
    assert cells.rows is not None  # they are of other events
    if rows is None:
        return _with_values(regular, more, cells.rows), None
    return pa.concat_arrays([regular, more]), np.concatenate((np.asarray(rows), np.asarray(cells.rows)))


def _column(name: str, cells: Cells, kind: str | None, kinds: set[type], others: Others) -> pa.Array:
    """Values as an array of this kind, as far as they fit."""
    fitting = FITTING[kind]
    if not kinds <= fitting | {_NOTHING}:
        cells = _own(cells)
        for place, value in enumerate(cells.values):
            if value is not None and type(value) not in fitting:
                _set_aside(name, cells, place, others)
    if kind is None:
        return pa.nulls(len(cells.values))
    if kind == "string" and list in kinds:
        return pa.array([_encode.encode(value).decode() if isinstance(value, list) else value for value in cells.values], pa.string())
    if (array := _without_nulls(cells.values, kind, kinds - {_NOTHING})) is not None:
        return array
    if kind == "integer":
        return _integers(name, _own(cells), kinds, others)
    try:
        return pa.array(cells.values, ARROW_TYPES[kind])
    except pa.ArrowInvalid:  # integers beyond 2**53
        return _numbers(name, _own(cells), others)


def _without_nulls(values: list[Any], kind: str, kinds: set[type]) -> pa.Array | None:
    """Numbers of one type in every row, which numpy takes in a third of Arrow's time; None where there is anything else."""
    numbers = _NUMBERS.get((kind, *kinds))
    if numbers is None:
        return None
    try:
        array = np.fromiter(values, numbers, len(values))
    except (TypeError, OverflowError):  # a null; an integer that is too big
        return None
    return None if np.isnan(array).any() else pa.array(array)  # to numpy a null among floats is not a number


def _own(cells: Cells) -> Cells:
    """To be changed without changing what was gathered."""
    return Cells(list(cells.values), cells.rows)


def _numbers(name: str, cells: Cells, others: Others) -> pa.Array:
    """The nearest float64, as every JSON reader with doubles does."""
    if None not in cells.values:
        try:
            return pa.array(np.array(cells.values, np.float64))
        except OverflowError:
            pass
    for place, value in enumerate(cells.values):
        try:
            cells.values[place] = None if value is None else float(value)
        except OverflowError:
            _set_aside(name, cells, place, others, str(value))
    return pa.array(cells.values, pa.float64())


def _integers(name: str, cells: Cells, kinds: set[type], others: Others) -> pa.Array:
    """Whole numbers of 64 bits; 20.0 is one."""
    if float in kinds:
        for place, value in enumerate(cells.values):
            if type(value) is float:
                if value.is_integer() and int(value) in _INT64:
                    cells.values[place] = int(value)
                else:
                    _set_aside(name, cells, place, others)
    try:
        return pa.array(cells.values, pa.int64())
    except (pa.ArrowInvalid, OverflowError):
        for place, value in enumerate(cells.values):
            if value is not None and value not in _INT64:
                _set_aside(name, cells, place, others, str(value))
        return pa.array(cells.values, pa.int64())


def _set_aside(name: str, cells: Cells, place: int, others: Others, text: str | None = None) -> None:
    value = cells.values[place]
    if text is None and type(value) is float and not math.isfinite(value):
        text = str(value)  # JSON has no number for it
    others.setdefault(cells.row(place), {})[name] = value if text is None else text
    cells.values[place] = None


def _spread(array: pa.Array, rows: Rows, count: int) -> pa.Array:
    """The values in their rows, nulls between them."""
    if len(rows) == count and np.array_equal(rows, np.arange(count)):
        return array
    places = np.full(count, -1, np.int64)
    places[rows] = np.arange(len(rows))
    return array.take(pa.array(places, mask=places < 0))


def _with_values(array: pa.Array, values: pa.Array, rows: list[int]) -> pa.Array:
    """The array with these values in these rows."""
    places = np.arange(len(array))
    places[rows] = len(array) + np.arange(len(rows))
    return pa.concat_arrays([array, values]).take(pa.array(places))


def _texts(gathered: Gathered, others: Others) -> pa.Array:
    """The `_other` of each row: names in the order in which the event has them, a time last."""
    texts: list[str | None] = [None] * gathered.events
    for row, misfits in others.items():
        named = (*(name for name in gathered.rows[row] if name != TIME), TIME) if len(misfits) > 1 else misfits
        texts[row] = _encode.encode({name: misfits[name] for name in named if name in misfits}).decode()
    return pa.array(texts, pa.string())


def flat(row: Readings) -> Readings:
    """An event with dotted names in place of nested objects."""
    return dict(_members(row, "")) if dict in map(type, row.values()) else row


def _members(row: Readings, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, dict):
            yield from _members(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
