"""Backoff, fault points, positions, batches, the register and the dead letters."""

import random
import sqlite3
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from headrace import NO_ORIGINS, RAW_SCHEMA, ConfigError, Missing, Origin, RangeKey, TransientError, origin_batch
from headrace.batching import RawBatchBuilder
from headrace.engine.dead_letters import DeadLetters, Letter
from headrace.faults import Faults
from headrace.position import Named, drop_rows, global_ids, join_keys, named_rows, pack_name, row_positions, slice_origins
from headrace.register import QueueRegister, Registered
from headrace.retry import Backoff
from headrace.schema import check_batch
from headrace.testing import event_batch


def test_backoff_doubles_with_jitter_up_to_its_bound_and_starts_over() -> None:
    backoff = Backoff(100, 1000, random.Random(1))
    waits = [backoff.next_s() for _ in range(8)]
    for wait, step in zip(waits, [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0], strict=True):
        assert step / 2 <= wait <= step
    assert backoff.next_s(at_least_s=5) == 5
    backoff.reset()
    assert backoff.next_s() <= 0.1


def test_faults_act_at_the_named_pass() -> None:
    faults = Faults("a=error@2,b=bug@*")
    faults.hit("a")
    faults.hit("other")
    with pytest.raises(TransientError):
        faults.hit("a")
    faults.hit("a")
    for _ in range(2):
        with pytest.raises(RuntimeError):
            faults.hit("b")


@pytest.mark.parametrize("spec", ["a", "a=explode", "a=kill@x", "a=sleep:x"])
def test_a_fault_that_cannot_be_read_is_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match="HEADRACE_FAULTS"):
        Faults(spec)


def test_rows_lie_between_the_missing_positions() -> None:
    assert row_positions(5, 10, (Missing(6, 7, "corrupt"), Missing(10, 10, "corrupt"))).tolist() == [5, 8, 9]


def test_keys_join_only_without_a_hole() -> None:
    joined = join_keys([RangeKey("q", 1, 5, (Missing(2, 3, "corrupt"),)), RangeKey("q", 6, 6, (), (6,))])
    assert (str(joined), joined.size, joined.missing, joined.dead) == ("q/1-6", 6, (Missing(2, 3, "corrupt"),), (6,))
    with pytest.raises(ValueError, match="do not follow"):
        join_keys([RangeKey("q", 1, 5), RangeKey("q", 7, 8)])
    with pytest.raises(ValueError, match="do not follow"):
        join_keys([RangeKey("q", 1, 5), RangeKey("r", 6, 8)])


def test_events_keep_the_name_that_the_first_durable_queue_gave_them() -> None:
    origins = origin_batch([Origin("edge-1/0", 100, 101, 1), Origin("edge-2/3", 7, 7, 3), Origin("session", 1, 9, 0, kind=1)])
    origin, position = global_ids("mine", np.arange(50, 55, dtype=np.uint64), origins)
    assert origin.to_pylist() == ["mine", "edge-1", "edge-1", "edge-2", "mine"]
    assert position.to_pylist() == [50, 100, 101, 7, 54]
    assert global_ids("mine", np.arange(1, 3, dtype=np.uint64), NO_ORIGINS)[1].to_pylist() == [1, 2]


def test_a_name_given_before_the_last_link_holds_for_every_part_of_its_rows() -> None:
    origins = origin_batch([Origin("middle/lake.1", 5, 9, 0, note=pack_name("edge", 95)), Origin("middle/lake.1", 10, 11, 5)])
    assert named_rows(origins) == [Named(0, 5, "edge", 100), Named(5, 2, "middle", 10)]
    assert named_rows(slice_origins(origins, 2, 4)) == [Named(0, 3, "edge", 102), Named(3, 1, "middle", 10)]
    assert named_rows(drop_rows(origins, [1, 5], 7)) == [Named(0, 1, "edge", 100), Named(1, 3, "edge", 102), Named(4, 1, "middle", 11)]
    origin, position = global_ids("here", np.arange(70, 78, dtype=np.uint64), origins)
    assert origin.to_pylist() == ["edge"] * 5 + ["middle"] * 2 + ["here"]
    assert position.to_pylist() == [*range(100, 105), 10, 11, 77]


def test_the_builder_gives_raw_batches_in_order_and_tells_its_bounds() -> None:
    builder = RawBatchBuilder(rows_max=3, bytes_max=100)
    builder.add("a", 1, 1, b"{}")
    assert not builder.full
    builder.add("b", 2, 1, b"x" * 100)
    assert builder.full
    batch = builder.take()
    assert batch.schema.equals(RAW_SCHEMA, check_metadata=True)
    assert batch.column("device").to_pylist() == ["a", "b"]
    assert batch.column("received").cast(pa.int64()).to_pylist() == [1, 2]
    assert (builder.rows, builder.bytes, builder.full) == (0, 0, False)


def test_events_that_come_together_make_the_same_batch_as_one_by_one() -> None:
    together, one_by_one = RawBatchBuilder(rows_max=9, bytes_max=100), RawBatchBuilder(rows_max=9, bytes_max=100)
    for device, payloads in (("d1", [b"1", b"22"]), ("d2", []), ("d1", [b"333"])):
        together.extend(device, 7, 1, payloads)
        for payload in payloads:
            one_by_one.add(device, 7, 1, payload)
    assert (together.rows, together.bytes) == (one_by_one.rows, one_by_one.bytes) == (3, 6)
    assert together.take().equals(one_by_one.take())


