"""The contract of decoders: one row per payload, bad ones named, whatever the bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa

from headrace.encodings import STORED
from headrace.testing.context import living, run
from headrace.testing.contract import Contract
from headrace.testing.crash import test_seed


class DecoderContract(Contract):
    """Subclass it as `TestMyDecoder`, with `make(context)`, `good_payloads()` and, where there are any, `bad_payloads()`."""

    role = "decoder"

    def good_payloads(self) -> Sequence[tuple[bytes, dict[str, Any]]]:
        """At least two payloads with the readings that they hold (null readings left out)."""
        raise NotImplementedError(f"{type(self).__name__} must define good_payloads(self)")

    def bad_payloads(self) -> Sequence[bytes]:
        """Payloads that do not decode; the kit adds random bytes, which may or may not."""
        return ()

    def test_its_encodings_have_numbers_of_their_own(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            encodings = dict(hook.decode_encodings())
            assert encodings, "expected at least one encoding, got none"
            assert len(set(encodings.values())) == len(encodings), f"expected a number per encoding, got {encodings}"
            for name, number in encodings.items():
                assert isinstance(name, str)
                assert name, "an encoding needs a name"
                assert 0 < number <= 255, f"encoding {name!r}: expected a number from 1 to 255, got {number}"
                assert number not in STORED, f"encoding {name!r}: expected none of the core's own numbers, got {number}"
            assert dict(hook.decode_encodings()) == encodings, "decode_encodings must be constant"

        self._with(tmp_path, check)

    def test_good_payloads_give_their_readings_in_order(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            payloads, expected = zip(*self.good_payloads(), strict=True)
            for encoding in hook.decode_encodings().values():
                rows, bad = self._decode(hook, payloads, encoding)
                assert bad == [], f"expected no bad rows among good_payloads(), got {bad}"
                assert rows == list(expected), f"expected {list(expected)}, got {rows}"
                backwards, _ = self._decode(hook, payloads[::-1], encoding)
                assert backwards == rows[::-1], "rows do not follow their payloads"

        self._with(tmp_path, check)

    def test_no_payload_and_a_slice_are_fine(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            payloads = [payload for payload, _ in self.good_payloads()]
            encoding = next(iter(hook.decode_encodings().values()))
            assert self._decode(hook, [], encoding) == ([], [])
            whole, _ = self._decode(hook, payloads, encoding)
            part = pa.array(payloads, pa.binary()).slice(1)
            assert self._take(hook.decode(payloads=part, encoding=encoding), len(part))[0] == whole[1:], "a slice decodes to something else"

        self._with(tmp_path, check)

    def test_bad_payloads_are_named_and_cost_the_others_nothing(self, tmp_path: Path) -> None:
        async def check(hook: Any) -> None:
            good, expected = self.good_payloads()[0]
            for encoding in hook.decode_encodings().values():
                for payload in self.bad_payloads():
                    rows, bad = self._decode(hook, [good, payload, good], encoding)
                    assert bad == [1], f"payload {payload[:40]!r}: expected it to be named as bad, got {bad}"
                    assert rows == [expected, {}, expected], f"payload {payload[:40]!r}: expected nulls for it alone, got {rows}"

        self._with(tmp_path, check)

    def test_no_bytes_make_it_fail(self, tmp_path: Path) -> None:
        seed = test_seed()
        rng = Random(seed)
        good = [payload for payload, _ in self.good_payloads()]

        def mangled() -> bytes:
            payload = bytearray(rng.choice(good))
            for _ in range(rng.randint(1, 4)):
                at = rng.randrange(len(payload) + 1)
                payload[at : at + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 3))
            return bytes(payload)

        async def check(hook: Any) -> None:
            for encoding in hook.decode_encodings().values():
                for _ in range(50):
                    payloads = [mangled() if rng.random() < 0.8 else rng.randbytes(rng.randint(0, 40)) for _ in range(8)]
                    rows, bad = self._decode(hook, payloads, encoding)
                    assert self._decode(hook, payloads, encoding) == (rows, bad), f"seed {seed}: decodes differently the second time"
                    for row in bad:
                        assert rows[row] == {}, f"seed {seed}: expected nulls in the bad row {row}, got {rows[row]}"

        self._with(tmp_path, check)

    def _decode(self, hook: Any, payloads: Sequence[bytes], encoding: int) -> tuple[list[dict[str, Any]], list[int]]:
        try:
            answer = hook.decode(payloads=pa.array(payloads, pa.binary()), encoding=encoding)
        except Exception as error:
            raise AssertionError(
                f"decode must name bad payloads, not raise; got {type(error).__name__}: {error}; payloads {payloads}"
            ) from error
        return self._take(answer, len(payloads))

    @staticmethod
    def _take(answer: Any, count: int) -> tuple[list[dict[str, Any]], list[int]]:
        readings, bad = answer
        assert isinstance(readings, pa.StructArray), f"expected a StructArray, got {type(readings).__name__}"
        readings.validate(full=True)
        assert len(readings) == count, f"expected one row for each of {count} payloads, got {len(readings)}"
        indexes = sorted(bad)
        assert indexes == sorted(set(indexes)), f"expected each bad row once, got {bad}"
        assert all(0 <= row < count for row in indexes), f"expected bad rows from 0 to {count - 1}, got {bad}"
        for field in readings.type:
            if field.name == "ts":
                assert field.type in (pa.string(), pa.float64()), f"expected ts as string or float64, got {field.type}"
        rows = [{name: value for name, value in (row or {}).items() if value is not None} for row in readings.to_pylist()]
        return rows, indexes

    def _with(self, tmp_path: Path, check: Any) -> None:
        async def work() -> None:
            async with living(self.make(self.context(tmp_path)), self.role) as hook:
                await check(hook)

        run(work())
