"""`headrace queue info|check|dump|export|repair|readers PATH`: what the person on call needs."""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import pyarrow as pa

from headrace import RAW_SCHEMA, HeadraceError, QueueError, origins_of
from headrace_queue_pmem.inspection import Content, Inspection, Verdict, check, contents, inspect
from headrace_queue_pmem.lock import Lock, holder
from headrace_queue_pmem.marks import Marks
from headrace_queue_pmem.medium import FileMedium, Medium
from headrace_queue_pmem.pmem import PmemMedium
from headrace_queue_pmem.quarantine import Quarantine
from headrace_queue_pmem.recovery import recover
from headrace_queue_pmem.ring import Ring
from headrace_queue_pmem.scanning import Report
from headrace_queue_pmem.state import Options
from headrace_queue_pmem.upkeep import close, store_cursors

#: How often long work says how far it is; short work says nothing.
PROGRESS_S: Final = 2.0


class Progress:
    """Says on stderr how far a walk through a queue has got. Called with the bytes of each piece."""

    def __init__(self, what: str, found: Inspection) -> None:
        self._what, self._bytes, self._done, self._due = what, found.bytes, 0, time.monotonic() + PROGRESS_S

    def __call__(self, length: int) -> None:
        self._done += length
        now = time.monotonic()
        if now >= self._due:
            self._due = now + PROGRESS_S
            print(f"{self._what}: {self._done >> 20} of at most {self._bytes >> 20} MiB", file=sys.stderr, flush=True)