def test_the_register_remembers_queues_until_they_are_drained(tmp_path: Path) -> None:
    register = QueueRegister(tmp_path)
    assert register.entries() == []
    register.add(Registered("edge", "queue_pmem", "/a"))
    register.add(Registered("middle", "queue_pmem", "/b"))
    register.add(Registered("edge", "queue_pmem", "/a"))
    assert [entry.path for entry in QueueRegister(tmp_path).orphans({"/b"})] == ["/a"]
    register.drained("/a")
    assert [entry.path for entry in register.entries()] == ["/b"]


def letter(position: int, output: str = "lake", payload: bytes = b"{}") -> Letter:
    return Letter("q", position, output, "output", "lake", "too odd", 1, "device", 2, 1, payload)


def test_dead_letters_are_kept_once_and_survive(tmp_path: Path) -> None:
    store = DeadLetters(tmp_path / "dead.db", 1 << 20)
    assert store.add([letter(1), letter(2), letter(3, "")]) == 3
    assert store.add([letter(2), letter(4, "other")]) == 1
    store.close()
    store.close()
    again = DeadLetters(tmp_path / "dead.db", 1 << 20)
    assert again.count == 4
    assert again.positions("q", 1, 10, "lake") == {1, 2, 3}
    assert again.positions("q", 2, 2, "lake") == {2}
    assert again.positions("other", 1, 10, "lake") == set()
    row = sqlite3.connect(tmp_path / "dead.db").execute("select payload, reason from letters where position = 1").fetchone()
    assert row == (b"{}", "too odd")


def test_full_dead_letters_refuse_and_say_what_to_do(tmp_path: Path) -> None:
    store = DeadLetters(tmp_path / "dead.db", 64 << 10)
    store.add([letter(1, payload=b"x" * (80 << 10))])
    with pytest.raises(TransientError, match=r"are full: \d+ of 65536 bytes; run `headrace dead list"):
        store.add([letter(2)])
    assert store.positions("q", 1, 9, "lake") == {1}


def test_an_unreadable_register_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "queues.json").write_bytes(b"[{")
    register = QueueRegister(tmp_path)
    with pytest.raises(ValueError, match="Expecting"):
        register.entries()
    register.set_aside_if_unreadable()
    register.add(Registered("t", "queue_pmem", "/q"))
    assert [entry.path for entry in register.entries()] == ["/q"]
    assert (tmp_path / "queues.corrupt").exists()


def test_a_batch_that_no_output_could_read_is_refused_before_it_is_stored() -> None:
    good = RawBatchBuilder(10, 1000)
    good.add("d", 1, 1, b"{}")
    batch = good.take()
    check_batch(batch)
    with pytest.raises(ValueError, match=r"headrace\.kind"):
        check_batch(batch.replace_schema_metadata(None))
    with pytest.raises(ValueError, match="expected a raw batch of device: string"):
        check_batch(batch.drop_columns(["payload"]))
    with pytest.raises(ValueError, match="in every row of 'device', got 1 nulls"):
        check_batch(batch.set_column(0, RAW_SCHEMA.field("device"), pa.array([None], pa.string())))
    with pytest.raises(ValueError, match="expected an event batch"):
        check_batch(batch.replace_schema_metadata({b"headrace.kind": b"event"}))


@pytest.mark.parametrize(
    ("column", "values", "why"),
    [
        ("device", pa.array([1, 2]), "expected an event batch"),
        ("time", pa.array([1, 2]), "expected an event batch"),
        ("received", pa.array([1, 2], pa.timestamp("ns", "UTC")), "expected an event batch"),
        ("readings", pa.array(["a", "b"]), "expected an event batch"),
        ("readings", pa.array([{"a": [1]}, None]), "numbers, booleans or texts, got a: list"),
        ("readings", pa.StructArray.from_arrays([pa.array([1.0, 2.0])] * 2, ["a", "a"]), "different names"),
        ("context", pa.nulls(2), "expected an event batch"),
        ("origin", pa.array(["a", "b"]), "expected an event batch"),
        ("position", pa.nulls(2, pa.uint64()), "got 2 nulls"),
        ("position", pa.array([0, 1], pa.uint64()), "expected positions from 1"),
        ("position", pa.array([1, 1 << 63], pa.uint64()), "expected positions from 1"),
    ],
)
def test_a_batch_of_events_has_the_columns_that_every_output_counts_on(column: str, values: pa.Array, why: str) -> None:
    """A queue that stored another one would have it read at every start, and the process would end each time."""
    batch = event_batch(2, context={"class": ["pump", None]}, readings={"a": [1.0, 2.0], "b": ["x", None], "c": [True, False], "d": [1, 2]})
    check_batch(batch)
    check_batch(batch.slice(0, 0))
    columns = [values if name == column else batch.column(name) for name in batch.schema.names]
    with pytest.raises(ValueError, match=why):
        check_batch(pa.RecordBatch.from_arrays(columns, batch.schema.names).replace_schema_metadata(batch.schema.metadata))
