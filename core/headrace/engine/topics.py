"""Under which topic an event is published: a text with fields of its context. No I/O."""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

#: In a topic, for what an event's context does not say.
UNKNOWN: Final = "unknown"
#: A topic is cut after so many characters.
TOPIC_CHARS_MAX: Final = 255
_FIELD: Final = re.compile(r"\{([^{}]+)\}")


class Topics:
    """The template `pumps/{class}/{site}` names fields of `context`, or `device`."""

    def __init__(self, template: str) -> None:
        # text and names in turns, beginning and ending with text
        self._parts = _FIELD.split(template)

    def split(self, batch: pa.RecordBatch) -> list[tuple[str, pa.RecordBatch]]:
        """The events of an event batch by topic, in the order of their first ones; those of a topic keep their order."""
        if not batch.num_rows:
            return []
        topics = pc.dictionary_encode(self._of(batch))
        names = topics.dictionary.to_pylist()
        if len(names) == 1:
            return [(names[0], batch)]
        codes = topics.indices.to_numpy()
        order = np.argsort(codes, kind="stable")
        sorted_batch = batch.take(pa.array(order))
        ends = np.cumsum(np.bincount(codes, minlength=len(names))).tolist()
        return [(name, sorted_batch.slice(first, last - first)) for name, first, last in zip(names, [0, *ends], ends, strict=False)]

    def _of(self, batch: pa.RecordBatch) -> Any:
        if len(self._parts) == 1:
            return pa.array([self._parts[0]] * batch.num_rows)
        pieces = [_texts(batch, part) if index % 2 else pa.scalar(part) for index, part in enumerate(self._parts) if index % 2 or part]
        joined = pc.binary_join_element_wise(*pieces, "") if len(pieces) > 1 else pieces[0]
        return pc.utf8_slice_codeunits(joined, 0, TOPIC_CHARS_MAX)


def _texts(batch: pa.RecordBatch, name: str) -> Any:
    if name == "device":
        return batch.column("device")
    context = batch.column("context")
    if context.type.get_field_index(name) < 0:
        return pa.array([UNKNOWN] * batch.num_rows)
    # flatten, not field: a null context has no values below it
    column = context.flatten()[context.type.get_field_index(name)]
    return pc.fill_null(pc.cast(column, pa.string()), UNKNOWN)
