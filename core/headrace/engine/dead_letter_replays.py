"""The queue in the dead letters' file of what is to go through again. Blocking; the tables are in `dead_letter_file`.

A letter that a person wants replayed gets the next number of each output that it is for. A number is a position under a queue id
that is new at every start of the tier (DELIVERY 2: a store that was restored from a backup must not give a number to another
letter), and numbers never go back. A row is `queued` until its output reported it safe (`done`) or refused it again (`refused`).
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from headrace.engine.dead_letter_file import settle
from headrace.engine.dead_letters import ALL_OUTPUTS, DeadLetters, Letter
from headrace.hookspecs import Plan, QueueSpan

#: Letters that get their numbers in one transaction.
ASSIGN_ROWS: Final = 2000


class Reader(NamedTuple):
    """Where one output's replays stand: the last number given, the last one settled, and the range it is about to write."""

    head: int
    cursor: int
    plan: Plan | None
    spans: tuple[QueueSpan, ...]


class Queued(NamedTuple):
    """One letter on its way; `letter` is None where its content is gone."""

    number: int
    queue_id: str
    letter: Letter | None


class Assigned(NamedTuple):
    """queued: letters that got numbers. nowhere: letters for which no output of the tier is there, by the output that refused them."""

    queued: int
    nowhere: Mapping[str, int]


