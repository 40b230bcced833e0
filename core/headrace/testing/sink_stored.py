"""Sinks: what is flushed is stored, once and unchanged."""

from __future__ import annotations

from pathlib import Path

from headrace.position import Missing, RangeKey
from headrace.testing.batches import QUEUE_ID, event_batch
from headrace.testing.contract import skip
from headrace.testing.sink_bench import OTHER_QUEUE_ID, SinkBench, shown
from headrace.testing.sink_driver import way_of


class SinkStored(SinkBench):
    """One life of the sink."""

    def test_a_sink_that_holds_has_resume_or_idempotence(self, tmp_path: Path) -> None:
        component = type(self.make(self.context(tmp_path)))
        assert not component.holds or way_of(component) != "none", (
            f'{component.__name__} holds the queue: implement sink_resume, or declare idempotence = "key" or "event", or holds = False'
        )

    def test_what_is_flushed_is_stored_once_and_unchanged(self, tmp_path: Path) -> None:
        self._holding(tmp_path)
        batches = [event_batch(count, first) for count, first in ((5, 1), (1, 6), (300, 7))]
        self._store(tmp_path, batches, flush_each=True)
        self._check(tmp_path, batches)

    def test_a_flush_makes_safe_every_write_since_the_last_one(self, tmp_path: Path) -> None:
        self._holding(tmp_path)
        batches = [event_batch(20, first) for first in (1, 21, 41)]
        self._store(tmp_path, batches, flush_each=False)
        self._check(tmp_path, batches)

    def test_the_order_of_the_writes_is_kept(self, tmp_path: Path) -> None:
        self._holding(tmp_path)
        if not self.ordered:
            skip("ordered = False")
        batches = [event_batch(count, first) for count, first in ((7, 1), (2, 8), (90, 10), (1, 100), (40, 101))]
        self._store(tmp_path, batches[:3], flush_each=False)
        self._store(tmp_path, batches[3:], flush_each=True)
        positions = [position for _, position in self._stored(tmp_path)]
        assert positions == sorted(positions), f"expected the positions in order, got {shown(positions)}"
        self._check(tmp_path, batches)

    def test_a_batch_without_rows_is_taken(self, tmp_path: Path) -> None:
        self._holding(tmp_path)
        before, after = event_batch(3, 1), event_batch(3, 11)
        keys = [RangeKey(QUEUE_ID, 1, 3), RangeKey(QUEUE_ID, 4, 10, (Missing(4, 9, "corrupt"),), (10,)), RangeKey(QUEUE_ID, 11, 13)]
        self._store(tmp_path, [before, event_batch(0), after], flush_each=True, keys=keys)
        self._check(tmp_path, [before, after])
        self._expect_resume(tmp_path, QUEUE_ID, 13)

    def test_a_range_that_ends_in_missing_and_dead_positions_counts_as_held(self, tmp_path: Path) -> None:
        self._holding(tmp_path)
        batch = event_batch(0, positions=(2, 3, 5))
        key = RangeKey(QUEUE_ID, 1, 9, (Missing(6, 9, "released"),), (1, 4))
        self._store(tmp_path, [batch], flush_each=True, keys=[key])
        self._check(tmp_path, [batch])
        self._expect_resume(tmp_path, QUEUE_ID, 9)

    def test_any_text_is_stored_unchanged(self, tmp_path: Path) -> None:
        self._holding(tmp_path)
        texts = [
            "grün",
            "дача",
            "水路",
            "🌊",
            "a/b\\c",
            "../../etc",
            "%41=?&",
            '"quoted"',
            "tab\tnew\nline",
            " ",
            "x" * 500,
            "NULL",
            "\u202e",
        ]
        batch = event_batch(len(texts), 1, devices=texts, readings={"текст =/'\"": texts, "n": [float(n) for n in range(len(texts))]})
        self._store(tmp_path, [batch], flush_each=True)
        self._check(tmp_path, [batch])

    def test_odd_numbers_and_nulls_are_stored(self, tmp_path: Path) -> None:
        self._holding(tmp_path)
        numbers = [0.0, -0.0, 1e308, 5e-324, float("inf"), float("-inf"), None, 2.0**53, None]
        flags = [None, True, False, None, None, None, True, None, None]
        batch = event_batch(len(numbers), 1, readings={"value": numbers, "flag": flags}, context={"site": ["a", None] * 4 + ["b"]})
        self._store(tmp_path, [batch], flush_each=True)
        self._check(tmp_path, [batch])

    def test_fields_may_come_and_go_between_batches(self, tmp_path: Path) -> None:
        self._holding(tmp_path)
        batches = [
            event_batch(2, 1, readings={"temperature": [1.5, 2.5]}),
            event_batch(2, 3, readings={"open": [True, False], "temperature": [None, 3.0]}, context={"site": ["a", "b"]}),
            event_batch(2, 5, readings={}),
            event_batch(2, 7, readings={"state": ["on", "off"]}, context={"latitude": [1.0, None], "site": [None, "c"]}),
            event_batch(2, 9, readings={"temperature": [4.0, 5.0]}),
        ]
        self._store(tmp_path, batches, flush_each=False)
        self._check(tmp_path, batches)

    def test_slices_of_a_batch_are_stored_as_what_they_show(self, tmp_path: Path) -> None:
        self._holding(tmp_path)
        whole = event_batch(100, 1)
        shown = [whole.slice(10, 30), whole.slice(40, 1)]
        keys = [RangeKey(QUEUE_ID, 11, 40), RangeKey(QUEUE_ID, 41, 41)]
        self._store(tmp_path, shown, flush_each=False, keys=keys)
        self._check(tmp_path, shown)

    def test_events_of_another_queue_keep_their_own_name(self, tmp_path: Path) -> None:
        self._holding(tmp_path)
        batches = [event_batch(5, 9_000_001, origin=OTHER_QUEUE_ID), event_batch(5, 6)]
        keys = [RangeKey(QUEUE_ID, 1, 5), RangeKey(QUEUE_ID, 6, 10)]
        self._store(tmp_path, batches, flush_each=True, keys=keys)
        self._check(tmp_path, batches)
        self._expect_resume(tmp_path, QUEUE_ID, 10)
