"""Outputs that share a tier's events by device (`spread`): each reads all of them, with a cursor of its own, and takes what is its own.

Who takes what is written down before anything is read: *stages*, each from a position on. A change of the config is a new stage behind
the last event that there was, so that what was sent, or may have been, keeps its taker; and nothing of a stage is sent before all who
share have passed the one before.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from headrace.device_hash import hashes, winners
from headrace.engine.reading import Events
from headrace.errors import ConfigError
from headrace.hookspecs import QueueInfo
from headrace.locked import replace_durably
from headrace.log import describe
from headrace.tables import OutputKeys

FILE: Final = "spread.json"
#: Kept as long as the queue holds something of them.
STAGES_MAX: Final = 64
QUEUES_MAX: Final = 16
_VERSION: Final = 1


class Stage(NamedTuple):
    """From position `first` on, `takers` share the events; whoever is in `whole` takes all of them."""

    first: int
    takers: tuple[str, ...]
    whole: tuple[str, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """All who take anything."""
        return (*self.takers, *self.whole)


Groups = dict[str, list[Stage]]


class Share:
    """What one output takes."""

    def __init__(self, output: str, stages: Sequence[Stage]) -> None:
        self._output, self._stages = output, list(stages)

    def rows(self, after: int, rows: int) -> int:
        """How many of the positions behind `after` are of one stage."""
        return min(rows, int(min(self._end(after + 1), after + rows)) - after)

    def waits_for(self, after: int, info: QueueInfo) -> list[str]:
        """Those that still have something of the stage before the position behind `after`. Who has no cursor has given it up."""
        stage = self._at(after + 1)
        if stage == 0:
            return []
        before, first = self._stages[stage - 1], self._stages[stage].first
        cursors = {reader.name: reader.cursor for reader in info.readers}
        return [name for name in before.outputs if name != self._output and cursors.get(name, first) < first - 1]

    def only(self, events: Events) -> Events:
        """What is this output's of a read within one stage."""
        stage = self._stages[self._at(events.key.first)]
        if self._output in stage.whole:
            return events
        if self._output not in stage.takers or not events.batch.num_rows:
            return events.only(np.zeros(events.batch.num_rows, bool))
        mine = stage.takers.index(self._output)
        return events.only(winners(hashes(events.batch.column("device")), stage.takers) == mine)

    def _at(self, position: int) -> int:
        return max((number for number, stage in enumerate(self._stages) if stage.first <= position), default=0)

    def _end(self, position: int) -> float:
        return min((stage.first - 1 for stage in self._stages if stage.first > position), default=math.inf)


def regroup(groups: Groups, outputs: Mapping[str, OutputKeys], info: QueueInfo, place: str) -> Groups:
    """The groups as the config has them now, from the queue's head on. ConfigError when somebody who left has not sent all of its own."""
    names = {*groups, *(keys.spread for keys in outputs.values() if keys.spread is not None)}
    found = {name: _stages(groups.get(name, []), name, outputs, info) for name in sorted(names)}
    for name, stages in found.items():
        _check(stages, name, outputs, info, place)
    return {name: stages for name, stages in found.items() if any(output in outputs for stage in stages for output in stage.outputs)}


def _stages(stages: list[Stage], group: str, outputs: Mapping[str, OutputKeys], info: QueueInfo) -> list[Stage]:
    takers = tuple(sorted(name for name, keys in outputs.items() if keys.spread == group and not keys.spread_retired))
    # one that left the group, and stays an output, has all events to itself again
    known = {name for stage in stages for name in stage.outputs}
    whole = tuple(sorted(name for name in known if name in outputs and outputs[name].spread is None))
    if not stages:
        # What an output sent before it had a group was everything. Several that have sent are a group whose file is gone, or a queue that
        # was brought here: they shared.
        before = tuple(name for name in takers if any(reader.name == name for reader in info.readers))
        stages = [Stage(1, (), before) if len(before) == 1 else Stage(1, takers)]
    if stages[-1][1:] != (takers, whole):
        stages = [*(stage for stage in stages if stage.first <= info.head), Stage(info.head + 1, takers, whole)]
    return [stage for stage, after in zip(stages, [*stages[1:], None], strict=True) if after is None or after.first > info.tail]


