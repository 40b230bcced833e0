"""One decoder plugin at work: its errors answered, its result checked. What it does not decode goes to the dead letters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from headrace import decoding
from headrace.component import Clock
from headrace.config import Engine
from headrace.engine.supervisor import Supervised
from headrace.errors import HookError, PermanentError, TransientError
from headrace.log import describe
from headrace.retry import Backoff
from headrace.schema import ENCODING_SITE_FIRST

#: Rows of readings, and why rows do not decode, by index.
Decoded = tuple[list[decoding.Readings], dict[int, str]]


class Decoder:
    """One decoder of a tier."""

    def __init__(self, unit: Supervised, engine: Engine, clock: Clock, backoff: Backoff) -> None:
        self._unit, self._engine, self._clock, self._backoff = unit, engine, clock, backoff
        self.use = unit.entry.use

    def encodings(self) -> Mapping[str, int]:
        """Name -> number of what it decodes."""
        encodings: Mapping[str, int] = self._unit.hook.decode_encodings()
        return encodings

    async def decode(self, payloads: pa.Array, encoding: int) -> Decoded:
        """As long as it takes; a refusal, or a bug that survives `attempts_max` restarts, is narrowed down by halving."""
        bugs = 0
        while True:
            try:
                await self._unit.is_open()
                decoded = self._call(payloads, encoding)
            except TransientError as error:
                self._unit.failed("decode", error)
                self._unit.status("degraded", describe(error))
                await self._clock.sleep(self._backoff.next_s(error.retry_after_s))
            except PermanentError as error:
                self._unit.failed("decode", error)
                return await self._halve(payloads, encoding, describe(error))
            except Exception as error:
                bugs += 1
                self._unit.failed("decode", error)
                self._unit.log.exception("decoder failed", error, rows=len(payloads), attempt=bugs)
                if bugs >= self._engine.attempts_max:
                    return await self._halve(payloads, encoding, f"bug: {describe(error)}")
                await self._unit.restart(describe(error))
                await self._clock.sleep(self._backoff.next_s())
            else:
                if self._backoff.attempts:
                    self._backoff.reset()
                    self._unit.status("ok")
                return decoded

    def _call(self, payloads: pa.Array, encoding: int) -> Decoded:
        result = self._unit.hook.decode(payloads=payloads, encoding=encoding)
        if not isinstance(result, tuple) or len(result) != 2:
            raise HookError(self.use, f"decode must return a pair, the readings and the indexes of bad rows, got {type(result).__name__}")
        readings, bad = result
        check_decoded(self.use, len(payloads), readings, bad)
        return decoding.rows_of(readings, bad), dict.fromkeys(bad, "does not decode")

    async def _halve(self, payloads: pa.Array, encoding: int, reason: str) -> Decoded:
        if len(payloads) == 1:
            return [{}], {0: reason}
        half = len(payloads) // 2
        rows, bad = await self.decode(payloads.slice(0, half), encoding)
        more, more_bad = await self.decode(payloads.slice(half), encoding)
        return rows + more, bad | {half + row: why for row, why in more_bad.items()}


def check_encodings(decoders: Mapping[str, object]) -> str | None:
    """What is wrong with the encodings of a tier's decoders, by their ids: the complaint, or None."""
    owners: dict[int, str] = {}
    for decoder, encodings in decoders.items():
        if not isinstance(encodings, Mapping):
            return f"decoder {decoder!r}: decode_encodings must return names with their numbers, got {type(encodings).__name__}"
        for name, number in encodings.items():
            if number in owners:
                return f"decoders {owners[number]!r} and {decoder!r} both have the encoding {number}; give one of them another number"
            if type(number) is not int or not ENCODING_SITE_FIRST <= number <= 255:
                return f"decoder {decoder!r}: encoding {name!r} has the number {number!r}: a site's own are {ENCODING_SITE_FIRST}-255"
            owners[number] = decoder
    return None


def check_decoded(plugin: str, count: int, readings: object, bad: Sequence[int]) -> None:
    """What `decode` returned fits its contract, or HookError."""
    if not isinstance(readings, pa.StructArray) or len(readings) != count:
        came = f"{len(readings)} rows of {readings.type}" if isinstance(readings, pa.Array) else type(readings).__name__
        raise HookError(plugin, f"decode must return a struct array of {count} rows, got {came}")
    if strange := _strange(readings.type):
        raise HookError(plugin, f"decode must return numbers, booleans, strings, lists and structs of them, got {strange}")
    if wrong := [row for row in bad if not isinstance(row, int) or not 0 <= row < count]:
        raise HookError(plugin, f"decode must name bad rows of {count}, got {wrong[:5]}")


def _strange(kind: pa.DataType) -> str:
    """The first type in `kind` that no reading can have."""
    if pa.types.is_struct(kind):
        return next((f"{field.name}: {found}" for field in kind if (found := _strange(field.type))), "")
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _strange(kind.value_type)
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_string, pa.types.is_large_string, pa.types.is_null)
    return "" if any(test(kind) for test in tests) else str(kind)
