"""From single events to raw batches: what a source collects while a commit is under way. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from headrace.schema import RAW_SCHEMA


class RawBatchBuilder:
    """Collects events and gives them as one batch of RAW_SCHEMA, bounded by rows and payload bytes.

    Lists and one conversion per batch: no object per event beyond the payload itself.
    """

    def __init__(self, rows_max: int, bytes_max: int) -> None:
        self.rows_max, self.bytes_max = rows_max, bytes_max
        self._clear()

    def _clear(self) -> None:
        self._devices: list[str] = []
        self._received: list[int] = []
        self._encodings: list[int] = []
        self._payloads: list[bytes] = []
        self.bytes = 0

    @property
    def rows(self) -> int:
        """Events collected so far."""
        return len(self._payloads)

    @property
    def full(self) -> bool:
        """True when a bound is reached: take before adding more."""
        return len(self._payloads) >= self.rows_max or self.bytes >= self.bytes_max

    def add(self, device: str, received_us: int, encoding: int, payload: bytes) -> None:
        """Add one event; `received_us` is Unix time in microseconds."""
        self._devices.append(device)
        self._received.append(received_us)
        self._encodings.append(encoding)
        self._payloads.append(payload)
        self.bytes += len(payload)

    def extend(self, device: str, received_us: int, encoding: int, payloads: Sequence[bytes]) -> None:
        """Add events of one device that came together: lists are joined, nothing is done per event."""
        count = len(payloads)
        if count == 1:  # half the cost, for what most sources send
            self.add(device, received_us, encoding, payloads[0])
            return
        self._devices += [device] * count
        self._received += [received_us] * count
        self._encodings += [encoding] * count
        self._payloads += payloads
        self.bytes += sum(map(len, payloads))

    def extend_for(self, devices: Sequence[str], received_us: int, encoding: int, payloads: Sequence[bytes]) -> None:
        """Add events that came together, each with a device of its own."""
        assert len(devices) == len(payloads), "one device for each payload"
        self._devices += devices
        self._received += [received_us] * len(payloads)
        self._encodings += [encoding] * len(payloads)
        self._payloads += payloads
        self.bytes += sum(map(len, payloads))

    def take(self) -> pa.RecordBatch:
        """All that was collected, in order; the builder is empty afterwards."""
        columns = [self._devices, self._received, self._encodings, self._payloads]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, RAW_SCHEMA, strict=True)]
        self._clear()
        return pa.RecordBatch.from_arrays(arrays, schema=RAW_SCHEMA)