def command(argv: list[str]) -> int:
    """Run `headrace queue ...`; 0 is well, 1 a problem found, 2 a wrong call."""
    options = _parser().parse_args(argv)
    try:
        code = int(options.run(options))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read the lines has seen enough; nothing may be written there when the program ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (HeadraceError, OSError) as error:
        print(f"headrace queue: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="headrace queue", description="Look into a queue_pmem queue, and mend it.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("path", type=Path, help="the queue's directory")
        sub.set_defaults(run=run)
        return sub

    info = add("info", _info, "What is in the queue: sizes, queue ids, readers. Also while it runs.")
    info.add_argument("--json", action="store_true", help="as one JSON object")
    add("check", _check, "Check every frame and the head; exit code 1 when anything is wrong. Also while it runs.")
    dump = add("dump", _dump, "Print events as NDJSON, one per line.")
    _range(dump)
    dump.add_argument("--limit", type=int, default=None, help="stop after so many events")
    export = add("export", _export, "Write events into a file: .parquet, .arrow (IPC stream; both take one schema only) or .ndjson.")
    export.add_argument("output", type=Path, help="the file; its ending says the format")
    _range(export)
    repair = add("repair", _repair, "Open a stopped queue, set damage aside, make the head and second copies whole again.")
    repair.add_argument("--dry-run", action="store_true", help="only say what would be done")
    readers = add("readers", _readers, "List the readers, remove one, or move one's cursor (the queue must be stopped for that).")
    readers.add_argument("action", nargs="?", choices=["list", "remove", "rewind"], default="list")
    readers.add_argument("name", nargs="?", help="the reader")
    readers.add_argument("--to", help="for rewind: oldest, head, or the position after which it goes on")
    return parser


def _range(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--first", type=int, default=0, help="first position (default: the oldest)")
    parser.add_argument("--last", type=int, default=2**63, help="last position (default: the newest)")


# --- info and check ------------------------------------------------------------------------------------------------------


def _info(options: argparse.Namespace) -> int:
    found = inspect(options.path)
    facts = _facts(found, check(found, deep=False))
    if options.json:
        print(json.dumps(facts))
        return 0
    for key in ("path", "medium", "held_by", "events", "first", "last", "frames", "bytes", "segments", "spare_segments", "lost_events"):
        print(f"{key:16}{'nobody' if key == 'held_by' and facts[key] is None else facts[key]}")
    print("queue ids")
    for span in facts["queue_ids"]:
        print(f"  {span['id']}  {span['first']}-{span['last'] if span['last'] is not None else ''}")
    print("readers")
    for reader in facts["readers"]:
        print(f"  {reader['name']:24} cursor {reader['cursor']}, {reader['lag_events']} events behind" + _plan_text(reader["plan"]))
    for problem in facts["problems"]:
        print(f"problem: {problem}")
    print("the frames of full segments were not looked at: headrace queue check does that")
    return 0


def _plan_text(plan: Any) -> str:
    return f", plans {plan['first']}-{plan['last']} (attempt {plan['attempts']})" if plan else ""


def _facts(found: Inspection, verdict: Verdict) -> dict[str, Any]:
    readers = sorted(found.ring.head.readers.values(), key=lambda reader: reader.name)
    return {
        "path": str(found.directory),
        "medium": "libpmemobj pools" if found.pool else "files",
        "held_by": _held_by(found) if found.held else None,
        "events": verdict.events,
        "first": verdict.first,
        "last": verdict.last,
        "frames": verdict.frames,
        "bytes": verdict.bytes,
        "segments": len(found.ring.segments),
        "spare_segments": found.spare,
        "lost": [{"first": first, "last": last} for first, last in verdict.lost],
        "lost_events": sum(last - first + 1 for first, last in verdict.lost),
        "queue_ids": [{"id": str(span.id), "first": span.first, "last": span.last} for span in found.ring.head.spans],
        "readers": [
            {
                "name": reader.name,
                "start": reader.start,
                "cursor": reader.cursor,
                "lag_events": max(verdict.last - reader.cursor, 0),
                "plan": reader.plan._asdict() if reader.plan else None,
            }
            for reader in readers
        ],
        "problems": verdict.problems,
    }


def _held_by(found: Inspection) -> str:
    return holder(found.directory / "lock")


def _check(options: argparse.Namespace) -> int:
    found = inspect(options.path)
    verdict = check(found, done=Progress("checked", found))
    for problem in verdict.problems:
        print(f"problem: {problem}")
    sound = f"damaged, {verdict.missing} events are damaged or lost" if verdict.problems else "sound"
    print(f"{verdict.frames} frames with {verdict.events} events, {verdict.bytes} bytes: {sound}")
    quarantine = Quarantine(options.path)
    if verdict.problems and len(verdict.problems) == sum(quarantine.has(damage) for damage in verdict.damage):
        print("all of it was set aside before; readers are told that it is missing, until they have passed it")
    elif verdict.problems:
        who = f"stop what holds it ({_held_by(found)}), then" if found.held else "to have it set aside and mended:"
        print(f"{who} headrace queue repair {options.path} (the next start of its tier does the same)")
    return 1 if verdict.problems else 0


# --- dump and export -----------------------------------------------------------------------------------------------------


def _dump(options: argparse.Namespace) -> int:
    left, found = options.limit, inspect(options.path)
    for line in _lines(found, options.first, options.last, Progress("read", found)):
        if left is not None:
            if left <= 0:
                break
            left -= 1
        sys.stdout.write(line)
    return 0


def _lines(found: Inspection, first: int, last: int, progress: Progress) -> Iterator[str]:
    for content in contents(found, first, last, progress):
        origins = [origin._asdict() | {"note": None} for origin in origins_of(content.origins)]
        for row, values in enumerate(content.batch.to_pylist()):
            event = {"queue_id": content.queue_id, "position": content.first + row, **values}
            if row == 0 and origins:
                event["origins"] = origins
            yield json.dumps(event, default=_plain, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    """Bytes as text where they are text, as base64 where not; times in ISO 8601."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _export(options: argparse.Namespace) -> int:
    found = inspect(options.path)
    kind, progress = options.output.suffix, Progress("read", found)
    if kind not in (".parquet", ".arrow", ".ndjson"):
        raise QueueError(f"cannot export to {options.output}: expected an ending .parquet, .arrow or .ndjson, got {kind or 'none'}")
    part = options.output.with_name(options.output.name + ".part")  # a name that says events stands for all of them
    try:
        if kind == ".ndjson":
            with part.open("w") as out:
                count = sum(_write_line(out, line) for line in _lines(found, options.first, options.last, progress))
        else:
            count = _export_table(part, contents(found, options.first, options.last, progress), kind)
        part.replace(options.output)
    finally:
        part.unlink(missing_ok=True)
    print(f"{count} events to {options.output}", file=sys.stderr)
    return 0


def _write_line(out: IO[str], line: str) -> int:
    out.write(line)
    return 1


def _export_table(output: Path, frames: Iterator[Content], kind: str) -> int:
    writer: Any = None
    count = 0
    try:
        for content in frames:
            batch = _with_identity(content)
            if writer is None:
                writer = _writer(output, batch.schema, kind)
                schema = batch.schema
            if not batch.schema.equals(schema):
                raise QueueError(f"position {content.first} has columns of its own ({batch.schema.names}): export to .ndjson")
            writer.write_batch(batch)
            count += batch.num_rows
        if writer is None:  # no event: a table without rows
            names = pa.DictionaryArray.from_arrays(pa.array([], pa.int32()), pa.array([], pa.string())).type
            identity = [pa.field("queue_id", names), pa.field("queue_position", pa.uint64())]
            writer = _writer(output, pa.schema([*identity, *RAW_SCHEMA]), kind)
    finally:
        if writer is not None:
            writer.close()
    return count


def _writer(output: Path, schema: pa.Schema, kind: str) -> Any:
    if kind == ".arrow":
        return pa.ipc.new_stream(str(output), schema)
    import pyarrow.parquet as pq

    return pq.ParquetWriter(str(output), schema, compression="zstd")


def _with_identity(content: Content) -> pa.RecordBatch:
    """The batch with `queue_id` and `queue_position` in front."""
    rows = content.batch.num_rows
    names = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([content.queue_id]))
    positions = pa.array(range(content.first, content.first + rows), pa.uint64())
    fields = [pa.field("queue_id", names.type), pa.field("queue_position", pa.uint64()), *content.batch.schema]
    return pa.RecordBatch.from_arrays([names, positions, *content.batch.columns], schema=pa.schema(fields))


# --- repair and readers --------------------------------------------------------------------------------------------------


def _open(path: Path, found: Inspection) -> tuple[Ring, Report]:
    medium: Medium = PmemMedium(path, "power") if found.pool else FileMedium(path, "power")
    return recover(str(path), str(path), medium, Options(found.ring.head.segment_bytes, 1 << 60), Marks(1 << 24, 1 << 24, 1 << 24))


def _repair(options: argparse.Namespace) -> int:
    found = inspect(options.path)
    before = check(found, done=Progress("checked", found))
    if options.dry_run:
        for problem in before.problems:
            print(f"would mend or set aside: {problem}")
        print(f"problems: {len(before.problems)}" if before.problems else "nothing to do")
        return 1 if before.problems else 0
    lock = Lock(options.path)
    try:
        ring, report = _open(options.path, found)
        quarantine = Quarantine(options.path)
        # an open does not look into sealed segments: readers would meet what is damaged there
        sealed = {segment.name for segment in found.ring.segments if segment.sealed}
        known = {(damage.segment, damage.offset) for damage in report.damage}
        unseen = [damage for damage in before.damage if damage.segment in sealed and (damage.segment, damage.offset) not in known]
        for damage in [one for one in [*report.damage, *unseen] if not one.length or not quarantine.has(one)]:
            where = quarantine.keep(damage)
            if damage.length:
                print(f"set aside: positions {damage.first}-{damage.last} of {damage.segment} ({damage.reason}) {where}")
            else:
                print(f"lost: positions {damage.first}-{damage.last}: no file has them")
        for name, reason in report.set_aside:
            quarantine.set_aside(name, reason)
            print(f"set aside: {name}: {reason}")
        for repair in report.repairs:
            print(f"mended: {repair}")
        close(ring)
        ring.close()
    finally:
        lock.close()
    found = inspect(options.path)
    after = check(found, done=Progress("checked", found))
    print(f"{after.events} events in {after.frames} frames are whole, {after.missing} are damaged or lost")
    if after.missing:
        print("readers are told that these are missing; until all have passed them, check goes on to report them")
    return 0


def _readers(options: argparse.Namespace) -> int:
    found = inspect(options.path)
    if options.action == "list":
        for reader in _facts(found, check(found, deep=False))["readers"]:
            print(f"{reader['name']:24} cursor {reader['cursor']}, {reader['lag_events']} events behind" + _plan_text(reader["plan"]))
        return 0
    if options.name is None or (options.action == "rewind" and options.to is None):
        wanted = "the reader's name" if options.name is None else "where it goes on: --to oldest, head or a position"
        print(f"headrace queue readers {options.action}: give {wanted}", file=sys.stderr)
        return 2
    lock = Lock(options.path)
    try:
        ring, _report = _open(options.path, found)
        if options.name not in ring.head.readers:
            raise QueueError(f"no reader {options.name!r}; readers: {', '.join(sorted(ring.head.readers)) or 'none'}")
        if options.action == "remove":
            ring.drop_reader(options.name)
            print(f"removed {options.name}")
        else:
            print(f"{options.name} goes on behind position {_rewind(ring, options.name, options.to)}")
        close(ring)
        ring.close()
    finally:
        lock.close()
    return 0


def _rewind(ring: Ring, name: str, to: str) -> int:
    reader = ring.head.readers[name]
    if to in ("oldest", "head"):
        reader.cursor = ring.oldest if to == "oldest" else ring.upto
    elif to.isdecimal() and ring.tail - 1 <= int(to) <= ring.upto:
        reader.cursor = int(to)
    else:
        raise QueueError(f"--to: expected oldest, head or a position from {ring.tail - 1} to {ring.upto}, got {to!r}")
    ring.plan(name, None)
    store_cursors(ring)
    return reader.cursor
