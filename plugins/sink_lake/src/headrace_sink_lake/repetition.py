"""Whether the values of a column repeat, by a look at some of them. No I/O."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

#: Where more than this share of the values differ, a dictionary saves nothing. Below it the file becomes smaller (temperatures in
#: hundredths: 1.5 bytes a value); a column of noise or a counter costs 80 to 200 ns a value with one, and a text of its own in each row 60.
DISTINCT_SHARE: Final = 0.5
SAMPLE_ROWS: Final = 4096
#: A look at so few spares the larger sample where values repeat, as they mostly do.
GLANCE_ROWS: Final = 128


def hardly_repeats(values: pa.Array) -> bool:
    """Whether most of the values differ; not where few of them are there at all."""
    if isinstance(values, pa.DictionaryArray):
        return bool(len(values.dictionary) > DISTINCT_SHARE * (len(values) - values.null_count))
    glance = _sample(values, GLANCE_ROWS)
    if len(glance) and _distinct(glance) <= DISTINCT_SHARE:
        return False
    rows = min(SAMPLE_ROWS, len(values))
    sample = _sample(values, rows)
    return len(sample) >= max(1, rows // 16) and _distinct(sample) > DISTINCT_SHARE


def _sample(values: pa.Array, rows: int) -> pa.Array:
    return values.take(pa.array(np.linspace(0, len(values) - 1, rows).astype(np.int64))).drop_null()


def _distinct(values: pa.Array) -> float:
    return float(pc.count_distinct(values).as_py()) / len(values)