def _check(stages: list[Stage], group: str, outputs: Mapping[str, OutputKeys], info: QueueInfo, place: str) -> None:
    cursors = {reader.name: reader.cursor for reader in info.readers}
    ends = [min(after.first - 1, info.head) for after in stages[1:]] + [info.head]
    for stage, end in zip(stages, ends, strict=True):
        for name in stage.outputs:
            if name not in outputs and cursors.get(name, end) < end:
                raise ConfigError(
                    "config", f"{place}.{name}", f'the output that has {end - cursors[name]:,} positions of spread = "{group}" yet to pass',
                    "no such output", "put it back, spread_retired = true, until its lag is 0, or give it up: queue readers remove",
                )  # fmt: skip
            if name in outputs and outputs[name].spread not in (None, group):
                raise ConfigError(
                    "config", f"{place}.{name}.spread", f'"{group}", or none', f'"{outputs[name].spread}"', "give that group another output"
                )  # fmt: skip
    if not stages[-1].outputs and any(keys.spread == group for keys in outputs.values()):
        raise ConfigError("config", place, f'an output with spread = "{group}" that is not retired', "none", "nobody would take the events")
    if len(stages) > STAGES_MAX:
        raise ConfigError("config", place, f'at most {STAGES_MAX} changes of spread = "{group}" while events of all are queued', "one more")


def shares(groups: Groups, outputs: Mapping[str, OutputKeys]) -> dict[str, Share]:
    """By output. One that is retired takes nothing, even where no stage has ever named it."""
    found = {name: Share(name, stages) for stages in groups.values() for stage in stages for name in stage.outputs if name in outputs}
    return {**found, **{name: Share(name, groups[keys.spread]) for name, keys in outputs.items() if keys.spread is not None}}


def gone(groups: Groups, outputs: Mapping[str, OutputKeys], info: QueueInfo) -> list[str]:
    """Readers of those that left, and have nothing more to send: their cursors are in nobody's way any more."""
    left = {name for stages in groups.values() for stage in stages for name in stage.outputs} - outputs.keys()
    return [reader.name for reader in info.readers if reader.name in left]


def load(folder: Path, queue: str) -> Groups:
    """What was kept of this queue. ConfigError when it cannot be read: nobody knows then who has sent what."""
    return _read(folder / FILE).get(queue, {})


def keep(folder: Path, queue: str, groups: Groups) -> None:
    """Durable on return. What is known of other queues that were here (see `headrace drain`) stays, of the last few."""
    folder.mkdir(parents=True, exist_ok=True)
    known = _read(folder / FILE)
    known.pop(queue, None)
    queues = {**dict(list(known.items())[1 - QUEUES_MAX :]), queue: groups}
    content = {name: {group: [stage._asdict() for stage in stages] for group, stages in each.items()} for name, each in queues.items()}
    replace_durably(folder / FILE, json.dumps({"version": _VERSION, "queues": content}).encode())


def _read(file: Path) -> dict[str, Groups]:
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_bytes())
        if content["version"] != _VERSION:
            raise ValueError(f"version {content['version']}")
        return {
            queue: {name: [_stage(stage) for stage in stages] for name, stages in groups.items()}
            for queue, groups in content["queues"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            str(file), "", "the stages of spread outputs, as this version writes them", f"what cannot be read ({describe(error)})",
            "restore it, or remove it, at the risk of doubles",
        ) from error  # fmt: skip


def _stage(content: Any) -> Stage:
    return Stage(int(content["first"]), tuple(content["takers"]), tuple(content["whole"]))