class Replays:
    """What is to be replayed. Every method raises TransientError when the file fails."""

    def __init__(self, letters: DeadLetters) -> None:
        self._letters, self._db = letters, letters.db
        self._id = str(uuid.uuid4())
        self._version = -1

    def changed(self) -> bool:
        """Whether somebody else wrote to the file since the last call: a command has been here."""
        version = self._db.execute("pragma data_version").fetchone()[0]
        known, self._version = self._version, version
        return bool(known != version)

    def assign(self, outputs: Mapping[str, bool]) -> Assigned:
        """Give numbers to letters that wait for them: to each of `outputs` that the letter is for, and that has not taken it.
        outputs: the ids of those that can replay, and whether they take events (the others have what does not decode)."""
        try:
            with self._db:
                return self._assign(outputs)
        except sqlite3.Error as error:
            raise self._letters.failing(error) from error

    def _assign(self, outputs: Mapping[str, bool]) -> Assigned:
        heads: dict[str, int] = {}
        nowhere: dict[str, int] = {}
        waiting = self._db.execute(
            "select seq, output from letters where state = 'queued' "
            "and not exists (select 1 from replays where replays.seq = letters.seq and replays.state = 'queued') order by seq limit ?",
            (ASSIGN_ROWS,),
        ).fetchall()
        for seq, refused_by in waiting:
            wanted = [output for output, events in outputs.items() if output == refused_by or (refused_by == ALL_OUTPUTS and events)]
            if not wanted:
                nowhere[refused_by] = nowhere.get(refused_by, 0) + 1
                self._db.execute("update letters set state = 'dead' where seq = ?", (seq,))
            taken = {row[0] for row in self._db.execute("select output from replays where seq = ? and state = 'done'", (seq,))}
            fresh = [output for output in wanted if output not in taken]
            if wanted and not fresh:
                self._settle(seq)
            for output in fresh:
                heads[output] = (heads.get(output) or self._reader(output)[0]) + 1
                self._db.execute(
                    "insert into replays (output, number, queue_id, seq, state) values (?, ?, ?, ?, 'queued')",
                    (output, heads[output], self._id, seq),
                )
        for output, head in heads.items():
            self._db.execute("update replay_readers set head = ? where output = ?", (head, output))
        return Assigned(len(waiting) - sum(nowhere.values()), nowhere)

    def _reader(self, output: str) -> tuple[int, int, str | None]:
        self._db.execute("insert or ignore into replay_readers (output, head, cursor) values (?, 0, 0)", (output,))
        head, cursor, plan = self._db.execute("select head, cursor, plan from replay_readers where output = ?", (output,)).fetchone()
        return head, cursor, plan

    def reader(self, output: str) -> Reader:
        """Where the output's replays stand."""
        try:
            with self._db:
                head, cursor, plan = self._reader(output)
            spans = self._db.execute(
                "select queue_id, min(number), max(number) from replays where output = ? and number > ? group by queue_id order by 2",
                (output, cursor),
            ).fetchall()
        except sqlite3.Error as error:
            raise self._letters.failing(error) from error
        # behind the last one nothing is known: as for a queue, the end of the id in use is open
        named = [
            QueueSpan(queue_id, first, last if place < len(spans) - 1 else None) for place, (queue_id, first, last) in enumerate(spans)
        ]
        return Reader(head, cursor, _plan_of(plan), tuple(named))

    def outputs_with_queued(self) -> set[str]:
        """The outputs for which something is queued."""
        try:
            return {row[0] for row in self._db.execute("select output from replay_readers where head > cursor")}
        except sqlite3.Error as error:
            raise self._letters.failing(error) from error

    def read(self, output: str, after: int, upto: int, rows_max: int) -> list[Queued]:
        """What is queued behind `after`, at most `rows_max` of one queue id, in the order of the numbers."""
        columns = ", ".join(f"letters.{name}" for name in Letter._fields)
        try:
            rows = self._db.execute(
                f"select number, replays.queue_id, letters.seq is not null, {columns} "
                "from replays left join letters on letters.seq = replays.seq "
                "where replays.output = ? and number > ? and number <= ? order by number limit ?",
                (output, after, upto, rows_max),
            ).fetchall()
        except sqlite3.Error as error:
            raise self._letters.failing(error) from error
        return [
            Queued(number, queue_id, Letter(*letter) if there else None)
            for number, queue_id, there, *letter in rows
            if queue_id == rows[0][1]
        ]

    def plan(self, output: str, plan: Plan | None) -> None:
        """Keep the range that the output is about to write; durable on return."""
        try:
            with self._db:
                self._db.execute("update replay_readers set plan = ? where output = ?", (json.dumps(plan) if plan else None, output))
        except sqlite3.Error as error:
            raise self._letters.failing(error) from error

    def release(self, output: str, upto: int) -> int:
        """Everything up to there is safe in the output, but for what it refused again; how many letters it newly has."""
        try:
            with self._db:
                seqs = [
                    row[0]
                    for row in self._db.execute(
                        "select seq from replays where output = ? and number <= ? and state = 'queued' order by number", (output, upto)
                    )
                ]
                self._db.execute("update replays set state = 'done' where output = ? and number <= ? and state = 'queued'", (output, upto))
                self._db.execute("update replay_readers set cursor = max(cursor, ?) where output = ?", (upto, output))
                for seq in seqs:
                    self._settle(seq)
        except sqlite3.Error as error:
            raise self._letters.failing(error) from error
        return len(seqs)

    def refuse(self, output: str, numbers: Sequence[int], stage: str, component: str, reason: str, refused_us: int) -> int:
        """The output refused these again: the letters stay, with the new reason; durable on return. How many were new."""
        new = 0
        try:
            with self._db:
                for number in numbers:
                    row = self._db.execute(
                        "select seq from replays where output = ? and number = ? and state = 'queued'", (output, number)
                    ).fetchone()
                    if row is None:
                        continue  # told again after a crash
                    new += 1
                    self._db.execute(
                        "update replays set state = 'refused', stage = ? where output = ? and number = ?", (stage, output, number)
                    )
                    # the stage stays: it says which outputs must leave the original position out
                    self._db.execute(
                        "update letters set attempts = attempts + 1, reason = ?, refused_us = ? where seq = ?",
                        (f"{component}, at {stage}: {reason}", refused_us, row[0]),
                    )
                    self._settle(row[0])
        except sqlite3.Error as error:
            raise self._letters.failing(error) from error
        return new

    def refused(self, output: str, queue_id: str, first: int, last: int, stage: str) -> set[int]:
        """The numbers in first..last that the output refused again: every rewrite leaves them out."""
        try:
            rows = self._db.execute(
                "select number from replays where output = ? and queue_id = ? and number between ? and ? "
                "and state = 'refused' and stage like ?",
                (output, queue_id, first, last, stage),
            )
            return {row[0] for row in rows}
        except sqlite3.Error as error:
            raise self._letters.failing(error) from error

    def _settle(self, seq: int) -> None:
        """Once nobody has yet to answer: replayed where every output that it was for has it, else dead again."""
        states: dict[str, set[str]] = {}
        for output, state in self._db.execute("select output, state from replays where seq = ?", (seq,)):
            states.setdefault(output, set()).add(state)
        if any("queued" in seen for seen in states.values()):
            return
        if all("done" in seen for seen in states.values()):
            settle(self._db, seq)
        else:
            self._db.execute("update letters set state = 'dead' where seq = ?", (seq,))


def _plan_of(text: str | None) -> Plan | None:
    if text is None:
        return None
    first, last, attempts, excluded = json.loads(text)
    return Plan(first, last, attempts, tuple(excluded))
